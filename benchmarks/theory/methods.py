"""The methods of the tables, each with the schedule that its own analysis asks for to reach E |grad F|^2 <= eps.

Orders in eps are the methods'; constants (steps of x, noise, widths of the penalty) are the problem's, alike for all
methods and set on other seeds than the reported ones; HPGD alone, whose two rollouts are noisier than a table, gets 30
times the samples. With T of order 1 / eps upper steps and K of order kappa log(1/eps) lower ones,

    one-sided penalty      bias sigma^2,   noise 1 / (sigma^2 B):   sigma^2 = eps,        n, B = eps^-2      eps^-3
    two-sided (F2SA-2)     bias sigma^4,   noise 1 / (sigma^2 B):   sigma^2 = eps^(1/2),  n, B = eps^-3/2    eps^-5/2
    hypergradients, naive  no bias in B,   noise 1 / B:                                   n, B = eps^-1      eps^-2
    zero-order             as two-sided, for p + 4 times as many steps                                       eps^-5/2
    joint penalties        as one-sided, for 1 / sigma times as many steps                                   eps^-7/2
    F2SA                   n, B constant, T of order eps^-7/2                                                eps^-7/2
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor

from benchmarks.theory.algorithm import Schedule, penalty
from benchmarks.theory.problem import Meter, Problem
from benchmarks.theory.rivals.f2sa import f2sa
from benchmarks.theory.rivals.hypergradient import hpgd, sobirl, trace
from benchmarks.theory.rivals.implicit import aid, parl
from benchmarks.theory.rivals.naive import naive
from benchmarks.theory.rivals.pbrl import bellman_penalty, joint_step, value_penalty
from benchmarks.theory.rivals.zero_order import spread, zero_order


class Constants(NamedTuple):
    """What the orders in eps are multiplied with, for one problem."""

    steps: float  # T eps
    gap_noise: float  # samples times eps sigma^2 that the noise of J asks for
    noise: float  # samples times eps that the noise of f asks for
    one_sided: float  # sigma / eps^(1/2)
    two_sided: float  # sigma / eps^(1/4)
    smoothing: float  # the zero-order method's sigma / eps^(1/4), in units of x


Run = Callable[[Meter, Schedule], Iterator[Tensor]]
Plan = Callable[[float, Constants, Problem], Schedule]


def _schedule(eps: float, c: Constants, problem: Problem, samples: float, sigma: float = math.nan) -> Schedule:
    inner = math.ceil((0.5 + problem.condition / 4) * math.log(1 / eps))
    return Schedule(math.ceil(c.steps / eps), inner, math.ceil(samples), math.ceil(samples), sigma)


def _direct(eps: float, c: Constants, problem: Problem, noisier: float = 1.0) -> Schedule:
    return _schedule(eps, c, problem, noisier * c.noise / eps)


def _one_sided(eps: float, c: Constants, problem: Problem) -> Schedule:
    sigma = c.one_sided * eps**0.5
    return _schedule(eps, c, problem, (c.gap_noise / sigma**2 + c.noise) / eps, sigma)


def _two_sided(eps: float, c: Constants, problem: Problem) -> Schedule:
    sigma = c.two_sided * eps**0.25
    return _schedule(eps, c, problem, (c.gap_noise / (2 * sigma**2) + c.noise) / eps, sigma)


def _smoothed(eps: float, c: Constants, problem: Problem) -> Schedule:
    sigma = c.smoothing * eps**0.25
    schedule = _schedule(eps, c, problem, c.noise / (2 * sigma**2 * eps), sigma)
    return schedule._replace(T=spread(problem) * schedule.T)


def _joint(eps: float, c: Constants, problem: Problem) -> Schedule:
    schedule = _one_sided(eps, c, problem)
    shorter = float((problem.eta / joint_step(problem, schedule.sigma)).max())
    return schedule._replace(T=math.ceil(schedule.T * shorter))


def _shrinking(eps: float, c: Constants, problem: Problem, loops: int) -> Schedule:
    samples = math.ceil(c.noise)
    return Schedule(math.ceil(c.steps * eps**-3.5), loops, samples, samples, c.one_sided)


class Method(NamedTuple):
    run: Run
    plan: Plan
    loops: int  # of K steps in a step of x

    def batches(self, schedule: Schedule) -> int:
        """About how many a run draws."""
        return schedule.T * (self.loops * schedule.K + 2)


SAME = "central difference, as penalty"  # with the one-sided penalty's sigma and sample counts
METHODS = {
    "naive alternation": Method(naive, _direct, 1),
    "penalty": Method(penalty, _one_sided, 2),
    "central difference": Method(partial(penalty, two_sided=True), _two_sided, 2),
    SAME: Method(partial(penalty, two_sided=True), _one_sided, 2),
    "dense Hessian": Method(parl, _direct, 1),
    "conjugate gradients": Method(aid, _direct, 1),
    "HPGD": Method(hpgd, partial(_direct, noisier=30), 1),
    "SoBiRL": Method(sobirl, _direct, 1),
    "cost trace": Method(trace, _direct, 1),
    "value penalty": Method(value_penalty, _joint, 1),
    "Bellman penalty": Method(bellman_penalty, _joint, 1),
    "F2SA, single loop": Method(f2sa, partial(_shrinking, loops=1), 2),
    "F2SA, double loop": Method(f2sa, partial(_shrinking, loops=5), 2),
    "zero-order": Method(zero_order, _smoothed, 3),
}
