"""Is the penalty's gradient what the mathematics says? Random MDPs, float64, no sampling.

    python -m benchmarks.theory.exactness --mdps 20 --seed 0 [--json]

Each MDP (3-8 states, 2-4 actions, gamma .9, beta log-uniform in [.1, 1]) poses the bilevel problem twice, with
``preference_loss`` and with ``win_rate`` as the upper level; the reward is the tanh of 3 random features, too few to
express the teacher's. Every error is |difference| / |grad Phi|, relative to the true gradient, over all problems:

    autograd_vs_finite_differences      max: grad of penalty.proxy, one- and two-sided, against differences of Phi_sigma
    closed_form_vs_finite_differences   max: the closed-form hypergradient against differences of Phi
    bias_slope_one_sided, _two_sided    median order in sigma of |grad Phi_sigma - grad Phi|; expected 1 and 2
    pebble_relative_error               median: grad G with the policy held fixed, the dependence on it ignored

Why these sigmas: G averages nats over the normalised occupancy, so one visit more is worth about 1 - gamma, and tilting
J by sigma G moves a log-probability by about sigma (1 - gamma) / beta: the small parameter of the proxy's expansion. It
runs from 1/4, which is small, to 1/64, where the two-sided bias, some 1e-6, is still far above float64's noise. The
comparison with finite differences takes the largest sigma, where Phi_sigma differs most from Phi.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from statistics import linear_regression, median
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_bilevel.bilevel.objectives import preference_loss, win_rate
from rlhf_bilevel.bilevel.problems import central_difference, differentiate, phi_sigma
from rlhf_bilevel.bilevel.tabular import RewardLearning, random_mdp, table_reward, visits

SIGMAS = tuple(2.0**-k for k in range(2, 7))  # in units of beta / (1 - gamma)
FEATURES = 3
STEP = 5e-4  # of the differences: balances their O(STEP^4) against noise / (sigma STEP), both about 1e-8 at worst


class Errors(NamedTuple):
    """One problem's relative errors; the last two by sigma."""

    autograd: float
    closed_form: float
    pebble: float
    one_sided: list[float]
    two_sided: list[float]


def draw(rng: torch.Generator) -> tuple[list[RewardLearning], Tensor]:
    """A random MDP under both upper objectives, and the reward parameters (F,) at which to judge them."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    states, actions = (int(torch.randint(low, high + 1, (), generator=rng)) for low, high in ((3, 8), (2, 4)))
    beta = 10 ** -float(torch.rand((), generator=rng))
    mdp = random_mdp(rng, states, actions, beta=beta)
    truth, features, phi = table_reward(normal(states, actions)), normal(states, actions, FEATURES), normal(FEATURES)
    reference = visits(mdp, mdp.reference)
    objectives = (preference_loss(truth), win_rate(truth, data=reference, reference=reference, weight=1.0))
    return [RewardLearning(mdp, g, lambda x: table_reward(torch.tanh(features @ x))) for g in objectives], phi


def measure(problem: RewardLearning, phi: Tensor) -> Errors:
    """Every error of one problem at phi (F,)."""
    true = problem.gradient(phi)
    sigmas = [sigma * problem.mdp.beta / (1 - problem.mdp.gamma) for sigma in SIGMAS]

    def error(estimate: Tensor, exact: Tensor) -> float:
        return float((estimate - exact).norm() / true.norm())

    def values(x: Tensor) -> Tensor:  # (3,) Phi and both Phi_sigma, by their definitions, every response solved anew
        tilts = (0.0, sigmas[0], -sigmas[0])
        responses = [problem.respond(x, tilt) for tilt in tilts]
        h = [problem.lower(x, y) + tilt * problem.upper(x, y) for tilt, y in zip(tilts, responses, strict=True)]
        return torch.stack([problem.upper(x, responses[0]), (h[0] - h[2]) / sigmas[0], (h[1] - h[2]) / (2 * sigmas[0])])

    exact, *exact_sigma = central_difference(values, phi, STEP).T

    def estimates(two_sided: bool) -> list[Tensor]:
        return [differentiate(partial(phi_sigma, problem, sigma=sigma, two_sided=two_sided), phi) for sigma in sigmas]

    one_sided, two_sided = estimates(False), estimates(True)
    best = problem.respond(phi, 0.0)
    return Errors(
        autograd=max(error(proxies[0], e) for proxies, e in zip((one_sided, two_sided), exact_sigma, strict=True)),
        closed_form=error(true, exact),
        pebble=error(differentiate(lambda x: problem.upper(x, best), phi), true),
        one_sided=[error(estimate, true) for estimate in one_sided],
        two_sided=[error(estimate, true) for estimate in two_sided],
    )


def slope(errors: Sequence[float]) -> float:
    """The least-squares slope of log error in log sigma."""
    return linear_regression([math.log(sigma) for sigma in SIGMAS], [math.log(value) for value in errors]).slope


def summarise(problems: Sequence[Errors]) -> dict[str, float | list[float]]:
    """The figures of the module's docstring, with the range over problems beside each median order."""
    slopes = [[slope(errors.one_sided) for errors in problems], [slope(errors.two_sided) for errors in problems]]
    return {
        "autograd_vs_finite_differences": max(errors.autograd for errors in problems),
        "closed_form_vs_finite_differences": max(errors.closed_form for errors in problems),
        "bias_slope_one_sided": median(slopes[0]),
        "bias_slope_one_sided_range": [min(slopes[0]), max(slopes[0])],
        "bias_slope_two_sided": median(slopes[1]),
        "bias_slope_two_sided_range": [min(slopes[1]), max(slopes[1])],
        "pebble_relative_error": median(errors.pebble for errors in problems),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="exactness", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mdps", type=int, default=10, help="fresh random MDPs, each under both upper objectives")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.mdps < 1:
        parser.exit(2, f"exactness: --mdps must be at least 1, not {options.mdps}\n")
    if not 0 <= options.seed < 2**63:
        parser.exit(2, f"exactness: --seed must be in [0, 2^63), not {options.seed}\n")
    torch.set_num_threads(1)  # the matrices are tiny: more threads only wait for each other
    start, rng = time.perf_counter(), torch.Generator().manual_seed(options.seed)
    draws = (draw(rng) for _ in range(options.mdps))
    errors = [measure(problem, phi) for problems, phi in draws for problem in problems]
    seconds = time.perf_counter() - start
    figures = {"mdps": options.mdps, "seed": options.seed, **summarise(errors), "seconds": seconds}
    if options.json:
        print(json.dumps(figures))
    else:
        for name, figure in figures.items():
            print(f"{name:35}", *(f"{number:.4g}" for number in (figure if isinstance(figure, list) else [figure])))


if __name__ == "__main__":
    main()
