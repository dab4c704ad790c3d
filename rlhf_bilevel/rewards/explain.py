"""What a reward that is no network has learnt, feature by feature.

    r = level + bound tanh(b + sum_i f_i(x_i)),    weight_i = slope of f_i,    effect_i = std(f_i(x_i))

f_i is w_i x_i, or the piecewise linear function of an additive reward; its weight is then the mean slope, by least
squares. A weight alone says little, because features have different units. Its effect, over the segments that were
asked about, says how much the feature matters. It has the sign of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards.ensemble import RewardEnsemble


class Weight(NamedTuple):
    """The weight of one feature inside the tanh, per unit of the feature.

    ``weight`` is the mean over members, ``spread`` their standard deviation, ``effect`` the standard deviation of what
    the feature adds, with the sign of the weight.
    """

    feature: str
    weight: float
    spread: float
    effect: float


def weights_of(reward: RewardEnsemble, names: Sequence[str], obs: Tensor, act: Tensor) -> list[Weight]:
    """The weights of all features, those with the largest effect first.

    Effects are over obs (..., o) and act (..., a), whose entries have the o + a ``names``. UserError if the reward is a
    network.
    """
    if not reward.linear:
        raise UserError("a network's reward cannot be read weight by weight: train with --set reward_form=additive")
    features = reward.clipped_features(obs, act)  # (N, features)
    kinds = -1, features.shape[-1]
    weights = reward.weights[0].detach()[..., 0].unflatten(-1, kinds)  # (M, k, features): k terms for each feature
    terms = reward.terms(obs, act).unflatten(-1, kinds)  # (N, k, features)
    moved = features - features.mean(0)
    variance = moved.square().mean(0)
    covariance = (weights * torch.einsum("nkf,nf->kf", terms, moved)).sum(1) / len(features)
    varies = features.amax(0) > features.amin(0)  # not variance > 0: a mean is rounded
    slopes = torch.where(varies, covariance / variance, 0.0)  # (M, features)
    mean, spread = slopes.mean(0), slopes.std(0, correction=0)
    effect = (weights.mean(0) * terms).sum(1).std(0) * torch.where(mean < 0, -1.0, 1.0)
    columns = zip(reward.names(names), mean.tolist(), spread.tolist(), effect.tolist(), strict=True)
    return sorted(map(Weight._make, columns), key=lambda weight: -abs(weight.effect))
