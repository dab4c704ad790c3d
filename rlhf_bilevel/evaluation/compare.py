"""Methods side by side at equal budgets: the scores of runs, on one scale over environments, with intervals.

A run's value is the mean of its agent's last three evaluations (one alone is noisy), each a mean over episodes. Runs on
one environment are compared at steps at which all of them were evaluated; steps are those of all learners together.
They can also be compared at equal labelling minutes: then each run ends before it uses more.

Scores can be compared between environments. A score is the success rate; else, if ``random`` and ``sac`` were run, the
true return on a scale from 0 (random actions) to 1 (SAC on the true reward); else the true return divided by SAC's, or
by the most that the environment can pay. If none of these is known, there is no score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite, pi
from typing import NamedTuple

import numpy as np

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.minutes import until
from rlhf_bilevel.evaluation.records import EvaluationRecord
from rlhf_bilevel.evaluation.statistics import Interval, Statistic, improvement, improvement_interval, interval, iqm
from rlhf_bilevel.utils.suggest import did_you_mean

LAST = 3
"""Number of last evaluations in a run's value, see ``final_score``."""
FEW, ENOUGH = 3, 10
"""So many seeds have an interval that says almost nothing, and so many have one that holds (docs/statistics.md)."""
REFERENCE, FLOOR, BASELINE = "sac", "random", "pebble"
ONE_SEED = "one seed, no interval"
UNBOUNDED = "bounds not known: intervals may pass them"
BOUNDS = {
    "Pendulum-v1": (-200 * (pi**2 + 0.1 * 8**2 + 0.001 * 2**2), 0.0),
    "MountainCarContinuous-v0": (-99.9, 100.0),
    **dict.fromkeys(("InvertedPendulum-v4", "InvertedPendulum-v5"), (0.0, 1000.0)),
    **dict.fromkeys(("Reacher-v4", "Reacher-v5", "Pusher-v4", "Pusher-v5"), (-inf, 0.0)),
}
"""Least and most return of an episode, derived from Gymnasium's source and its time limit."""


Runs = dict[str, dict[int, dict[int, EvaluationRecord]]]
"""Evaluations by method, seed and step."""


class Group(NamedTuple):
    """The runs of one method on one environment."""

    steps: np.ndarray  # (steps,) at which each of the runs was evaluated; at equal minutes, the latest of a run
    values: np.ndarray  # (seeds, steps): success, or true return if the environment does not know success
    labels: tuple[int, int]  # fewest and most labels of a run at the last of these steps
    ends: tuple[int, int]  # earliest and latest step of a run's last evaluation
    episodes: tuple[int, int]  # fewest and most episodes of a run in its last evaluations
    minutes: np.ndarray  # (seeds, steps) of labelling until then; NaN if not known


class Task(NamedTuple):
    """An environment with the methods that ran on it, all at the same steps."""

    env: str
    measure: str  # "success" or "true_return"
    steps: np.ndarray  # (steps,)
    groups: dict[str, Group]

    def ends(self) -> dict[str, np.ndarray]:
        """The value of each run of each method, (seeds,)."""
        return {method: final_score(group.values) for method, group in self.groups.items()}

    def bounds(self) -> tuple[float, float]:
        """The least and most value that a run can have; infinite if a run lies outside of what is known."""
        low, high = bounds(self.env, self.measure)
        values = np.concatenate([group.values.ravel() for group in self.groups.values()])
        return (low, high) if low <= values.min() and values.max() <= high else (-inf, inf)


class Scores(NamedTuple):
    """Scores of all runs of each method, their possible range, and how they were made comparable."""

    values: dict[str, np.ndarray]  # of each method, (tasks, seeds)
    within: tuple[float, float]  # least and most possible score
    rule: str  # how they were made comparable


class Row(NamedTuple):
    """One line of the table. One seed has no interval, and a baseline is not compared with itself."""

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
    evaluations: int  # number of last evaluations in a run's value
    episodes: int  # fewest episodes of a run in these
    least: float | None  # least possible value; None: not known, so low may be too low
    most: float | None  # greatest possible value
    rule: str  # how a score was computed; empty in the environment's own measure
    minutes: float | None  # most labelling minutes of a run, if runs are compared at equal minutes


