"""The parameters of several networks of one shape, and Adam's moments, as the rows of a few matrices.

The networks' own parameters are views of these rows. Adam makes one step for a whole row, not one for each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

Settings = Mapping[str, Any]
"""Adam's: rate, betas, epsilon and weight decay."""

Piece = Sequence[Tensor]
"""Parameters that are used as one tensor, stacked along the first axis: two layers on the same input are one layer."""

ALIGNED = 16  # floats: every piece begins at a cache line


class Rows:
    """The parameters of N networks of one shape: one row for each network.

    ``flat`` (N, P) are the parameters, ``gradient`` (N, P) the derivatives of the loss, ``first`` and ``second`` (N, P)
    Adam's moments, ``steps`` (N,) its counts. From now on the networks and their optimizers hold views of these
    tensors. ``optimizers`` are empty for networks that are not trained.
    """

    def __init__(
        self, networks: Sequence[Sequence[Piece]], optimizers: Sequence[torch.optim.Optimizer | None] = ()
    ) -> None:
        pieces_of_one = networks[0]
        self._shapes = [(sum(len(part) for part in piece), *piece[0].shape[1:]) for piece in pieces_of_one]
        sizes = [ALIGNED * math.ceil(math.prod(shape) / ALIGNED) for shape in self._shapes]
        self._starts, device = [0, *accumulate(sizes)], pieces_of_one[0][0].device
        matrices = torch.zeros(4, len(networks), self._starts[-1], device=device)
        self.flat, self.gradient, self.first, self.second = matrices
        self.steps = torch.zeros(len(networks), device=device)
        for number, pieces in enumerate(networks):
            optimizer = optimizers[number] if optimizers else None
            for start, piece in zip(self._starts, pieces, strict=False):
                for parameter in piece:
                    place = slice(start, start + parameter.numel())
                    data, slope, *moments = (row[place].view(parameter.shape) for row in matrices[:, number])
                    parameter.data = data.copy_(parameter.detach())
                    if optimizer:
                        parameter.grad = slope
                        views = {"step": self.steps[number], "exp_avg": moments[0], "exp_avg_sq": moments[1]}
                        for name, moment in optimizer.state[parameter].items():
                            views[name].copy_(moment)
                        optimizer.state[parameter] = views
                    start = place.stop
        self._optimizer = next(iter(optimizers), None)

    def __getstate__(self) -> dict[str, Any]:
        """Without the optimizer: another process gets its settings at each update."""
        return vars(self) | {"_optimizer": None}

    def settings(self) -> Settings:
        """Adam's settings as they are now; none where nothing is trained."""
        if self._optimizer is None:
            return {}
        group = self._optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        return {"beta1": beta1, "beta2": beta2} | {name: group[name] for name in ("lr", "eps", "weight_decay")}

    def step(self, at: slice, settings: Settings) -> None:
        """One step of Adam, with its ``settings``, for the rows ``at``, by their ``gradient``."""
        flat, gradient, first, second = (
            matrix[at].unbind() for matrix in (self.flat, self.gradient, self.first, self.second)
        )
        torch._fused_adam_(  # torch.optim.Adam calls the same, but spends as much time again in Python
            flat, gradient, first, second, [], self.steps[at].add_(1).unbind(),
            amsgrad=False, maximize=False, **settings,
        )  # fmt: skip

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """The pieces of a network for n rows of a matrix like ``flat``: views (n, ...)."""
        places = zip(self._starts, self._shapes, strict=False)
        return [matrix[:, start : start + math.prod(shape)].view(-1, *shape) for start, shape in places]
