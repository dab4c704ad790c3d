"""Draws the theory figures from the CSVs in benchmarks/results, as SVG and PNG.

python -m benchmarks.theory.figures [--results FOLDER] [--out FOLDER]

theory-bias         bias of grad Phi_sigma against sigma               theory-estimator.csv
theory-estimator    its noise against B and sigma, and the best total  theory-estimator.csv
theory-samples      samples against the accuracy reached               theory-1.csv, theory-2.csv
theory-coupling     return when the coupling is there and when not     theory-coupling.csv
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from benchmarks.rows import read
from benchmarks.theory import coupling
from benchmarks.theory.estimator import Error
from benchmarks.theory.laboratory import PROBLEMS, Result
from benchmarks.theory.methods import METHODS
from rlhf_bilevel.evaluation.plot import save_figure

matplotlib.use("Agg")

NAMES = {1: "one-sided", 2: "central difference"}
COLOURS = {1: "#0072B2", 2: "#D55E00"}
TITLES = {
    "bias": "The bias falls with σ one-sided, with σ² by the central difference",
    "estimator": "Noise falls with B and grows as σ falls; at the best σ the central difference gains more from B",
    "samples": "Samples grow with accuracy as the theorems say; naive alternation stops early",
    "coupling": "The win rate helps where the reward class is too small; the literal preference loss never does",
}
HIGHLIGHTED = {
    "naive alternation": "#000000",
    "penalty": COLOURS[1],
    "central difference": COLOURS[2],
    "F2SA, single loop": "#009E73",
}
"""The methods that ``samples`` names; the others are grey, and have names in the tables."""


class Errors:
    """The rows of ``estimator`` as arrays over MDPs."""

    def __init__(self, file: Path) -> None:
        self.table: dict[tuple[str, int, float, int], list[float]] = {}
        for row in read(file, Error):
            key = row.quantity, row.sides, row.sigma, row.samples
            self.table.setdefault(key, []).append(row.squared_error)
        self.sigmas = sorted({key[2] for key in self.table if key[0] == "bias"})
        self.counts = sorted({key[3] for key in self.table if key[0] == "noise"})

    def bias(self, sides: int) -> np.ndarray:
        return np.array([self.table["bias", sides, sigma, 0] for sigma in self.sigmas])  # (sigmas, MDPs)

    def noise(self, sides: int) -> np.ndarray:
        return np.array([[self.table["noise", sides, sigma, n] for n in self.counts] for sigma in self.sigmas])

    def best(self, sides: int) -> tuple[np.ndarray, np.ndarray]:
        """The least total error over sigma for every count, and whether that sigma is inside the grid for most MDPs."""
        total = self.bias(sides)[:, None] + self.noise(sides)  # (sigmas, counts, MDPs)
        where = total.argmin(0)
        inside = ((where > 0) & (where < len(self.sigmas) - 1)).mean(1) > 0.5
        return total.min(0), inside


def slope(x: Sequence[float], y: np.ndarray) -> np.ndarray:
    """Of log y (len(x), MDPs) in log x, one for each MDP."""
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def _curve(axis: Any, x: Sequence[float], y: np.ndarray, label: str, color: str) -> None:
    """Median and interquartile range over the last axis."""
    low, middle, high = np.quantile(y, [0.25, 0.5, 0.75], axis=1)
    axis.loglog(x, middle, marker=".", label=label, color=color)
    axis.fill_between(x, low, high, alpha=0.2, color=color, linewidth=0)


def bias(errors: Errors) -> Any:
    figure, axis = pyplot.subplots(figsize=(6.2, 3.8), layout="constrained")
    for sides, name in NAMES.items():
        root = np.sqrt(errors.bias(sides))
        _curve(axis, errors.sigmas, root, f"{name}: slope {np.median(slope(errors.sigmas, root)):.2f}", COLOURS[sides])
    axis.set(xlabel="σ", ylabel="‖∇Φσ − ∇Φ‖")
    return figure


def estimator(errors: Errors) -> Any:
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    sigma, count = len(errors.sigmas) // 2, errors.counts.index(10**6)
    for sides, name in NAMES.items():
        noise = errors.noise(sides)
        for axis, x, y in (axes[0], errors.counts, noise[sigma]), (axes[1], errors.sigmas, noise[:, count]):
            _curve(axis, x, y, f"{name}: slope {np.median(slope(x, y)):.2f}", COLOURS[sides])
        best, inside = errors.best(sides)
        counts = np.array(errors.counts)[inside]
        found = np.median(slope(counts, best[inside]))
        _curve(axes[2], counts, best[inside], f"{name}: slope {found:.2f}", COLOURS[sides])
    axes[0].set(xlabel="trajectories B", ylabel="noise E‖estimate − ∇Φσ‖²", title=f"σ = {errors.sigmas[sigma]:g}")
    axes[1].set(xlabel="σ", ylabel="noise E‖estimate − ∇Φσ‖²", title="B = 10⁶")
    axes[2].set(xlabel="trajectories B", ylabel="bias² + noise", title="at the best σ for B")
    return figure


def samples(results: Sequence[Result]) -> Any:
    figure, axes = pyplot.subplots(2, 3, figsize=(12.5, 7.2), layout="constrained")
    for axis, problem in zip(axes.flat, PROBLEMS, strict=True):
        for method in METHODS:
            rows = [row for row in results if (row.problem, row.method) == (problem, method)]
            counts = {row.eps: row.samples for row in rows}
            reached = np.array([[row.reached for row in rows if row.eps == eps] for eps in counts])
            if len(rows) and np.isfinite(reached).all():
                named = method in HIGHLIGHTED
                label = method if named else "other methods (tables 1 and 2)"
                style = {"color": HIGHLIGHTED[method], "zorder": 2} if named else {"color": "0.75", "zorder": 1}
                axis.loglog(np.median(reached, 1), list(counts.values()), marker=".", label=label, **style)
        axis.set(title=problem, xlabel="reached: mean ‖∇Φ‖²", ylabel="samples")
        axis.invert_xaxis()
        axis.tick_params(axis="x", which="minor", labelsize=6)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=5)
    return figure


def coupled(rows: Sequence[coupling.Row]) -> Any:
    figure, axes = pyplot.subplots(1, 4, figsize=(17, 4.4), layout="constrained")
    coupling.panel(axes, rows)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="figures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args(arguments)
    files = {name: options.results / f"theory-{name}.csv" for name in ("estimator", "1", "2", "coupling")}
    if missing := [str(file) for file in files.values() if not file.exists()]:
        parser.exit(2, f"figures: there is no {missing[0]}; make tables measures and writes it\n")
    errors = Errors(files["estimator"])
    drawn = {
        "bias": bias(errors),
        "estimator": estimator(errors),
        "samples": samples([*read(files["1"], Result), *read(files["2"], Result)]),
        "coupling": coupled(read(files["coupling"], coupling.Row)),
    }
    for name, figure in drawn.items():
        figure.suptitle(TITLES[name])
        for axis in figure.axes:
            axis.grid(alpha=0.3)
            if name in ("bias", "estimator"):
                axis.legend()
        for suffix in ("svg", "png"):
            save_figure(figure, options.out / f"theory-{name}.{suffix}")
        pyplot.close(figure)


if __name__ == "__main__":
    main()
