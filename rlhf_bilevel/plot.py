"""Figures from evaluations: learning curves, and methods side by side over all environments, with bootstrap intervals.

``curves``: interquartile mean (IQM) over seeds, a panel an environment. ``efficiency``: IQM of scores over all
environments at each step. ``profile``: share of runs that score above a threshold. ``improvement``: probability that a
run is better than one of the baseline. ``aggregate``: median, IQM, mean and optimality gap of scores. A score is what
``compare`` says, an interval what ``statistics`` says. After Agarwal et al. 2021, figures 2 and 7 to 10.

A ``Point`` is one learner of one run at one evaluation; a table of them is what ``benchmarks/results`` holds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_bilevel import compare
from rlhf_bilevel.compare import Task
from rlhf_bilevel.files import Refused, read_yaml, write
from rlhf_bilevel.statistics import Interval, above, iqm, mean, median, optimality_gap

KINDS = ("curves", "efficiency", "profile", "improvement", "aggregate")
AGGREGATES = {"median": median, "interquartile mean": iqm, "mean": mean, "optimality gap": optimality_gap}
STEPS = "environment steps (all learners)"


class Point(NamedTuple):
    method: str
    env: str
    seed: int
    step: int  # environment steps of all learners
    labels: int
    learner: int
    is_agent: bool  # whether a user gets this learner's policy
    true_return: float  # mean over the episodes
    success: float | None  # share of the episodes; None where the environment knows no success
    episodes: int
    commit: str


def points(folder: Path) -> list[Point]:
    """Every evaluation in a run's folder, in order."""
    told = read_yaml(folder / "config.yaml")
    with (folder / "evaluations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for (step, labels, learner, is_agent), group in groupby(
        rows, key=lambda row: (row["step"], row["labels"], row["learner"], row["is_agent"])
    ):
        episodes = list(group)
        known = [float(row["success"]) for row in episodes if row["success"]]
        found.append(
            Point(
                told["method"], told["env"], told["settings"]["seed"], int(step), int(labels), int(learner),
                is_agent == "1", float(np.mean([float(row["true_return"]) for row in episodes])),
                float(np.mean(known)) if known else None, len(episodes), told["commit"] or "",
            )
        )  # fmt: skip
    return found


def write_table(rows: Iterable[Point], file: Path) -> None:
    """To hundredths: for a table that is kept in git."""
    write(file, to_csv([row._replace(true_return=round(row.true_return, 2)) for row in rows]))


def to_csv(rows: Iterable[Point]) -> bytes:
    """What ``read_table`` reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Point._fields)
    for row in rows:
        writer.writerow(["" if x is None else int(x) if isinstance(x, bool) else x for x in row])
    return text.getvalue().encode()


def read_table(file: Path) -> list[Point]:
    """What ``write_table`` wrote; more columns do no harm. Refused where it is no table of points."""
    if not file.is_file():
        raise Refused(f"{file}: no such file")
    with file.open(newline="") as stream:
        rows = csv.DictReader(stream)
        if missing := [name for name in Point._fields if name not in (rows.fieldnames or ())]:
            raise Refused(f"{file} is no table of evaluations: it has no column {missing[0]!r}")
        return [
            Point(
                row["method"], row["env"], int(row["seed"]), int(row["step"]), int(row["labels"]), int(row["learner"]),
                row["is_agent"] == "1", float(row["true_return"]), float(row["success"]) if row["success"] else None,
                int(row["episodes"]), row["commit"],
            )
            for row in rows
        ]  # fmt: skip


def draw(rows: Sequence[Point], out: Path, kind: str = "curves", baseline: str | None = None) -> Path:
    """The figure of that kind, of what users get of each run: its agent. Refused where runs cannot be compared."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = compare.grouped(rows, together=kind != "curves")
    figure = pyplot.figure(layout="constrained")
    if kind == "improvement":
        improvements(figure, tasks, baseline)
    else:
        {"curves": curves, "efficiency": efficiency, "profile": profiles, "aggregate": aggregates}[kind](figure, tasks)
    save(figure, out)
    pyplot.close(figure)
    return out


def panels(figure: Any, count: int) -> Any:
    """Axes side by side, (count,)."""
    figure.set_size_inches(5.2 * count, 3.6)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return axes


