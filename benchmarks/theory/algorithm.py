"""Algorithm 1 of arXiv 2503.17644: a bilevel problem solved by stochastic first-order steps.

    for t = 1 .. T:
        for k = 1 .. K:   y  <- y  + tau  grad_y [ J + a f ](x, y),    n samples
        for k = 1 .. K:   y' <- y' + tau' grad_y [ J + b f ](x, y'),   n samples
        x <- x - eta grad_x Phi_sigma(x) with y and y' held fixed,     B samples at either

with the sides (a, b) of ``penalty.tilts``: (0, -sigma) in the paper, (sigma, -sigma) for our central difference. The
gradient is that of ``penalty.proxy``, the code of the deep runs too. Both lower variables go on from where they were.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from benchmarks.theory.problem import Batch, Meter, ascend, slope
from rlhf_bilevel.bilevel.penalty import proxy, tilts


class Schedule(NamedTuple):
    """What a method does to reach E |grad F|^2 <= eps, in counts of its own loops."""

    T: int  # steps of the upper level
    K: int  # steps of the lower level in each
    n: int  # samples in a step of the lower level
    B: int  # samples in a step of the upper level
    sigma: float = math.nan  # the tilt


def penalty_gradient(x: Tensor, seen: Sequence[tuple[Batch, Tensor]], sides: tuple[float, float]) -> Tensor:
    """grad Phi_sigma (R, p) from what is seen of J and f at the two responses (R, q); exact if that is the problem."""
    x = x.detach().requires_grad_()

    def lower(at: tuple[Batch, Tensor]) -> Tensor:
        return at[0].lower(x, at[1])

    def upper(at: tuple[Batch, Tensor]) -> Tensor:
        return at[0].upper(x, at[1])

    high, low = seen
    return slope(proxy(lower, upper, (high, low), sides), x)


def penalty(meter: Meter, schedule: Schedule, two_sided: bool = False) -> Iterator[Tensor]:
    """The iterates x (R, p), from the start on."""
    x, sides = meter.x, tilts(schedule.sigma, two_sided)
    ys = [meter.y, meter.y]
    for _ in range(schedule.T):
        yield x
        ys = [ascend(meter, x, y, tilt, schedule.n, schedule.K) for y, tilt in zip(ys, sides, strict=True)]
        x = meter.descend(x, penalty_gradient(x, [(meter.batch(x, y, schedule.B), y) for y in ys], sides))
