"""How often 95 % intervals hold the truth: scores of runs are drawn anew thousands of times, and the truth is known.

    python -m benchmarks.statistics.coverage [--repeats 1000] [--out benchmarks/results/coverage.csv]

Three kinds of runs, tasks a to c of unequal height and spread: ``normal``; ``ceiling``, near a best score with a tail
of worse ones (1 minus a Gamma variate of shape 3/2); ``two modes``, which fail (.2) or succeed (.9) with noise of .08.
For the probability of improvement ours is moved up from theirs, so that it is .7 to .76. Prints the tables of
docs/statistics.md. A share of .95 has a standard error of .007 with 1000 repeats. Some minutes on one core.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.rows import write
from rlhf_bilevel.evaluation.statistics import improvement_interval, interval, iqm, mean

RUNS, TASKS = (3, 5, 10, 20, 50), (1, 3)
STATISTICS = ("mean", "IQM", "improvement")
BATCH = 25  # repeats at once
MANY = 200_000  # runs whose statistic is the truth

Draw = Callable[[np.random.Generator, int, int, int, bool], np.ndarray]


class Cell(NamedTuple):
    kind: str
    tasks: int
    runs: int
    statistic: str
    truth: float
    percentile: float  # share of intervals that hold the truth
    corrected: float
    percentile_width: float  # mean width
    corrected_width: float


def heights(tasks: int, low: float, high: float) -> np.ndarray:
    """Of each task, (tasks, 1), the same for any number of tasks that are not drawn."""
    return np.linspace(low, high, 3)[:tasks, None]


def normal(rng: np.random.Generator, repeats: int, tasks: int, runs: int, ours: bool) -> np.ndarray:
    noise = rng.normal(size=(repeats, tasks, runs)) * heights(tasks, 0.5, 1.5)
    return noise + heights(tasks, 0.0, 2.0) + ours * heights(tasks, 0.5, 1.5)


def ceiling(rng: np.random.Generator, repeats: int, tasks: int, runs: int, ours: bool) -> np.ndarray:
    below = rng.gamma(1.5, 0.15, (repeats, tasks, runs)) * heights(tasks, 0.7, 1.3)
    return 1 - below + 0.1 * ours


def two_modes(rng: np.random.Generator, repeats: int, tasks: int, runs: int, ours: bool) -> np.ndarray:
    succeeds = rng.random((repeats, tasks, runs)) < heights(tasks, 0.35, 0.55) + 0.4 * ours
    return np.where(succeeds, 0.9, 0.2) + 0.08 * rng.normal(size=(repeats, tasks, runs))


KINDS: dict[str, Draw] = {"normal": normal, "ceiling": ceiling, "two modes": two_modes}


@cache
def true_value(kind: str, statistic: str, tasks: int) -> float:
    rng = np.random.default_rng(0)
    ours, theirs = (KINDS[kind](rng, 1, tasks, MANY, moved)[0] for moved in (True, False))
    if statistic == "improvement":  # MANY^2 pairs are too many, and MANY are enough
        return float(np.mean(np.sign(ours - theirs)) / 2 + 0.5)
    return float({"mean": mean, "IQM": iqm}[statistic](ours))


def covered(
    kind: str, tasks: int, runs: int, statistic: str, repeats: int, corrected: bool, resamples: int = 2000
) -> tuple[float, float]:
    """Share of intervals that hold the truth, and their mean width."""
    rng, truth = np.random.default_rng(1), true_value(kind, statistic, tasks)
    held, width = 0, 0.0
    for start in range(0, repeats, BATCH):
        ours, theirs = (KINDS[kind](rng, min(BATCH, repeats - start), tasks, runs, moved) for moved in (True, False))
        if statistic == "improvement":
            found = improvement_interval(ours, theirs, corrected=corrected, resamples=resamples)
        else:
            found = interval({"mean": mean, "IQM": iqm}[statistic], ours, corrected=corrected, resamples=resamples)
        held += int(((found.low <= truth) & (truth <= found.high)).sum())
        width += float((found.high - found.low).sum())
    return held / repeats, width / repeats


def measured(kind: str, tasks: int, runs: int, statistic: str, repeats: int) -> Cell:
    (old, old_width), (new, new_width) = (
        covered(kind, tasks, runs, statistic, repeats, corrected) for corrected in (False, True)
    )
    truth = true_value(kind, statistic, tasks)
    return Cell(kind, tasks, runs, statistic, *(round(x, 4) for x in (truth, old, new, old_width, new_width)))


def table(cells: Sequence[Cell], tasks: int) -> str:
    """Markdown: a row a number of runs, percentile and corrected coverage of each statistic for each kind of run."""
    columns = list(product(KINDS, STATISTICS))
    lines = [
        "| runs | " + " | ".join(f"{kind}: {statistic}" for kind, statistic in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    found = {(cell.kind, cell.statistic, cell.runs): cell for cell in cells if cell.tasks == tasks}
    for runs in RUNS:
        here = [found[kind, statistic, runs] for kind, statistic in columns]
        shown = (f"{cell.percentile:.3f} → {cell.corrected:.3f}".replace("0.", ".") for cell in here)
        lines.append(f"| {runs} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="coverage", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000, help="data sets a cell")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.csv"))
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.exit(2, f"coverage: --repeats must be at least 1, not {options.repeats}\n")
    cells = []
    for settings in product(KINDS, TASKS, RUNS, STATISTICS):
        cells.append(measured(*settings, options.repeats))
        print(*cells[-1], flush=True)
    write(cells, options.out)
    for tasks in TASKS:
        print(f"\n{tasks} task{'s' * (tasks > 1)}, percentile → corrected\n\n{table(cells, tasks)}")


if __name__ == "__main__":
    main()
