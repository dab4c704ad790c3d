"""Methods side by side: a table with an interval for each method (``tasks.py``, ``scores.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from rlhf_bilevel.evaluation.scores import Scores, estimate, improvements_over, scores, stack_tasks
from rlhf_bilevel.evaluation.statistics import Interval, iqm
from rlhf_bilevel.evaluation.tasks import LAST, UNBOUNDED, Task, few_seeds_sentence, min_max, run_sentence

ONE_SEED = "one seed, no interval"


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
        compared_with = baseline if method in against else None
        improvement_bounds = to_floats(against[method]) if method in against else (None, None, None)
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
        improvement_text = ""
        if row.improvement is not None:
            improvement_text = interval_text("{:.2f}", row.improvement, row.improvement_low, row.improvement_high)
        line = [row.method, row.env, f"{row.seeds}", f"{row.labels:,}", f"{row.steps:,}", row.measure, iqm_text]
        lines.append(line + [improvement_text] * bool(baseline))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = ["  ".join(f"{x:{width}}" for x, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(aligned + notes(rows))


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table has to know, one line each."""
    lines = ["IQM: the interquartile mean, the mean of the middle half of the runs."]
    for evaluations in sorted({row.evaluations for row in rows}, reverse=True):
        same_count = [row for row in rows if row.evaluations == evaluations]
        where = f" on {', '.join(dict.fromkeys(row.env for row in same_count))}" if len(same_count) < len(rows) else ""
        (minutes,) = {row.minutes for row in same_count}
        at = ", at steps that all runs share"
        if minutes is not None:
            at = f", before it used more than {minutes:g} labelling minutes"
        lines.append(run_sentence(evaluations, min_max([row.episodes for row in same_count]), where + at))
    if baseline := next((row.baseline for row in rows if row.baseline), None):
        lines.append(f"P(better than {baseline}): how probably a run of the method is better than one of {baseline}.")
        lines += verdicts(rows)
    lines += few_seeds_sentence(row.seeds for row in rows)
    lines += [f"A score is {rule}." for rule in dict.fromkeys(row.rule for row in rows) if rule]
    unknown = [row.env for row in rows if row.low is not None and None in (row.least, row.most)]
    return lines + [f"{env}: {UNBOUNDED}." for env in dict.fromkeys(unknown)]


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the comparison with the baseline allows to say, a sentence for each environment."""
    lines = []
    for env in dict.fromkeys(row.env for row in rows):
        said: dict[str, list[str]] = {"better than": [], "worse than": [], "not known to differ from": []}
        compared = [row for row in rows if row.env == env and row.improvement_low is not None]
        for row in compared:
            assert row.improvement_low is not None and row.improvement_high is not None
            low, high = row.improvement_low > 0.5, row.improvement_high < 0.5
            verdict = "better than" if low else "worse than" if high else "not known to differ from"
            said[verdict].append(row.method)
        if compared:
            told = [f"{', '.join(names)}: {verdict} {compared[0].baseline}" for verdict, names in said.items() if names]
            open_ones = " (the interval includes 0.5)" if said["not known to differ from"] else ""
            lines.append(f"On {env}, {'; '.join(told)}{open_ones}.")
    return lines


def interval_text(number_format: str, value: float, low: float | None, high: float | None) -> str:
    """A value with its interval, or a remark that there is one seed."""
    if low is None or high is None:
        return f"{number_format.format(value)} ({ONE_SEED})"
    return f"{number_format} [{number_format}, {number_format}]".format(value, low, high)
