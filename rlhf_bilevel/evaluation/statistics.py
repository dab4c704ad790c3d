"""Statistics of few runs: aggregates, the probability of improvement, and intervals that cover with few seeds.

Scores of a method are x[m, n]: task m, run n (a seed), one number for each run. Only the choice of seeds is uncertain,
so only runs are resampled: not episodes, of which a run may have any number, and not tasks. A resample draws, for each
task (a stratum), as many runs as the task has, with replacement.

The percentile bootstrap is too narrow for few runs, for two reasons. It measures how n runs vary about their own mean,
which is (n - 1) / n of the true variance. And it takes this variance as known, although it is an estimate with d
degrees of freedom. The interval here moves both quantiles q away from the estimate e, to e + c (q - e), with

    c = t_d / z  *  sqrt(sum_m v_m / sum_m ((n - 1) / n v_m)),    d = (sum_m v_m)^2 / sum_m (v_m^2 / (n - 1)),

where v_m is the contribution of stratum m, with n runs, to the variance; t_d and z are the quantiles of Student's t and
of the normal distribution. For the mean of one task this is Student's interval. docs/statistics.md has its coverage.
All arrays are (..., tasks, runs): axes before these are separate data, resampled in the same way.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (aggregates, strata);
Hesterberg 2015, "What teachers should know about the bootstrap" (narrowness); Satterthwaite 1946 (degrees of freedom);
Efron 2014, "Estimation and accuracy after model selection" (influence from a bootstrap's counts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from rlhf_bilevel.errors import UserError

Statistic = Callable[[np.ndarray], np.ndarray]
"""Scores (..., tasks, runs) to (...)."""
AT_ONCE = 2**22  # most numbers in a batch of resamples


class Interval(NamedTuple):
    """A statistic with the bounds of its interval, each (...)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over all runs of all tasks: (..., tasks, runs) to (...)."""
    return scores.mean((-2, -1))


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs: (..., tasks, runs) to (...)."""
    return np.median(scores.mean(-1), axis=-1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: the mean of all runs of all tasks after a quarter (rounded down) is cut off at either end."""
    pooled = scores.reshape(*scores.shape[:-2], -1)
    cut = pooled.shape[-1] // 4
    if not cut:
        return pooled.mean(-1)
    end = pooled.shape[-1] - cut
    return np.partition(pooled, [cut, end - 1], axis=-1)[..., cut:end].mean(-1)


def optimality_gap(scores: np.ndarray) -> np.ndarray:
    """Mean shortfall from 1, where a score above it counts as 1: (..., tasks, runs) to (...)."""
    return 1 - np.minimum(scores, 1).mean((-2, -1))


def improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2 for a run X of ours (..., tasks, n) and Y of theirs (..., tasks, m).

    On one task this is the Mann-Whitney U statistic over n m.
    """
    return wins(ours, theirs).mean((-3, -2, -1))


def wins(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where a run of ours is better than one of theirs, 1/2 where it is as good, else 0: (..., tasks, n, m)."""
    return np.sign(ours[..., :, None] - theirs[..., None, :]) / 2 + 0.5


def above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """1 where a score (tasks, runs) is above a threshold (t,), else 0, as (t, tasks, runs).

    Its ``mean`` is the performance profile, the share of runs above each threshold, and its ``interval`` the band.
    """
    return (scores > thresholds[:, None, None]).astype(float)


def interval(
    statistic: Statistic,
    scores: np.ndarray,
    level: float = 0.95,
    corrected: bool = True,
    resamples: int = 2000,
    within: tuple[float, float] = (-inf, inf),
) -> Interval:
    """``statistic`` of scores (..., tasks, runs) with its stratified bootstrap interval, each (...).

    ``corrected=False`` is the percentile bootstrap (rliable's), without c. Bounds stay ``within`` the possible range.
    The same scores always give the same interval; equal scores give an interval of width zero. UserError for one run.
    """
    (picks,) = resample_indices(resamples, scores)
    low, high = quantiles(statistic(scores), resample(statistic, scores, picks), [picks], level, corrected)
    return Interval(statistic(scores), np.clip(low, *within), np.clip(high, *within))


def improvement_interval(
    ours: np.ndarray, theirs: np.ndarray, level: float = 0.95, corrected: bool = True, resamples: int = 2000
) -> Interval:
    """``improvement`` with its interval. The runs of both are resampled, and their numbers may differ.

    If one method wins all comparisons, so it does in all resamples. The corrected interval then uses the k = tasks
    min(n, m) independent comparisons of run i with run i. All are won with probability prod_m P_m^min(n, m) <= P^k
    (arithmetic over geometric mean), so that P is at least ((1 - level) / 2)^(1 / k).
    """
    picks = resample_indices(resamples, ours, theirs)
    value = improvement(ours, theirs)
    draws = resample_improvement(ours, theirs, *picks)
    low, high = (np.clip(bound, 0, 1) for bound in quantiles(value, draws, picks, level, corrected))
    if corrected:
        least = ((1 - level) / 2) ** (1 / (ours.shape[-2] * min(ours.shape[-1], theirs.shape[-1])))
        low, high = np.where(value == 1, least, low), np.where(value == 0, 1 - least, high)
    return Interval(value, low, high)


def resample_indices(resamples: int, *scores: np.ndarray) -> list[np.ndarray]:
    """For each of scores (..., tasks, runs), runs of each resample (resamples, tasks, runs). UserError for one run."""
    if any(x.shape[-1] < 2 for x in scores):
        raise UserError("one seed, no interval: what other seeds would give is not known from one")
    rng = np.random.default_rng(0)
    return [rng.integers(x.shape[-1], size=(resamples, *x.shape[-2:])) for x in scores]


def resample(statistic: Statistic, scores: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """The statistic of each resample, (..., resamples)."""
    tasks, batch = np.arange(scores.shape[-2])[:, None], max(1, AT_ONCE // scores.size)
    parts = [picks[start : start + batch] for start in range(0, len(picks), batch)]
    return np.concatenate([statistic(scores[..., tasks, part]) for part in parts], axis=-1)


def resample_improvement(
    ours: np.ndarray, theirs: np.ndarray, our_picks: np.ndarray, their_picks: np.ndarray
) -> np.ndarray:
    """``improvement`` of each resample, (..., resamples), from each pair's outcome and how often it was picked."""
    # (tasks, runs, resamples)
    left, right = (np.moveaxis(pick_counts(picks), 0, -1) for picks in (our_picks, their_picks))
    pairs = ours.shape[-2] * ours.shape[-1] * theirs.shape[-1]
    return (left * (wins(ours, theirs) @ right)).sum((-3, -2)) / pairs


def pick_counts(picks: np.ndarray) -> np.ndarray:
    """How often each resample has each run, (resamples, tasks, runs)."""
    runs = picks.shape[-1]
    rows = np.arange(picks.size // runs)[:, None] * runs
    counts = np.bincount((rows + picks.reshape(-1, runs)).ravel(), minlength=picks.size)
    return counts.reshape(picks.shape).astype(float)


def quantiles(
    value: np.ndarray, draws: np.ndarray, picks: Sequence[np.ndarray], level: float, corrected: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (...) of a statistic's ``value`` (...), from its resamples ``draws`` (..., resamples) and their picks."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    wider = correction(draws, picks, level) if corrected else np.ones_like(low)
    return value + wider * (low - value), value + wider * (high - value)


def correction(draws: np.ndarray, picks: Sequence[np.ndarray], level: float) -> np.ndarray:
    """c of above, (...), from the statistic of resamples (..., resamples) and their picks (resamples, tasks, runs).

    A run's influence is the covariance of the statistic with the number of times that the run was picked. The squared
    influences of a stratum add up to its share of the resamples' variance, (n - 1) / n of v.
    """
    around = draws - draws.mean(-1, keepdims=True)
    parts, runs = [], []
    for pick in picks:
        resamples, tasks, count = pick.shape
        influence = around @ (pick_counts(pick) - 1).reshape(resamples, -1) / resamples
        parts.append(np.square(influence.reshape(*draws.shape[:-1], tasks, count)).sum(-1))
        runs += [count] * tasks
    narrow, n = np.concatenate(parts, axis=-1), np.array(runs)
    variance = narrow * n / (n - 1)
    spread = variance.sum(-1) > 0  # without any variance, c does not matter
    total = np.where(spread, variance.sum(-1), 1)
    freedom = total**2 / np.where(spread, (variance**2 / (n - 1)).sum(-1), 1)
    unbiased = np.sqrt(total / np.where(spread, narrow.sum(-1), 1))
    return unbiased * stdtrit(freedom, (1 + level) / 2) / ndtri((1 + level) / 2)
