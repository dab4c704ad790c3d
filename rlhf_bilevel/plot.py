"""Learning curves from evaluations: one line a method, the interquartile mean over seeds with a bootstrap interval.

A ``Point`` is one learner of one run at one evaluation; a table of them is what ``benchmarks/results`` holds.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_bilevel.files import read_yaml, write


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
    with file.open(newline="") as stream:
        return [
            Point(
                row["method"], row["env"], int(row["seed"]), int(row["step"]), int(row["labels"]), int(row["learner"]),
                row["is_agent"] == "1", float(row["true_return"]), float(row["success"]) if row["success"] else None,
                int(row["episodes"]), row["commit"],
            )
            for row in csv.DictReader(stream)
        ]  # fmt: skip


def iqm(samples: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: the mean after a quarter is cut off at either end."""
    cut = samples.shape[-1] // 4
    ordered = np.sort(samples, axis=-1)
    return ordered[..., cut : samples.shape[-1] - cut].mean(-1)


def iqm_interval(samples: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """IQM over seeds (n,) with its 95 % percentile-bootstrap bounds; both bounds are the IQM itself for one seed."""
    drawn = np.random.default_rng(0).choice(samples, (resamples, len(samples)))
    low, high = np.quantile(iqm(drawn), [0.025, 0.975])
    return float(iqm(samples)), float(low), float(high)


def draw(rows: Sequence[Point], out: Path) -> Path:
    """A panel an environment, true return (success where it is known) of the agents against environment steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    agents = [row for row in rows if row.is_agent]
    panels = list(dict.fromkeys(row.env for row in agents))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 3.6), squeeze=False, layout="constrained"
    )
    for axis, env in zip(axes[0], panels, strict=True):
        here = [row for row in agents if row.env == env]
        with_success = all(row.success is not None for row in here)
        for method in dict.fromkeys(row.method for row in here):
            curve(axis, [row for row in here if row.method == method], method, with_success)
        axis.set(
            title=env, xlabel="environment steps (all learners)", ylabel="success" if with_success else "true return"
        )
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, out)
    pyplot.close(figure)
    return out


def save(figure: Any, out: Path) -> None:
    """Writes a matplotlib figure as SVG or PNG: the same file for the same curves."""
    import matplotlib

    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "equal curves, equal file"}):  # names in an SVG are random otherwise
        figure.savefig(out, dpi=110, metadata={"Date": None} if out.suffix == ".svg" else None)


def curve(axis: Any, rows: Sequence[Point], method: str, with_success: bool) -> None:
    values = defaultdict(list)
    for row in rows:
        values[row.step].append(row.success if with_success else row.true_return)
    steps = sorted(values)
    middle, low, high = np.array([iqm_interval(np.array(values[step])) for step in steps]).T
    seeds, labels = len({row.seed for row in rows}), max(row.labels for row in rows)
    (line,) = axis.plot(steps, middle, label=f"{method} ({labels} labels, {seeds} seed{'s' * (seeds > 1)})")
    if seeds > 1:
        axis.fill_between(steps, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
