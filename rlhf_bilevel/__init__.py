"""Reward models from preferences above, Stable-Baselines3 below, coupled by a penalty on the value gap."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_bilevel.agent import Agent as Agent
    from rlhf_bilevel.rewards.learned_reward import LearnedReward as LearnedReward
    from rlhf_bilevel.rewards.wrapper import LearnedRewardVecEnvWrapper as LearnedRewardVecEnvWrapper
    from rlhf_bilevel.rewards.wrapper import LearnedRewardWrapper as LearnedRewardWrapper
    from rlhf_bilevel.runs.watch import watch as watch
    from rlhf_bilevel.training.method import Method as Method
    from rlhf_bilevel.types import Teacher as Teacher

    __version__: str

MODULES = {
    "Agent": "rlhf_bilevel.agent",
    "LearnedReward": "rlhf_bilevel.rewards.learned_reward",
    "LearnedRewardVecEnvWrapper": "rlhf_bilevel.rewards.wrapper",
    "LearnedRewardWrapper": "rlhf_bilevel.rewards.wrapper",
    "Method": "rlhf_bilevel.training.method",
    "Teacher": "rlhf_bilevel.types",
    "watch": "rlhf_bilevel.runs.watch",
}
__all__ = [
    "Agent",
    "LearnedReward",
    "LearnedRewardVecEnvWrapper",
    "LearnedRewardWrapper",
    "Method",
    "Teacher",
    "__version__",
    "watch",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; a command line with a typing error should not wait for it
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    if name == "__version__":
        return version("rlhf-bilevel")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
