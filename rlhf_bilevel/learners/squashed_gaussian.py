"""Actions of SB3's squashed Gaussian policy, their log-probabilities, and the derivatives of both.

a = tanh(u), u ~ N(mu, exp(log_std)^2), with the batch as the last axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor

EPSILON = 1e-6  # SB3 adds it to 1 - a^2 before the logarithm


class Squashed(NamedTuple):
    """Actions of a squashed Gaussian policy, and what their derivatives need."""

    action: Tensor  # (..., a, B) tanh(mu + spread)
    log_prob: Tensor  # (..., B) log pi(action)
    spread: Tensor  # (..., a, B) exp(log_std) noise
    flat: Tensor  # (..., a, B) the slope of tanh, 1 - action^2
    inside: Tensor  # (..., a, B) whether log_std was not clamped


def squashed(heads: Tensor, noise: Tensor) -> Squashed:
    """Actions from ``heads`` (..., 2 a, B), which are mu and then the unclamped log_std, and ``noise`` (..., a, B)."""
    mu, raw = heads.chunk(2, -2)
    log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
    spread = log_std.exp() * noise
    action = torch.tanh(mu + spread)
    flat = 1 - action.square()
    density = noise.square() / -2 - log_std - torch.log(flat + EPSILON)
    log_prob = density.sum(-2) - math.log(2 * math.pi) / 2 * action.shape[-2]
    return Squashed(action, log_prob, spread, flat, raw == log_std)


def squashed_slope(chosen: Squashed, by_action: Tensor, weight: Tensor) -> Tensor:
    """The derivative of weight log pi(a) + v(a) by the heads: (l, 2 a, C).

    ``by_action`` (l, a, C) is dv/da at the first C columns of the batch, ``weight`` is (l, 1).
    """
    action, _, spread, flat, inside = (part[..., : by_action.shape[-1]] for part in chosen)
    weight = weight[..., None]
    by_mu = (by_action + weight * 2 * action / (flat + EPSILON)) * flat
    by_log_std = (by_mu * spread - weight) * inside  # zero where it was clamped
    return torch.cat([by_mu, by_log_std], -2)
