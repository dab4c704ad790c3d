"""What a linear or quadratic reward has learnt, feature by feature.

A feature's weight says little by itself, as features differ in their units. Its effect is the weight times the
feature's standard deviation over the segments that were asked about: the order in which features matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards.ensemble import RewardEnsemble


class Weight(NamedTuple):
    """Of one feature, inside the tanh. ``weight`` is the members' mean, ``spread`` their standard deviation."""

    feature: str
    weight: float
    spread: float
    effect: float


def weights_of(reward: RewardEnsemble, names: Sequence[str], obs: Tensor, act: Tensor) -> list[Weight]:
    """Every feature's weight, by the size of its effect on obs (..., o), act (..., a); ``names`` are their o + a.

    UserError where the reward is a network.
    """
    if not reward.linear:
        raise UserError("a network's reward cannot be read weight by weight: train with --set reward_form=linear")
    features = reward.featured(obs, act)
    weights = reward.weights[0].detach()[..., 0] / reward.unit  # (M, features)
    mean, spread = weights.mean(0), weights.std(0, correction=0)
    effect = mean * features.std(0)
    columns = zip(reward.names(names), mean.tolist(), spread.tolist(), effect.tolist(), strict=True)
    return sorted(map(Weight._make, columns), key=lambda weight: -abs(weight.effect))
