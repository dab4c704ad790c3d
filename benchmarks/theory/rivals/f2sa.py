"""F2SA: the penalty with a weight lambda_t = 1 / sigma_t that grows, small batches and shrinking steps.

y follows the minimiser of f + lambda g, z that of g = -J, and x descends d_x f + lambda (d_x g(y) - d_x g(z)) (Kwon,
Kwon, Wright, Nowak, "A Fully First-Order Method for Stochastic Bilevel Optimization", ICML 2023). With noise in both
levels and t counted from t_0 on, lambda grows as t^(1/7), the steps of y and z shrink as t^(-4/7), that of x as
t^(-5/7), and the squared gradient norm falls as t^(-2/7): eps^-3.5 samples. ``schedule.K`` steps of y and z are taken
for each of x: one is the single loop.
"""

from collections.abc import Iterator

from torch import Tensor

from benchmarks.theory.algorithm import Schedule
from benchmarks.theory.problem import Meter, slope

FIRST = 10  # t_0


def f2sa(meter: Meter, schedule: Schedule) -> Iterator[Tensor]:
    x, y, z = meter.x, meter.y, meter.y
    for t in range(schedule.T):
        yield x
        grown = 1 + t / FIRST
        sigma, shorter = schedule.sigma * grown ** (-1 / 7), grown ** (-4 / 7)
        for _ in range(schedule.K):
            y = meter.ascend(x, y, -sigma, schedule.n, shorter)
            z = meter.ascend(x, z, 0.0, schedule.n, shorter)
        at_y, at_z, x = meter.batch(x, y, schedule.B), meter.batch(x, z, schedule.B), x.requires_grad_()
        gap = at_z.lower(x, z) - at_y.lower(x, y)
        x = meter.descend(x, slope(at_y.upper(x, y) + gap / sigma, x), meter.eta * grown ** (-5 / 7))
