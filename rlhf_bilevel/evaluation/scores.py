"""Scores of runs on one scale over environments, with intervals.

A score is the success rate; else, if ``random`` and ``sac`` were run, the true return on a scale from 0 (random
actions) to 1 (SAC on the true reward); else the true return divided by SAC's, or by the most that the environment can
pay. If none of these is known, there is no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import NamedTuple

import numpy as np

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.statistics import Interval, Statistic, improvement, improvement_interval, interval
from rlhf_bilevel.evaluation.tasks import Task
from rlhf_bilevel.utils.suggest import did_you_mean

BASELINE, REFERENCE, FLOOR = "pebble", "sac", "random"


class Scores(NamedTuple):
    """Scores of all runs of each method, their possible range, and how they were made comparable."""

    values: dict[str, np.ndarray]  # of each method, (tasks, seeds)
    within: tuple[float, float]  # least and most possible score
    rule: str  # how they were made comparable


def score_scale(task: Task) -> tuple[float, float, str]:
    """The value of a run that has score 0, the value that has score 1, and the score in words.

    UserError if nothing is known to compare with.
    """
    if task.measure == "success":
        return 0, 1, "success"
    means = {method: float(ends.mean()) for method, ends in task.ends().items()}
    if REFERENCE in means and FLOOR in means:
        if means[REFERENCE] <= means[FLOOR]:
            shown = f"SAC's true return, {means[REFERENCE]:.4g}, is not above that of random actions"
            raise UserError(f"{task.env}: {shown}, {means[FLOOR]:.4g}: there is no scale between them")
        return means[FLOOR], means[REFERENCE], "(true return - random's) / (SAC's on the true reward - random's)"
    if REFERENCE in means:
        if means[REFERENCE] <= 0:
            raise UserError(
                f"{task.env}: SAC's true return is {means[REFERENCE]:.4g}, and a share of it would order runs wrongly: "
                f"add runs of {FLOOR}, to normalise by both"
            )
        return 0, means[REFERENCE], "true return / SAC's on the true reward"
    least, most = task.bounds()
    if least != 0 or not isfinite(most):
        missing = REFERENCE if FLOOR in means else f"{REFERENCE} and {FLOOR}"
        raise UserError(f"{task.env}: nothing says which true return is a good one: add runs of {missing}")
    return 0, most, f"true return / {most:g}"


def scores(tasks: Sequence[Task]) -> Scores:
    """Scores of all runs on all environments.

    UserError if a method lacks an environment, or has more seeds on one environment than on another.
    """
    zeros, ones, rules = zip(*(score_scale(task) for task in tasks), strict=True)
    lengths = np.array(ones) - np.array(zeros)
    limits = (np.array([task.bounds() for task in tasks]) - np.array(zeros)[:, None]) / lengths[:, None]
    parts = [
        {method: (ends - zero) / length for method, ends in task.ends().items()}
        for task, zero, length in zip(tasks, zeros, lengths, strict=True)
    ]
    limits_of_score = float(limits[:, 0].min()), float(limits[:, 1].max())
    return Scores(stack_tasks(tasks, parts), limits_of_score, "; ".join(dict.fromkeys(rules)))


def scores_by_step(tasks: Sequence[Task]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps (steps,) at which all runs of all tasks were evaluated, and each method's scores (steps, tasks, seeds).

    UserError if there is no such step.
    """
    steps = np.array(sorted(set.intersection(*(set(task.steps.tolist()) for task in tasks))))
    if not len(steps):
        raise UserError(f"no step at which runs were evaluated is shared by {', '.join(task.env for task in tasks)}")
    parts = []
    for task in tasks:
        zero, unit, _ = score_scale(task)
        shared = {method: group.values[:, np.isin(group.steps, steps)] for method, group in task.groups.items()}
        parts.append({method: (values - zero) / (unit - zero) for method, values in shared.items()})
    return steps, {method: np.moveaxis(values, -1, 0) for method, values in stack_tasks(tasks, parts).items()}


def stack_tasks(tasks: Sequence[Task], parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each method's values on every environment, (seeds, ...), as one array (tasks, seeds, ...).

    UserError if a method has not the same number of seeds everywhere.
    """
    arrays = {}
    for method in dict.fromkeys(method for part in parts for method in part):
        seeds = {task.env: len(part.get(method, ())) for task, part in zip(tasks, parts, strict=True)}
        if len(set(seeds.values())) > 1:
            shown = ", ".join(f"{count} on {env}" for env, count in seeds.items())
            raise UserError(f"{method} needs the same number of seeds on all environments, and has {shown}")
        arrays[method] = np.stack([part[method] for part in parts])
    return arrays


def improvements_over(baseline: str, tasks: Sequence[Task]) -> dict[str, Interval]:
    """Probability that a run of each other method is better than one of the baseline: the mean over environments."""
    ends = stack_tasks(tasks, [task.ends() for task in tasks])
    return {method: improvement_of(ours, ends[baseline]) for method, ours in ends.items() if method != baseline}


def improvement_of(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """``improvement`` of (tasks, seeds) over (tasks, seeds) with its interval; bounds are NaN for one seed."""
    if min(ours.shape[-1], theirs.shape[-1]) == 1:
        return without_bounds(improvement(ours, theirs))
    return improvement_interval(ours, theirs)


def estimate(statistic: Statistic, values: np.ndarray, within: tuple[float, float] = (-inf, inf)) -> Interval:
    """A statistic of (..., tasks, seeds) with its 95 % interval; bounds are NaN if there is one seed."""
    if values.shape[-1] == 1:
        return without_bounds(statistic(values))
    return interval(statistic, values, within=within)


def without_bounds(value: np.ndarray) -> Interval:
    """An interval whose bounds are NaN."""
    return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))


def check_baseline(baseline: str, tasks: Sequence[Task]) -> str:
    """Returns ``baseline``. UserError if it has no runs."""
    methods = list(dict.fromkeys(method for task in tasks for method in task.groups))
    if baseline not in methods:
        raise UserError(f"there are no runs of the baseline {baseline!r}; {did_you_mean(baseline, methods)}")
    return baseline


def choose_baseline(wanted: str | None, tasks: Sequence[Task]) -> str | None:
    """The baseline that was asked for; else PEBBLE if it was run, else None."""
    if wanted:
        return check_baseline(wanted, tasks)
    return BASELINE if any(BASELINE in task.groups for task in tasks) else None
