"""Our speed against the peers', as ratios that are taken in one run, and against what the machine can do.

    python -m benchmarks.performance.compare [--tasks NAME ...] [--repeats 5] [--out FILE]

Every subject is a process of its own that builds its work, does it once unmeasured, and once more whenever it is its
turn. Turns go round, so that whatever slows the machine slows all; a ratio is the median over the rounds of the ratios
within a round, its spread their least and largest. A subject is held on as many CPUs as it has threads. Peers have
environments of their own under ``.venv-peers``, which ``make bench`` fills from ``peers/*.txt``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.rows import write

HERE = Path(__file__).parent
PEERS = Path(".venv-peers")
INTERPRETERS = {
    "ours": Path(sys.executable),
    "sb3": PEERS / "sb3/bin/python",
    "imitation": PEERS / "imitation/bin/python",
}
Subjects = dict[str, tuple[str, str]]
"""Name to script and its task; the first is the one that the others are compared with."""

TASKS: dict[str, tuple[str, int, Subjects]] = {  # unit, threads, subjects
    "SAC update": (
        "updates/s",
        1,
        {
            "ours": ("ours", "update"),
            "SB3": ("sb3", "update"),
            "SB3, fused Adam": ("sb3", "update_fused"),
            "SBX (JAX)": ("sb3", "update_sbx"),
            "ours, 2 learners": ("ours", "update_two"),
        },
    ),
    "SAC update, 2 threads": (
        "updates/s",
        2,
        {"ours": ("ours", "update"), "SB3": ("sb3", "update"), "SBX (JAX)": ("sb3", "update_sbx")},
    ),
    "PEBBLE loop": ("env steps/s", 1, {"ours": ("ours", "loop"), "imitation": ("imitation", "loop")}),
    "penalty loop": ("env steps/s", 1, {"penalty": ("ours", "loop_penalty"), "PEBBLE": ("ours", "loop_pebble")}),
    "reward update, 256x256x256": (
        "pairs/s",
        1,
        {"ours": ("ours", "reward_update"), "imitation": ("imitation", "reward_update")},
    ),
    "reward update, 32x32": (
        "pairs/s",
        1,
        {"ours": ("ours", "reward_update_small"), "imitation": ("imitation", "reward_update_small")},
    ),
    "relabelling": ("rows/s", 1, {"ours": ("ours", "relabel"), "imitation": ("imitation", "relabel")}),
    "disagreement": ("candidates/s", 1, {"ours": ("ours", "disagreement"), "imitation": ("imitation", "disagreement")}),
    "k-center": ("candidates/s", 1, {"ours": ("ours", "k_center")}),
    "checkpoint": ("saves/s", 1, {"ours": ("ours", "checkpoint"), "SB3": ("sb3", "checkpoint")}),
}
# A linear layer costs 2 i j operations a row, as many again for its weights' gradient, and again for its input's
BATCH, WIDTH, OBS, ACT = 256, 256, 24, 6


def sac_flops() -> float:
    """Of the least arithmetic that SAC's update is: no gradient in it that nobody uses."""
    actor = [(OBS, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * ACT)]
    critic = [(OBS + ACT, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]

    def forward(layers: list[tuple[int, int]]) -> int:
        return sum(i * j for i, j in layers)

    beyond_first = forward(critic[1:])  # inputs' gradients where the first layer's is not needed
    policy = 2 * forward(actor) + forward(actor) + forward(actor[1:])  # s and s'; backward at s
    values = 3 * forward(critic)  # target, fit, actor's
    values += forward(critic) + beyond_first  # the fit's backward
    to_action = beyond_first + ACT * WIDTH  # the actor's backward, each row through the least critic
    return 2 * BATCH * (policy + 2 * values + to_action)


def reward_flops(hidden: int = 256, training: bool = True) -> float:
    """A pair of 50-step segments in training, or a row; three members of three layers."""
    first, rest = (OBS + ACT) * hidden, 2 * hidden * hidden + hidden
    return 2 * 3 * 100 * (2 * first + 3 * rest) if training else 2 * 3 * (first + rest)


ARITHMETIC = {  # floating-point operations a unit
    "SAC update": sac_flops(),
    "SAC update, 2 threads": sac_flops(),
    "PEBBLE loop": (750 * sac_flops() + 10 * (20 + 40 + 60) * reward_flops()) / 1000,
    "reward update, 256x256x256": reward_flops(),
    "relabelling": reward_flops(training=False),
    "disagreement": 100 * reward_flops(training=False),
}


class Row(NamedTuple):
    task: str
    subject: str
    threads: int
    rate: float  # median
    unit: str
    ratio: float  # of the first subject's rate to this one's, median of the rounds'
    ratio_low: float
    ratio_high: float
    peak_mib: float
    of_limit: float  # share of the machine's measured matrix-product rate; nan where arithmetic is not counted
    machine: str
    versions: str


class Subject:
    def __init__(self, script: str, task: str, threads: int) -> None:
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        words = ["-m", "benchmarks.performance.ours"] if script == "ours" else ["-P", str(HERE / f"peers/{script}.py")]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        if script != "ours":  # a peer's interpreter finds our work as plain modules, and -P hides imitation.py from it
            env["PYTHONPATH"] = str(HERE)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [str(INTERPRETERS[script]), *words, task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()[-1:] or ["and said nothing"]
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended early: {said[0]}")  # type: ignore[arg-type]
        return json.loads(line)

    def turn(self) -> dict[str, float]:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def product_rate(threads: int) -> float:
    """Floating-point operations a second of a large float32 matrix product on so many threads: the machine's limit."""
    torch.set_num_threads(threads)
    a, b = torch.randn(2, 1024, 1024).unbind()
    out, best = torch.empty(1024, 1024), 0.0
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def compare(task: str, repeats: int) -> list[Row]:
    unit, threads, subjects = TASKS[task]
    open_subjects = {name: Subject(*where, threads) for name, where in subjects.items()}
    rounds: list[dict[str, dict[str, float]]] = []
    limits = []
    for _ in range(repeats):
        rounds.append({name: subject.turn() for name, subject in open_subjects.items()})
        limits.append(product_rate(threads))
    for subject in open_subjects.values():
        subject.close()
    rates = {name: [told[name]["units"] / told[name]["seconds"] for told in rounds] for name in subjects}
    first, rows = next(iter(rates.values())), []
    for name, own in rates.items():
        ratios = [reference / rate for reference, rate in zip(first, own, strict=True)]
        share = ARITHMETIC.get(task, float("nan")) * median(map(truediv, own, limits))
        told = " ".join(f"{key} {value}" for key, value in open_subjects[name].versions.items())
        peak = max(turn[name]["peak_mib"] for turn in rounds)
        spread = min(ratios), max(ratios)
        rows.append(Row(task, name, threads, median(own), unit, median(ratios), *spread, peak, share, machine(), told))
    return rows


def machine() -> str:
    model = [line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{model[0] if model else platform.processor()} x {os.cpu_count()}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.csv"))
    args = parser.parse_args(argv)
    rows: list[Row] = []
    for task in args.tasks:
        for row in compare(task, args.repeats):
            rows.append(row)
            limit = "" if row.of_limit != row.of_limit else f"  {row.of_limit:4.0%} of the matrix-product rate"
            print(
                f"{row.task:27} {row.subject:17} {row.rate:12.4g} {row.unit:13}"
                f" first / this {row.ratio:6.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]{limit}",
                flush=True,
            )
    write(rows, args.out, ".5g")


if __name__ == "__main__":
    main()
