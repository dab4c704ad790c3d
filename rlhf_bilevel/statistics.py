"""Statistics of few runs: aggregates, the probability of improvement, and intervals that cover with few seeds.

Scores of a method are x[m, n]: task m, run n (a seed), one number a run. What is uncertain is which seeds were drawn,
so runs are resampled and nothing else: never episodes, of which a run may have as many as one likes, and never tasks.
A resample draws, for each task by itself (a stratum), as many runs as the task has, with replacement.

The bootstrap's own interval, from quantile to quantile of the resamples, is too narrow for few runs: n runs are spread
about their own mean by (n - 1) / n of the variance only, and the variance is itself an estimate, with d degrees of
freedom. The interval here moves both quantiles q away from the estimate e, to e + c (q - e), with

    c = t_d / z  *  sqrt(sum_m v_m / sum_m ((n - 1) / n v_m)),    d = (sum_m v_m)^2 / sum_m (v_m^2 / (n - 1)),

where v_m is what stratum m, of n runs, adds to the variance, and t_d and z are the quantiles of Student's t and of the
normal distribution. For the mean of one task this is Student's interval. docs/statistics.md tells how often it covers.
All arrays are (..., tasks, runs): axes before these are separate data, resampled alike.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (aggregates, strata);
Hesterberg 2015, "What teachers should know about the bootstrap" (narrowness); Satterthwaite 1946 (degrees of freedom);
Efron 2014, "Estimation and accuracy after model selection" (influence from a bootstrap's counts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Statistic = Callable[..., np.ndarray]
"""Scores (..., tasks, runs) of one or more methods to (...)."""
AT_ONCE = 2**22  # numbers that a batch of resamples may hold


class Interval(NamedTuple):
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


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """How much is missing to ``target`` on average, where more than the target makes up for nothing."""
    return target - np.minimum(scores, target).mean((-2, -1))


def improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2 for a run X of ours (..., tasks, n) and Y of theirs (..., tasks, m).

    On one task this is the Mann-Whitney U statistic over n m.
    """
    return np.sign(ours[..., :, None] - theirs[..., None, :]).mean((-3, -2, -1)) / 2 + 0.5


def above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """1 where a score (tasks, runs) is above a threshold (t,), else 0, as (t, tasks, runs).

    Its ``mean`` is the performance profile, the share of runs above each threshold, and its ``interval`` the band.
    """
    return (scores > thresholds[:, None, None]).astype(float)


def interval(
    statistic: Statistic,
    *scores: np.ndarray,
    level: float = 0.95,
    corrected: bool = True,
    resamples: int = 2000,
    within: tuple[float, float] = (-inf, inf),
) -> Interval:
    """``statistic`` of scores (..., tasks, runs), an array a method, with a stratified bootstrap interval, each (...).

    ``corrected=False`` is the percentile bootstrap (rliable's), without c. Bounds stay ``within`` what the statistic
    can be. Methods are resampled apart from one another and may have different numbers of runs. The same scores always
    give the same interval; equal ones give one of width zero. ValueError for one run.
    """
    if any(x.shape[-1] < 2 for x in scores):
        raise ValueError("one seed, no interval: what other seeds would give is not known from one")
    rng = np.random.default_rng(0)
    picks = [rng.integers(x.shape[-1], size=(resamples, *x.shape[-2:])) for x in scores]
    value, draws = statistic(*scores), resampled(statistic, scores, picks)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    if corrected:
        wider = correction(draws, picks, level)
        low, high = value + wider * (low - value), value + wider * (high - value)
    return Interval(value, np.clip(low, *within), np.clip(high, *within))


def improvement_interval(
    ours: np.ndarray, theirs: np.ndarray, level: float = 0.95, corrected: bool = True, resamples: int = 2000
) -> Interval:
    """``improvement`` with its interval. Where all comparisons go one way, resamples say nothing of the others.

    Then the k = tasks min(n, m) comparisons of run i with run i, which are independent, are all won. They are so with
    probability prod_m P_m^min(n, m) <= P^k (arithmetic over geometric mean), so P is above ((1 - level) / 2)^(1 / k).
    """
    value, low, high = interval(
        improvement, ours, theirs, level=level, corrected=corrected, resamples=resamples, within=(0, 1)
    )
    if corrected:
        independent = ours.shape[-2] * min(ours.shape[-1], theirs.shape[-1])
        least = ((1 - level) / 2) ** (1 / independent)
        low, high = np.where(value == 1, least, low), np.where(value == 0, 1 - least, high)
    return Interval(value, low, high)


def resampled(statistic: Statistic, scores: Sequence[np.ndarray], picks: Sequence[np.ndarray]) -> np.ndarray:
    """The statistic of each resample, (..., resamples), for picks (resamples, tasks, runs) of each of the scores."""
    apart = prod(scores[0].shape[:-1]) * prod(x.shape[-1] for x in scores)  # numbers in one resample, compared in pairs
    batch = max(1, AT_ONCE // apart)
    draws = []
    for start in range(0, len(picks[0]), batch):
        drawn = [
            x[..., np.arange(x.shape[-2])[:, None], pick[start : start + batch]]
            for x, pick in zip(scores, picks, strict=True)
        ]
        draws.append(statistic(*drawn))
    return np.concatenate(draws, axis=-1)


def correction(draws: np.ndarray, picks: Sequence[np.ndarray], level: float) -> np.ndarray:
    """c of above, (...), from the statistic of resamples (..., resamples) and their picks (resamples, tasks, runs).

    A run's influence is the covariance of the statistic with the number of times that the run was picked; the squares
    of a stratum's influences add up to what it adds to the variance.
    """
    around = draws - draws.mean(-1, keepdims=True)
    parts, runs = [], []
    for pick in picks:
        resamples, tasks, count = pick.shape
        places = np.arange(resamples * tasks)[:, None] * count + pick.reshape(-1, count)
        times = np.bincount(places.ravel(), minlength=pick.size).reshape(resamples, -1)
        influence = around @ (times - 1.0) / resamples
        parts.append(np.square(influence.reshape(*draws.shape[:-1], tasks, count)).sum(-1))
        runs += [count] * tasks
    biased, n = np.concatenate(parts, axis=-1), np.array(runs)
    variance = biased * n / (n - 1)
    total = variance.sum(-1)
    spread = total > 0
    freedom = np.where(spread, total, 1) ** 2 / np.where(spread, (variance**2 / (n - 1)).sum(-1), 1)
    unbiased = np.sqrt(np.where(spread, total, 1) / np.where(spread, biased.sum(-1), 1))
    return unbiased * student((1 + level) / 2, freedom) / NormalDist().inv_cdf((1 + level) / 2)


def student(probability: float, freedom: np.ndarray) -> np.ndarray:
    """Quantile (probability >= 1/2) of Student's t, a value for each number (...) >= 1 of degrees of freedom.

    With t = sqrt(d) tan(angle) the density of the angle is cos(angle)^(d - 1), which a sum integrates.
    """
    angles = np.linspace(0, np.pi / 2, 4001)
    cosines = np.cos(angles)

    def quantile(d: float) -> float:
        density = cosines ** (d - 1)
        mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
        return float(np.sqrt(d) * np.tan(np.interp((2 * probability - 1) * mass[-1], mass, angles)))

    return np.vectorize(quantile, otypes=[float])(freedom)
