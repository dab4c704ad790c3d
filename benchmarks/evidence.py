"""The learning runs behind docs and figures. What is missing is run, two side by side; the rest is left as it is.

    python -m benchmarks.evidence [--group quick|walker|door] [--workers 2] [--collect]

A run is one command line, printed as it starts. When all of a group have ended, its evaluations are gathered in
``benchmarks/results/GROUP.csv``. A run that was cut off goes on. ``--collect`` gathers what has ended.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from rlhf_bilevel.plot import Point, points, read_table, write_table

RUNS, RESULTS = Path("runs/evidence"), Path("benchmarks/results")
GROUPS: dict[str, list[str]] = {
    "quick": [
        f"{method} --env dm_control/cartpole-balance-v0 --preset quick --steps 12000 --labels 200"
        f" --set session_every=1000 --set eval_every=1000 --seed {seed}"
        for methods in (("penalty", "pebble", "sac"), ("twin",))
        for seed, method in product(range(5), methods)
    ],
    "walker": [
        f"{method} --env dm_control/walker-walk-v0 --preset cpu --steps 100000 --labels 500 --seed 0"
        for method in ("penalty", "twin", "pebble")
    ],
    "door": ["penalty --env Meta-World/door-open-v3 --preset cpu --steps 50000 --labels 500 --seed 0"],
}


def folder(group: str, run: str) -> Path:
    words = run.split()
    return RUNS / group / f"{words[0]}-{words[-1]}"


def in_results(group: str, run: str) -> bool:
    """Whether the run's evaluations, to its last step, are in the committed table."""
    words, table = run.split(), RESULTS / f"{group}.csv"
    key = (words[0], words[words.index("--env") + 1], int(words[-1]), int(words[words.index("--steps") + 1]))
    return table.is_file() and any(key == (p.method, p.env, p.seed, p.step) for p in read_table(table))


def execute(group: str, run: str) -> None:
    out = folder(group, run)
    if (out / "model.zip").is_file() or in_results(group, run):
        return
    words = ["resume", str(out)] if (out / "config.yaml").is_file() else ["train", *shlex.split(run), "--out", str(out)]
    command = [sys.executable, "-m", "rlhf_bilevel", *words]
    print(shlex.join(command[1:]), flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    print(out, "ended" if (out / "model.zip").is_file() else f"failed: see {out.with_suffix('.log')}", flush=True)


def collect(group: str) -> None:
    """Adds what has ended to what the table holds already, in the order of the group."""
    table = RESULTS / f"{group}.csv"
    known = read_table(table) if table.is_file() else []
    rows: list[Point] = []
    for run in GROUPS[group]:
        out, words = folder(group, run), run.split()
        if (out / "model.zip").is_file():
            rows += points(out)
        else:
            rows += [p for p in known if (p.method, p.seed) == (words[0], int(words[-1]))]
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
    if not args.collect:
        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(execute, *zip(*((group, run) for group in groups for run in GROUPS[group]), strict=True)))
    for group in groups:
        collect(group)


if __name__ == "__main__":
    main()