def final_score(values: np.ndarray | Sequence[float]) -> np.ndarray:
    """A run's value: the mean of its agent's last evaluations, (..., evaluations) to (...)."""
    return np.asarray(values, float)[..., -LAST:].mean(-1)


def final_score_text(evaluations: int, episodes: tuple[int, int]) -> str:
    """What ``final_score`` is, in words. ``episodes`` are the fewest and most that a run has in these evaluations."""
    mean = "one evaluation" if evaluations == 1 else f"mean of the last {min(evaluations, LAST)} evaluations"
    return f"{mean}, {range_text(episodes)} episode{'s' * (episodes[1] > 1)}"


def run_sentence(evaluations: int, episodes: tuple[int, int], when: str = "") -> str:
    """With what a run counts, in a sentence. The numbers are as of ``final_score_text``."""
    last = f"the mean of its agent's last {min(evaluations, LAST)} evaluations"
    counted = "its agent's only evaluation" if evaluations == 1 else last
    return f"Each run counts with {counted} ({range_text(episodes)} episode{'s' * (episodes[1] > 1)}){when}."


def few_seeds_sentence(counts: Iterable[int]) -> list[str]:
    """A sentence if there are groups of only two or three runs; one run has no interval. ``counts`` are their sizes."""
    few = sorted({count for count in counts if 1 < count <= FEW})
    told = f"An interval over {' or '.join(map(str, few))} seeds says almost nothing: {ENOUGH} seeds are enough."
    return [told] if few else []


def measure_of(rows: Sequence[EvaluationRecord]) -> str:
    """By what the runs are compared: success if all of them know it, else true_return."""
    return "success" if all(row.success is not None for row in rows) else "true_return"


def group_by_task(rows: Sequence[EvaluationRecord], together: bool, minutes: float | None = None) -> list[Task]:
    """The agents' evaluations by environment and method, in order of appearance.

    ``together``: at the steps that all methods share, so that they can be compared; else each method at its own steps.
    With ``minutes``: the last evaluations of each run before it used more labelling minutes than these. UserError if
    runs share no steps, or if their minutes are needed and not known.
    """
    agents = [row for row in rows if row.is_agent]
    if not agents:
        raise UserError("there is no evaluation of an agent")
    return [
        make_task([row for row in agents if row.env == env], together, minutes)
        for env in dict.fromkeys(row.env for row in agents)
    ]


def make_task(rows: Sequence[EvaluationRecord], together: bool, minutes: float | None = None) -> Task:
    """The records of one environment as a task, see ``group_by_task``. UserError if a run occurs twice or is not
    finite.
    """
    env, measure = rows[0].env, measure_of(rows)
    runs: Runs = {}
    for row in rows:
        run = runs.setdefault(row.method, {}).setdefault(row.seed, {})
        if row.step in run:
            raise UserError(f"{row.run} was given twice: at step {row.step} it has two results")
        if not isfinite(value := getattr(row, measure)):
            raise UserError(f"{row.run}: its {measure} at step {row.step} is {value}")
        run[row.step] = row
    chosen = at_steps(env, runs, together) if minutes is None else at_minutes(runs, minutes)
    groups = {
        method: Group(
            np.array([[row.step for row in run] for run in series]).max(0),
            np.array([[getattr(row, measure) for row in run] for run in series]),
            min_max([run[-1].labels for run in series]),
            min_max([max(run) for run in runs[method].values()]),
            min_max([sum(row.episodes for row in run[-LAST:]) for run in series]),
            np.array([[row.minutes for row in run] for run in series], float),
        )
        for method, series in chosen.items()
    }
    latest = np.max([group.steps for group in groups.values()], axis=0) if together else np.array([])
    return Task(env, measure, latest, groups)


def at_steps(env: str, runs: Runs, together: bool) -> dict[str, list[list[EvaluationRecord]]]:
    """The evaluations of each method's runs at steps that they share: all methods ``together``, or each by itself.

    UserError if there are none.
    """
    everything = [run for seeds in runs.values() for run in seeds.values()]
    shared = common_steps(env, everything) if together else []
    chosen = {}
    for method, seeds in runs.items():
        steps = shared or common_steps(f"{method} on {env}", list(seeds.values()))
        chosen[method] = [[run[step] for step in steps] for run in seeds.values()]
    return chosen


