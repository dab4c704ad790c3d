"""Bilevel problems whose gradient is known without the penalty.

    min_x  F(x) = f(x, y*(x)),    y*(x) = argmax_y J(x, y)

Every problem gives two exact answers: ``respond``, which maximises J + tilt f, and ``gradient``, grad F. ``phi_sigma``
builds the penalty's proxy by ``penalty.proxy``, the code that deep runs use; tests and benchmarks compare its gradient
with grad F. Tabular reward learning (``tabular.RewardLearning``) is one more such problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from rlhf_bilevel.bilevel.penalty import Response, proxy, tilts


class Problem(Protocol[Response]):
    """x is the upper variable, a tensor; a response is the lower variable, of any type."""

    def lower(self, x: Tensor, response: Response, /) -> Tensor:
        """J, a scalar, with all terms that depend on the response."""

    def upper(self, x: Tensor, response: Response, /) -> Tensor:
        """f, a scalar."""

    def respond(self, x: Tensor, tilt: float, /) -> Response:
        """The response that maximises J + tilt f, without gradient."""

    def gradient(self, x: Tensor, /) -> Tensor:
        """grad F, in the shape of x."""


def phi_sigma(problem: Problem[Response], x: Tensor, sigma: float, two_sided: bool) -> Tensor:
    """Phi_sigma(x), a scalar. Its value and its gradient by Danskin's theorem are exact, as ``lower`` is complete."""
    sides = tilts(sigma, two_sided)
    high, low = (problem.respond(x.detach(), tilt) for tilt in sides)
    return proxy(partial(problem.lower, x), partial(problem.upper, x), (high, low), sides)


def differentiate(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Autograd's gradient of a scalar function at x, the shape of x."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def central_difference(function: Callable[[Tensor], Tensor], x: Tensor, step: float) -> Tensor:
    """The derivative of a function of x (F,) to (...), as (F, ...), with error O(step^4) + O(noise / step)."""
    columns = []
    for shift in step * torch.eye(len(x), dtype=x.dtype):
        near, far = (function(x + k * shift) - function(x - k * shift) for k in (1, 2))
        columns.append((8 * near - far) / (12 * step))
    return torch.stack(columns)


@dataclass(frozen=True)
class Quadratic:
    """J = -|y - A x|^2 / 2 and f = |y - b|^2 / 2 + rho |x|^2 / 2, for x (m,), y and b (n,), A (n, m); tilts below 1.

    The maximiser of J + t f is y = (A x - t b) / (1 - t), so that h(x, t) = t/2 (|A x - b|^2 / (1 - t) + rho |x|^2).
    """

    A: Tensor
    b: Tensor
    rho: float

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        """J."""
        return -(y - self.A @ x).square().sum() / 2

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        """f."""
        return (y - self.b).square().sum() / 2 + self.rho / 2 * x.square().sum()

    def respond(self, x: Tensor, tilt: float) -> Tensor:
        """The maximiser of J + tilt f, (n,)."""
        return (self.A @ x - tilt * self.b) / (1 - tilt)

    def gradient(self, x: Tensor) -> Tensor:
        """grad F, (m,)."""
        return self.A.T @ (self.A @ x - self.b) + self.rho * x

    def proxy_gradient(self, x: Tensor, sigma: float, two_sided: bool) -> Tensor:
        """grad Phi_sigma, (m,): as grad F, with its first term divided by 1 + sigma, or by 1 - sigma^2 two-sided."""
        damping = 1 - sigma**2 if two_sided else 1 + sigma
        return self.A.T @ (self.A @ x - self.b) / damping + self.rho * x


@dataclass(frozen=True)
class Sine:
    """A lower level that is not concave but satisfies Polyak-Lojasiewicz, for x in [0, 3] and y of one element.

    J = -(x + y)^2 - x sin^2(x + y) with y* = -x, and f = cos(4y + 2) / (1 + exp(2 - 4x)) + log((4x - 2)^2 + 1) / 2.
    Source: Shen and Chen, "On Penalty-based Bilevel Gradient Descent Method", ICML 2023 (J is their -g).
    """

    def lower(self, x: Tensor, y: Tensor) -> Tensor:
        """J."""
        return -(x + y).square() - x * torch.sin(x + y).square()

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        """f."""
        return torch.cos(4 * y + 2) * torch.sigmoid(4 * x - 2) + torch.log1p((4 * x - 2).square()) / 2

    def respond(self, x: Tensor, tilt: float) -> Tensor:
        """The maximiser of J + tilt f that gradient ascent from y* finds. RuntimeError if it does not converge."""
        y, step = -x, 1 / (2 + 2 * x + 16 * abs(tilt))  # 1 / (a bound on the curvature): every step ascends
        for _ in range(1000):
            misfit_slope = -2 * (x + y) - x * torch.sin(2 * (x + y))
            change = step * (misfit_slope - 4 * tilt * torch.sin(4 * y + 2) * torch.sigmoid(4 * x - 2))
            y = y + change
            if change.abs() < 1e-14:
                return y
        raise RuntimeError(f"gradient ascent did not settle at x = {float(x):.3g}, tilt {tilt:.3g}: use a smaller tilt")

    def gradient(self, x: Tensor) -> Tensor:
        """grad F, by autograd through y*(x) = -x."""
        return differentiate(lambda x: self.upper(x, -x), x)
