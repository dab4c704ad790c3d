"""Zero-order descent: f's values at two best responses, no gradient in x at all (Gaussian smoothing, two points).

    g = [ f(x + sigma u, y*(x + sigma u)) - f(x - sigma u, y*(x - sigma u)) ] / (2 sigma) u,    u ~ N(0, I)

Its second moment is ``spread`` = p + 4 times |grad F|^2 (Nesterov and Spokoiny, 2017): as many times shorter is the
step, and as many times more of them a schedule must plan.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.theory.algorithm import Schedule
from benchmarks.theory.problem import Meter, Problem, ascend


def spread(problem: Problem) -> int:
    return problem.x.shape[-1] + 4


def zero_order(meter: Meter, schedule: Schedule) -> Iterator[Tensor]:
    x, y = meter.x, meter.y
    for _ in range(schedule.T):
        yield x
        y = ascend(meter, x, y, 0.0, schedule.n, schedule.K)
        u, values = torch.from_numpy(meter.rng.standard_normal(x.shape)), []
        for point in (x + schedule.sigma * u, x - schedule.sigma * u):
            there = ascend(meter, point, y, 0.0, schedule.n, schedule.K)
            values.append(meter.batch(point, there, schedule.B).upper(point, there).detach())
        estimate = ((values[0] - values[1]) / (2 * schedule.sigma))[:, None] * u
        x = meter.descend(x, estimate, meter.eta / spread(meter.problem))
