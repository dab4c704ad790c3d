"""Runs every method on every problem by its own schedule and measures what it reached: samples against accuracy.

    python -m benchmarks.theory.laboratory [--problems NAME ...] [--methods NAME ...] [--finest EPS] [--limit BATCHES]
                                           [--seed S] [--out FILE]

A run of T upper steps reaches the accuracy mean_t |grad F(x_t)|^2 with the true gradient: Theorem 1's metric, the
expected squared gradient norm of an iterate drawn at random (of the projected gradient, where a box is). Of a long run
it is estimated: the first iterates, where the gradient falls fast, are all judged, the others by a sample. f is scaled
so that it is 1 at the start. The schedules' constants were set on seeds from 1000 on, not on those reported.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import read, write
from benchmarks.theory.algorithm import Schedule
from benchmarks.theory.general import logistic, quadratic, ridge, sine
from benchmarks.theory.lqr import Regulator
from benchmarks.theory.mdp import RewardLearning
from benchmarks.theory.methods import METHODS, Constants
from benchmarks.theory.problem import Meter, Problem


class Bench(NamedTuple):
    """A problem, its constants and what is asked of it."""

    make: Callable[[int, int], Problem]  # seed, replicates
    constants: Constants
    accuracies: Sequence[float]
    without: Sequence[str] = ()  # methods that need what the problem does not offer, or more time than there is
    replicates: int = 8  # seeds, solved side by side


RL_ONLY, SECOND_ORDER = ("HPGD", "SoBiRL", "cost trace", "Bellman penalty"), ("dense Hessian", "conjugate gradients")
F2SA = ("F2SA, single loop", "F2SA, double loop")
DECADES = (3e-1, 2e-1, 1.5e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
PROBLEMS = {
    "MDP": Bench(RewardLearning, Constants(6, 100, 2000, 0.6, 0.4, 0.5), DECADES),
    "LQR": Bench(
        Regulator,
        Constants(4, 400, 100, 0.3, 0.2, 0.5),
        (5e-1, 3e-1, 2e-1, 1.4e-1),  # its trajectories are walked: some hundred times slower than counts
        (*RL_ONLY, *SECOND_ORDER, "value penalty", *F2SA),
        replicates=4,
    ),
    "quadratic": Bench(quadratic, Constants(4, 40, 40, 1.0, 0.8, 0.5), DECADES, RL_ONLY),
    "nonconcave sine": Bench(sine, Constants(4, 10, 10, 0.2, 0.1, 0.1), DECADES, RL_ONLY),
    "ridge": Bench(ridge, Constants(4, 1, 40_000, 0.007, 0.003, 0.5), DECADES[:-1], RL_ONLY),
    "logistic": Bench(logistic, Constants(8, 0.3, 1000, 0.1, 0.03, 0.5), DECADES[:-1], RL_ONLY),
}  # fmt: skip


class Result(NamedTuple):
    """One replicate of one run."""

    problem: str
    method: str
    eps: float  # what the schedule was made for
    seed: int
    samples: int
    reached: float  # mean over the iterates of |grad F|^2; infinite for a run that left where F is finite
    last: float  # the same over the last tenth of them
    products: int  # with the Hessian of J
    seconds: float  # of all replicates side by side, the judge's left out


def judged(steps: int, rng: np.random.Generator) -> dict[int, float]:
    """The iterates of 0 .. steps - 1 at which a run is judged, and how many each of them stands for.

    All where there are no more than JUDGED; else the first FIRST, and of the others some, equally far apart from a
    random one on: weighted sums over them are unbiased, and exact over the first.
    """
    if steps <= JUDGED:
        return dict.fromkeys(range(steps), 1.0)
    stretch, offset = (steps - FIRST) / (JUDGED - FIRST), rng.random()
    later = {FIRST + int((i + offset) * stretch): stretch for i in range(JUDGED - FIRST)}
    return dict.fromkeys(range(FIRST), 1.0) | later


class Job(NamedTuple):
    problem: str
    method: str
    eps: float
    seed: int
    replicates: int


LIMIT = 33_000  # batches in one run; a schedule that wants more is not run, and the table says so
JUDGED, FIRST = 1000, 200  # iterates of a run: the true gradient costs more than a step


@lru_cache(maxsize=2)
def _problem(name: str, seed: int, replicates: int) -> Problem:
    return PROBLEMS[name].make(seed, replicates)


def plan(job: Job) -> Schedule:
    problem = _problem(job.problem, job.seed, job.replicates)
    return METHODS[job.method].plan(job.eps, PROBLEMS[job.problem].constants, problem)


def stationarity(problem: Problem, x: Tensor) -> Tensor:
    """|grad F|^2, (R,); of the projected gradient where x stands at the border of its box."""
    step = problem.eta
    return ((x - (x - step * problem.gradient(x)).clamp(*problem.box)) / step).square().sum(-1)


def run(job: Job) -> list[Result]:
    torch.set_num_threads(1)
    problem, schedule, method = _problem(job.problem, job.seed, job.replicates), plan(job), METHODS[job.method].run
    meter = Meter(problem, np.random.default_rng([job.seed, *job.method.encode()]))
    weight = judged(schedule.T, np.random.default_rng(job.seed))
    norms, start, judging = {}, time.perf_counter(), 0.0
    try:
        for t, x in enumerate(method(meter, schedule)):
            if t in weight:
                before = time.perf_counter()
                norms[t] = stationarity(problem, x.detach()).numpy()
                judging += time.perf_counter() - before
    except RuntimeError:  # where the best response is no longer finite
        norms = {schedule.T - 1: np.full(job.replicates, np.inf)}
    seconds = time.perf_counter() - start - judging
    reached = _mean(norms, weight)
    last = _mean({t: norm for t, norm in norms.items() if t >= schedule.T - max(1, schedule.T // 10)}, weight)
    return [
        Result(*job[:3], job.seed + i, meter.samples, float(a), float(b), meter.products, seconds)
        for i, (a, b) in enumerate(zip(reached, last, strict=True))
    ]


def _mean(norms: Mapping[int, np.ndarray], weight: Mapping[int, float]) -> np.ndarray:
    """Over iterates, (R,)."""
    return np.average(list(norms.values()), axis=0, weights=[weight.get(t, 1.0) for t in norms])


def jobs(
    problems: Iterable[str], finest: float, seed: int, limit: int = LIMIT, methods: Iterable[str] = METHODS
) -> list[Job]:
    """Every run within the limit down to the finest accuracy, about the longest first."""
    wanted = [
        Job(name, method, eps, seed, PROBLEMS[name].replicates)
        for name in problems
        for method in methods
        for eps in PROBLEMS[name].accuracies
        if method not in PROBLEMS[name].without and eps >= finest
    ]
    size = {job: METHODS[job.method].batches(plan(job)) for job in wanted}
    return sorted((job for job in wanted if size[job] <= limit), key=lambda job: (job.problem != "LQR", -size[job]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="laboratory", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS), metavar="NAME")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), metavar="NAME", help="these alone; FILE keeps the others' rows"
    )
    parser.add_argument("--finest", type=float, default=0.0, help="the smallest accuracy to ask for")
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"batches in one run ({LIMIT})")
    parser.add_argument("--seed", type=int, default=0, help="of the first replicate")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/theory.csv"))
    options = parser.parse_args(arguments)
    start, results = time.perf_counter(), list[Result]()
    work = jobs(options.problems, options.finest, options.seed, options.limit, options.methods or METHODS)
    renewed = {(job.problem, job.method) for job in work}
    known = read(options.out, Result) if options.methods and options.out.exists() else []
    kept = [row for row in known if row[:2] not in renewed]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for done, rows in enumerate(pool.map(run, work), 1):
            results += rows
            name, reached = ", ".join(map(str, rows[0][:3])), np.median([row.reached for row in rows])
            said = f"{name}: {rows[0].samples:.1e} samples reach {reached:.2g} in {rows[0].seconds:.0f} s"
            print(f"{time.perf_counter() - start:6.0f} s  {done} of {len(work)}  {said}", flush=True)
    write(sorted(kept + results), options.out)


if __name__ == "__main__":
    main()
