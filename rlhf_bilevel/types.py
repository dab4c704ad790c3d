"""The words that every room shares. Axes: B pairs, T steps, N samples, M members, o and a the sizes of obs and act."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

RewardFn = Callable[[Tensor, Tensor], Tensor]
"""obs (..., o) and act (..., a) to a reward per step (...)."""

Signal = Callable[[Tensor], Tensor]
"""Row numbers (N,) of the store to what a learner is rewarded with there (N,)."""


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


class Visits(NamedTuple):
    """A policy's discounted occupancy in samples: sum_n weight_n f(obs_n, act_n) = E[sum_t gamma^t f(s_t, a_t)]."""

    obs: Tensor  # (N, o)
    act: Tensor  # (N, a)
    weight: Tensor  # (N,) sums to 1 / (1 - gamma)


class Teacher(Protocol):
    """Whoever answers queries: a script, a file or a person. Pairs that it skips are left out of the answer."""

    def __call__(self, queries: Queries, /) -> Preferences: ...
