"""What a run is made of and a spec cannot hold: its method, its algorithm and its teacher, as objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.recorded import Replayed
from rlhf_bilevel.feedback.teacher_spec import BY_SETTINGS
from rlhf_bilevel.learners.ppo import PPOLearner
from rlhf_bilevel.registries import LEARNERS, METHODS
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.types import Learner, Teacher

SAC_ONLY = {"score_products", "temperature"}  # of ``types.Learner``
ANY_LEARNER = [part for part in vars(Learner) if hasattr(PPOLearner, part)]  # what each must have


class Parts(NamedTuple):
    """What a spec cannot hold, as it may be a user's own object."""

    method: Method
    algorithm: type[Any]  # of all learners: an algorithm of SB3, or a class of ``types.Learner``
    algorithm_settings: Mapping[str, Any] = {}  # its arguments; they take precedence over the settings
    teacher: Teacher | type[Teacher] | Replayed | None = None  # None: as the settings say

    @classmethod
    def of(
        cls,
        method: str | Method,
        algorithm: str | type[Any] | None = None,
        algorithm_settings: Mapping[str, Any] | None = None,
        teacher: Teacher | type[Teacher] | Replayed | None = None,
    ) -> Parts:
        """``method`` and ``algorithm`` may be names; the default ``algorithm`` is the method's.

        UserError if one cannot be used.
        """
        if not isinstance(method, str | Method):
            raise UserError(f"method={method!r}: give a name of {', '.join(METHODS)}, or a Method of your own")
        method = METHODS[method] if isinstance(method, str) else method
        kind = teacher if isinstance(teacher, type) else type(teacher)
        answers = any("__call__" in vars(base) for base in kind.__mro__)
        if not (teacher is None or issubclass(kind, Replayed) or answers):
            raise UserError(f"teacher={teacher!r}: give an object that can be called with queries, or words")
        return cls(method, _algorithm_of(method, algorithm), algorithm_settings or {}, teacher)

    @property
    def teacher_name(self) -> str:
        """The teacher in a run's config.yaml."""
        kind = self.teacher if isinstance(self.teacher, type) else type(self.teacher)
        return BY_SETTINGS if self.teacher is None else kind.__name__

    @property
    def algorithm_name(self) -> str:
        """The algorithm's name in a run's config.yaml."""
        name = LEARNERS.name_of(self.algorithm) or self.algorithm.__name__
        return name if LEARNERS.get(name, self.algorithm) is self.algorithm else f"another {name}"


def _algorithm_of(method: Method, algorithm: str | type[Any] | None) -> type[Any]:
    default = LEARNERS[method.algorithm]
    chosen = LEARNERS[algorithm] if isinstance(algorithm, str) and algorithm else algorithm or default
    if not isinstance(chosen, type):
        raise UserError(f"algorithm={algorithm!r} is no class: stable_baselines3.TD3 is one")
    name = algorithm if isinstance(algorithm, str) and algorithm else chosen.__name__
    if not issubclass(chosen, BaseAlgorithm):
        if lacking := [part for part in ANY_LEARNER if not hasattr(chosen, part)]:
            raise UserError(f"algorithm={name}: it is no algorithm of SB3, and no types.Learner: no {lacking[0]}")
        if lacking := [part for part in method.learner_needs if not hasattr(chosen, part)]:
            raise UserError(f"algorithm={name}: the method {method.name} needs its {lacking[0]} (types.Learner)")
    elif not issubclass(chosen, OffPolicyAlgorithm | PPO):
        raise UserError(f"algorithm={name}: of SB3's algorithms, the off-policy ones and PPO can be learners")
    if chosen is default:
        return chosen
    if default is not SAC or issubclass(chosen, PPO):
        takes = "any off-policy algorithm" if default is SAC else default.__name__
        raise UserError(f"algorithm={name}: the method {method.name} takes {takes}")
    if SAC_ONLY & set(method.learner_needs) and issubclass(chosen, BaseAlgorithm) and not issubclass(chosen, SAC):
        reason = f"the method {method.name} needs probabilities of actions, which only SAC has"
        raise UserError(f"algorithm={name}: {reason}")
    return chosen
