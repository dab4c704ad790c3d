"""Methods side by side at equal budgets: what runs scored, on one scale over environments, who is better, how surely.

A run counts with the mean of its agent's last three evaluations (one alone is noisy), a mean over their episodes; runs
on one environment are compared at steps at which each of them was evaluated, counting the steps of all learners.

A score is comparable between environments: success as it is; else where the true return lies between that of random
actions, 0, and SAC's on the true reward, 1, where both were run; else the true return over SAC's, or over the most that
the environment can pay. It is refused where none of these is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, pi
from typing import NamedTuple

import numpy as np

from rlhf_bilevel.config import nearest
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord
from rlhf_bilevel.evaluation.statistics import Interval, Statistic, improvement, improvement_interval, interval, iqm

LAST = 3
"""Evaluations at the end of a run whose mean stands for the run: ``ending``."""
REFERENCE, FLOOR, BASELINE = "sac", "random", "pebble"
ONE_SEED = "one seed, no interval"
UNBOUNDED = "bounds not known: intervals may pass them"
BOUNDS = {
    "Pendulum-v1": (-200 * (pi**2 + 0.1 * 8**2 + 0.001 * 2**2), 0.0),
    "MountainCarContinuous-v0": (-99.9, 100.0),
    **dict.fromkeys(("InvertedPendulum-v4", "InvertedPendulum-v5"), (0.0, 1000.0)),
    **dict.fromkeys(("Reacher-v4", "Reacher-v5", "Pusher-v4", "Pusher-v5"), (-inf, 0.0)),
}
"""Least and most that an episode can pay, as follows from Gymnasium's source and its limit of steps."""


class Group(NamedTuple):
    """The runs of one method on one environment."""

    steps: np.ndarray  # (steps,) at which each of the runs was evaluated
    values: np.ndarray  # (seeds, steps): success, or true return where the environment knows no success
    labels: tuple[int, int]  # fewest and most that a run had at the last of these steps
    ends: tuple[int, int]  # earliest and latest step at which a run was evaluated last
    episodes: tuple[int, int]  # fewest and most of a run in the evaluations that it counts with


class Task(NamedTuple):
    """An environment with the methods that ran on it, all at the same steps."""

    env: str
    measure: str  # "success" or "true_return"
    steps: np.ndarray  # (steps,)
    groups: dict[str, Group]

    def ends(self) -> dict[str, np.ndarray]:
        """What each run of each method counts with, (seeds,)."""
        return {method: ending(group.values) for method, group in self.groups.items()}

    def bounds(self) -> tuple[float, float]:
        """What a run can reach. Where a run has passed what is known, nothing is known."""
        low, high = bounds(self.env, self.measure)
        values = np.concatenate([group.values.ravel() for group in self.groups.values()])
        return (low, high) if low <= values.min() and values.max() <= high else (-inf, inf)


class Scores(NamedTuple):
    values: dict[str, np.ndarray]  # of each method, (tasks, seeds)
    within: tuple[float, float]  # what a score can be
    rule: str  # how they were made comparable


class Row(NamedTuple):
    """One line of the table. A single seed has no interval, and a baseline is not compared with itself."""

    method: str
    env: str
    measure: str
    seeds: int
    labels: int
    steps: int
    iqm: float
    low: float | None
    high: float | None
    baseline: str | None
    improvement: float | None  # P(a run is better than one of the baseline)
    improvement_low: float | None
    improvement_high: float | None
    evaluations: int  # the last ones, whose mean a run counts with
    episodes: int  # of a run in these, the fewest
    least: float | None  # that the measure can be; None: not known, and low may be below it
    most: float | None  # the same above
    rule: str  # how runs were made comparable between environments; empty in the environment's own measure


def ending(values: np.ndarray | Sequence[float]) -> np.ndarray:
    """What a run counts with, wherever one number stands for it: its agent's values (..., evaluations) to (...)."""
    return np.asarray(values, float)[..., -LAST:].mean(-1)


def ended_with(evaluations: int, episodes: tuple[int, int]) -> str:
    """What ``ending`` is, in words: of so many evaluations, with fewest and most episodes that a run has in these."""
    mean = "one evaluation" if evaluations == 1 else f"mean of the last {min(evaluations, LAST)} evaluations"
    return f"{mean}, {between(episodes)} episode{'s' * (episodes[1] > 1)}"


def measured(rows: Sequence[EvaluationRecord]) -> str:
    """What these runs are judged by."""
    return "success" if all(row.success is not None for row in rows) else "true_return"


def grouped(rows: Sequence[EvaluationRecord], together: bool) -> list[Task]:
    """Agents' evaluations by environment and method, in order of appearance; UserError where runs share no steps.

    ``together``: at the steps that all methods share, so that they can be compared; else each method at its own.
    """
    agents = [row for row in rows if row.is_agent]
    if not agents:
        raise UserError("there is no evaluation of an agent")
    return [
        task([row for row in agents if row.env == env], together) for env in dict.fromkeys(row.env for row in agents)
    ]


