"""A bounded reward ensemble: r_m(s, a) = bound * tanh(net_m([s, a])), members in the leading axis of every weight.

The bound matters: the value gap is linear in r, so a penalty on it could drive an unbounded reward without end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 2048


class RewardEnsemble(nn.Module):
    """M independent networks; calling it gives the mean member, the reward that learners see.

    ``rng`` draws the initial weights (PyTorch's default law for linear layers), so that no global generator is used.
    """

    def __init__(
        self, obs_size: int, act_size: int, members: int, hidden: Sequence[int], rng: torch.Generator, bound: float = 1
    ) -> None:
        super().__init__()
        self.bound = bound
        sizes = [obs_size + act_size, *hidden, 1]

        def parameter(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=rng) - 1) / math.sqrt(fan_in))

        layers = list(pairwise(sizes))
        self.weights = nn.ParameterList(parameter(members, i, j, fan_in=i) for i, j in layers)
        self.biases = nn.ParameterList(parameter(members, 1, j, fan_in=i) for i, j in layers)

    def members(self, obs: Tensor, act: Tensor) -> Tensor:
        """obs (..., o) and act (..., a) to (M, ...), each value within [-bound, bound]."""
        shape = obs.shape[:-1]
        x = torch.cat([obs, act], -1).flatten(0, -2)  # (N, o + a)
        layers = list(zip(self.weights, self.biases, strict=True))
        if x.is_cuda:
            y = x.expand(len(layers[0][0]), *x.shape)
            for number, (weight, bias) in enumerate(layers):
                y = torch.baddbmm(bias, functional.leaky_relu(y, inplace=True) if number else y, weight)
        else:  # a CPU is faster member by member, on as many rows as its cache holds
            members = list(zip(*(zip(weight, bias, strict=True) for weight, bias in layers), strict=True))
            y = torch.cat([torch.stack([_through(part, member) for member in members]) for part in x.split(ROWS)], 1)
        return self.bound * torch.tanh(y).reshape(len(y), *shape)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """The members' mean: (..., o), (..., a) to (...)."""
        return self.members(obs, act).mean(0)


def _through(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for number, (weight, bias) in enumerate(layers):
        x = torch.addmm(bias, functional.leaky_relu(x, inplace=True) if number else x, weight)
    return x
