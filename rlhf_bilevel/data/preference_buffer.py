"""The labelled pairs that the reward model learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.types import Preferences, Segments


class PreferenceBuffer:
    """All answers in their order, and the loss of each before the reward model was first trained on it.

    That loss is a prequential (fresh-sample) estimate of the upper objective: the reward model had not seen the label.
    Before the first session there is no learnt reward, and the loss is that of even odds, ln 2.
    """

    def __init__(self) -> None:
        self.sessions: list[int] = []  # number of answers in each
        self.fresh_loss = torch.zeros(0)
        self._columns: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.fresh_loss)

    def add(self, answers: Preferences, fresh_loss: Tensor) -> None:
        """Adds the answers of one session, B of them, with their losses (B,) before training."""
        new = [*answers.first, *answers.second, answers.label]
        self._columns = [torch.cat(pair) for pair in zip(self._columns, new, strict=True)] if self._columns else new
        self.fresh_loss = torch.cat([self.fresh_loss, fresh_loss])
        self.sessions.append(len(answers.label))

    def __getitem__(self, rows: Tensor | slice) -> Preferences:
        column = [values[rows] for values in self._columns]
        return Preferences(Segments(*column[:3]), Segments(*column[3:6]), column[6])

    def load(self, sessions: Sequence[Preferences | None], fresh_loss: Tensor) -> None:
        """Replaces everything by the answers of these sessions (None for one without any) and their losses (N,).

        ValueError if their numbers differ.
        """
        parts = [[*answers.first, *answers.second, answers.label] for answers in sessions if answers is not None]
        self._columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        self.sessions = [0 if answers is None else len(answers.label) for answers in sessions]
        self.fresh_loss = fresh_loss
        if sum(self.sessions) != len(fresh_loss):
            raise ValueError(f"{sum(self.sessions)} answers have {len(fresh_loss)} losses")

    def steps(self) -> tuple[Tensor, Tensor]:
        """Observations (2 N, T, o) and actions (2 N, T, a) of all segments."""
        return self.segments()[:2]

    def segments(self) -> Segments:
        """All segments (2 N, T, ...): first the first of each pair, then the second."""
        return Segments(*(torch.cat(pair) for pair in zip(self._columns[:3], self._columns[3:6], strict=True)))

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """The rows of one epoch, in shuffled batches of at most ``size`` pairs."""
        return iter(torch.from_numpy(rng.permutation(len(self))).split(size))