def task(rows: Sequence[EvaluationRecord], together: bool) -> Task:
    env, measure = rows[0].env, measured(rows)
    runs: dict[str, dict[int, dict[int, EvaluationRecord]]] = {}
    for row in rows:
        run = runs.setdefault(row.method, {}).setdefault(row.seed, {})
        if row.step in run:
            raise UserError(
                f"{row.method} with seed {row.seed} on {env} was given twice: at step {row.step} it has two results"
            )
        if not isfinite(value := getattr(row, measure)):
            raise UserError(f"{row.method} with seed {row.seed} on {env}: its {measure} at step {row.step} is {value}")
        run[row.step] = row
    shared = common(env, [run for seeds in runs.values() for run in seeds.values()]) if together else []
    groups = {}
    for method, seeds in runs.items():
        steps = shared or common(f"{method} on {env}", list(seeds.values()))
        labels = [run[steps[-1]].labels for run in seeds.values()]
        last = [max(run) for run in seeds.values()]
        values = [[getattr(run[step], measure) for step in steps] for run in seeds.values()]
        episodes = [sum(run[step].episodes for step in steps[-LAST:]) for run in seeds.values()]
        groups[method] = Group(np.array(steps), np.array(values), *(spread(x) for x in (labels, last, episodes)))
    return Task(env, measure, np.array(shared), groups)


def common(what: str, runs: Sequence[Mapping[int, EvaluationRecord]]) -> list[int]:
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if not steps:
        raise UserError(f"{what}: there is no step at which all runs were evaluated, so they cannot be compared")
    return steps


def budgets(tasks: Sequence[Task]) -> list[str]:
    """A line for each way in which the runs of one environment had unequal budgets.

    A method that uses no label at all, such as SAC on the true reward, is no part of the comparison of labels.
    """
    told = []
    for env, _, steps, groups in tasks:
        asked = {method: group.labels for method, group in groups.items() if group.labels[1]}
        if len({count for labels in asked.values() for count in labels}) > 1:
            shown = ", ".join(f"{method} {between(labels)}" for method, labels in asked.items())
            told.append(f"budgets differ on {env}: labels at step {steps[-1]:,}: {shown}")
        if max(group.ends[1] for group in groups.values()) > steps[-1]:
            shown = ", ".join(f"{method} {between(group.ends)}" for method, group in groups.items())
            told.append(f"budgets differ on {env}: runs end at step: {shown}; compared at {steps[-1]:,}")
    return told


def spread(numbers: Sequence[int]) -> tuple[int, int]:
    return min(numbers), max(numbers)


def between(numbers: tuple[int, int]) -> str:
    low, high = numbers
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def bounds(env: str, measure: str) -> tuple[float, float]:
    """What a run can reach: success is a share; dm_control pays 0 to 1 in each of 1000 steps, but for its LQR."""
    if measure == "success":
        return 0, 1
    if env.startswith("dm_control/") and not env.startswith("dm_control/lqr"):
        return 0, 1000
    return BOUNDS.get(env, (-inf, inf))


def scale(task: Task) -> tuple[float, float, str]:
    """The values of a run that are a score of 0 and of 1, and the score in words."""
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
    """Of all runs on all environments. UserError where a method lacks one, or has more seeds on one than on another."""
    zeros, ones, rules = zip(*(scale(task) for task in tasks), strict=True)
    lengths = np.array(ones) - np.array(zeros)
    limits = (np.array([task.bounds() for task in tasks]) - np.array(zeros)[:, None]) / lengths[:, None]
    parts = [
        {method: (ends - zero) / length for method, ends in task.ends().items()}
        for task, zero, length in zip(tasks, zeros, lengths, strict=True)
    ]
    within = float(limits[:, 0].min()), float(limits[:, 1].max())
    return Scores(stacked(tasks, parts), within, "; ".join(dict.fromkeys(rules)))


def efficiency(tasks: Sequence[Task]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps (steps,) at which all runs on all environments were evaluated, and there each method's scores,
    (steps, tasks, seeds)."""
    steps = np.array(sorted(set.intersection(*(set(task.steps.tolist()) for task in tasks))))
    if not len(steps):
        raise UserError(f"no step at which runs were evaluated is shared by {', '.join(task.env for task in tasks)}")
    parts = []
    for task in tasks:
        zero, one, _ = scale(task)
        shared = {method: group.values[:, np.isin(group.steps, steps)] for method, group in task.groups.items()}
        parts.append({method: (values - zero) / (one - zero) for method, values in shared.items()})
    return steps, {method: np.moveaxis(values, -1, 0) for method, values in stacked(tasks, parts).items()}


def stacked(tasks: Sequence[Task], parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of each method, what it has on every environment, (seeds, ...), as one array (tasks, seeds, ...)."""
    found = {}
    for method in dict.fromkeys(method for part in parts for method in part):
        seeds = {task.env: len(part.get(method, ())) for task, part in zip(tasks, parts, strict=True)}
        if len(set(seeds.values())) > 1:
            shown = ", ".join(f"{count} on {env}" for env, count in seeds.items())
            raise UserError(f"{method} needs the same number of seeds on all environments, and has {shown}")
        found[method] = np.stack([part[method] for part in parts])
    return found


def over(baseline: str, tasks: Sequence[Task]) -> dict[str, Interval]:
    """Probability that a run of each other method is better than one of the baseline, mean over environments."""
    ends = stacked(tasks, [task.ends() for task in tasks])
    return {method: better(ours, ends[baseline]) for method, ours in ends.items() if method != baseline}


def better(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """``improvement`` of (tasks, seeds) over (tasks, seeds), with bounds nan where either has one seed."""
    if min(ours.shape[-1], theirs.shape[-1]) == 1:
        return without(improvement(ours, theirs))
    return improvement_interval(ours, theirs)


def estimate(statistic: Statistic, values: np.ndarray, within: tuple[float, float] = (-inf, inf)) -> Interval:
    """A statistic of (..., tasks, seeds) with its 95 % interval, bounds nan where there is one seed."""
    if values.shape[-1] == 1:
        return without(statistic(values))
    return interval(statistic, values, within=within)


def without(value: np.ndarray) -> Interval:
    return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))


