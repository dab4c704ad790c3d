"""Reward forms that can be read (``explain``): f is linear in terms of x = [s, a], by ``reward_form``.

    linear      the entries of x
    quadratic   these, and all products of two of them
    additive    functions of one entry each, linear between bends: the default

What holds for all of them is in ensemble.py, and so is the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rlhf_bilevel.rewards.ensemble import RewardEnsemble

BENDS = (-1.5, -0.75, 0.0, 0.75, 1.5)  # of an additive reward's functions, in standard deviations


class LinearReward(RewardEnsemble):
    """f is linear in x."""

    linear = True


class QuadraticReward(LinearReward):
    """f is linear in x and all products of two of its entries."""

    def features(self, x: Float[Tensor, "N x"]) -> Float[Tensor, "N features"]:
        """x, followed by all products of two of its entries."""
        first, second = torch.triu_indices(x.shape[1], x.shape[1])
        return torch.cat([x, x[:, first] * x[:, second]], 1)

    @staticmethod
    def num_features(inputs: int) -> int:
        """As in ``RewardEnsemble``."""
        return inputs * (inputs + 3) // 2

    def names(self, names: Sequence[str]) -> list[str]:
        """The names of x's entries and of their products."""
        return [*names, *(f"{a} * {b}" for i, a in enumerate(names) for b in names[i:])]


class AdditiveReward(LinearReward):
    """f is a sum of functions of one entry of x each, linear between bends at ``BENDS``: a generalised additive model
    (Hastie and Tibshirani 1986).

    With ``reward_lasso`` only few entries count (sparse additive models, Ravikumar et al. 2009).
    """

    def terms(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> Float[Tensor, "N terms"]:
        """The standardised entries of x, and for each bend how far they are above it."""
        x = super().terms(obs, act)
        return torch.cat([x, *(functional.relu(x - bend) for bend in BENDS)], -1)

    @staticmethod
    def num_terms(features: int) -> int:
        """As in ``RewardEnsemble``."""
        return features * (1 + len(BENDS))
