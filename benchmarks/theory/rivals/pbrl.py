"""PBRL: x and y descend one penalised function jointly (Shen, Yang, Chen, ICML 2024).

    value penalty      f(x, y) + 1/sigma { max_y' J(x, y') - J(x, y) }      in general V-PBGD (Shen, Chen, ICML 2023)
    Bellman penalty    f(x, y) + 1/sigma E_s~rho { V*(s) - E_a~pi [ Q*(s, a) - beta log(pi / pi_ref) ] }

Only the best response y' is tracked by inner steps; y moves once for each step of x. The penalised function is about
1/sigma times as curved as J in x and y together, and the step as many times shorter: ``joint_step``. rho is uniform.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.theory.algorithm import Schedule
from benchmarks.theory.mdp import trajectories
from benchmarks.theory.problem import Batch, Function, Meter, Problem, ascend


def joint_step(problem: Problem, sigma: float) -> Tensor:
    return torch.minimum(problem.eta, sigma * problem.joint)


def _descend(
    meter: Meter, schedule: Schedule, gap_of: Callable[[Meter, Batch, Tensor, Tensor, Tensor, int], Function]
) -> Iterator[Tensor]:
    x, y, best, sigma = meter.x, meter.y, meter.y, schedule.sigma
    for _ in range(schedule.T):
        yield x
        best = ascend(meter, x, best, 0.0, schedule.n, schedule.K)
        at_y = meter.batch(x, y, schedule.B)
        gap = gap_of(meter, at_y, x, best, y, schedule.B)
        x, y = x.requires_grad_(), y.detach().requires_grad_()
        penalised = at_y.upper(x, y) + gap(x, y) / sigma
        dx, dy = torch.autograd.grad(penalised.sum(), (x, y))
        step = joint_step(meter.problem, sigma)
        x, y = meter.descend(x, dx, step), y.detach() - step * dy


def _value_gap(meter: Meter, at_y: Batch, x: Tensor, best: Tensor, y: Tensor, count: int) -> Function:
    at_best = meter.batch(x, best, count)
    return lambda x, y: at_best.lower(x, best) - at_y.lower(x, y)


def _bellman_gap(meter: Meter, at_y: Batch, x: Tensor, best: Tensor, y: Tensor, count: int) -> Function:
    """The expectation over rho above as a function of x and y (R,), its first derivatives unbiased.

    With q = Q* - beta log(pi*/pi_ref), the soft return from a pair on, V* = E_pi* q and Q* = q + beta log(pi*/pi_ref).
    """
    batch = trajectories(meter, x, best, 2 * count)  # with the first action of either policy
    problem = batch.problem
    policies = [problem.log_policy(logits.detach()) for logits in (best, y)]

    def ends(log_policy: Tensor) -> Tensor:  # counts of (first pair, later pair)
        first = batch.draw(torch.full(log_policy.shape[:-1], count), log_policy.exp() / problem.states)
        return batch.draw(first, batch.law.later)

    by_best, by_y = map(ends, policies)

    def gap(x: Tensor, y: Tensor) -> Tensor:
        soft = problem.regularised(x, best.detach()) / (1 - problem.gamma)
        best_value = (by_best.sum(1) * soft).sum(-1)
        log_policy = problem.log_policy(y)
        ratio = torch.exp(log_policy - policies[1])
        kl = by_y.sum(2) * problem.beta * (policies[0] - log_policy)
        return (best_value - (ratio * (torch.einsum("rij,rj->ri", by_y, soft) + kl)).sum(-1)) / count

    return gap


value_penalty = partial(_descend, gap_of=_value_gap)
bellman_penalty = partial(_descend, gap_of=_bellman_gap)
