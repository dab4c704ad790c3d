"""What a method says of itself: which scalar the reward model descends, and which reward each learner sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from rlhf_bilevel.config import Config, Options, validate_as
from rlhf_bilevel.types import Preferences, Row, RowReward
from rlhf_bilevel.utils.serialization import Tree

if TYPE_CHECKING:
    from rlhf_bilevel.training.run import Run


class MethodState(Protocol):
    """What a method keeps from one reward step to the next: checkpoints hold it, ``Run.state`` is where it is."""

    def state_dict(self) -> Tree: ...

    def load_state_dict(self, state: Tree, /) -> None:
        """Go on from what ``state_dict`` of the same method gave."""


class Memory(dict[str, float]):
    """Numbers by name: all that most methods keep, if anything."""

    def state_dict(self) -> Tree:
        return {"memory": dict(self)}

    def load_state_dict(self, state: Tree) -> None:
        self.clear()
        self.update(state["memory"])


@dataclass(frozen=True)
class Method:
    name: str
    learners: int
    sees: Callable[[Run], Sequence[RowReward]]
    """What each learner is rewarded with; asked at the start and after each move of the reward model. Moves nothing."""
    upper: Callable[[Run, Preferences, Tensor], Tensor] | None = None
    """The scalar that the reward model descends, from labelled pairs and the members' logits on them (M, B).
    None: no reward is learnt and no label is asked."""
    agent: Callable[[Any], int] = lambda options: 0
    """The learner whose policy a user gets, by its options."""
    estimate: Callable[[Run], None] = lambda run: None
    """What is estimated anew after each move of the reward model, before learners see it."""
    diagnose: Callable[[Run], Row] = lambda run: {}
    """Metrics at each move of the reward model."""
    prepare: Callable[[Run], None] = lambda run: None
    """What happens to the reward model before its first label."""
    state: Callable[[Run], MethodState] = lambda run: Memory()
    """What it keeps, at the start of a run. Initial weights come from ``run.generator``."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # where the published method leaves Config's defaults
    options: type[Options] = Options  # hyper-parameters of its own, with their published values
    keep: bool = True  # whether a row's reward stays as it is until the reward model moves
    algorithm: str = "SAC"  # its learners', by the name that SB3 has for it
    densities: bool = False  # whether it needs their actions' probabilities: no deterministic policy will do
    arguments: Callable[[Any], Mapping[str, Any]] = lambda options: {}  # of that algorithm

    def options_of(self, config: Config) -> Any:
        """Its ``options``, as they are in a run with these settings."""
        return validate_as(self.options, config.options, f"{self.name}.")
