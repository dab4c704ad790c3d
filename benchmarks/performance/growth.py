"""How time and memory grow: a plot, and the exponents of fitted power laws.

    python -m benchmarks.performance.growth [--repeats 5] [--out FILE.csv] [--figure FILE.svg]

Each size is timed in turn, round by round; a time is the median of the rounds. An exponent is the slope of log time
against log size, fitted by least squares over all sizes: 0 is constant, 1 linear.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.performance import ours
from benchmarks.performance.sized import ACT, OBS
from benchmarks.performance.worker import Work
from benchmarks.rows import read, write
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import RelabelledView, ReplayBuffer
from rlhf_bilevel.evaluation.plot import save_figure
from rlhf_bilevel.learners.together import stacked
from rlhf_bilevel.training.loop import update_reward
from rlhf_bilevel.types import Preferences

LENGTH = 10  # steps of a segment here, so that 100,000 labels fit beside everything else


def session(labels: int) -> Work:
    """100 answers more, and one gradient step on a batch of them all: what a session does beside its epochs."""
    run = ours.run_of("pebble", 10)
    label, fresh = torch.ones(labels), torch.zeros(labels)
    run.prefs.add(Preferences(*ours.pairs(labels, LENGTH), label), fresh)
    more = Preferences(*ours.pairs(100, LENGTH), label[:1].expand(100))

    def work() -> None:
        store = PreferenceBuffer()
        store.load([run.prefs[:]], run.prefs.fresh_loss)
        store.add(more, fresh[:1].expand(100))
        store[next(store.batches(128, np.random.default_rng(0)))]

    return 1, work


def reward_step(members: int) -> Work:
    run = ours.run_of("pebble", 10, ensemble_size=members, reward_batch=ours.PAIRS, reward_accuracy=1.0)
    queries = ours.pairs(ours.PAIRS, LENGTH)
    run.prefs.add(Preferences(*queries, torch.arange(ours.PAIRS) % 2 * 1.0), torch.zeros(ours.PAIRS))
    return 1, partial(update_reward, run, 1)


def updates(learners: int) -> Work:
    runs = [ours.run_of("sac", 1000, seed=seed) for seed in range(learners)]
    stack = stacked([run.learners[0] for run in runs])
    assert stack is not None
    return 1, partial(stack.improve, 5, 1)


def update(rows: int) -> Work:
    return 1, partial(ours.run_of("sac", rows).improve, 20, 1)


def queries(rows: int) -> Work:
    """Cutting 100 pairs of segments."""
    return 1, partial(ours.run_of("pebble", rows).sample_pairs, 100)


class Point(NamedTuple):
    what: str
    of: str
    size: int
    seconds: float
    exponent: float  # of all sizes


class Law(NamedTuple):
    what: str
    of: str
    make: Callable[[int], Work]
    sizes: Sequence[int]


LAWS = (
    Law("update of a learner", "rows in the store", update, (10_000, 100_000, 1_000_000)),
    Law("cutting 100 pairs", "rows in the store", queries, (10_000, 100_000, 1_000_000)),
    Law("relabelling", "rows in the store", ours.relabel, (10_000, 100_000, 1_000_000)),
    Law("checkpoint, 1000 new rows", "rows in the store", ours.checkpoint, (10_000, 100_000, 1_000_000)),
    Law("100 answers more", "labels", session, (100, 1000, 10_000, 100_000)),
    Law("disagreement", "candidates", ours.disagreement, (100, 1000, 10_000)),
    Law("k-center, 100 picks", "candidates", ours.k_center, (200, 1000, 10_000)),
    Law("gradient step of the reward", "members", reward_step, (1, 3, 10, 30)),
    Law("update of all learners", "learners", updates, (1, 2, 5, 10, 20)),
)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measure(law: Law, repeats: int) -> list[float]:
    works = [law.make(size)[1] for size in law.sizes]
    for work in works:
        work()
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for taken, work in zip(seconds, works, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [median(taken) for taken in seconds]


def resident() -> float:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def store_mib(obs: int, act: int, rows: int, learners: int) -> float:
    """What a full store and its views take, measured as the process's growth."""
    before = resident()
    store = ReplayBuffer(obs, act, rows)
    views = [RelabelledView(store, seed) for seed in range(learners)]
    store.table.fill_(1.0)
    for view in views:
        view._reward.fill_(1.0)
        view._cached.fill_(True)
    return resident() - before


def draw(rows: Sequence[Point], file: Path) -> None:
    groups = list(dict.fromkeys(row.of for row in rows))
    figure = Figure(figsize=(3.2 * len(groups), 3.2), layout="constrained")
    axes = figure.subplots(1, len(groups))
    for axis, of in zip(axes, groups, strict=True):
        for what in dict.fromkeys(row.what for row in rows if row.of == of):
            points = [(row.size, 1e3 * row.seconds) for row in rows if row.what == what]
            slope = next(row.exponent for row in rows if row.what == what)
            axis.loglog(*zip(*points, strict=True), "o-", label=f"{what} ({slope:.2f})")
        axis.set(xlabel=of, ylabel="ms" if axis is axes[0] else "")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper left", frameon=False)
        axis.margins(y=0.35)
    save_figure(figure, file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/growth.csv"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/growth.svg"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[Point] = []
    for obs, act, name in ((OBS, ACT, "walker's sizes"), (39, 4, "Meta-World's sizes")):
        mib = store_mib(obs, act, 1_000_000, 2)
        print(f"a store of 1,000,000 rows of {name}, seen by two learners: {mib:.0f} MiB", flush=True)
    for law in LAWS:
        seconds = measure(law, args.repeats)
        slope = exponent(law.sizes, seconds)
        found = [Point(law.what, law.of, size, value, slope) for size, value in zip(law.sizes, seconds, strict=True)]
        told = ", ".join(f"{point.size:,}: {1e3 * point.seconds:.3g} ms" for point in found)
        print(f"{law.what} by {law.of}: exponent {slope:.2f} ({told})", flush=True)
        rows += found
    write(rows, args.out, ".4g")
    draw(read(args.out, Point), args.figure)


if __name__ == "__main__":
    main()