def at_minutes(runs: Runs, minutes: float) -> dict[str, list[list[EvaluationRecord]]]:
    """The last evaluations of each method's runs before they used more labelling minutes, of all runs equally many.

    Raises as ``until``.
    """
    within = {
        method: [until([run[step] for step in sorted(run)], minutes) for run in seeds.values()]
        for method, seeds in runs.items()
    }
    count = min(LAST, *(len(run) for series in within.values() for run in series))
    return {method: [run[-count:] for run in series] for method, series in within.items()}


def common_steps(what: str, runs: Sequence[Mapping[int, EvaluationRecord]]) -> list[int]:
    """Steps at which all ``runs`` were evaluated, in order. UserError, about ``what``, if there are none."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if not steps:
        raise UserError(f"{what}: there is no step at which all runs were evaluated, so they cannot be compared")
    return steps


def budget_warnings(tasks: Sequence[Task]) -> list[str]:
    """A line for each way in which the runs of one environment had unequal budgets.

    A method that uses no labels, such as SAC on the true reward, is left out of the comparison of labels.
    """
    lines = []
    for env, _, steps, groups in tasks:
        labels_of = {method: group.labels for method, group in groups.items() if group.labels[1]}
        if len({count for labels in labels_of.values() for count in labels}) > 1:
            shown = ", ".join(f"{method} {range_text(labels)}" for method, labels in labels_of.items())
            lines.append(f"budgets differ on {env}: labels at step {steps[-1]:,}: {shown}")
        if max(group.ends[1] for group in groups.values()) > steps[-1]:
            shown = ", ".join(f"{method} {range_text(group.ends)}" for method, group in groups.items())
            lines.append(f"budgets differ on {env}: runs end at step: {shown}; compared at {steps[-1]:,}")
    return lines


def minutes_warnings(tasks: Sequence[Task], minutes: float) -> list[str]:
    """A line for each environment where a run counts with clearly fewer labelling minutes: less than nine tenths."""
    lines = []
    for env, _, _, groups in tasks:
        spent = {method: group.minutes[:, -1] for method, group in groups.items()}
        if min(used.min() for used in spent.values()) < 0.9 * minutes:
            shown = ", ".join(f"{name} {used.min():.3g} to {used.max():.3g}" for name, used in spent.items())
            lines.append(f"budgets differ on {env}: runs count with fewer than {minutes:g} labelling minutes: {shown}")
    return lines


def min_max(numbers: Sequence[int]) -> tuple[int, int]:
    """The least and the greatest number."""
    return min(numbers), max(numbers)


def range_text(numbers: tuple[int, int]) -> str:
    """``LOW to HIGH``, or one number if they are equal."""
    low, high = numbers
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def bounds(env: str, measure: str) -> tuple[float, float]:
    """The least and most value of a run on ``env``; infinite if not known.

    Success is between 0 and 1. dm_control pays 0 to 1 in each of 1000 steps, except in its LQR tasks.
    """
    if measure == "success":
        return 0, 1
    if env.startswith("dm_control/") and not env.startswith("dm_control/lqr"):
        return 0, 1000
    return BOUNDS.get(env, (-inf, inf))


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
    """Steps (steps,) at which all runs on all environments were evaluated, and each method's scores (steps, tasks,
    seeds).

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


def rows_by_task(tasks: Sequence[Task], baseline: str | None, minutes: float | None = None) -> list[Row]:
    """A row for each method and environment, in the environment's own measure; ``minutes`` as in ``group_by_task``."""
    rows = []
    for task in tasks:
        unscaled = Scores(stack_tasks([task], [task.ends()]), task.bounds(), "")
        own_baseline = baseline if baseline in task.groups else None
        rows += make_rows([task], unscaled, task.env, task.measure, own_baseline, minutes)
    return rows


def rows_over_all(tasks: Sequence[Task], baseline: str | None, minutes: float | None = None) -> list[Row]:
    """A row for each method, over all environments. Raises as ``scores``."""
    return make_rows(tasks, scores(tasks), f"all {len(tasks)}", "score", baseline, minutes)


