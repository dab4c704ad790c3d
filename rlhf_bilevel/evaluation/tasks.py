"""Runs by environment and method, at equal budgets.

A run's value is the mean of its agent's last three evaluations (one alone is noisy), each a mean over episodes. Runs on
one environment are compared at steps at which all of them were evaluated; steps are those of all learners together.
They can also be compared at equal labelling minutes: then each run ends before it uses more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite, pi
from typing import NamedTuple

import numpy as np

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.minutes import until
from rlhf_bilevel.evaluation.records import EvaluationRecord

LAST = 3
"""Number of last evaluations in a run's value, see ``final_score``."""

FEW = 3
"""So many seeds have an interval that says almost nothing (docs/statistics.md)."""

ENOUGH = 10
"""So many have one that holds."""

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


def early_sentence(steps: Sequence[int] | np.ndarray) -> list[str]:
    """A sentence if the evaluations that count, of all those at ``steps``, begin in the first half of the run."""
    first, last = steps[-LAST:][0], steps[-1]
    early = len(steps) > 1 and first < last / 2
    told = f"the evaluations that count begin at step {first:,} of {last:,}, while much is still learnt"
    return [f"{told}: evaluate more often with --set eval_freq={max(1, last // 10)}"] if early else []


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
    """One environment's records as a task, see ``group_by_task``. UserError if a run occurs twice or is not finite."""
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
    """A line for each way in which the runs of one environment had unequal budgets, or were evaluated too rarely.

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
        lines += [f"{env}: {told}" for told in early_sentence(steps)]
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
