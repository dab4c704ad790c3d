"""The collapse bench: does a remedy keep runs from going wrong? Judged by forks from the same states, paired.

    python -m benchmarks.learning.collapse [--seeds 200 230] [--remedy NAME ...] [--steps 25000] [--workers 2] [--draw]

First the baseline is run with those seeds (walker-walk, 100 labels, PEBBLE with one learner, pairs of the newest
episodes and half of each batch from the newest rows), and each run is told by its curve:

    collapse    the mean of the last three evaluations is below half of the best mean of three, the best above 300
    plateau     the last third of the run gains less than 30 and ends below 800
    healthy     neither

Then each run is forked with a remedy, from the last kept checkpoint before it goes wrong: before its best mean of
three (collapse), before its last third (plateau), before the last label (healthy). What the origin itself did in as
many steps from there is the pair. ``benchmarks/results/collapse.csv`` has a row a fork; what is in it is not run again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.learning.evidence import HYBRID, SIZE, WITHOUT_REMEDIES
from benchmarks.rows import read, write
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.evaluation.records import read_records
from rlhf_bilevel.evaluation.statistics import improvement, improvement_interval
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.studies.search_space import as_options

ENV, STEPS, LABELS, KEEP = "dm_control/walker-walk-v0", 125_000, 100, 12_500
LAST = 3  # evaluations whose mean stands for a moment of a run
RUNS, TABLE = Path("runs/collapse"), Path("benchmarks/results/collapse.csv")
BASELINE = f"pebble --env {ENV} --steps {STEPS} --labels {LABELS} {as_options(SIZE | HYBRID | WITHOUT_REMEDIES)}"
REMEDIES = {
    "anchored by the best labelled": "--set anchor_share=0.5",
    "anchored by the past": "--set anchor_share=0.5 --set anchor=past",
    "smoothed labels": "--set label_smoothing=0.05",
    "bootstrapped members": "--set member_weights=bootstrap",
    "bootstrapped members, mean - .5 std after the last label": "--set member_weights=bootstrap --set pessimism=0.5",
    "bootstrapped members, mean - 1 std after the last label": "--set member_weights=bootstrap --set pessimism=1",
    "bootstrapped members, mean - .5 std always": (
        "--set member_weights=bootstrap --set pessimism=0.5 --set pessimism_from=start"
    ),
    "relative pessimism": "--method incumbent",
}


class Origin(NamedTuple):
    """A run of the baseline."""

    seed: int
    folder: Path
    last_label: int  # step
    steps: np.ndarray  # (n,) of its evaluations
    returns: np.ndarray  # (n,)


class Fork(NamedTuple):
    """A row of the table: the mean of the last three evaluations of a fork, and of its origin at the same steps."""

    seed: int
    outcome: str
    remedy: str
    at: int
    steps: int
    origin: float
    fork: float


def smoothed(returns: np.ndarray) -> np.ndarray:
    """Means of three evaluations, each under the step of the last of them: (n - 2,)."""
    return np.convolve(returns, np.full(LAST, 1 / LAST), "valid")


def outcome(returns: np.ndarray) -> str:
    smooth = smoothed(returns)
    if smooth.max() > 300 and smooth[-1] < smooth.max() / 2:
        return "collapse"
    third = smooth[-max(2, len(smooth) // 3) :]
    return "plateau" if third[-1] - third[0] < 30 and third[-1] < 800 else "healthy"


def origin(folder: Path) -> Origin:
    rows = [row for row in read_records(folder) if row.is_agent]
    last_label = next(row.step for row in rows if row.labels == rows[-1].labels)
    found = np.array([row.step for row in rows]), np.array([row.true_return for row in rows])
    return Origin(rows[0].seed, folder, last_label, *found)


def begins(run: Origin, kept: Sequence[int]) -> int:
    """The step of the kept checkpoint that the run is forked from."""
    smooth, steps = smoothed(run.returns), run.steps[LAST - 1 :]
    before = {
        "collapse": int(steps[smooth.argmax()]),
        "plateau": int(steps[-max(2, len(smooth) // 3)]),
        "healthy": run.last_label,
    }[outcome(run.returns)]
    return max((step for step in kept if step <= before), default=min(kept))


def forked(run: Origin, remedy: str, steps: int) -> Fork:
    """Forks the run, or reads what an earlier fork came to."""
    at = begins(run, Checkpoints(run.folder / "checkpoints", "").steps())
    until = min(at + steps, int(run.steps[-1]))
    out = RUNS / "forks" / f"{run.seed}-{at}-{''.join(c if c.isalnum() else '-' for c in remedy)}"
    if not RunFolder(out).ended:
        begun = RunFolder(out).begun
        words = ["resume", str(out)] if begun else ["fork", str(run.folder), "--out", str(out), "--at", str(at)]
        command(words if begun else [*words, "--steps", str(until), *REMEDIES[remedy].split()], out)
    theirs = origin(out)
    shared = np.isin(run.steps, theirs.steps[theirs.steps > at])
    mean = float(run.returns[shared][-LAST:].mean())
    fork = float(theirs.returns[theirs.steps > at][-LAST:].mean())
    return Fork(run.seed, outcome(run.returns), remedy, at, until, round(mean, 1), round(fork, 1))


def command(words: Sequence[str], out: Path) -> None:
    """Of ``rlhf-bilevel``; its output goes to OUT.log. SystemExit where it fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("ab") as log:
        call = [sys.executable, "-m", "rlhf_bilevel", *words]
        code = subprocess.run(call, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    if code:
        raise SystemExit(f"rlhf-bilevel {' '.join(words)} failed: see {out.with_suffix('.log')}")


def baseline(seed: int) -> Path:
    out = RUNS / f"baseline-{seed}"
    if not RunFolder(out).ended:
        new = ["train", *BASELINE.split(), "--seed", str(seed), "--out", str(out)]
        command([*(["resume", str(out)] if RunFolder(out).begun else new), "--keep-every", str(KEEP)], out)
    return out


def table(forks: Iterable[Fork]) -> str:
    """A line a remedy and outcome: returns before and after, and how often the fork did better, with its interval."""
    groups: dict[tuple[str, str], list[Fork]] = {}
    for fork in forks:
        groups.setdefault((fork.remedy, fork.outcome), []).append(fork)
    lines = [f"{'remedy':58} {'origins':9} {'n':>3} {'origin':>7} {'fork':>7}  share better [95 % interval]"]
    for (remedy, told), rows in sorted(groups.items()):
        ours, theirs = (np.array([[getattr(row, name) for row in rows]]) for name in ("fork", "origin"))
        better = f"{improvement(ours, theirs):.2f}"
        if len(rows) > 1:
            _, low, high = improvement_interval(ours, theirs)
            better += f" [{low:.2f}, {high:.2f}]"
        wins = np.mean([row.fork > row.origin for row in rows])
        lines.append(
            f"{remedy:58} {told:9} {len(rows):3} {theirs.mean():7.0f} {ours.mean():7.0f}  {wins:.2f} paired, {better}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=(200, 230), metavar=("FIRST", "END"))
    parser.add_argument("--remedy", action="append", choices=REMEDIES, help="may be given more than once (all)")
    parser.add_argument("--steps", type=int, default=25_000, help="of a fork (25000)")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each (2)")
    parser.add_argument("--draw", action="store_true", help="run nothing, print what is there")
    args = parser.parse_args(argv)
    known = read(TABLE, Fork) if TABLE.is_file() else []
    if not args.draw:
        with ThreadPoolExecutor(args.workers) as pool:
            runs = [origin(folder) for folder in pool.map(baseline, range(*args.seeds))]
            for run in runs:
                print(f"seed {run.seed}: {outcome(run.returns)}, ends at {smoothed(run.returns)[-1]:.0f}")
            there = {(fork.seed, fork.remedy, fork.steps - fork.at) for fork in known}
            asked = [
                (run, remedy)
                for remedy in args.remedy or REMEDIES
                for run in runs
                if (run.seed, remedy, args.steps) not in there
            ]
            for new in pool.map(lambda pair: forked(pair[0], pair[1], args.steps), asked):
                known.append(new)
                write(known, TABLE)
    print(table(known))


if __name__ == "__main__":
    main()
