"""The penalty's gradient estimator taken apart: bias by sigma, noise by sigma and sample count, and the best of both.

    python -m benchmarks.theory.estimator [--mdps 16] [--repeats 64] [--seed 0] --out FILE

On the random MDPs of ``mdp.py``, after 15 exact steps of descent, with exact responses lambda_t (gradient ascent until
it stands still), so that nothing but the estimator of grad Phi_sigma from B trajectories a side errs:

    bias    |grad Phi_sigma - grad Phi|^2       no sampling; order sigma^2 one-sided, sigma^4 two-sided
    noise   E |estimate - grad Phi_sigma|^2     order 1 / (sigma^2 B)
    total   their sum, at the sigma that is best for B: order B^-1/2 one-sided, B^-2/3 two-sided, which is where
            B = eps^-2 and B = eps^-3/2 come from

and, in the same file, the KL's gradient alone (the reward is 0 at x = 0) for many policies, from near pi_ref to almost
deterministic: its mean squared error over Theorem 1's kind of bound, C^2 / n with one C for all policies,

    C = 2^1/2 beta [ L / (1 - gamma)^2 + 1 / (1 - gamma) ],    L = max |log(pi / pi_ref)|

as |grad log pi| <= 2^1/2 bounds what a trajectory contributes. A ratio above 1 would refute it.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import write
from benchmarks.theory.algorithm import penalty_gradient
from benchmarks.theory.mdp import RewardLearning
from benchmarks.theory.problem import slope
from rlhf_bilevel.bilevel.penalty import tilts

SIGMAS = tuple(2.0**-k for k in range(2, 10))
COUNTS = tuple(10**k for k in range(3, 13))


class Error(NamedTuple):
    """One measurement on one MDP (or policy, for the KL)."""

    quantity: str  # bias, noise or KL
    sides: int  # 1 or 2; 0 for the KL
    sigma: float  # 0 for the KL
    samples: int  # B; 0 where nothing is sampled
    seed: int
    squared_error: float  # for the KL over its bound


def settle(problem: RewardLearning, x: Tensor, tilt: float, steps: int = 2000) -> Tensor:
    """argmax J + tilt f, (R, q), by exact gradient ascent from the best response."""
    y = problem.respond(x)
    step = 1 / (problem.bends[0] + abs(tilt) * problem.bends[1])
    for _ in range(steps):
        y = y.detach().requires_grad_()
        change = step * slope(problem.lower(x, y) + tilt * problem.upper(x, y), y)
        y = y.detach() + change
        if change.abs().max() < 1e-12:
            return y
    raise RuntimeError(f"the response to tilt {tilt:g} still moves by {float(change.abs().max()):.1e}")


def penalty_errors(mdps: int, repeats: int, seed: int) -> Iterator[Error]:
    problem, rng = RewardLearning(seed, mdps), np.random.default_rng(seed)
    x = problem.x
    for _ in range(15):
        x = x - problem.eta * problem.gradient(x)
    true = problem.gradient(x)
    for two_sided in (False, True):
        for sigma in SIGMAS:
            sides = tilts(sigma, two_sided)
            responses = [settle(problem, x, tilt) for tilt in sides]
            exact = penalty_gradient(x, [(problem, y) for y in responses], sides)
            yield from _rows("bias", 1 + two_sided, sigma, 0, (exact - true).square().sum(-1))
            for count in COUNTS:
                squared = torch.zeros(mdps, dtype=torch.float64)
                for _ in range(repeats):
                    seen = [(problem.batch(x, y, count, rng), y) for y in responses]
                    squared += (penalty_gradient(x, seen, sides) - exact).square().sum(-1) / repeats
                yield from _rows("noise", 1 + two_sided, sigma, count, squared)


def kl_errors(policies: int, repeats: int, seed: int) -> Iterator[Error]:
    problem, rng = RewardLearning(seed, policies), np.random.default_rng(seed)
    sharpness = torch.linspace(0.1, 8, policies, dtype=torch.float64)[:, None]
    y = (sharpness * torch.from_numpy(rng.standard_normal(problem.y.shape))).requires_grad_()
    x, stop = torch.zeros_like(problem.x), 1 - problem.gamma
    exact = slope(problem.lower(x, y), y)
    log_ratio = (problem.log_policy(y.detach()) + np.log(problem.actions)).abs().amax(-1)
    bound = 2 * problem.beta**2 * (log_ratio / stop**2 + 1 / stop) ** 2
    for count in COUNTS:
        squared = torch.zeros(policies, dtype=torch.float64)
        for _ in range(repeats):
            found = slope(problem.batch(x, y.detach(), count, rng).lower(x, y), y)
            squared += (found - exact).square().sum(-1) / repeats
        yield from _rows("KL", 0, 0.0, count, squared * count / bound)


def _rows(quantity: str, sides: int, sigma: float, count: int, squared: Tensor) -> Iterator[Error]:
    return (Error(quantity, sides, sigma, count, seed, float(value)) for seed, value in enumerate(squared))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="estimator", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mdps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/theory-estimator.csv"))
    options = parser.parse_args(arguments)
    if min(options.mdps, options.repeats) < 1:
        parser.exit(
            2, f"estimator: --mdps and --repeats must be at least 1, not {options.mdps} and {options.repeats}\n"
        )
    torch.set_num_threads(1)
    rows = [
        *penalty_errors(options.mdps, options.repeats, options.seed),
        *kl_errors(200, options.repeats, options.seed),
    ]
    write(rows, options.out)


if __name__ == "__main__":
    main()
