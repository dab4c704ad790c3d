"""Preferences and the Bradley-Terry model: P(first better) = sigmoid(sum_t r(first_t) - sum_t r(second_t))."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlhf_bilevel.types import Preferences, Queries, RewardFn

STREAM = 5  # of random numbers, for bootstrap weights


def logits(reward: RewardFn, pairs: Queries | Preferences) -> Tensor:
    """Difference of the two segments' returns under ``reward``: (..., B), leading axes as ``reward`` gives them."""
    first, second = (reward(segment.obs, segment.act).sum(-1) for segment in pairs[:2])
    return first - second


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Bradley-Terry loss in nats per pair, same shape as ``logits`` (..., B); ``label`` (B,) in [0, 1]."""
    return functional.binary_cross_entropy_with_logits(logits, label.expand_as(logits), reduction="none")


def smoothed(label: Tensor, share: float) -> Tensor:
    """Labels of which ``share`` is taken for even odds [Szegedy et al. 2016]."""
    return label + share * (0.5 - label)


def bootstrap(count: int, members: int, seed: int) -> Tensor:
    """How often each member's resample holds each label: Poisson(1), (members, count) [Oza and Russell 2001].

    What a label weighs does not change when more labels come.
    """
    return torch.from_numpy(np.random.default_rng([seed, STREAM]).poisson(1.0, (count, members)).T).float()


def weighed(logits: Tensor, weight: Tensor) -> Tensor:
    """The same numbers, whose gradient counts ``weight`` times: any loss of them becomes a weighted one."""
    return weight * logits + ((1 - weight) * logits).detach()


def accuracy(logits: Tensor, label: Tensor) -> Tensor:
    """Share of the pairs without a tie that are ordered as labelled, per leading axis; one where all are ties."""
    decided = label != 0.5
    return (logits > 0).eq(label > 0.5)[..., decided].float().mean(-1).nan_to_num(1.0)


def crops(
    first: Tensor, second: Tensor, shares: tuple[float, float], rng: np.random.Generator, copies: int = 1
) -> Tensor:
    """Logits of ``copies`` random crops of each pair, from rewards per step (..., B, T): (copies, ..., B).

    Both segments of a pair are cut to one length, uniform between ``shares`` of T; where each begins is uniform
    [temporal data augmentation, SURF]. Shares of (1, 1) are the pairs as they are.
    """
    count, steps = first.shape[-2:]
    least, most = (max(1, round(share * steps)) for share in shares)
    length = rng.integers(least, most + 1, (copies, count, 1))

    def cut(rewards: Tensor) -> Tensor:
        start, at = rng.integers(steps - length + 1), np.arange(steps)
        inside = torch.from_numpy((at >= start) & (at < start + length))  # (copies, B, T)
        return (rewards * inside.reshape(copies, *[1] * (first.dim() - 2), count, steps)).sum(-1)

    return cut(first) - cut(second)
