"""Simulated teachers, which prefer by the environment's reward. A teacher is any callable: see ``types.Teacher``.

For a segment of T steps with rewards r_t, let R = sum_t r_t and R' = sum_t discount^(T - 1 - t) r_t. B-Pref's teacher
skips a pair if both R are low, calls a tie if they are close, and otherwise prefers the first with

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

EPISODES = 10  # B-Pref's: the newest episodes, whose return is the unit of skip and equal
STREAM = 4  # number of its stream of random numbers


class OracleTeacher:
    """Prefers the segment with the higher true return, without noise. Equal returns are a tie."""

    def __call__(self, queries: Queries) -> Preferences:
        """Answers all queries."""
        return Preferences(*queries, label=rational(margin(queries)))


class SimulatedTeacher:
    """B-Pref's teacher, with the settings ``teacher_*`` of the run.

    Let A be the average return of a recent segment: the reward per step of the newest ten episodes, times T. In
    B-Pref's order: a pair is left out unless max R > ``skip`` A. Its label is drawn by R' and ``beta``, and turned with
    probability ``mistake``. It is a tie, whatever was drawn, if |R_first - R_second| < ``equal`` A. If A is not
    positive, skip and equal do nothing. With an infinite ``beta`` the higher R' is better, and equal ones are a tie.

    Its random numbers depend only on the seed and on how many steps the run has stored. So a run that is resumed gets
    the same answers as one that was never stopped.
    """

    def __init__(self, config: Config, store: ReplayBuffer) -> None:
        self._config, self._store = config, store

    def __call__(self, queries: Queries) -> Preferences:
        """Answers the queries that it does not skip."""
        c, count = self._config, len(queries.first.env_reward)
        noise = torch.from_numpy(np.random.default_rng([c.seed, STREAM, self._store.size]).random((2, count)))
        better = margin(queries, c.teacher_discount)
        if (beta := self._rationality(queries)) < math.inf:
            label = (noise[0] < torch.sigmoid(beta * better.double())).float()
        else:
            label = (better >= 0).float() if c.teacher_bpref_compat else rational(better)
        label = torch.where(noise[1] < c.teacher_mistake, 1 - label, label)
        skip, equal = self._thresholds(queries.first.env_reward.shape[1])
        label = torch.where(margin(queries).abs() < equal, 0.5, label)
        good = torch.maximum(*(segments.env_reward.sum(-1) for segments in queries)) > skip
        return select(Preferences(*queries, label), good if skip > 0 else slice(None))

    def _rationality(self, queries: Queries) -> float:
        """Nats per unit of return."""
        return self._config.teacher_beta

    def _thresholds(self, length: int) -> tuple[float, float]:
        """``skip`` A and ``equal`` A, in return of a segment of ``length`` steps."""
        c, store = self._config, self._store
        if not (c.teacher_skip or c.teacher_equal):
            return 0.0, 0.0
        start = store.episodes()[-EPISODES:][0][0]  # an episode that is not over counts with the steps that it has
        average = length * store.env_reward[start : store.size].double().mean().item()
        if average <= 0:
            warnings.warn("skip and equal do nothing: recent episodes have no positive return", stacklevel=3)
        later = store.size > c.learning_starts + c.pretrain_steps  # B-Pref's code: epsilon twice from then on
        power = 2 if c.teacher_bpref_compat and later else 1
        return c.teacher_skip**power * average, c.teacher_equal**power * average


def margin(queries: Queries, discount: float = 1.0) -> Tensor:
    """R'_first - R'_second of each pair, (B,)."""
    weight = step_weights(queries.first.env_reward.shape[1], discount)
    first, second = ((segments.env_reward * weight).sum(-1) for segments in queries)
    return first - second


def step_weights(length: int, discount: float) -> Tensor:
    """The weights of a segment's rewards in R', (T,)."""
    return discount ** torch.arange(length).flip(0)


def rational(margin: Tensor) -> Tensor:
    """The labels of a teacher without noise, for margins (B,): 1 if positive, 0 if negative, 0.5 if zero."""
    return (margin.sign() + 1) / 2
