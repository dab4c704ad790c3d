"""Query rules at equal labelling minutes: a simulated person takes longer on close pairs, and errs more.

    python -m benchmarks.learning.minutes [--seeds 0 1 2 3] [--steps 5000] [--labels 80] [--out runs/minutes]

PEBBLE on cartpole-balance, labels until the end. A run that has ended is not run again. It writes two tables:

- ``benchmarks/results/minutes.csv``: the evaluations, with the rule as the method, for ``compare --at-minutes``.
- ``benchmarks/results/minutes-answers.csv``: a row a run, with its labels, the minutes they took, the share of them
  that contradict the true return, and the median difference of the segments of a pair.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.rows import write
from rlhf_bilevel import Agent
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.evaluation.compare import rows_by_task, table
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_records, write_table
from rlhf_bilevel.evaluation.tasks import group_by_task
from rlhf_bilevel.feedback.pairs import differences
from rlhf_bilevel.feedback.teachers import margin
from rlhf_bilevel.types import Queries

ENV, LEAST = "dm_control/cartpole-balance-v0", 1.0
RULES: dict[str, dict[str, Any]] = {
    "disagreement": {"query": "disagreement"},
    "uniform": {"query": "uniform"},
    "policy_aligned": {"query": "uniform", "policy_aligned": True},
    "aligned, not alike": {"query": "uniform", "policy_aligned": True, "least_difference": LEAST},
}
BPREF: dict[str, Any] = {
    "policy_aligned": False, "newest_share": 0.0, "anchor_share": 0.0, "critic_layer_norm": False,
    "reward_form": "network",
}  # fmt: skip
RESULTS = Path("benchmarks/results")


class Answers(NamedTuple):
    """What the person did in one run."""

    rule: str
    seed: int
    labels: int
    minutes: float
    wrong: float  # share of the labels
    difference: float  # median over the pairs, in standard deviations of all asked steps


def trained(rule: str, seed: int, steps: int, labels: int, out: Path) -> Path:
    """The folder of the run, which is trained if it has not ended."""
    folder = out / f"{rule.replace(' ', '-').replace(',', '')}-{seed}"
    if RunFolder(folder).ended:
        return folder
    if RunFolder(folder).begun:
        Agent.resume(folder)
        return folder
    settings: dict[str, Any] = {"labels": labels, "label_schedule": "decreasing", "eval_freq": steps // 10}
    settings |= {"n_eval_episodes": 2} | BPREF | RULES[rule]
    Agent("pebble", ENV, preset="quick", seed=seed, teacher="person", out=folder, **settings).learn(steps)
    return folder


def answers(rule: str, seed: int, folder: Path) -> Answers:
    """What the person did in the run in ``folder``."""
    data = Dataset.read(folder / "preferences.parquet")
    given = data.preferences(data.labelled)
    asked = Queries(*given[:2])
    unit = torch.cat([side.obs for side in asked]).flatten(0, 1).std(0)
    wrong = ((given.label > 0.5) != (margin(asked) > 0)).float().mean().item()
    minutes = read_records(folder)[-1].minutes
    assert minutes is not None
    difference = differences(asked, torch.where(unit > 1e-6, unit, 1.0)).median().item()
    return Answers(rule, seed, len(given.label), round(minutes, 2), round(wrong, 3), round(difference, 3))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--labels", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/minutes"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    evaluations, told = list[EvaluationRecord](), list[Answers]()
    for seed in args.seeds:
        for rule in RULES:
            folder = trained(rule, seed, args.steps, args.labels, args.out)
            evaluations += [row._replace(method=rule) for row in read_records(folder)]
            told.append(answers(rule, seed, folder))
            print(told[-1], flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    write_table(evaluations, args.results / "minutes.csv")
    write(told, args.results / "minutes-answers.csv")
    least = np.floor(10 * min(run.minutes for run in told)) / 10  # all runs have used so many
    print(table(rows_by_task(group_by_task(evaluations, True, least), "disagreement", least)))


if __name__ == "__main__":
    main()
