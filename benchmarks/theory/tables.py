"""The paper's two tables, published rates beside measured ones, as Markdown and CSV.

    python -m benchmarks.theory.tables 1|2 [--results FILE] [--out FOLDER]

Of every method on every problem, over the seeds of ``laboratory``:

    planned   slope of log samples in log 1/eps as the method's schedule asks, K's logarithm included
    found     the same against the accuracy reached: a finding, since a bias that does not vanish, noise beyond what the
              schedule allows for or too slow a descent would bend it; median over seeds with 95 % bootstrap bounds
    samples   to reach an accuracy, interpolated on log scales between the runs on either side; median over seeds
    seconds   and Hessian products of the coarsest run that reached the second accuracy (median of the seeds)

Slopes take the accuracies asked from 1e-1 down, or all where fewer than three of these were within the limit; there is
none from fewer than three.
"""

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

import numpy as np

from benchmarks.rows import read, write
from benchmarks.theory.laboratory import LIMIT, PROBLEMS, Result
from benchmarks.theory.methods import METHODS

TABLES = {1: ("MDP", "LQR"), 2: ("quadratic", "nonconcave sine", "ridge", "logistic")}
TITLES = {
    1: "Bilevel reinforcement learning (Theorem 1): reward learning on random MDPs, cost weights of a regulator",
    2: "General bilevel problems with a Polyak-Lojasiewicz lower level (Theorem 2)",
}
REACHED = (1e-1, 1e-2, 1e-3)


class Line(NamedTuple):
    """One method on one problem, a line of the CSV table; None where it was not measured."""

    problem: str
    method: str
    planned_slope: float | None
    found_slope: float | None  # infinite where more samples do not help
    found_low: float | None
    found_high: float | None
    samples_to_1e1: float | None
    samples_to_1e2: float | None
    samples_to_1e3: float | None
    best_reached: float  # the least mean squared gradient norm of any run, median over seeds
    seconds: float | None
    hessian_products: int | None


def lines(results: Sequence[Result]) -> list[Line]:
    """In the order of PROBLEMS and METHODS."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.problem, result.method].append(result)
    return [_line(groups[key]) for key in ((p, m) for p in PROBLEMS for m in METHODS) if key in groups]


def _line(rows: Sequence[Result]) -> Line:
    by_seed: dict[int, list[Result]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -row.eps):
        by_seed[row.seed].append(row)
    paths = list(by_seed.values())
    fine = [row for row in paths[0] if row.eps <= 0.1]
    kept = len(fine) if len(fine) >= 3 else len(paths[0])
    planned = found = low = high = None
    if kept >= 3:
        cut = [path[-kept:] for path in paths]
        planned = _slope([1 / row.eps for row in cut[0]], [row.samples for row in cut[0]])
        slopes = [_slope([1 / row.reached for row in path], [row.samples for row in path]) for path in cut]
        drawn = np.median(np.random.default_rng(0).choice(slopes, (2000, len(slopes))), axis=1)
        found, low, high = median(slopes), *(float(np.sort(drawn)[k]) for k in (50, 1949))
    runs = [[path[i] for path in paths] for i in range(len(paths[0]))]
    medians = [median(row.reached for row in run) for run in runs]
    good = next((run for run, reached in zip(runs, medians, strict=True) if reached <= REACHED[1]), None)
    coarse, middle, finest = (_needed([run[0].samples for run in runs], medians, eps) for eps in REACHED)
    return Line(
        rows[0].problem, rows[0].method, planned, found, low, high, coarse, middle, finest, min(medians),
        good[0].seconds if good else None, good[0].products if good else None,
    )  # fmt: skip


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y in log x; infinite where the accuracy 1 / x gains less than a fifth from the coarsest to the finest."""
    if not np.isfinite(x).all() or x[-1] < 1.25 * x[0]:
        return math.inf
    return linear_regression(np.log(x).tolist(), np.log(y).tolist()).slope


def _needed(samples: Sequence[float], reached: Sequence[float], eps: float) -> float | None:
    """Samples at which the accuracy passes eps for the first time; None if it never does."""
    for i, value in enumerate(reached):
        if value <= eps:
            if i == 0:
                return samples[0]
            share = math.log(reached[i - 1] / eps) / math.log(reached[i - 1] / value)
            return math.exp(math.log(samples[i - 1]) + share * math.log(samples[i] / samples[i - 1]))
    return None


def _short(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.2g}" if 0.01 <= number < 1000 else f"{number:.0e}".replace("e+0", "e").replace("e+", "e")


def markdown(table: int, measured: Sequence[Line], published: Sequence[dict[str, str]]) -> str:
    text = [f"# Table {table}. {TITLES[table]}", "", "## Published", ""]
    text += [
        "| method here | source | rate as published | samples, if E‖∇Φ‖² ≤ ε | read where |",
        "|---|---|---|---|---|",
    ]
    text += [
        f"| {row['method']} | {row['reference']} | {row['published']} | {row['squared_norm']} | {row['how']} |"
        for row in published
    ]
    text += ["", "## Measured", ""]
    text += [
        "Accuracy: mean over a run's iterates of ‖∇Φ‖², Φ scaled so that it is 1 at the start.",
        "Slopes of log samples in log 1/ε, as planned by the schedule and as found against what was reached: median",
        "over seeds [95 % bootstrap]; ∞: more samples do not help. Seconds: all seeds side by side on one thread, of",
        "the coarsest run that reaches 1e-2.",
        f"A dash: not reached by any schedule of at most {LIMIT:,} batches.",
    ]
    for problem in TABLES[table]:
        text += ["", f"### {problem}", "", f"{PROBLEMS[problem].replicates} seeds.", ""]
        text += ["| method | planned | found | samples to 1e-1 | 1e-2 | 1e-3 | best | seconds | Hessian products |"]
        text += ["|---|---|---|---|---|---|---|---|---|"]
        for line in measured:
            if line.problem == problem:
                cells = ["-", "-"]
                if line.planned_slope is not None:
                    found, low, high = (f"{x:.2f}".replace("inf", "∞") for x in line[3:6])
                    cells = [f"{line.planned_slope:.2f}", f"{found} [{low}, {high}]"]
                products = "-" if line.hessian_products is None else line.hessian_products
                cells += map(_short, line[6:11])  # samples, best and seconds
                text += [f"| {line.method} | {' | '.join(cells)} | {products} |"]
    return "\n".join([*text, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tables", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", type=int, choices=list(TABLES))
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/theory-TABLE.csv")
    parser.add_argument("--out", type=Path, default=Path("docs/tables"))
    options = parser.parse_args(arguments)
    results = options.results or Path(f"benchmarks/results/theory-{options.table}.csv")
    if not results.exists():
        parser.exit(2, f"tables: there is no {results}; make table{options.table} measures and writes it\n")
    measured = [line for line in lines(read(results, Result)) if line.problem in TABLES[options.table]]
    with Path(__file__).with_name("published.csv").open(newline="") as stream:
        published = [row for row in csv.DictReader(stream) if row["table"] == str(options.table)]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"table{options.table}.md").write_text(markdown(options.table, measured, published))
    write(measured, options.out / f"table{options.table}.csv")


if __name__ == "__main__":
    main()
