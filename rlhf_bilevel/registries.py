"""Every kind of thing that users pick by name, and the module of each. CONTRIBUTING.md adds one of each in ten lines.

One of our own is a file and a line here. Imports nothing of what it names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_bilevel.utils.registry import Registry

if TYPE_CHECKING:
    from rlhf_bilevel.envs.suite import Suite
    from rlhf_bilevel.feedback.query_rules import Rule
    from rlhf_bilevel.rewards.ensemble import RewardEnsemble
    from rlhf_bilevel.training.method import Method

BASELINES = (
    "hypergradient", "incumbent", "mrn", "parl", "pebble", "prefppo", "qpa", "random", "rime", "rune", "sac", "surf",
    "twin", "unlabelled",
)  # fmt: skip
"""In the folder ``baselines`` at the top, which ``setup.py`` makes ``rlhf_bilevel.baselines``."""
METHODS: Registry[Method] = Registry(
    "method",
    {
        "penalty": "rlhf_bilevel.methods.penalty:PENALTY",
        "detached": "rlhf_bilevel.methods.detached:DETACHED",
        **{name: f"rlhf_bilevel.baselines.{name}:{name.upper()}" for name in BASELINES},
    },
    base="rlhf_bilevel.training.method:Method",
)
QUERY_RULES: Registry[Rule] = Registry(
    "query rule",
    {
        "uniform": "rlhf_bilevel.feedback.query_rules:UNIFORM",
        "disagreement": "rlhf_bilevel.feedback.query_rules:DISAGREEMENT",
        "entropy": "rlhf_bilevel.feedback.query_rules:ENTROPY",
        "information_gain": "rlhf_bilevel.feedback.query_rules:INFORMATION_GAIN",
        "k_center": "rlhf_bilevel.feedback.query_rules:K_CENTER",
        "k_center+disagreement": "rlhf_bilevel.feedback.query_rules:K_CENTER_DISAGREEMENT",
        "k_center+entropy": "rlhf_bilevel.feedback.query_rules:K_CENTER_ENTROPY",
        "k_center+information_gain": "rlhf_bilevel.feedback.query_rules:K_CENTER_INFORMATION_GAIN",
    },
    base="collections.abc:Callable",
    takes=("members", "candidates", "labelled", "count"),
)
TEACHERS: Registry[Any] = Registry("teacher", {}, base="collections.abc:Callable")
"""A ``types.Teacher``, or a class of teachers that is made with the run's ``Config`` and ``ReplayBuffer``.

Empty at first: the package's own teachers are words of ``--teacher`` (feedback/teacher_spec.py)."""
REWARD_FORMS: Registry[type[RewardEnsemble]] = Registry(
    "reward form",
    {
        "network": "rlhf_bilevel.rewards.ensemble:RewardEnsemble",
        "linear": "rlhf_bilevel.rewards.forms:LinearReward",
        "quadratic": "rlhf_bilevel.rewards.forms:QuadraticReward",
        "additive": "rlhf_bilevel.rewards.forms:AdditiveReward",
    },
    base="rlhf_bilevel.rewards.ensemble:RewardEnsemble",
    classes=True,
)
LEARNERS: Registry[type[Any]] = Registry(
    "learner",
    {
        "SAC": "stable_baselines3:SAC",
        "TD3": "stable_baselines3:TD3",
        "DDPG": "stable_baselines3:DDPG",
        "PPO": "stable_baselines3:PPO",
        "RandomPolicy": "rlhf_bilevel.learners.random:RandomPolicy",
    },
    base="builtins:type",
)
"""An off-policy algorithm of SB3, its PPO, or a class of ``types.Learner``."""
SUITES: Registry[Suite] = Registry(
    "suite",
    {
        "dm_control": "rlhf_bilevel.envs.dm_control:SUITE",
        "Meta-World": "rlhf_bilevel.envs.metaworld:SUITE",
    },
    base="rlhf_bilevel.envs.suite:Suite",
)
"""By the first part of their environments' ids."""
