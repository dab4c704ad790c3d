"""The words that every room shares. Axes: B pairs, T steps, N samples, M members, o and a the sizes of obs and act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

Row = dict[str, float]
"""Metrics by their log key."""

RewardFn = Callable[[Tensor, Tensor], Tensor]
"""obs (..., o) and act (..., a) to a reward per step (...)."""

RowReward = Callable[[Tensor], Tensor]
"""Row numbers (N,) of the store to what a learner is rewarded with there (N,)."""


Steps = tuple[Tensor, Tensor]
"""obs (N, o) and act (N, a)."""


class Segments(NamedTuple):
    """B runs of T consecutive steps, each within one episode."""

    obs: Tensor  # (B, T, o)
    act: Tensor  # (B, T, a), in [-1, 1]
    truth: Tensor  # (B, T) the environment's own reward: for the teacher and for evaluation only


class Queries(NamedTuple):
    """B questions to a teacher: which segment of each pair is better?"""

    first: Segments
    second: Segments


class Preferences(NamedTuple):
    """B answered questions; ``label`` (B,) is 1 where the first is better, 0 where the second is, 0.5 for a tie."""

    first: Segments
    second: Segments
    label: Tensor


class Occupancy(NamedTuple):
    """A policy's discounted occupancy in samples: sum_n weight_n f(obs_n, act_n) = E[sum_t gamma^t f(s_t, a_t)]."""

    obs: Tensor  # (N, o)
    act: Tensor  # (N, a)
    weight: Tensor  # (N,) sums to 1 / (1 - gamma)


class Teacher(Protocol):
    """Whoever answers queries: a script, a file or a person. Pairs that it skips are left out of the answer."""

    def __call__(self, queries: Queries, /) -> Preferences: ...


class Learner(Protocol):
    """A learner on the shared store. What values and densities it has to offer depends on its algorithm."""

    model: Any
    """Its algorithm of SB3: whoever gets the policy gets this."""

    def act(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The exploring action for the environment, and the same scaled to [-1, 1]."""

    def improve(self, updates: int, step: int) -> Row:
        """So many gradient steps, each on a batch of the store, at environment step ``step``; their metrics.

        Raises FloatingPointError where the learner has diverged.
        """

    def see(self, signal: RowReward, keep: bool = True) -> None:
        """Be rewarded by ``signal`` from now on; rewards may be kept until the next call if ``keep``."""

    def follow(self, other: Any) -> None:
        """Become a copy of ``other``, a learner of the same kind, and draw the batches that it draws."""

    def reset_critic(self) -> None:
        """Forget the values, keep the policy."""

    def value_gap(self, other: Any, obs: Tensor) -> float:
        """J(self) - J(other) by this learner's values, from states (N, o) that ``other`` visits."""

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """Q(s, a), the least of the critics', of obs (..., o) and act (..., a): (...), without gradient.

        PPO has critics of states alone, and gives V(s).
        """

    def critics_after(self, rows: Tensor, reward: Tensor) -> RewardFn:
        """The critics as after one plain gradient step on ``rows`` (N,) of the store, rewarded with ``reward``.

        A function of obs (N, o) and act (N, a) to (Q, N), differentiable in ``reward`` (N,).
        """

    def score_products(self, steps: Steps, others: Steps, weight: Tensor) -> Tensor:
        """How the log-probabilities of ``steps`` move where the policy ascends those of ``others``: (N,).

        <grad log pi(a_n|s_n), sum_m weight_m grad log pi(a_m|s_m)> over the policy's parameters, weight (M,).
        """

    def temperature(self) -> float:
        """SAC's alpha: reward that a nat of the policy's entropy is worth."""

    def state(self) -> Any:
        """All that moves in it, as a tree of plain values and tensors, which are not copied (see ``tree``)."""

    def load(self, state: Any) -> None:
        """Go on from the ``state`` of a learner of the same kind; what it sees stays as it is."""

    def load_policy(self, state: Any) -> None:
        """Act as a learner of the same kind did in that ``state``."""


Improve = Callable[[int, int], Sequence[Row]]
"""So many gradient steps of every learner, each on a batch of the store rewarded by what it sees, at environment step
so and so; the metrics of each."""
