"""Reward models from preferences above, Stable-Baselines3 below, coupled by a penalty on the value gap."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_bilevel.agent import Agent as Agent
    from rlhf_bilevel.runs.watch import watch as watch

__all__ = ["Agent", "watch"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; a command line with a typing error should not wait for it
    if name == "Agent":
        from rlhf_bilevel.agent import Agent

        return Agent
    if name == "watch":
        from rlhf_bilevel.runs.watch import watch

        return watch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
