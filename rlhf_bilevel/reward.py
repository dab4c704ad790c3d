"""A bounded reward ensemble: r_m(s, a) = bound * tanh(net_m([s, a])), all members in one batched matrix product.

The bound matters: the value gap is linear in r, so a penalty on it could drive an unbounded reward without end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        x = x.expand(len(self.weights[0]), *x.shape)  # (M, N, o + a)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, functional.leaky_relu(x) if layer else x, weight)
        return self.bound * torch.tanh(x).reshape(len(x), *shape)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """The members' mean: (..., o), (..., a) to (...)."""
        return self.members(obs, act).mean(0)
