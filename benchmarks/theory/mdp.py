"""Reward learning on finite MDPs, known through sampled trajectories only; S states, A actions, N = S A pairs.

    J(x, y) = E_pi[ sum_t gamma^t ( r_x(s_t, a_t) - beta log(pi(a_t|s_t) / pi_ref(a_t|s_t)) ) ],    pi = softmax(y)
    f(x, y) = E[ Bradley-Terry loss of r_x on a labelled pair ], both of its steps drawn from pi's occupancy

A trajectory that stops with probability 1 - gamma at each step ends at a pair drawn from the occupancy p; continued for
another such time it ends at a pair k drawn from D(i, .), the occupancy that starts at the pair i. So

    J = E_p[r~(i)] / (1 - gamma),   grad_y J = E[grad log pi(i) r~(k)] / (1 - gamma)^2,   r~ = r - beta log(pi / pi_ref)

which is the policy-gradient theorem with one draw for the return; the KL's gradient comes from the same samples. What n
trajectories contribute are sums over them, so the batch is drawn as the *counts* of pairs (multinomial given p and D):
the same distribution as walking n trajectories, at a cost that does not grow with n. A test walks them. One sample is
one trajectory of 1 / (1 - gamma) expected steps a link and, for f, one more of them and the teacher's label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.theory.problem import Meter, steps


@dataclass(frozen=True)
class Law:
    """Where a policy's trajectories are: everything that the sampler, and only the sampler, knows."""

    pair: Tensor  # (R, N) p
    later: Tensor  # (R, N, N) D
    after: Tensor  # (R, N, N) the same, one step later at least


class RewardLearning:
    """R random MDPs (Dirichlet transitions, uniform reference) with rewards tanh(features x), F of them."""

    gamma, beta, box = 0.8, 0.5, (-20.0, 20.0)

    def __init__(self, seed: int, replicates: int, states: int = 3, actions: int = 2, features: int = 3) -> None:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(replicates, *shape, generator=rng, dtype=torch.float64)

        def simplex(*shape: int) -> Tensor:
            draws = torch.empty(replicates, *shape, dtype=torch.float64).exponential_(generator=rng)
            return draws / draws.sum(-1, keepdim=True)

        self.states, self.actions, pairs = states, actions, states * actions
        self.transition, self.initial = simplex(pairs, states), simplex(states)
        self.truth, self.features = normal(pairs), normal(pairs, features) / features**0.5
        # P(the teacher prefers the first), (R, N, N): Boltzmann in the true reward
        self.likely = torch.sigmoid(self.truth[..., :, None] - self.truth[..., None, :])
        self._states, self._first = (z.repeat_interleave(actions, -1) for z in (self.transition, self.initial))
        self.x, self.y = normal(features) * 0, torch.zeros(replicates, pairs).double()
        self.scale = torch.ones(replicates, dtype=torch.float64)
        self.scale = 1 / self.gradient(self.x).norm(dim=-1)
        self.bends, self.condition, self.eta, self.joint = steps(self)

    def reward(self, x: Tensor) -> Tensor:
        """r_x at every pair, (R, N)."""
        return torch.tanh((self.features @ x[..., None])[..., 0])

    def log_policy(self, y: Tensor) -> Tensor:
        """log pi at every pair, (R, N)."""
        return y.unflatten(-1, (self.states, self.actions)).log_softmax(-1).flatten(-2)

    def regularised(self, x: Tensor, y: Tensor) -> Tensor:
        """r~ at every pair, (R, N)."""
        return self.reward(x) - self.beta * (self.log_policy(y) + math.log(self.actions))

    def loss(self, x: Tensor) -> Tensor:
        """What a labelled pair costs, scaled (R, N first, N second, 2); last axis: second better, first better."""
        r = self.reward(x)
        gap = (r[..., :, None] - r[..., None, :])[..., None].expand(*r.shape, r.shape[-1], 2)
        label = torch.tensor([0.0, 1.0], dtype=r.dtype).expand_as(gap)
        return self.scale[:, None, None, None] * binary_cross_entropy_with_logits(gap, label, reduction="none")

    def credit(self, loss: Tensor) -> Tensor:
        """The loss less a coin's: as a factor of a score it has the same expectation and far less noise."""
        return loss - math.log(2) * self.scale[:, None, None, None]

    def law(self, y: Tensor) -> Law:
        policy = self.log_policy(y).exp()
        step = self._states * policy[:, None]  # (R, N, N) P(s' | pair) at each of s' pairs, times pi there
        eye = torch.eye(policy.shape[-1], dtype=policy.dtype)
        later = (1 - self.gamma) * torch.linalg.inv(eye - self.gamma * step)
        return Law(((self._first * policy)[:, None] @ later)[:, 0], later, step @ later)

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.law(y).pair * self.regularised(x, y)).sum(-1) / (1 - self.gamma)

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        p, likely = self.law(y).pair, self.likely
        expected = (self.loss(x) * torch.stack([1 - likely, likely], -1)).sum(-1)
        return (p[:, None] @ expected @ p[..., None])[:, 0, 0]

    def improve(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of soft policy iteration: the logits Q / beta of y's own soft action values, exactly."""
        r = self.reward(x)
        beyond = self.gamma / (1 - self.gamma) * self.law(y).after @ self.regularised(x, y)[..., None]
        return (r + beyond[..., 0]) / self.beta

    def respond(self, x: Tensor) -> Tensor:
        y = self.y
        for _ in range(50):
            y, before = self.improve(x, y), y
            if (y - before).abs().max() < 1e-9:  # quadratic convergence: what is left is of the order of its square
                return y
        raise RuntimeError("soft policy iteration did not converge")

    def gradient(self, x: Tensor) -> Tensor:
        """grad F: soft policy iteration is Newton's method, so its last step differentiates to dy*/dx exactly."""
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.upper(x, self.improve(x, self.respond(x.detach()))).sum(), x)[0]

    def batch(self, x: Tensor, y: Tensor, count: int, rng: np.random.Generator, hessian: bool = False) -> Trajectories:
        return Trajectories(self, y, count, rng, hessian)


