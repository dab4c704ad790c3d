"""Figures from evaluations: learning curves, and methods side by side over all environments, with bootstrap intervals.

``curves``: interquartile mean (IQM) over seeds, a panel an environment. ``efficiency``: IQM of scores over all
environments at each step. ``profile``: share of runs that score above a threshold. ``improvement``: probability that a
run is better than one of the baseline. ``aggregate``: median, IQM, mean and optimality gap of scores. A score is what
``compare`` says, an interval what ``statistics`` says. After Agarwal et al. 2021, figures 2 and 7 to 10.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation import compare
from rlhf_bilevel.evaluation.compare import Task
from rlhf_bilevel.evaluation.records import EvaluationRecord
from rlhf_bilevel.evaluation.statistics import Interval, above, iqm, mean, median, optimality_gap
from rlhf_bilevel.utils.files import write

KINDS = ("curves", "efficiency", "profile", "improvement", "aggregate")
AGGREGATES = {"median": median, "interquartile mean": iqm, "mean": mean, "optimality gap": optimality_gap}
DATES = {".svg": "Date", ".pdf": "CreationDate"}  # what a file would tell of when it was made
WIDE = 36  # letters of an axis' name in a line
STEPS = "environment steps (all learners)"


def draw(rows: Sequence[EvaluationRecord], out: Path, kind: str = "curves", baseline: str | None = None) -> Path:
    """The figure of that kind, of what users get of each run: its agent. UserError where runs cannot be compared.

    Without pyplot: what a program has set of matplotlib, such as its backend, stays as it is.
    """
    from matplotlib.figure import Figure

    tasks = compare.grouped(rows, together=kind != "curves")
    figure = Figure(layout="constrained")
    if kind == "improvement":
        improvements(figure, tasks, baseline)
    else:
        {"curves": curves, "efficiency": efficiency, "profile": profiles, "aggregate": aggregates}[kind](figure, tasks)
    save(figure, out)
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
        within = task.bounds()
        for method, group in task.groups.items():
            line(axis, group.steps, compare.estimate(iqm, group.values.T[:, None], within), label(method, [task]))
        axis.set(title=task.env, xlabel=STEPS, ylabel=task.measure.replace("_", " ") + unsure(within, [task]))
        axis.legend()


def efficiency(figure: Any, tasks: Sequence[Task]) -> None:
    (axis,) = panels(figure, 1)
    found = compare.scores(tasks)
    steps, values = compare.efficiency(tasks)
    for method, runs in values.items():
        line(axis, steps, compare.estimate(iqm, runs, found.within), label(method, tasks))
    axis.set(title=titled(tasks), xlabel=STEPS, ylabel=f"IQM of\n{fill(found.rule, WIDE)}{unsure(found.within, tasks)}")
    axis.legend()


def profiles(figure: Any, tasks: Sequence[Task]) -> None:
    (axis,) = panels(figure, 1)
    values, _, rule = compare.scores(tasks)
    pooled = np.concatenate([runs.ravel() for runs in values.values()])
    thresholds = np.linspace(min(0, pooled.min()), max(1, pooled.max()), 201)
    for method, runs in values.items():
        line(axis, thresholds, compare.estimate(mean, above(runs, thresholds), (0, 1)), label(method, tasks))
    axis.set(title=titled(tasks), xlabel=fill(f"threshold of {rule}", WIDE), ylabel="share of runs above it")
    axis.legend()


def improvements(figure: Any, tasks: Sequence[Task], baseline: str | None) -> None:
    baseline = compare.known(baseline or compare.BASELINE, tasks)
    (axis,) = panels(figure, 1)
    found = compare.over(baseline, tasks)
    if not found:
        raise UserError(f"there are no runs but those of the baseline {baseline}: nothing to compare with it")
    bars(axis, list(found.values()), [label(method, tasks) for method in found])
    axis.axvline(0.5, color="black", linewidth=1)
    axis.set(title=titled(tasks), xlim=(0, 1), xlabel=f"P(better than\n{label(baseline, tasks)})")


def aggregates(figure: Any, tasks: Sequence[Task]) -> None:
    values, within, rule = compare.scores(tasks)
    for axis, (name, statistic) in zip(panels(figure, len(AGGREGATES)), AGGREGATES.items(), strict=True):
        limits = (0, inf) if statistic is optimality_gap else within
        found = [compare.estimate(statistic, runs, limits) for runs in values.values()]
        bars(axis, found, [label(method, tasks) for method in values])
        axis.set(title=name, xlabel=fill(rule, WIDE) + unsure(within, tasks))


def line(axis: Any, x: np.ndarray, found: Interval, label: str, color: str | None = None) -> None:
    """A line with a band, which one seed has not: its bounds are not numbers. One point is a dot with a whisker."""
    alone = len(x) == 1
    (drawn,) = axis.plot(x, found.value, "o" if alone else "-", label=label, color=color)
    if np.isnan(found.low).any():
        return
    if alone:
        axis.vlines(x, found.low, found.high, color=drawn.get_color())
    else:
        axis.fill_between(x, found.low, found.high, alpha=0.2, color=drawn.get_color(), linewidth=0)


def bars(axis: Any, found: Sequence[Interval], labels: Sequence[str]) -> None:
    """A row a method, from the top: a bar to its value, there a dot (a bar of 0 is not seen), and a whisker from bound
    to bound, which one seed has not."""
    for row, (value, low, high) in enumerate(found):
        axis.barh(row, value, height=0.6, color="C0", alpha=0.4)
        axis.scatter(value, row, color="C0", clip_on=False, zorder=3)
        axis.plot([low, high], [row, row], color="black")
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()


def label(method: str, tasks: Sequence[Task]) -> str:
    groups = [task.groups[method] for task in tasks]
    labels = min(group.labels[1] for group in groups), max(group.labels[1] for group in groups)
    seeds = len(groups[0].values)
    return f"{method} ({compare.between(labels)} labels, {f'{seeds} seeds' if seeds > 1 else '1 seed: no interval'})"


def unsure(within: tuple[float, float], tasks: Sequence[Task]) -> str:
    """A line more of an axis' name, where some method has an interval that may pass what can be."""
    seeds = max(len(group.values) for task in tasks for group in task.groups.values())
    return "\n" + fill(f"({compare.UNBOUNDED})", WIDE) if seeds > 1 and not all(map(isfinite, within)) else ""


def titled(tasks: Sequence[Task]) -> str:
    return tasks[0].env if len(tasks) == 1 else f"{len(tasks)} environments"


def save(figure: Any, out: Path, dpi: float = 110) -> None:
    """Writes a matplotlib figure as SVG, PNG or PDF: the same file for the same curves."""
    import matplotlib

    drawn, kind = io.BytesIO(), out.suffix.removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "equal curves, equal file"}):  # names in an SVG are random otherwise
        dates = {DATES[out.suffix]: None} if out.suffix in DATES else None
        figure.savefig(drawn, format=kind, dpi=dpi, metadata=dates)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, drawn.getvalue())
