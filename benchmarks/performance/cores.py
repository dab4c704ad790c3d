"""Wall time of whole runs on one thread and on several, in turns; alone on the machine.

    python -m benchmarks.performance.cores --rounds 2 --threads 1 2

Runs have the preset cpu on walker-walk, with evaluations, logs and checkpoints as ``train`` makes them. What is timed
is steps MEASURED[0] to MEASURED[1], when processes have started. Evaluations are as dense as they are by default: one
step of an episode for each step of training. Their share is the time that the run itself spends on them or waits for
them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_bilevel.runs import session, start
from rlhf_bilevel.runs.evaluations import Evaluations
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.training import loop
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics

MEASURED = 1400, 3400
SETTINGS: dict[str, Any] = {
    "total_timesteps": 100_000, "learning_starts": 1000, "pretrain_steps": 200, "num_interact": 2000,
    "queries_per_session": 20, "refresh_every": 1000, "eval_freq": 2000, "n_eval_episodes": 2,
}  # fmt: skip


class OverError(Exception):
    """The measured steps are over."""


class Timed(Evaluations):
    """Evaluations that add up the time which the run spends on them."""

    seconds = 0.0

    def begin(self) -> Metrics | None:
        began = time.perf_counter()
        metrics = super().begin()
        Timed.seconds += time.perf_counter() - began
        return metrics

    def end(self, wait: bool = True) -> Metrics | None:
        began = time.perf_counter()
        metrics = super().end(wait)
        Timed.seconds += time.perf_counter() - began
        return metrics


def measure(method: str, threads: int, env: str) -> tuple[float, float]:
    """Milliseconds a step of a run, and the share of the time that goes into evaluations."""
    train, times = loop.train, []

    def timed(run: Run) -> Iterator[Any]:
        for row in train(run):
            if run.step in MEASURED:
                times.append((time.perf_counter(), Timed.seconds))
            if run.step == MEASURED[1]:
                raise OverError
            yield row

    loop.train, session.Evaluations = timed, Timed  # type: ignore[misc, attr-defined]
    with tempfile.TemporaryDirectory() as folder, suppress(OverError):
        start.train(RunSpec.of(method, env, SETTINGS, threads=threads, out=Path(folder) / "run"))
    whole, evaluations = (after - before for before, after in zip(*times, strict=True))
    return 1e3 * whole / (MEASURED[1] - MEASURED[0]), evaluations / whole


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["pebble", "penalty"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--env", default="dm_control/walker-walk-v0")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(args.one[0], int(args.one[1]), args.env)))
        return
    subjects = [(method, threads) for method in args.methods for threads in args.threads]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {subject: [] for subject in subjects}
    for _ in range(args.rounds):
        for method, threads in subjects:
            command = [sys.executable, "-m", "benchmarks.performance.cores", "--env", args.env]
            told = subprocess.run(
                [*command, "--one", method, str(threads)],
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            milliseconds, share = json.loads(told.stdout)
            found[method, threads].append((milliseconds, share))
            print(f"{method}, {threads} threads: {milliseconds:.2f} ms a step, {share:.1%} evaluations", flush=True)
    first = subjects[0]
    for subject, measured in found.items():
        times, shares = zip(*measured, strict=True)
        ratios = [mine / reference for mine, (reference, _) in zip(times, found[first], strict=True)]
        print(
            f"{subject[0]:14} {subject[1]} threads  {median(times):6.2f} ms a step, {median(ratios):.2f} of {first[0]}"
            f", {median(shares):.1%} evaluations"
        )


if __name__ == "__main__":
    main()
