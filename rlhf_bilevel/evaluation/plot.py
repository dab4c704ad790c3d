"""Figures from evaluations, with bootstrap intervals.

- ``curves``: interquartile mean (IQM) over seeds, one panel for each environment, against steps or labelling minutes.
- ``efficiency``: IQM of scores over all environments at each step.
- ``profile``: share of runs that score above a threshold.
- ``improvement``: probability that a run is better than one of the baseline.
- ``aggregate``: median, IQM, mean and optimality gap of scores.

``compare`` defines scores, ``statistics`` intervals. After Agarwal et al. 2021, figures 2 and 7 to 10.
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
from rlhf_bilevel.evaluation.minutes import against_minutes
from rlhf_bilevel.evaluation.records import EvaluationRecord
from rlhf_bilevel.evaluation.scores import BASELINE, check_baseline, estimate, improvements_over, scores, scores_by_step
from rlhf_bilevel.evaluation.statistics import Interval, above, iqm, mean, median, optimality_gap
from rlhf_bilevel.evaluation.tasks import (
    LAST,
    UNBOUNDED,
    Task,
    few_seeds_sentence,
    group_by_task,
    min_max,
    range_text,
    run_sentence,
)
from rlhf_bilevel.utils.files import write

KINDS = ("curves", "efficiency", "profile", "improvement", "aggregate")
AGGREGATES = {"median": median, "interquartile mean": iqm, "mean": mean, "optimality gap": optimality_gap}
DATES = {".svg": "Date", ".pdf": "CreationDate"}  # metadata with the time of writing
WIDE = 36  # letters in a line of an axis label
AXES = {"steps": "environment steps (all learners)", "minutes": "labelling minutes"}
STEPS = AXES["steps"]
HEIGHT, LEGEND_LINE = 3.6, 0.18  # inches, of a figure and of a line of its legend


def draw(
    rows: Sequence[EvaluationRecord], out: Path, kind: str = "curves", baseline: str | None = None, x: str = "steps"
) -> Path:
    """Draws the figure of that kind for the agent of each run, and returns ``out``. UserError if runs cannot be
    compared. Curves are drawn against ``x``, one of ``AXES``.

    pyplot is not used: what a program has set of matplotlib, such as its backend, stays as it is.
    """
    from matplotlib.figure import Figure

    tasks = group_by_task(rows, together=kind != "curves")
    figure = Figure(layout="constrained")
    if kind == "curves":
        draw_curves(figure, tasks, x)
    elif kind == "improvement":
        draw_improvements(figure, tasks, baseline)
    else:
        {"efficiency": draw_efficiency, "profile": draw_profiles, "aggregate": draw_aggregates}[kind](figure, tasks)
    save_figure(figure, out)
    return out


def panels(figure: Any, count: int) -> Any:
    """``count`` axes side by side, (count,)."""
    figure.set_size_inches(5.2 * count, HEIGHT)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return axes


def draw_curves(figure: Any, tasks: Sequence[Task], x: str = "steps") -> None:
    """Learning curves: a panel for each environment, a line for each method."""
    for axis, task in zip(panels(figure, len(tasks)), tasks, strict=True):
        within = task.bounds()
        for method, group in task.groups.items():
            places, values = group.steps, group.values
            if x == "minutes":
                places, values = against_minutes(group.minutes, group.values, method)
            draw_line(axis, places, estimate(iqm, values.T[:, None], within), legend_label(method, [task]))
        axis.set(title=task.env, xlabel=AXES[x], ylabel=task.measure.replace("_", " ") + bounds_note(within, [task]))
        legend_below(axis)


def draw_efficiency(figure: Any, tasks: Sequence[Task]) -> None:
    """IQM of scores over all environments, against environment steps."""
    (axis,) = panels(figure, 1)
    method_scores = scores(tasks)
    steps, values = scores_by_step(tasks)
    for method, runs in values.items():
        draw_line(axis, steps, estimate(iqm, runs, method_scores.within), legend_label(method, tasks))
    axis.set(
        title=title_of(tasks),
        xlabel=STEPS,
        ylabel=f"IQM of\n{fill(method_scores.rule, WIDE)}{bounds_note(method_scores.within, tasks)}",
    )
    legend_below(axis)


def draw_profiles(figure: Any, tasks: Sequence[Task]) -> None:
    """Performance profiles: the share of runs above each threshold of the score."""
    (axis,) = panels(figure, 1)
    values, _, rule = scores(tasks)
    pooled = np.concatenate([runs.ravel() for runs in values.values()])
    thresholds = np.linspace(min(0, pooled.min()), max(1, pooled.max()), 201)
    for method, runs in values.items():
        draw_line(axis, thresholds, estimate(mean, above(runs, thresholds), (0, 1)), legend_label(method, tasks))
    axis.set(title=title_of(tasks), xlabel=fill(f"threshold of {rule}", WIDE), ylabel="share of runs above it")
    legend_below(axis)


def draw_improvements(figure: Any, tasks: Sequence[Task], baseline: str | None) -> None:
    """Probability of improvement over the baseline. UserError if there is no other method."""
    baseline = check_baseline(baseline or BASELINE, tasks)
    (axis,) = panels(figure, 1)
    intervals = improvements_over(baseline, tasks)
    if not intervals:
        raise UserError(f"there are no runs but those of the baseline {baseline}: nothing to compare with it")
    draw_intervals(axis, list(intervals.values()), [legend_label(method, tasks) for method in intervals])
    axis.axvline(0.5, color="black", linewidth=1)
    axis.set(title=title_of(tasks), xlim=(0, 1), xlabel=f"P(better than\n{legend_label(baseline, tasks)})")


def draw_aggregates(figure: Any, tasks: Sequence[Task]) -> None:
    """Median, IQM, mean and optimality gap of scores, a panel each."""
    values, within, rule = scores(tasks)
    for axis, (name, statistic) in zip(panels(figure, len(AGGREGATES)), AGGREGATES.items(), strict=True):
        limits = (0, inf) if statistic is optimality_gap else within
        intervals = [estimate(statistic, runs, limits) for runs in values.values()]
        draw_intervals(axis, intervals, [legend_label(method, tasks) for method in values])
        axis.set(title=name, xlabel=fill(rule, WIDE) + bounds_note(within, tasks))


def draw_line(axis: Any, x: np.ndarray, estimated: Interval, label: str, color: str | None = None) -> None:
    """A line with a band for its interval; one seed has no band. A single point is a dot with a vertical line."""
    single = len(x) == 1
    (drawn,) = axis.plot(x, estimated.value, "o" if single else "-", label=label, color=color)
    if np.isnan(estimated.low).any():
        return
    if single:
        axis.vlines(x, estimated.low, estimated.high, color=drawn.get_color())
    else:
        axis.fill_between(x, estimated.low, estimated.high, alpha=0.2, color=drawn.get_color(), linewidth=0)


def draw_intervals(axis: Any, intervals: Sequence[Interval], labels: Sequence[str]) -> None:
    """A row for each method, from the top: a dot at its value, a line for its interval (one seed has none)."""
    for row, (value, low, high) in enumerate(intervals):
        axis.plot([low, high], [row, row], color="C0", alpha=0.5, linewidth=6, solid_capstyle="butt")
        axis.scatter(value, row, color="black", clip_on=False, zorder=3)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()


def legend_below(axis: Any) -> None:
    """A legend below the label of the x-axis, where it hides no curve; the figure becomes higher by it."""
    from matplotlib.transforms import ScaledTranslation

    figure, above = axis.figure, 22 + 14 * (axis.get_xlabel().count("\n") + 1)  # points: numbers and lines of the label
    place = axis.transAxes + ScaledTranslation(0, -above / 72, figure.dpi_scale_trans)
    legend = axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=place)
    figure.set_figheight(max(figure.get_figheight(), HEIGHT + LEGEND_LINE * (1 + len(legend.get_texts()))))


def caption(tasks: Sequence[Task], kind: str) -> list[str]:
    """What the numbers of a figure of that kind are, and whether there are too few seeds, a sentence each."""
    groups = [group for task in tasks for group in task.groups.values()]
    if kind in ("curves", "efficiency"):
        numbers = "Each point is the IQM over seeds of one evaluation, and the band its 95 % interval."
    else:
        episodes = min_max([count for group in groups for count in group.episodes])
        numbers = run_sentence(min(LAST, *(len(task.steps) for task in tasks)), episodes)
    return [numbers, *few_seeds_sentence(len(group.values) for group in groups)]


def legend_label(method: str, tasks: Sequence[Task]) -> str:
    """A method's name with its labels and seeds."""
    groups = [task.groups[method] for task in tasks]
    labels = min(group.labels[1] for group in groups), max(group.labels[1] for group in groups)
    seeds = len(groups[0].values)
    name = method.replace("$", r"\$")  # no formula
    name = f"\u200b{name}" if name.startswith("_") else name  # matplotlib leaves such out of a legend
    return f"{name} ({range_text(labels)} labels, {f'{seeds} seeds' if seeds > 1 else '1 seed: no interval'})"


def bounds_note(within: tuple[float, float], tasks: Sequence[Task]) -> str:
    """One more line for an axis label if some interval may exceed the possible range; else empty."""
    seeds = max(len(group.values) for task in tasks for group in task.groups.values())
    return "\n" + fill(f"({UNBOUNDED})", WIDE) if seeds > 1 and not all(map(isfinite, within)) else ""


def title_of(tasks: Sequence[Task]) -> str:
    """The environment's name, or the number of environments."""
    return tasks[0].env if len(tasks) == 1 else f"{len(tasks)} environments"


def save_figure(figure: Any, out: Path, dpi: float = 110) -> None:
    """Writes a matplotlib figure as SVG, PNG or PDF. Equal figures give equal files."""
    import matplotlib

    drawn, kind = io.BytesIO(), out.suffix.removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "equal curves, equal file"}):  # names in an SVG are random otherwise
        dates = {DATES[out.suffix]: None} if out.suffix in DATES else None
        figure.savefig(drawn, format=kind, dpi=dpi, metadata=dates)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, drawn.getvalue())
