"""A simulated person: fast on easy pairs, slow and often wrong on close ones.

Evidence for the first segment starts at 0. It drifts by v a second, with noise whose standard deviation is 1 in the
first second. At a the person prefers the first segment, at -a the second. This is the drift-diffusion model of
decisions [Ratcliff and McKoon 2008, "The diffusion decision model", Neural Computation 20]. It has

    v                   = drift (R'_first - R'_second) / spread
    P(first better)     = 1 / (1 + exp(-2 a v))
    mean seconds        = watch + (a / v) tanh(a v),    and watch + a^2 if v is 0

R' is as in ``teachers``. ``spread`` is the standard deviation of R' over all segments of the newest ten episodes that
are long enough. So errors are Boltzmann's, in units of what recent segments differ by. ``watch`` is the time that does
not depend on the decision: seeing both segments and pressing the key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.feedback.teachers import EPISODES, SimulatedTeacher, margin, step_weights
from rlhf_bilevel.types import Preferences, Queries


class SimulatedPerson(SimulatedTeacher):
    """B-Pref's teacher, whose errors and ``seconds`` are those of the diffusion model.

    Each pair takes its mean time, also if it is skipped.
    """

    def __init__(self, config: Config, store: ReplayBuffer) -> None:
        super().__init__(config, store)
        self.seconds = 0.0

    def __call__(self, queries: Queries) -> Preferences:
        """Answers the queries that it does not skip; ``seconds`` is the time that all of them took."""
        c = self._config
        drifts = margin(queries, c.teacher_discount).double() * c.teacher_person / self._spread(queries)
        decisions = mean_decision_time(drifts.nan_to_num(0, math.inf, -math.inf), c.teacher_bound)
        self.seconds = float((c.teacher_watch + decisions).sum())
        return super().__call__(queries)

    def _rationality(self, queries: Queries) -> float:
        spread = self._spread(queries)
        return 2 * self._config.teacher_bound * self._config.teacher_person / spread if spread else math.inf

    def _spread(self, queries: Queries) -> float:
        length = queries.first.env_reward.shape[1]
        weights = step_weights(length, self._config.teacher_discount)
        episodes = self._store.episodes(least=length)[-EPISODES:]
        returns = [self._store.env_reward[start:end].unfold(0, length, 1) @ weights for start, end in episodes]
        return torch.cat(returns).double().std(correction=0).item() if returns else 0.0


def mean_decision_time(drifts: Tensor, bound: float) -> Tensor:
    """Mean seconds until evidence with these drifts a second reaches ``bound`` or -``bound``."""
    still = drifts.abs() < 1e-6
    return torch.where(still, bound**2, bound / drifts.where(~still, 1.0) * (bound * drifts).tanh())
