"""Draws every figure of the docs from the committed results, and prints their last returns as a Markdown table.

python -m benchmarks.figures
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from rlhf_bilevel.plot import Point, draw, iqm_interval, read_table

RESULTS, FIGURES = Path("benchmarks/results"), Path("docs/figures")
LAST = 3
"""Evaluations at the end of a run whose mean stands for the run: one alone is too noisy."""


def last(rows: list[Point]) -> list[str]:
    """A line a method: true return of the agent and of the other learner at the end, IQM over seeds, 95 % interval."""
    runs: dict[tuple[str, int], list[list[float]]] = defaultdict(lambda: [[], []])
    for row in sorted(rows, key=lambda row: row.step):
        runs[row.method, row.seed][0 if row.is_agent else 1].append(row.true_return)
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        seeds = [both for (name, _), both in runs.items() if name == method]
        ends = [np.array([np.mean(both[who][-LAST:]) for both in seeds if both[who]]) for who in (0, 1)]
        shown = ["{:.0f} [{:.0f}, {:.0f}]".format(*iqm_interval(end)) if len(end) else "" for end in ends]
        labels = max(row.labels for row in rows if row.method == method)
        lines.append(f"| {method} | {len(seeds)} | {labels} | {shown[0]} | {shown[1]} |")
    return lines


def main() -> None:
    for table in sorted(RESULTS.glob("*.csv")):
        rows = read_table(table)
        print(f"\n{draw(rows, FIGURES / f'{table.stem}.svg')}: {rows[0].env}, {max(row.step for row in rows):,} steps")
        print("| method | seeds | labels | true return of the agent | of the other learner |\n|---|---|---|---|---|")
        print("\n".join(last(rows)))


if __name__ == "__main__":
    main()
