"""What a method is: the loss that the reward model descends, and the reward that each learner gets.

    phi descends      reward_loss(run, batch, logits)
    learner k gets    learner_rewards(run)[k]

A method may say more (see ``Method``), but these two are what tells it from all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from rlhf_bilevel.config import Config, Options
from rlhf_bilevel.config.reading import validate_as
from rlhf_bilevel.types import Metrics, Preferences, RowReward
from rlhf_bilevel.utils.serialization import Tree

if TYPE_CHECKING:
    from rlhf_bilevel.training.run import Run


class MethodState(Protocol):
    """What a method keeps from one reward step to the next. It is in ``Run.state``, and checkpoints hold it."""

    def state_dict(self) -> Tree:
        """All that changes, as plain values and tensors."""

    def load_state_dict(self, state: Tree, /) -> None:
        """Continues from the ``state_dict`` of the same method."""


class Memory(dict[str, float]):
    """Numbers by name. Most methods keep no more than this."""

    def state_dict(self) -> Tree:
        """A copy of the numbers."""
        return {"memory": dict(self)}

    def load_state_dict(self, state: Tree) -> None:
        """Replaces all numbers by those of ``state``."""
        self.clear()
        self.update(state["memory"])


@dataclass(frozen=True)
class Method:
    """A method of learning a policy and a reward from preferences. All fields but the first three have defaults.

    Functions take the ``Run``; what they draw comes from ``run.rng["method"]``, so that a run resumes bit for bit.
    """

    name: str
    learners: int
    """How many learners (policies) it trains."""
    learner_rewards: Callable[[Run], Sequence[RowReward]]
    """The reward of each learner. Called at the start and after each move of the reward model. It changes nothing."""
    reward_loss: Callable[[Run, Preferences, Tensor], Tensor] | None = None
    """The loss that the reward model descends: a scalar, from B labelled pairs and the members' logits on them (M, B).
    The pairs are a shuffled batch of at most ``reward_batch`` labels, ``run.batch_rows`` says which; their
    ``env_reward`` is NaN. It may write to ``run.state`` and to nothing else. None: no reward is learnt and no label is
    asked for."""
    agent: Callable[[Any], int] = lambda options: 0
    """The number of the learner whose policy a user gets, by the method's options."""
    update_estimates: Callable[[Run], None] = lambda run: None
    """Updates what ``learner_rewards`` needs, such as a cost, after each move of the reward model."""
    diagnose: Callable[[Run], Metrics] = lambda run: {}
    """Metrics to log after each move of the reward model."""
    prepare: Callable[[Run], None] = lambda run: None
    """Changes the reward model before it is fitted to the first labels."""
    state: Callable[[Run], MethodState] = lambda run: Memory()
    """Makes what the method keeps, at the start of a run. Initial weights come from ``run.generator``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its published settings, where they differ from the defaults of ``Config``."""
    options: type[Options] = Options
    """Its own hyper-parameters, with their published values."""
    cache_rewards: bool = True
    """Whether the reward of a row stays the same until the reward model moves."""
    algorithm: str = "SAC"
    """The algorithm of its learners, by its name in Stable-Baselines3."""
    learner_needs: tuple[str, ...] = ()
    """What it calls of ``types.Learner`` that not every learner has: ``value_gap``, ``critics_after``, and, of SAC
    alone, ``score_products`` and ``temperature``."""
    arguments: Callable[[Any], Mapping[str, Any]] = lambda options: {}
    """Arguments of the algorithm, by the method's options."""

    def option_names(self) -> list[str]:
        """Its options as settings, ``method.name`` each."""
        return [f"{self.name}.{name}" for name in self.options.model_fields]

    def options_of(self, config: Config) -> Any:
        """Its ``options``, as they are in a run with these settings."""
        return validate_as(self.options, config.options, f"{self.name}.")
