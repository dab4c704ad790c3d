"""Preferences and the Bradley-Terry model: P(first better) = sigmoid(sum_t r(first_t) - sum_t r(second_t))."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlhf_bilevel.types import Preferences, Queries, RewardFn, Segments

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


def take(answers: Preferences, rows: Tensor | slice) -> Preferences:
    """Some of the pairs."""
    first, second = (Segments(*(column[rows] for column in segments)) for segments in answers[:2])
    return Preferences(first, second, answers.label[rows])


class PreferenceStore:
    """All answers in the order in which they came, and the loss of each before it was first trained on.

    That loss is a fresh-sample (prequential) estimate of the upper objective: no reward had seen its label.
    Before the first session there is no reward to speak of, and the loss is that of even odds, ln 2.
    """

    def __init__(self) -> None:
        self.sessions: list[int] = []  # answers of each
        self.fresh_loss = torch.zeros(0)
        self._columns: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.fresh_loss)

    def add(self, answers: Preferences, fresh_loss: Tensor) -> None:
        new = [*answers.first, *answers.second, answers.label]
        self._columns = [torch.cat(pair) for pair in zip(self._columns, new, strict=True)] if self._columns else new
        self.fresh_loss = torch.cat([self.fresh_loss, fresh_loss])
        self.sessions.append(len(answers.label))

    def __getitem__(self, rows: Tensor | slice) -> Preferences:
        column = [values[rows] for values in self._columns]
        return Preferences(Segments(*column[:3]), Segments(*column[3:6]), column[6])

    def load(self, sessions: Sequence[Preferences | None], fresh_loss: Tensor) -> None:
        """The answers of these sessions, None for one without any, and their losses, in place of what there was."""
        parts = [[*answers.first, *answers.second, answers.label] for answers in sessions if answers is not None]
        self._columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        self.sessions = [0 if answers is None else len(answers.label) for answers in sessions]
        self.fresh_loss = fresh_loss
        if sum(self.sessions) != len(fresh_loss):
            raise ValueError(f"{sum(self.sessions)} answers have {len(fresh_loss)} losses")

    def steps(self) -> tuple[Tensor, Tensor]:
        """obs (N, T, o) and act (N, T, a) of all segments."""
        first_obs, first_act, _, second_obs, second_act, *_ = self._columns
        return torch.cat([first_obs, second_obs]), torch.cat([first_act, second_act])

    def segments(self) -> Segments:
        """All segments (2 N, T, ...), those of first place before those of second."""
        return Segments(*(torch.cat(pair) for pair in zip(self._columns[:3], self._columns[3:6], strict=True)))

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """The rows of one epoch in shuffled minibatches of at most ``size`` pairs."""
        return iter(torch.from_numpy(rng.permutation(len(self))).split(size))
