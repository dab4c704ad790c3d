"""The learning runs behind docs and figures. What is missing is run, two side by side; the rest is left as it is.

    python -m benchmarks.evidence [--group quick|walker|door] [--workers 2] [--collect]

A run is one command line, printed as it starts. When all of a group have ended, its evaluations are gathered in
``benchmarks/results/GROUP.csv``. A run that was cut off goes on. ``--collect`` gathers what has ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rlhf_bilevel.board import Board
from rlhf_bilevel.plot import Point, points, read_table, write_table
from rlhf_bilevel.sweep import Local, Planned, complete
from rlhf_bilevel.worker import ended

RUNS, RESULTS = Path("runs/evidence"), Path("benchmarks/results")


def planned(group: str, method: str, env: str, seed: int, steps: int, words: str) -> Planned:
    return Planned(RUNS / group / f"{method}-{seed}", method, env, seed, steps, tuple(words.split()))


QUICK = "--preset quick --labels 200 --set session_every=1000 --set eval_every=1000"
GROUPS = {
    "quick": [
        planned("quick", method, "dm_control/cartpole-balance-v0", seed, 12_000, QUICK)
        for methods in (("penalty", "pebble", "sac"), ("twin",))
        for seed, method in product(range(5), methods)
    ],
    "walker": [
        planned("walker", method, "dm_control/walker-walk-v0", 0, 100_000, "--preset cpu --labels 500")
        for method in ("penalty", "twin", "pebble")
    ],
    "door": [planned("door", "penalty", "Meta-World/door-open-v3", 0, 50_000, "--preset cpu --labels 500")],
}


def in_results(group: str, run: Planned) -> bool:
    """Whether the run's evaluations, to its last step, are in the committed table."""
    table, key = RESULTS / f"{group}.csv", (run.method, run.env, run.seed, run.steps)
    return table.is_file() and any(key == (p.method, p.env, p.seed, p.step) for p in read_table(table))


def collect(group: str) -> None:
    """Adds what has ended to what the table holds already, in the order of the group."""
    table = RESULTS / f"{group}.csv"
    known = read_table(table) if table.is_file() else []
    rows: list[Point] = []
    for run in GROUPS[group]:
        rows += (
            points(run.out) if ended(run.out) else [p for p in known if (p.method, p.seed) == (run.method, run.seed)]
        )
    if rows:
        RESULTS.mkdir(exist_ok=True)
        write_table(rows, table)
        print(f"{table}: {len({(p.method, p.seed) for p in rows})} of {len(GROUPS[group])} runs")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=GROUPS, action="append", help="may be given more than once (all)")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    groups = args.group or list(GROUPS)
    failed = []
    if not args.collect:
        missing = [run for group in groups for run in GROUPS[group] if not in_results(group, run)]
        with Board(missing) as board:
            failed = complete(missing, Local(args.workers), board.see)
    for group in groups:
        collect(group)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: the same command tries them again")


if __name__ == "__main__":
    main()
