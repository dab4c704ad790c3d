"""Teachers that answer queries. Any object with this one method serves: see ``types.Teacher``.

With r the true reward of a segment of T steps, R = sum_t r_t and R' = sum_t discount^(T - 1 - t) r_t, B-Pref's teacher
says nothing where both R are low, calls a tie where they are close, and else

    P(first better) = (1 - mistake) p + mistake (1 - p),    p = sigmoid(beta (R'_first - R'_second))

Lee et al., "B-Pref: Benchmarking Preference-Based Reinforcement Learning", NeurIPS 2021, section 3 and its code.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.types import Preferences, Queries

EPISODES = 10  # B-Pref's: newest ones, by whose return skip and equal measure
STREAM = 4  # of random numbers; a run's own generators have 0 to 3


class OracleTeacher:
    """Prefers the segment with the higher true return, without noise; equal returns are a tie."""

    def __call__(self, queries: Queries) -> Preferences:
        return Preferences(*queries, label=rational(margin(queries)))


class SimulatedTeacher:
    """B-Pref's teacher with the settings ``teacher_*`` of its run: any combination of its five irrationalities.

    With A the recent average return of a segment (the newest ten episodes' reward per step, times T), in B-Pref's
    order: a pair is left out unless max R > ``skip`` A; its label is drawn by R', ``beta`` and then ``mistake``; it is
    a tie, whatever was drawn, where |R_first - R_second| < ``equal`` A. Without a positive A, neither skip nor equal
    does anything. For an infinite ``beta`` the higher R' is better, and equal ones are a tie.

    What it draws is a function of the seed and of how many steps the run has stored when it asks, and so is A: a run
    that is resumed, and takes the answers that it has from its log, draws the others as if it had asked for all.
    """

    def __init__(self, config: Config, store: ReplayBuffer) -> None:
        self._config, self._store = config, store

    def __call__(self, queries: Queries) -> Preferences:
        c, count = self._config, len(queries.first.truth)
        noise = torch.from_numpy(np.random.default_rng([c.seed, STREAM, self._store.size]).random((2, count)))
        better = margin(queries, c.teacher_discount)
        if c.teacher_beta < math.inf:
            label = (noise[0] < torch.sigmoid(c.teacher_beta * better.double())).float()
        else:
            label = (better >= 0).float() if c.teacher_bpref_compat else rational(better)
        label = torch.where(noise[1] < c.teacher_mistake, 1 - label, label)
        skip, equal = self._thresholds(queries.first.truth.shape[1])
        label = torch.where(margin(queries).abs() < equal, 0.5, label)
        good = torch.maximum(*(segments.truth.sum(-1) for segments in queries)) > skip
        return select(Preferences(*queries, label), good if skip > 0 else slice(None))

    def _thresholds(self, length: int) -> tuple[float, float]:
        """Of skip and equal, in return of a segment of that many steps."""
        c, store = self._config, self._store
        if not (c.teacher_skip or c.teacher_equal):
            return 0.0, 0.0
        start = store.episodes()[-EPISODES:][0][0]  # an episode that is not over counts by the steps it has
        average = length * store.truth[start : store.size].double().mean().item()
        if average <= 0:
            warnings.warn("skip and equal do nothing: recent episodes have no positive return", stacklevel=3)
        later = store.size > c.learning_starts + c.pretrain_steps  # B-Pref's code: epsilon twice from then on
        power = 2 if c.teacher_bpref_compat and later else 1
        return c.teacher_skip**power * average, c.teacher_equal**power * average


def margin(queries: Queries, discount: float = 1.0) -> Tensor:
    """R'_first - R'_second (B,): true returns in which the step t before a segment's last weighs discount^t."""
    weight = discount ** torch.arange(queries.first.truth.shape[1]).flip(0)
    first, second = ((segments.truth * weight).sum(-1) for segments in queries)
    return first - second


def rational(margin: Tensor) -> Tensor:
    """The label of whoever always prefers more: 1, 0, or 0.5 where the margin is none."""
    return (margin.sign() + 1) / 2
