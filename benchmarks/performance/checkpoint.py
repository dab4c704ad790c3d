"""What a checkpoint costs: against the store's size, against what is new, and as a share of a run's time.

    python -m benchmarks.performance.checkpoint [--out FILE] [--sizes ROWS ...]

Seconds of the penalty method at walker-walk's sizes (24 observations, 6 actions, two learners of 256x256). Sizes are
taken in turn, over and over, so that a machine whose speed drifts slows all of them alike; medians are reported.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.performance.ours import grow, run_of
from benchmarks.rows import write
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.runs.checkpoint_manager import THRIFT
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.training.snapshot import capture, restore

ENV, NEW, REPEATS = "dm_control/walker-walk-v0", 1000, 7
INTERVAL = 60.0  # seconds, the default


class Cost(NamedTuple):
    rows: int  # in the store
    new: int  # of them, since the checkpoint before
    save_s: float  # median of the repeats
    save_low_s: float
    save_high_s: float
    state_mb: float  # of the checkpoint's own files
    new_rows_mb: float
    load_s: float
    share_percent: float  # of a run's time, by default


def filled(rows: int) -> Run:
    """A run with that many transitions and weights that have been trained once."""
    run = run_of("penalty", rows, rows + (REPEATS + 1) * NEW, env=ENV)
    sampled = run.config.refresh_every * run.config.batch_size
    for learner in run.learners:
        # What a learner knows of its reward just before the next refresh: as many rows as it has sampled since the last
        learner._view._cached[: min(rows, sampled)] = True  # type: ignore[attr-defined]
    run.reward(run.store.obs[:8], run.store.act[:8]).sum().backward()
    run.reward_optimizer.step()
    return run


def measure(sizes: Sequence[int], folder: Path) -> list[Cost]:
    runs = {size: filled(size) for size in sizes}
    kept = {size: Checkpoints(folder / str(size), "") for size in sizes}
    for size, run in runs.items():
        save(kept[size], run)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(REPEATS):
        for size, run in runs.items():
            grow(run, NEW)
            seconds[size].append(save(kept[size], run))
    costs = []
    for size, run in runs.items():
        newest = max((folder / str(size)).glob("step-*"))
        piece = max((folder / str(size)).glob("rows-*"), key=lambda path: int(path.stem.split("-")[1]))
        begun = time.perf_counter()
        loaded = Checkpoints(folder / str(size), "").load()
        assert loaded is not None
        restore(run, loaded.tree, loaded.tables, [])
        took = time.perf_counter() - begun
        middle = statistics.median(seconds[size])
        state = sum(path.stat().st_size for path in newest.iterdir())
        share = 100 * middle / (max(INTERVAL, THRIFT * middle) + middle)
        costs.append(
            Cost(size, NEW, middle, min(seconds[size]), max(seconds[size]), state / 1e6, piece.stat().st_size / 1e6,
                 took, share)
        )  # fmt: skip
    return costs


def save(checkpoints: Checkpoints, run: Run) -> float:
    run.step, begun = run.store.size, time.perf_counter()
    checkpoints.save(run.step, *capture(run))
    return time.perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="checkpoint", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="ROWS")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoint.csv"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        costs = measure(options.sizes, Path(folder))
    for cost in costs:
        print(
            f"{cost.rows:>9,} rows: {cost.save_s:.3f} s [{cost.save_low_s:.3f}, {cost.save_high_s:.3f}] for "
            f"{cost.new:,} new ones; {cost.share_percent:.2f} % of a run; resumed in {cost.load_s:.2f} s"
        )
    write(costs, options.out)


if __name__ == "__main__":
    main()
