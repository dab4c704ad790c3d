"""Many runs: what has ended is left alone, what was cut off goes on, what is missing begins."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rlhf_bilevel.files import SUMS


class Planned(NamedTuple):
    out: Path
    words: Sequence[str]  # of the command line, after ``rlhf-bilevel train``


def ended(out: Path) -> bool:
    return (out / SUMS).is_file()


def begun(out: Path) -> bool:
    return (out / "config.yaml").is_file()


def execute(run: Planned, tell: Callable[[str], None] = print) -> bool:
    """One run in a process of its own with one thread, its output in OUT.log; whether it came to its end."""
    out, log = run.out, run.out.with_suffix(".log")
    if ended(out):
        return True
    words = ["resume", str(out)] if begun(out) else ["train", *run.words, "--out", str(out)]
    command = [sys.executable, "-m", "rlhf_bilevel", *words]
    tell(shlex.join(command[1:]))
    out.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        subprocess.run(command, stdout=stream, stderr=stream, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    tell(f"{out} ended" if ended(out) else f"{out} failed: see {log}")
    return ended(out)


def side_by_side(runs: Sequence[Planned], workers: int) -> bool:
    """Whether all came to their ends."""
    with ThreadPoolExecutor(workers) as pool:
        return all(list(pool.map(execute, runs)))


def table(runs: Sequence[Planned]) -> str:
    """True return at the end, a line a method and environment."""
    from rlhf_bilevel.plot import points

    last: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if ended(run.out):
            point = [point for point in points(run.out) if point.is_agent][-1]
            last.setdefault((point.method, point.env), []).append(point.true_return)
    lines = [
        f"{method:10} {env:32} {fmean(values):10.1f} {min(values):10.1f} {max(values):10.1f} {len(values):6}"
        for (method, env), values in last.items()
    ]
    return "\n".join([f"{'method':10} {'environment':32} {'mean':>10} {'least':>10} {'most':>10} {'seeds':>6}", *lines])