def curves(figure: Any, tasks: Sequence[Task]) -> None:
    for axis, task in zip(panels(figure, len(tasks)), tasks, strict=True):
        within = compare.bounds(task.env, task.measure)
        for method, group in task.groups.items():
            line(axis, group.steps, compare.estimate(iqm, group.values.T[:, None], within), label(method, [task]))
        axis.set(title=task.env, xlabel=STEPS, ylabel=task.measure.replace("_", " "))
        axis.legend()


def efficiency(figure: Any, tasks: Sequence[Task]) -> None:
    (axis,) = panels(figure, 1)
    found = compare.scores(tasks)
    steps, values = compare.efficiency(tasks)
    for method, runs in values.items():
        line(axis, steps, compare.estimate(iqm, runs, found.within), label(method, tasks))
    axis.set(title=titled(tasks), xlabel=STEPS, ylabel=f"IQM of\n{found.rule}")
    axis.legend()


def profiles(figure: Any, tasks: Sequence[Task]) -> None:
    (axis,) = panels(figure, 1)
    values, _, rule = compare.scores(tasks)
    pooled = np.concatenate([runs.ravel() for runs in values.values()])
    thresholds = np.linspace(min(0, pooled.min()), max(1, pooled.max()), 201)
    for method, runs in values.items():
        line(axis, thresholds, compare.estimate(mean, above(runs, thresholds), (0, 1)), label(method, tasks))
    axis.set(title=titled(tasks), xlabel=f"threshold of {rule}", ylabel="share of runs above it")
    axis.legend()


def improvements(figure: Any, tasks: Sequence[Task], baseline: str | None) -> None:
    baseline = compare.known(baseline or compare.BASELINE, tasks)
    (axis,) = panels(figure, 1)
    found = compare.over(baseline, tasks)
    bars(axis, list(found.values()), [label(method, tasks) for method in found])
    axis.axvline(0.5, color="black", linewidth=1)
    axis.set(title=titled(tasks), xlim=(0, 1), xlabel=f"P(better than {label(baseline, tasks)})")


def aggregates(figure: Any, tasks: Sequence[Task]) -> None:
    values, within, rule = compare.scores(tasks)
    for axis, (name, statistic) in zip(panels(figure, len(AGGREGATES)), AGGREGATES.items(), strict=True):
        limits = (0, inf) if statistic is optimality_gap else within
        found = [compare.estimate(statistic, runs, limits) for runs in values.values()]
        bars(axis, found, [label(method, tasks) for method in values])
        axis.set(title=name, xlabel=rule)


def line(axis: Any, x: np.ndarray, found: Interval, label: str) -> None:
    """A line with a band, which one seed has not: its bounds are not numbers."""
    (drawn,) = axis.plot(x, found.value, label=label)
    if not np.isnan(found.low).any():
        axis.fill_between(x, found.low, found.high, alpha=0.2, color=drawn.get_color(), linewidth=0)


def bars(axis: Any, found: Sequence[Interval], labels: Sequence[str]) -> None:
    """A row a method, from the top, with a bar to its value and a whisker from bound to bound."""
    for row, (value, low, high) in enumerate(found):
        axis.barh(row, value, height=0.6, color="C0", alpha=0.4)
        axis.plot([low, high], [row, row], color="black")
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()


def label(method: str, tasks: Sequence[Task]) -> str:
    groups = [task.groups[method] for task in tasks]
    labels = min(group.labels[1] for group in groups), max(group.labels[1] for group in groups)
    seeds = len(groups[0].values)
    return f"{method} ({compare.between(labels)} labels, {f'{seeds} seeds' if seeds > 1 else '1 seed: no interval'})"


def titled(tasks: Sequence[Task]) -> str:
    return tasks[0].env if len(tasks) == 1 else f"{len(tasks)} environments"


def save(figure: Any, out: Path) -> None:
    """Writes a matplotlib figure as SVG or PNG: the same file for the same curves."""
    import matplotlib

    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "equal curves, equal file"}):  # names in an SVG are random otherwise
        figure.savefig(out, dpi=110, metadata={"Date": None} if out.suffix == ".svg" else None)