def make_rows(
    tasks: Sequence[Task],
    all_scores: Scores,
    env: str,
    measure: str,
    baseline: str | None,
    minutes: float | None = None,
) -> list[Row]:
    """A row for each method in ``all_scores``. ``env`` and ``measure`` name what they are."""
    against = improvements_over(baseline, tasks) if baseline else {}
    rows = []
    within = [bound if isfinite(bound) else None for bound in all_scores.within]
    evaluations = min(LAST, *(len(task.steps) for task in tasks))
    for method, runs in all_scores.values.items():
        iqm_bounds = to_floats(estimate(iqm, runs, all_scores.within))
        compared_with, improvement_bounds = (
            (baseline, to_floats(against[method])) if method in against else (None, (None, None, None))
        )
        labels, steps = max(task.groups[method].labels[1] for task in tasks), max(task.steps[-1] for task in tasks)
        episodes = min(task.groups[method].episodes[0] for task in tasks)
        counted = evaluations, episodes, *within, all_scores.rule, minutes
        budget = runs.shape[-1], labels, int(steps)
        rows.append(Row(method, env, measure, *budget, *iqm_bounds, compared_with, *improvement_bounds, *counted))
    return rows


def to_floats(estimated: Interval) -> tuple[float, float | None, float | None]:
    """Value and bounds of an interval as floats; a bound that is NaN becomes None."""
    value, low, high = (float(x) for x in estimated)
    return (value, low, high) if low == low else (value, None, None)


def table(rows: Sequence[Row]) -> str:
    """The rows as text in aligned columns, and below them what the numbers are."""
    baseline = next((row.baseline for row in rows if row.baseline), None)
    head = ["method", "environment", "seeds", "labels", "steps", "measure", "IQM [95 % interval]"]
    lines = [head + [f"P(better than {baseline}) [95 % interval]"] * bool(baseline)]
    for row in rows:
        number_format = "{:.0f}" if row.measure == "true_return" and abs(row.iqm) >= 100 else "{:.3g}"
        iqm_text = interval_text(number_format, row.iqm, row.low, row.high)
        improvement_text = (
            ""
            if row.improvement is None
            else interval_text("{:.2f}", row.improvement, row.improvement_low, row.improvement_high)
        )
        line = [row.method, row.env, f"{row.seeds}", f"{row.labels:,}", f"{row.steps:,}", row.measure, iqm_text]
        lines.append(line + [improvement_text] * bool(baseline))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = ["  ".join(f"{x:{width}}" for x, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(aligned + notes(rows))


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table has to know, one line each."""
    lines = []
    for evaluations in sorted({row.evaluations for row in rows}, reverse=True):
        same_count = [row for row in rows if row.evaluations == evaluations]
        where = f" on {', '.join(dict.fromkeys(row.env for row in same_count))}" if len(same_count) < len(rows) else ""
        (minutes,) = {row.minutes for row in same_count}
        at = (
            ", at steps that all runs share"
            if minutes is None
            else f", before it used more than {minutes:g} labelling minutes"
        )
        lines.append(run_sentence(evaluations, min_max([row.episodes for row in same_count]), where + at))
    if baseline := next((row.baseline for row in rows if row.baseline), None):
        told = f"P(better than {baseline}): the probability that a run of the method is better than one of {baseline}"
        lines.append(f"{told}. An interval that includes 0.5 leaves open which method is better.")
    lines += few_seeds_sentence(row.seeds for row in rows)
    lines += [f"A score is {rule}." for rule in dict.fromkeys(row.rule for row in rows) if rule]
    unknown = [row.env for row in rows if row.low is not None and None in (row.least, row.most)]
    return lines + [f"{env}: {UNBOUNDED}." for env in dict.fromkeys(unknown)]


def interval_text(number_format: str, value: float, low: float | None, high: float | None) -> str:
    """A value with its interval, or a remark that there is one seed."""
    if low is None or high is None:
        return f"{number_format.format(value)} ({ONE_SEED})"
    return f"{number_format} [{number_format}, {number_format}]".format(value, low, high)
