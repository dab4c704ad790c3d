"""A bounded reward ensemble: r_m(s, a) = level + bound * tanh(f_m([s, a])), members in weights' leading axis.

f is a network, or linear in x = [s, a] (``linear``) or in x and all products of two of its entries (``quadratic``):
rewards that can be read, weight by weight. x is in units of its standard deviation (``measure``): in raw units, as
B-Pref has it, networks learn far less that holds for later pairs (docs/search.md).

The bound matters: the value gap is linear in r, so a penalty on it could drive an unbounded reward without end. Pairs
of equally long segments say nothing of the level, but learners whose episodes may end early do (docs/rewards.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf_bilevel.config import Config
from rlhf_bilevel.types import Preferences, Queries

ROWS = 2048
Form = Literal["network", "linear", "quadratic"]


class RewardEnsemble(nn.Module):
    """M independent networks; calling it gives the reward that learners see: mean - ``pessimism`` std of the members.

    ``rng`` draws the initial weights (PyTorch's default law for linear layers), so that no global generator is used.
    """

    unit: Tensor  # (features,)
    low: Tensor  # (o + a,)
    high: Tensor

    def __init__(
        self,
        obs_size: int,
        act_size: int,
        members: int,
        hidden: Sequence[int],
        rng: torch.Generator,
        bound: float = 1,
        form: Form = "network",
        level: float = 0,
    ) -> None:
        super().__init__()
        self.bound, self.form, self.level, self.pessimism = bound, form, level, 0.0
        self.labels = 0  # that it was fitted to
        size = obs_size + act_size
        sizes = [size * (size + 3) // 2 if form == "quadratic" else size, *(hidden if form == "network" else ()), 1]

        def parameter(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=rng) - 1) / math.sqrt(fan_in))

        layers = list(pairwise(sizes))
        self.weights = nn.ParameterList(parameter(members, i, j, fan_in=i) for i, j in layers)
        self.biases = nn.ParameterList(parameter(members, 1, j, fan_in=i) for i, j in layers)
        self.register_buffer("unit", torch.ones(sizes[0]))
        self.register_buffer("low", torch.full((size,), -torch.inf))
        self.register_buffer("high", torch.full((size,), torch.inf))

    @classmethod
    def of(cls, config: Config, obs_size: int, act_size: int, rng: torch.Generator) -> RewardEnsemble:
        """As the settings say."""
        level = 1 if config.termination == "nonnegative" else 0  # the bound: rewards from 0 to 2
        return cls(obs_size, act_size, config.members, config.reward_hidden, rng, form=config.reward_form, level=level)

    def members(self, obs: Tensor, act: Tensor) -> Tensor:
        """obs (..., o) and act (..., a) to (M, ...), each value within [level - bound, level + bound]."""
        return self.level + self.bound * torch.tanh(self.unbounded(obs, act))

    def compare(self, pairs: Queries | Preferences) -> tuple[Tensor, Tensor]:
        """The members' logits on pairs (M, B), as ``preference.logits``, and the mean square of f, which damps it.

        Labels leave the level of r open, so that it drifts; where tanh is flat no later label moves it any more.
        """
        first, second = (self.unbounded(part.obs, part.act) for part in pairs[:2])  # (M, B, T)
        better, worse = ((self.bound * torch.tanh(f)).sum(-1) for f in (first, second))
        return better - worse, (first.square().mean() + second.square().mean()) / 2

    def unbounded(self, obs: Tensor, act: Tensor) -> Tensor:
        """f: obs (..., o) and act (..., a) to (M, ...)."""
        shape = obs.shape[:-1]
        x = torch.cat([obs, act], -1).flatten(0, -2)  # (N, o + a)
        x = self.features(x) / self.unit
        layers = list(zip(self.weights, self.biases, strict=True))
        if x.is_cuda:
            y = x.expand(len(layers[0][0]), *x.shape)
            for number, (weight, bias) in enumerate(layers):
                y = torch.baddbmm(bias, functional.leaky_relu(y, inplace=True) if number else y, weight)
        else:  # a CPU is faster member by member, on as many rows as its cache holds
            members = list(zip(*(zip(weight, bias, strict=True) for weight, bias in layers), strict=True))
            y = torch.cat([torch.stack([_through(part, member) for member in members]) for part in x.split(ROWS)], 1)
        return y.reshape(len(y), *shape)

    def features(self, x: Tensor) -> Tensor:
        """Of observations and actions (N, o + a): themselves, clipped, and in a quadratic reward their products."""
        x = x.clamp(self.low, self.high)
        if self.form != "quadratic":
            return x
        first, second = torch.triu_indices(x.shape[1], x.shape[1])
        return torch.cat([x, x[:, first] * x[:, second]], 1)

    def measure(self, obs: Tensor, act: Tensor) -> None:
        """Takes the standard deviations over obs (..., o), act (..., a) as the features' units, where they vary."""
        spread = self.features(torch.cat([obs, act], -1).flatten(0, -2)).std(0)
        self.unit.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def clip(self, obs: Tensor, act: Tensor) -> None:
        """From now on x counts as the nearest within the range of obs (..., o), act (..., a).

        Where labels have shown nothing a network says anything, and a learner that has it for bad never goes there.
        """
        x = torch.cat([obs, act], -1).flatten(0, -2)
        self.low.copy_(x.amin(0))
        self.high.copy_(x.amax(0))

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Networks of older runs have neither units nor a range."""
        everything = torch.full_like(self.low, torch.inf)
        neutral = {"unit": torch.ones_like(self.unit), "low": -everything, "high": everything}
        return super().load_state_dict(neutral | dict(state), strict, assign)

    def names(self, names: Sequence[str]) -> list[str]:
        """Of all features, where x's are so named."""
        products = [f"{a} * {b}" for i, a in enumerate(names) for b in names[i:]]
        return [*names, *(products if self.form == "quadratic" else [])]

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """(..., o), (..., a) to (...)."""
        members = self.members(obs, act)
        if not self.pessimism:
            return members.mean(0)
        spread = (members.var(0, correction=0) + 1e-12).sqrt()  # a root has no slope at 0
        return members.mean(0) - self.pessimism * spread


def _through(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for number, (weight, bias) in enumerate(layers):
        x = torch.addmm(bias, functional.leaky_relu(x, inplace=True) if number else x, weight)
    return x
