"""What a linear or quadratic reward has learnt, feature by feature.

    r = level + bound tanh(w . x + b),    effect_i = w_i std(x_i)

A weight alone says little, because features have different units. Its effect, with the standard deviation over the
segments that were asked about, says how much the feature matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards.ensemble import RewardEnsemble


class Weight(NamedTuple):
    """The weight of one feature inside the tanh, per unit of the feature.

    ``weight`` is the mean over members, ``spread`` their standard deviation, ``effect`` the weight times the feature's
    standard deviation.
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
        raise UserError("a network's reward cannot be read weight by weight: train with --set reward_form=linear")
    features = reward.clipped_features(obs, act)
    weights = reward.weights[0].detach()[..., 0] / reward.unit  # (M, features)
    mean, spread = weights.mean(0), weights.std(0, correction=0)
    effect = mean * features.std(0)
    columns = zip(reward.names(names), mean.tolist(), spread.tolist(), effect.tolist(), strict=True)
    return sorted(map(Weight._make, columns), key=lambda weight: -abs(weight.effect))
