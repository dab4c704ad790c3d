"""Naive alternation: descend f with the response held fixed, as PEBBLE does (Lee et al., ICML 2021).

Half of the gradient is missing, so it settles where d_x f = 0, and |grad F| stays what the missing half is there.
"""

from collections.abc import Iterator

from torch import Tensor

from benchmarks.theory.algorithm import Schedule
from benchmarks.theory.problem import Meter, ascend, slope


def naive(meter: Meter, schedule: Schedule) -> Iterator[Tensor]:
    x, y = meter.x, meter.y
    for _ in range(schedule.T):
        yield x
        y = ascend(meter, x, y, 0.0, schedule.n, schedule.K)
        batch, x = meter.batch(x, y, schedule.B), x.requires_grad_()
        x = meter.descend(x, slope(batch.upper(x, y), x))
