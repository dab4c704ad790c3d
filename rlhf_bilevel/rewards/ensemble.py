"""The reward model: an ensemble of M bounded rewards.

    r_m(s, a) = level + bound tanh(f_m(x / unit)),    x = [s, a] clipped to [low, high],    m = 1 ... M
    r(s, a)   = mean_m r_m - pessimism std_m r_m      what learners are rewarded with

f_m is a network here (``reward_form=network``). Other forms are subclasses, in forms.py. Each weight tensor holds all
members along its first axis.

Units: ``measure`` sets them to the standard deviations of x. In raw units, which B-Pref has, networks generalise much
worse to later pairs (docs/search.md). Bound: the value gap is linear in r, so that a penalty on it could make an
unbounded reward grow forever. Level: pairs of equally long segments say nothing about it, but it matters to learners
whose episodes may end early (docs/rewards.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rlhf_bilevel.config import Config
from rlhf_bilevel.envs.user_code import faults_as_user_errors
from rlhf_bilevel.registries import REWARD_FORMS
from rlhf_bilevel.types import Preferences, Queries

ROWS = 2048  # steps that a CPU computes at once


class RewardEnsemble(nn.Module):
    """M independent rewards of obs (..., o) and act (..., a). Called, it returns r (...).

    ``hidden`` are the widths of a network's hidden layers. ``rng`` draws the initial weights, by PyTorch's default rule
    for linear layers; the global generator is not used.
    Another form is a subclass with other ``features``, and as many ``names`` of them.
    """

    linear: ClassVar[bool] = False  # whether f is linear in its terms: no ``hidden`` layers, readable weights
    use_action = True  # whether r depends on the action too
    center: Tensor  # (features,)
    unit: Tensor
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
        level: float = 0,
    ) -> None:
        super().__init__()
        self.bound, self.level, self.pessimism = bound, level, 0.0
        self.labels = 0  # that it was fitted to
        size = obs_size + act_size
        features = self.features(torch.zeros(1, size)).shape[-1]
        sizes = [self.num_terms(features), *(() if self.linear else hidden), 1]

        def parameter(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(shape, generator=rng) - 1) / math.sqrt(fan_in))

        layers = list(pairwise(sizes))
        self.weights = nn.ParameterList(parameter(members, i, j, fan_in=i) for i, j in layers)
        self.biases = nn.ParameterList(parameter(members, 1, j, fan_in=i) for i, j in layers)
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("unit", torch.ones(features))
        self.register_buffer("low", torch.full((size,), -torch.inf))
        self.register_buffer("high", torch.full((size,), torch.inf))

    @staticmethod
    def of(config: Config, obs_size: int, act_size: int, rng: torch.Generator) -> RewardEnsemble:
        """The ensemble that ``config`` describes, of the class that ``REWARD_FORMS`` has for its ``reward_form``.

        UserError if that class is not ours and cannot be made.
        """
        level = 1 if config.termination == "nonnegative" else 0  # the bound: rewards from 0 to 2
        form = REWARD_FORMS[config.reward_form]
        sizes = obs_size, act_size, config.ensemble_size, config.reward_net_arch
        if config.reward_form in REWARD_FORMS.ours:
            reward = form(*sizes, rng, level=level)
        else:
            with faults_as_user_errors(f"reward form {config.reward_form}"):
                reward = form(*sizes, rng, level=level)
        if not config.reward_use_action:
            reward.ignore_actions(act_size)
        return reward

    def members(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> Float[Tensor, " M *lead"]:
        """r_m of each member: (M, ...), in [level - bound, level + bound]."""
        return self.level + self.bound * torch.tanh(self.unbounded(obs, act))

    def compare(self, pairs: Queries | Preferences) -> tuple[Float[Tensor, "M B"], Float[Tensor, ""]]:
        """The members' logits (M, B) of B pairs, and the mean of f^2, a scalar that the loss uses for damping.

        Why damp: labels do not fix the level of f, so it drifts. Where tanh is flat, no later label could move it back.
        """
        first, second = (self.unbounded(part.obs, part.act) for part in pairs[:2])  # (M, B, T)
        better, worse = ((self.bound * torch.tanh(f)).sum(-1) for f in (first, second))
        return better - worse, (first.square().mean() + second.square().mean()) / 2

    def unbounded(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> Float[Tensor, " M *lead"]:
        """f_m of each member: (M, ...)."""
        shape = obs.shape[:-1]
        layers = list(zip(self.weights, self.biases, strict=True))
        if obs.is_cuda:
            x = self.terms(obs, act)
            y = x.expand(len(layers[0][0]), *x.shape)
            for number, (weight, bias) in enumerate(layers):
                y = torch.baddbmm(bias, functional.leaky_relu(y, inplace=True) if number else y, weight)
        else:  # a CPU is faster member by member, on no more rows than fit into its cache
            members = list(zip(*(zip(weight, bias, strict=True) for weight, bias in layers), strict=True))
            rows = zip(obs.flatten(0, -2).split(ROWS), act.flatten(0, -2).split(ROWS), strict=True)
            parts = (self.terms(*part) for part in rows)  # one after another: of all rows they may be large
            y = torch.cat([torch.stack([_through(part, member) for member in members]) for part in parts], 1)
        return y.reshape(len(y), *shape)

    def features(self, x: Float[Tensor, "N x"]) -> Float[Tensor, "N features"]:
        """The inputs of f for clipped [s, a] (N, o + a): in a network, these themselves."""
        return x

    @staticmethod
    def num_features(inputs: int) -> int:
        """How many ``features`` there are for ``inputs`` = o + a. Only forms of this package need it: the size of a
        file is checked by it before its tensors are loaded.
        """
        return inputs

    def clipped_features(
        self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]
    ) -> Float[Tensor, "N features"]:
        """The ``features`` of obs (..., o) and act (..., a), clipped to [low, high]: (N, features)."""
        return self.features(torch.cat([obs, act], -1).flatten(0, -2).clamp(self.low, self.high))

    def terms(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> Float[Tensor, "N terms"]:
        """What the first layer of f sees of obs (..., o) and act (..., a): standardised ``features``, (N, terms)."""
        return (self.clipped_features(obs, act) - self.center) / self.unit

    @staticmethod
    def num_terms(features: int) -> int:
        """How many ``terms`` there are for so many ``features``."""
        return features

    def lasso(self) -> Float[Tensor, ""]:
        """The sum over ``terms`` of the norm of their weights in the first layer; mean over members.

        In a reward that is linear this is the L1 norm, in a network the group lasso of its inputs (Yuan and Lin 2006).
        """
        return (self.weights[0].square().sum(-1) + 1e-8).sqrt().sum(1).mean()  # a root has no slope at 0

    def measure(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> None:
        """Standardises the features: their means and standard deviations are those over obs (..., o), act (..., a).

        A feature that does not vary keeps the unit 1. Without the means, a position that hardly varies would be a large
        constant, beside which the network sees nothing else.
        """
        spread, self.center[:] = torch.std_mean(self.clipped_features(obs, act), 0)
        self.unit.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def clip(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> None:
        """From now on clips x to the range, entry by entry, of obs (..., o) and act (..., a).

        Outside the range of the labelled steps a network's value is arbitrary. Where it is low by chance, learners
        would never go and it would never be corrected.
        """
        used = slice(None if self.use_action else obs.shape[-1])
        x = torch.cat([obs, act], -1).flatten(0, -2)[:, used]
        self.low[used] = x.amin(0)
        self.high[used] = x.amax(0)

    def ignore_actions(self, act_size: int) -> None:
        """From now on r depends on the observation alone: the ``act_size`` entries of the action are clipped to 0."""
        self.use_action = False
        self.low[-act_size:] = self.high[-act_size:] = 0

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state; one of an older run, without means, units or range, gets mean 0, unit 1 and no clipping."""
        everything = torch.full_like(self.low, torch.inf)
        neutral = {"center": torch.zeros_like(self.center), "unit": torch.ones_like(self.unit)}
        neutral |= {"low": -everything, "high": everything}
        return super().load_state_dict(neutral | dict(state), strict, assign)

    def names(self, names: Sequence[str]) -> list[str]:
        """The names of all features, given those of the o + a entries of x."""
        return [*names]

    def forward(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> Float[Tensor, "*lead"]:
        """r, the reward of the learners: (...) for obs (..., o) and act (..., a)."""
        members = self.members(obs, act)
        if not self.pessimism:
            return members.mean(0)
        spread = (members.var(0, correction=0) + 1e-12).sqrt()  # a root has no slope at 0
        return members.mean(0) - self.pessimism * spread


def _through(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """f of one member: x (N, features) to (N, 1)."""
    for number, (weight, bias) in enumerate(layers):
        x = torch.addmm(bias, functional.leaky_relu(x, inplace=True) if number else x, weight)
    return x
