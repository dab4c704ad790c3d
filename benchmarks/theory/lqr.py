"""A continuous bilevel RL problem: the cost weights x of a linear-quadratic regulator, found by its true cost.

    s_0 ~ N(0, I),   s' = A s + B u,   u ~ pi_y = N(-y's, v)         two states, one action, y in R^2
    J(x, y) = -E sum_t gamma^t ( s' diag(e^x1, e^x2) s + e^x3 u^2 + beta KL(pi_y || N(0, v)) ),   KL = (y's)^2 / 2v
    f(x, y) = E sum_t gamma^t ( s' Q s + R u^2 ) + rho / 2 |x|^2

Q couples the two states, which no diagonal weights can: the class of rewards is misspecified. J satisfies
Polyak-Lojasiewicz where it is finite (gradient dominance: Fazel, Ge, Kakade, Mesbahi, ICML 2018). Rewards are not
bounded and trajectories stop after ``horizon`` steps, gamma^horizon = 8e-4: two departures from Theorem 1's setting.

All that a trajectory tells about J and f is linear in discounted sums of (s1^2, s1 s2, s2^2, u^2) and in their products
with the score d log pi_y / dy of the steps before, so the batch keeps the means of these. One sample is one trajectory;
they come in pairs with one start and opposite noise, which takes out most of the scores' variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.theory.problem import dense_solve, implicit_gradient, steps

CHUNK = 2048  # pairs of trajectories that are walked at once: what they need stays in a core's own cache


class Regulator:
    gamma, beta, noise, rho, horizon = 0.6, 0.3, 1.0, 0.1, 14  # noise is v
    box = (-4.0, 4.0)

    def __init__(self, seed: int, replicates: int) -> None:
        def constant(*values: float) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).expand(replicates, -1)

        self.A = constant(0.8, 0.3, 0.0, 0.6).reshape(-1, 2, 2)
        self.B = constant(0.0, 1.0).reshape(-1, 2, 1)
        self.true_weights = constant(1.0, 1.6, 1.0, 0.5)  # of s1^2, s1 s2, s2^2, u^2
        starts = torch.randn(replicates, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.x, self.y = starts / 10, torch.zeros(replicates, 2, dtype=torch.float64)
        self.scale = torch.ones(replicates, dtype=torch.float64)
        self.scale = 1 / self.gradient(self.x).norm(dim=-1)
        self.bends, self.condition, self.eta, self.joint = steps(self)

    def weights(self, x: Tensor) -> Tensor:
        """Of s1^2, s1 s2, s2^2, u^2 in the cost, (R, 4)."""
        return torch.stack([x[:, 0].exp(), torch.zeros_like(x[:, 0]), x[:, 1].exp(), x[:, 2].exp()], -1)

    def kl_weights(self, y: Tensor) -> Tensor:
        """beta KL as weights of s1^2, s1 s2, s2^2, (R, 3)."""
        return self.beta / (2 * self.noise) * torch.stack([y[:, 0] ** 2, 2 * y[:, 0] * y[:, 1], y[:, 1] ** 2], -1)

    def moments(self, y: Tensor) -> Tensor:
        """E sum_t gamma^t (s1^2, s1 s2, s2^2, u^2), (R, 4), by the discrete Lyapunov equation."""
        closed = self.A - self.B @ y[:, None]
        eye = torch.eye(2, dtype=y.dtype).expand_as(closed)
        source = eye + self.gamma / (1 - self.gamma) * self.noise * self.B @ self.B.mT
        kron = torch.einsum("rij,rkl->rikjl", closed, closed).reshape(-1, 4, 4)
        covariance = torch.linalg.solve(torch.eye(4, dtype=y.dtype) - self.gamma * kron, source.reshape(-1, 4))
        square = (y[:, None] @ covariance.reshape(-1, 2, 2) @ y[..., None])[:, 0] + self.noise / (1 - self.gamma)
        return torch.cat([covariance[:, [0, 1, 3]], square], -1)

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        moments = self.moments(y)
        return -(self.weights(x) * moments).sum(-1) - (self.kl_weights(y) * moments[:, :3]).sum(-1)

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * ((self.true_weights * self.moments(y)).sum(-1) + self.rho / 2 * x.square().sum(-1))

    def respond(self, x: Tensor) -> Tensor:
        """The gain of the Riccati equation's solution, by policy iteration from no control; (R, 2)."""
        weights, y = self.weights(x), torch.zeros(len(x), 2, dtype=x.dtype)
        control = (weights[:, 3] + self.beta / (2 * self.noise))[:, None, None]  # of the mean action's square
        for _ in range(50):
            closed = self.A - self.B @ y[:, None]
            cost = torch.diag_embed(weights[:, [0, 2]]) + control * y[..., None] @ y[:, None]
            kron = torch.einsum("rij,rkl->rikjl", closed.mT, closed.mT).reshape(-1, 4, 4)
            value = torch.linalg.solve(torch.eye(4, dtype=x.dtype) - self.gamma * kron, cost.reshape(-1, 4))
            seen = self.gamma * self.B.mT @ value.reshape(-1, 2, 2)
            y, before = ((seen @ self.A) / (control + seen @ self.B))[:, 0], y
            if (y - before).abs().max() < 1e-9:  # quadratic convergence: what is left is of the order of its square
                return y
        raise RuntimeError("policy iteration did not converge: a closed loop is unstable")

    def gradient(self, x: Tensor) -> Tensor:
        return implicit_gradient(self.lower, self.upper, x, self.respond(x), dense_solve)

    def batch(self, x: Tensor, y: Tensor, count: int, rng: np.random.Generator, hessian: bool = False) -> Trajectories:
        if hessian:
            raise NotImplementedError("the regulator's trajectories carry first derivatives only")
        return Trajectories(self, y, *self.simulate(y, count, rng))

    def simulate(self, y: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Means over n trajectories of the moments, (R, 4), and of their products with the scores before, (R, 2, 4)."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        A, B, gain = (z.float() for z in (self.A, self.B, -y[:, None]))
        moments, products = torch.zeros(len(y), 4), torch.zeros(len(y), 2, 4)
        pairs = (count + 1) // 2
        for begun in range(0, pairs, CHUNK):
            size = min(CHUNK, pairs - begun)
            states = torch.randn(len(y), 2, size, generator=generator).repeat(1, 1, 2)
            scores = torch.zeros_like(states)
            for t in range(self.horizon):
                noise = self.noise**0.5 * torch.randn(len(y), 1, size, generator=generator)
                noise = torch.cat([noise, -noise], -1)
                action = gain @ states + noise
                scores = scores - noise / self.noise * states
                seen = torch.cat([states[:, :1] * states, states[:, 1:] ** 2, action**2], 1)
                moments += self.gamma**t / (2 * pairs) * seen.sum(-1)
                products += self.gamma**t / (2 * pairs) * scores @ seen.mT
                states = A @ states + B @ action
        return moments.double(), products.double()


@dataclass(frozen=True)
class Trajectories:
    """What n trajectories of pi_y tell of J and f."""

    problem: Regulator
    y: Tensor
    moments: Tensor
    products: Tensor

    def _seen(self, y: Tensor) -> Tensor:
        return self.moments + ((y - self.y)[:, None] @ self.products)[:, 0]

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        seen, problem = self._seen(y), self.problem
        return -(problem.weights(x) * seen).sum(-1) - (problem.kl_weights(y) * seen[:, :3]).sum(-1)

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        problem = self.problem
        true_cost = (problem.true_weights * self._seen(y)).sum(-1)
        return problem.scale * (true_cost + problem.rho / 2 * x.square().sum(-1))