class Trajectories:
    """n trajectories of softmax(y), drawn when first asked for, as J and f with unbiased derivatives at that y.

    With ratios pi / pi_y - 1, which vanish there, the first-order term of p around y is what the policy-gradient
    theorem says, and the second-order one (three links) what it says of its own gradient: differentiating them is all
    that is left to do. No link is drawn whose derivative nobody takes.
    """

    def __init__(self, problem: RewardLearning, y: Tensor, count: int, rng: np.random.Generator, hessian: bool) -> None:
        self.problem, self.y, self.count, self.rng, self.hessian = problem, y, count, rng, hessian
        self.law = problem.law(y)
        self.now = self.draw(torch.full(self.law.pair.shape[:-1], count), self.law.pair)  # (R, N)
        self.later: Tensor | None = None

    def draw(self, counts: Tensor, law: Tensor) -> Tensor:
        """Splits counts (...,) at random among the N outcomes of each law (..., N)."""
        drawn = self.rng.multinomial(counts.numpy().astype(np.int64), (law / law.sum(-1, keepdim=True)).numpy())
        return torch.from_numpy(drawn).double()

    def labelled(self, counts: Tensor) -> Tensor:
        """An opponent from p and a label for every trajectory: counts (R, ..., N) to (R, ..., N, N, 2)."""
        middle = (slice(None), *[None] * (counts.dim() - 1))
        pairs = self.draw(counts, self.law.pair[middle].expand(*counts.shape, -1))
        likely = self.problem.likely[(slice(None), *[None] * (counts.dim() - 2))].expand_as(pairs)
        first = torch.from_numpy(self.rng.binomial(pairs.numpy().astype(np.int64), likely.numpy())).double()
        return torch.stack([pairs - first, first], -1)

    def ratio(self, y: Tensor) -> Tensor:
        return torch.expm1(self.problem.log_policy(y) - self.problem.log_policy(self.y))

    def links(self) -> Tensor:
        """Counts of (pair, later pair), (R, N, N)."""
        if self.later is None:
            self.later = self.draw(self.now, self.law.later)
        return self.later

    def visits(self, y: Tensor) -> Tensor:
        """Weights (R, N) of the occupancy, as ``types.Occupancy`` has them."""
        stop = 1 - self.problem.gamma
        weight = self.now / stop
        if y.requires_grad:
            weight = weight + torch.einsum("rij,ri->rj", self.links(), self.ratio(y)) / stop**2
        if y.requires_grad and self.hessian:
            after = self.draw(self.now, self.law.after)
            last = self.draw(after, self.law.later[:, None].expand(*after.shape, -1))
            twice = torch.einsum("rijk,ri,rj->rk", last, self.ratio(y), self.ratio(y))
            weight = weight + self.problem.gamma * twice / stop**3
        return weight / self.count

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.visits(y) * self.problem.regularised(x, y)).sum(-1)

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.problem.loss(x)
        total = torch.einsum("rjkl,rjkl->r", self.labelled(self.now), loss)
        if y.requires_grad:  # twice, as either of the pair's two trajectories may change
            credit = torch.einsum("rijkl,rjkl->ri", self.labelled(self.links()), self.problem.credit(loss))
            total = total + 2 / (1 - self.problem.gamma) * (self.ratio(y) * credit).sum(-1)
        return total / self.count


def trajectories(meter: Meter, x: Tensor, y: Tensor, count: int) -> Trajectories:
    """A batch of an MDP, for the methods that know nothing else."""
    batch = meter.batch(x, y, count)
    if not isinstance(batch, Trajectories):
        raise TypeError(f"this method is for reward learning on MDPs, not for {type(meter.problem).__name__}")
    return batch
