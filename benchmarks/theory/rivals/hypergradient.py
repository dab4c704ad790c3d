"""Hypergradients of KL-regularised MDPs from the best response alone: no Hessian and no second policy.

    d log pi*(a|s) = [ dQ*(s, a) - dV*(s) ] / beta,    so    grad F = d_x f + E[ sum_t d log pi*(a_t|s_t) loss ]

``hpgd`` estimates dQ* - dV* by two fresh rollouts from every visited pair, one of them with a new first action (HPGD:
Thoma et al., NeurIPS 2024). ``sobirl`` first tabulates it from trajectories of its own, the average over the visits to
each pair, and then weighs the trajectories of the upper level with that table (SoBiRL: Yang, Gao, Yuan, AISTATS 2025).
``trace`` is its mirror image: the loss's advantage is tabulated, and weighs what follows on each visit
(docs/methods/hypergradient.md). No derivative is stored for each pair, whatever the number of parameters.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.theory.algorithm import Schedule
from benchmarks.theory.mdp import Trajectories, trajectories
from benchmarks.theory.problem import Meter, ascend, slope


def _descend(
    meter: Meter, schedule: Schedule, indirect: Callable[[Meter, Tensor, Tensor, int], Tensor]
) -> Iterator[Tensor]:
    x, y = meter.x, meter.y
    for _ in range(schedule.T):
        yield x
        y = ascend(meter, x, y, 0.0, schedule.n, schedule.K).detach()
        weight, batch = indirect(meter, x, y, schedule.B), trajectories(meter, x, y, schedule.B)
        problem, x = batch.problem, x.requires_grad_()
        change = (weight * problem.reward(x)).sum(-1) * 2 / (problem.beta * (1 - problem.gamma) ** 2)
        x = meter.descend(x, slope(batch.upper(x, y) + change, x))


def _new_action(batch: Trajectories) -> Tensor:
    """Where a trajectory goes on from a pair's state with a new action from the policy, (R, N, N)."""
    problem, law = batch.problem, batch.law.later
    shape = (problem.states, problem.actions)
    policy = problem.log_policy(batch.y).exp()[..., None]
    by_state = (policy * law).unflatten(1, shape).sum(2)
    return by_state.repeat_interleave(problem.actions, 1)


def _rollouts(meter: Meter, x: Tensor, y: Tensor, count: int) -> Tensor:
    """What multiplies r_x at every pair in the indirect part, (R, N), up to the constant."""
    batch = trajectories(meter, x, y, count)
    seen = batch.labelled(batch.links())  # (R, N now, N later, N opponent, 2)
    shape = (*seen.shape, seen.shape[1])
    ends = [
        batch.draw(seen, law[:, :, None, None, None].expand(shape)) for law in (batch.law.later, _new_action(batch))
    ]
    return torch.einsum("rijklm,rjkl->rm", ends[0] - ends[1], batch.problem.credit(batch.problem.loss(x))) / count


def _table(meter: Meter, x: Tensor, y: Tensor, count: int) -> Tensor:
    first, batch = trajectories(meter, x, y, count), trajectories(meter, x, y, count)
    ends = first.links() / first.now.clamp_min(1)[..., None]  # (R, N now, N later) empirical; nothing where unvisited
    return torch.einsum("ri,rim->rm", _credit(batch, x) / count, _advantage(first, ends))


def _traces(meter: Meter, x: Tensor, y: Tensor, count: int) -> Tensor:
    first, batch = trajectories(meter, x, y, count), trajectories(meter, x, y, count)
    losses = _credit(first, x) / first.now.clamp_min(1)
    return torch.einsum("ri,rim->rm", _advantage(first, losses[..., None])[..., 0], batch.links()) / count


def _credit(batch: Trajectories, x: Tensor) -> Tensor:
    """What the labels of all trajectories through a pair cost, at the pair where each ends, (R, N)."""
    losses = batch.problem.credit(batch.problem.loss(x))
    return torch.einsum("rijkl,rjkl->ri", batch.labelled(batch.links()), losses)


def _advantage(batch: Trajectories, table: Tensor) -> Tensor:
    """A table by pair (R, N, ...) less its mean over the policy's actions in the pair's state."""
    policy = batch.problem.log_policy(batch.y).exp()[..., None]
    states = (policy * table).unflatten(1, (batch.problem.states, batch.problem.actions)).sum(2)
    return table - states.repeat_interleave(batch.problem.actions, 1)


hpgd = partial(_descend, indirect=_rollouts)
sobirl = partial(_descend, indirect=_table)
trace = partial(_descend, indirect=_traces)
