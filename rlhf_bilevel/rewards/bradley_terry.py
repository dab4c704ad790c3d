"""The Bradley-Terry model of preferences [Bradley and Terry 1952; Christiano et al. 2017].

    P(first better) = sigmoid(z),    z = sum_t r(first_t) - sum_t r(second_t)
    loss            = -y log P(first better) - (1 - y) log P(second better)      nats per pair, label y in [0, 1]

All functions are pure: tensors in, tensors out. Shapes: B pairs, T steps, M members.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rlhf_bilevel.types import Preferences, Queries, RewardFn

STREAM = 5  # of random numbers, for bootstrap weights


def logits(reward: RewardFn, pairs: Queries | Preferences) -> Float[Tensor, "*lead B"]:
    """z of each pair: (..., B), with the leading axes that ``reward`` gives, such as the members' (M, B)."""
    first, second = (reward(segment.obs, segment.act).sum(-1) for segment in pairs[:2])
    return first - second


def cross_entropy(logits: Float[Tensor, "*lead B"], label: Float[Tensor, "... B"]) -> Float[Tensor, "*lead B"]:
    """The loss of each pair in nats: (..., B). ``label`` is y, of shape (B,) or as ``logits``."""
    return functional.binary_cross_entropy_with_logits(logits, label.expand_as(logits), reduction="none")


def smoothed(label: Float[Tensor, " B"], share: float) -> Float[Tensor, " B"]:
    """Label smoothing: (1 - share) y + share / 2, for labels (B,) [Szegedy et al. 2016]."""
    return label + share * (0.5 - label)


def bootstrap(count: int, members: int, seed: int) -> Float[Tensor, "members count"]:
    """Bootstrap weights: how often each label is in each member's resample, Poisson(1) [Oza and Russell 2001].

    Returns (members, count). The weights of a label stay the same when more labels come.
    """
    return torch.from_numpy(np.random.default_rng([seed, STREAM]).poisson(1.0, (count, members)).T).float()


def weighed(logits: Float[Tensor, "*lead M B"], weight: Float[Tensor, "M B"]) -> Float[Tensor, "*lead M B"]:
    """The same logits (..., M, B), with a gradient that is multiplied by ``weight`` (M, B).

    The gradient of any loss that is a sum over pairs becomes that of the weighted loss.
    """
    return weight * logits + ((1 - weight) * logits).detach()


def accuracy(logits: Float[Tensor, "*lead B"], label: Float[Tensor, " B"]) -> Float[Tensor, "*lead"]:
    """The share of the pairs that ``logits`` (..., B) order as ``label`` (B,) says: (...).

    Labels that are ties do not count; if all are, the share is 1.
    """
    decided = label != 0.5
    return (logits > 0).eq(label > 0.5)[..., decided].float().mean(-1).nan_to_num(1.0)


def crops(
    first: Float[Tensor, "*lead B T"],
    second: Float[Tensor, "*lead B T"],
    shares: tuple[float, float],
    rng: np.random.Generator,
    copies: int = 1,
) -> Float[Tensor, "copies *lead B"]:
    """Logits of ``copies`` random crops of each pair: (copies, ..., B), from rewards of each step (..., B, T).

    Both segments of a pair are cut to the same length, uniform between ``shares`` of T; each start is uniform [temporal
    data augmentation, SURF]. With shares (1, 1) nothing is cut.
    """
    count, steps = first.shape[-2:]
    least, most = (max(1, round(share * steps)) for share in shares)
    length = rng.integers(least, most + 1, (copies, count, 1))

    def cut(rewards: Tensor) -> Tensor:
        start, at = rng.integers(steps - length + 1), np.arange(steps)
        inside = torch.from_numpy((at >= start) & (at < start + length))  # (copies, B, T)
        return (rewards * inside.reshape(copies, *[1] * (first.dim() - 2), count, steps)).sum(-1)

    return cut(first) - cut(second)
