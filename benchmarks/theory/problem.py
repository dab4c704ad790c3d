"""What a stochastic bilevel method may ask of a problem, and who counts what it asked.

    min_x F(x) = f(x, y*(x)),   y*(x) = argmax_y J(x, y),   both known through unbiased samples only

R replicates of a problem (other seeds, other instances) run side by side in the leading axis of every tensor, so that a
run with intervals costs little more than a single one: x is (R, p), y (R, q), J and f are (R,).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor], Tensor]
"""Of x (R, p) and y (R, q), to (R,)."""

Upper = Callable[[Tensor], Tensor]
"""Of x (R, p), to (R, p) or (R, q)."""


class Batch(Protocol):
    """J and f as n samples tell them, drawn at one (x, y): functions whose derivatives there are unbiased.

    First derivatives in x and y and the mixed one always are; second ones of J in y if ``hessian`` was asked for.
    """

    def lower(self, x: Tensor, y: Tensor, /) -> Tensor: ...  # J, (R,)
    def upper(self, x: Tensor, y: Tensor, /) -> Tensor: ...  # f, (R,)


class Problem(Protocol):
    """f is scaled so that |grad F| = 1 at the start: an accuracy is a share of the squared gradient norm there."""

    x: Tensor  # (R, p) where the upper variable starts
    y: Tensor  # (R, q) where the lower one does
    bends: tuple[Tensor, Tensor]  # L_J and L_f, (R, 1): largest curvatures in y
    eta: Tensor  # (R, 1) step of the upper level, at most 1 / (2 L)
    condition: float  # L_J / mu at the first best response
    box: tuple[float, float]  # every x_j is projected into it
    joint: Tensor  # (R, 1) at most 1 / (2 L) with L of J in x and y together, for methods that move both at once

    def batch(self, x: Tensor, y: Tensor, count: int, rng: np.random.Generator, hessian: bool = False) -> Batch: ...
    def gradient(self, x: Tensor, /) -> Tensor: ...  # the true grad F (R, p): the judge's, no method may ask for it


class Meter:
    """A problem that counts, for each replicate, the samples drawn and the products with a Hessian of J."""

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self.problem, self.rng = problem, rng
        self.x, self.y, self.eta = problem.x, problem.y, problem.eta
        self.samples = self.products = 0

    def batch(self, x: Tensor, y: Tensor, count: int, hessian: bool = False) -> Batch:
        self.samples += count
        return self.problem.batch(x.detach(), y.detach(), count, self.rng, hessian)

    def ascend(self, x: Tensor, y: Tensor, tilt: float, count: int, shorter: float = 1.0) -> Tensor:
        """A step of stochastic gradient ascent on J + tilt f in y, 1 / (L_J + |tilt| L_f) long, or ``shorter``."""
        batch, y = self.batch(x, y, count), y.detach().requires_grad_()
        aim = batch.lower(x, y) + tilt * batch.upper(x, y) if tilt else batch.lower(x, y)
        bends = self.problem.bends
        return y.detach() + shorter / (bends[0] + abs(tilt) * bends[1]) * slope(aim, y)

    def descend(self, x: Tensor, gradient: Tensor, step: Tensor | None = None) -> Tensor:
        """A projected gradient step of x, eta long unless it is told otherwise."""
        moved: Tensor = x.detach() - (self.eta if step is None else step) * gradient
        return moved.clamp(*self.problem.box)


def slope(scalar: Tensor, at: Tensor, create_graph: bool = False) -> Tensor:
    """d sum(scalar) / d at: every replicate's own gradient, as replicates do not touch one another; 0 without one."""
    if not scalar.requires_grad:
        return torch.zeros_like(at)
    return torch.autograd.grad(scalar.sum(), at, create_graph=create_graph, materialize_grads=True)[0]


def ascend(meter: Meter, x: Tensor, y: Tensor, tilt: float, count: int, steps: int) -> Tensor:
    """The paper's inner loops: as many steps, a fresh batch each."""
    for _ in range(steps):
        y = meter.ascend(x, y, tilt, count)
    return y


def curvature(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Sizes of the Hessian's eigenvalues, (R, q) ascending, of a function (R, q) to (R,)."""
    at = at.detach().requires_grad_()
    gradient = slope(function(at), at, create_graph=True)
    hessian = torch.stack([slope(column, at, create_graph=True).detach() for column in gradient.unbind(-1)], -1)
    return torch.linalg.eigvalsh(hessian).abs().sort(-1).values


def steps(problem: Any, points: int = 50) -> tuple[tuple[Tensor, Tensor], float, Tensor, Tensor]:
    """``bends``, ``condition``, ``eta`` and ``joint`` of a problem.

    From the largest curvatures seen at the start and along the exact descent of F from there. Directions without any
    effect on J, as those of softmax logits, have no part in L_J / mu.
    """
    x, width, gradient = problem.x, problem.x.shape[-1], problem.gradient
    bound, step = torch.zeros_like(x[:, :1]), 1e-4
    for _ in range(points):
        here = gradient(x)
        columns = [(gradient(x + shift) - here) / step for shift in step * torch.eye(width, dtype=x.dtype)]
        bound = torch.maximum(bound, torch.linalg.matrix_norm(torch.stack(columns, -1), 2)[:, None])
        x = x - here / (2 * bound)
    at = [(problem.x, problem.y), (problem.x, problem.respond(problem.x)), (x, problem.respond(x))]
    lower, both_levels = problem.lower, (problem.lower, problem.upper)
    # (places, R, q)
    of_lower, of_upper = (torch.stack([curvature(partial(f, x), y) for x, y in at]) for f in both_levels)
    bent = of_lower[1]  # at the first best response
    condition = bent[:, -1] / torch.where(bent > 1e-9 * bent[:, -1:], bent, torch.inf).amin(-1)
    both = torch.stack([curvature(lambda z: lower(z[:, :width], z[:, width:]), torch.cat(pair, -1)) for pair in at])
    bends = of_lower[..., -1:].amax(0), of_upper[..., -1:].amax(0)
    return bends, float(condition.max()), 1 / (2 * bound), 1 / (2 * both[..., -1:].amax(0))


def implicit_gradient(
    lower: Function,
    upper: Function,
    x: Tensor,
    y: Tensor,
    solve: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
) -> Tensor:
    """d_x f - d_xy J (d_yy J)^-1 d_y f, (R, p): the implicit function theorem, with ``solve(A, b)`` for A^-1 b."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    by_x, by_y = torch.autograd.grad(upper(x, y).sum(), (x, y), materialize_grads=True)
    ascent = slope(lower(x, y), y, create_graph=True)

    def product(vector: Tensor) -> Tensor:  # d_yy J times a vector, (R, q)
        return torch.autograd.grad(ascent, y, vector, retain_graph=True)[0]

    indirect = torch.autograd.grad(ascent, x, solve(product, by_y.detach()))[0]
    return by_x - indirect


def dense_solve(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """The minimum-norm solution, the matrix formed column by column: softmax logits have directions of no effect."""
    columns = [product(unit.expand_as(right)) for unit in torch.eye(right.shape[-1], dtype=right.dtype)]
    return (torch.linalg.pinv(torch.stack(columns, -1), rtol=1e-9, hermitian=True) @ right[..., None])[..., 0]
