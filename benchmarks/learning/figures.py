"""Draws every figure of the docs from the committed results, and prints the last returns of learning runs as tables.

python -m benchmarks.learning.figures
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.learning import figure1
from benchmarks.learning.evidence import GROUPS
from benchmarks.performance import growth
from benchmarks.rows import read
from benchmarks.theory import figures as theory
from rlhf_bilevel.evaluation.compare import to_floats
from rlhf_bilevel.evaluation.plot import draw
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_table
from rlhf_bilevel.evaluation.scores import estimate
from rlhf_bilevel.evaluation.statistics import iqm
from rlhf_bilevel.evaluation.tasks import LAST, bounds, final_score

RESULTS, FIGURES = Path("benchmarks/results"), Path("docs/figures")


def last(rows: list[EvaluationRecord]) -> list[str]:
    """A line a method: true return of the agent and of the other learner at the end, and the agent's success."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        here = [row for row in rows if row.method == method]
        agents, others = ([row for row in here if row.is_agent is agent] for agent in (True, False))
        success = stated(agents, "success", "{:.2f}") if agents[0].success is not None else ""
        returns = " | ".join(stated(who, "true_return", "{:.0f}") for who in (agents, others))
        seeds, labels = len({row.seed for row in here}), max(row.labels for row in here)
        lines.append(f"| {method} | {seeds} | {labels} | {returns} | {success} |")
    return lines


def stated(rows: list[EvaluationRecord], column: str, form: str) -> str:
    """Each seed's mean over its last evaluations; of these, the IQM with its 95 % interval, which one seed has not."""
    runs: dict[int, list[float]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.step):
        runs[row.seed].append(getattr(row, column))
    if not runs:
        return ""
    ends = np.array([[final_score(values) for values in runs.values()]])
    value, low, high = to_floats(estimate(iqm, ends, bounds(rows[0].env, column)))
    return form.format(value) if low is None else f"{form} [{form}, {form}]".format(value, low, high)


def told(name: str, rows: list[EvaluationRecord]) -> None:
    steps = max(row.step for row in rows)
    print(f"\n{name}: {rows[0].env}, {steps:,} steps, of each run the mean of its last {LAST} evaluations")
    print("| method | seeds | labels | true return of the agent | of the other learner | success |")
    print("|---|---|---|---|---|---|")
    print("\n".join(last(rows)))


def main() -> None:
    for file in [RESULTS / f"{group}.csv" for group in GROUPS]:
        if file.is_file():
            draw(rows := read_table(file), FIGURES / f"{file.stem}.svg")
            told(file.stem, rows)
    for scale in ("former", "tasks", "cpu", "paper"):  # where the last two have been run, the figure is the paper's
        figure1.draw_scale(scale, RESULTS, FIGURES)
    for file in sorted(RESULTS.glob("figure1-*.csv")):
        told(file.stem, read_table(file))
    growth.draw(read(RESULTS / "growth.csv", growth.Point), FIGURES / "growth.svg")
    theory.main([])


if __name__ == "__main__":
    main()