def known(baseline: str, tasks: Sequence[Task]) -> str:
    """The baseline; UserError where it has no runs."""
    methods = list(dict.fromkeys(method for task in tasks for method in task.groups))
    if baseline not in methods:
        raise UserError(f"there are no runs of the baseline {baseline!r}; {nearest(baseline, methods)}")
    return baseline


def chosen(asked: str | None, tasks: Sequence[Task]) -> str | None:
    """The baseline that is asked for; else PEBBLE where it was run, else none."""
    if asked:
        return known(asked, tasks)
    return BASELINE if any(BASELINE in task.groups for task in tasks) else None


def compared(tasks: Sequence[Task], baseline: str | None) -> list[Row]:
    """A row a method and environment, in the environment's own measure."""
    rows = []
    for task in tasks:
        found = Scores(stacked([task], [task.ends()]), task.bounds(), "")
        rows += stated([task], found, task.env, task.measure, baseline if baseline in task.groups else None)
    return rows


def overall(tasks: Sequence[Task], baseline: str | None) -> list[Row]:
    """A row a method over all environments. UserError where ``scores`` refuses."""
    return stated(tasks, scores(tasks), f"all {len(tasks)}", "score", baseline)


def stated(tasks: Sequence[Task], found: Scores, env: str, measure: str, baseline: str | None) -> list[Row]:
    against = over(baseline, tasks) if baseline else {}
    rows = []
    within = [bound if isfinite(bound) else None for bound in found.within]
    evaluations = min(LAST, *(len(task.steps) for task in tasks))
    for method, runs in found.values.items():
        middle = plain(estimate(iqm, runs, found.within))
        versus, gain = (baseline, plain(against[method])) if method in against else (None, (None, None, None))
        labels, steps = max(task.groups[method].labels[1] for task in tasks), max(task.steps[-1] for task in tasks)
        said = (evaluations, min(task.groups[method].episodes[0] for task in tasks), *within, found.rule)
        rows.append(Row(method, env, measure, runs.shape[-1], labels, int(steps), *middle, versus, *gain, *said))
    return rows


def plain(found: Interval) -> tuple[float, float | None, float | None]:
    value, low, high = (float(x) for x in found)
    return (value, low, high) if low == low else (value, None, None)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in aligned columns, and below them what the numbers are."""
    versus = next((row.baseline for row in rows if row.baseline), None)
    head = ["method", "environment", "seeds", "labels", "steps", "measure", "IQM [95 % interval]"]
    lines = [head + [f"P(better than {versus}) [95 % interval]"] * bool(versus)]
    for row in rows:
        form = "{:.0f}" if row.measure == "true_return" and abs(row.iqm) >= 100 else "{:.3g}"
        middle = shown(form, row.iqm, row.low, row.high)
        gain = (
            ""
            if row.improvement is None
            else shown("{:.2f}", row.improvement, row.improvement_low, row.improvement_high)
        )
        line = [row.method, row.env, f"{row.seeds}", f"{row.labels:,}", f"{row.steps:,}", row.measure, middle]
        lines.append(line + [gain] * bool(versus))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = ["  ".join(f"{x:{width}}" for x, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(aligned + notes(rows))


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table has to know, a line each."""
    said = []
    for evaluations in sorted({row.evaluations for row in rows}, reverse=True):
        these = [row for row in rows if row.evaluations == evaluations]
        where = f" on {', '.join(dict.fromkeys(row.env for row in these))}" if len(these) < len(rows) else ""
        mean = ended_with(evaluations, spread([row.episodes for row in these]))
        said.append(f"A run counts with one number{where}: {mean}, of its agent, at steps that all runs share.")
    said += [f"A score is {rule}." for rule in dict.fromkeys(row.rule for row in rows) if rule]
    unknown = [row.env for row in rows if row.low is not None and None in (row.least, row.most)]
    return said + [f"{env}: {UNBOUNDED}." for env in dict.fromkeys(unknown)]


def shown(form: str, value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{form.format(value)} ({ONE_SEED})"
    return f"{form} [{form}, {form}]".format(value, low, high)
