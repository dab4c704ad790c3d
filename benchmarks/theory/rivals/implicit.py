"""Implicit differentiation: second-order methods, the Hessian estimated from samples too.

    grad F = d_x f - d_xy J (d_yy J)^-1 d_y f

``parl`` solves with the dense Hessian, as PARL does for RL (Chakraborty et al., ICLR 2024); ``aid`` with conjugate
gradients, a Hessian product a step (AID-BiO, stocBiO: Ji, Yang, Liang, ICML 2021).
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.theory.algorithm import Schedule
from benchmarks.theory.problem import Meter, ascend, dense_solve, implicit_gradient

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(product: Product, right: Tensor, steps: int) -> Tensor:
    """(-A) x = right for a negative semidefinite A, every replicate on its own, from x = 0."""
    x = torch.zeros_like(right)
    residual = direction = right
    for _ in range(steps):
        image, square = -product(direction), residual.square().sum(-1, keepdim=True)
        bent = (direction * image).sum(-1, keepdim=True)
        length = torch.where(bent > 0, square / bent, 0.0)  # sampled curvature may have the wrong sign: go no further
        x, residual = x + length * direction, residual - length * image
        direction = residual + residual.square().sum(-1, keepdim=True) / square.clamp_min(1e-300) * direction
    return x


def _descend(meter: Meter, schedule: Schedule, solve: Callable[[Product, Tensor], Tensor]) -> Iterator[Tensor]:
    def counted(product: Product, right: Tensor) -> Tensor:
        def once(vector: Tensor) -> Tensor:
            meter.products += 1
            return product(vector)

        return solve(once, right)

    x, y = meter.x, meter.y
    for _ in range(schedule.T):
        yield x
        y = ascend(meter, x, y, 0.0, schedule.n, schedule.K)
        batches = meter.batch(x, y, schedule.B, hessian=True), meter.batch(x, y, schedule.B)
        x = meter.descend(x, implicit_gradient(batches[0].lower, batches[1].upper, x, y, counted))


parl = partial(_descend, solve=dense_solve)


def aid(meter: Meter, schedule: Schedule) -> Iterator[Tensor]:
    return _descend(meter, schedule, lambda product, right: -conjugate_gradients(product, right, schedule.K))
