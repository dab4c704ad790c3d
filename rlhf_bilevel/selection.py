"""The policy that a user gets is one that the teacher preferred: an incumbent stays until a challenger has beaten it.

The challenger is the agent's policy as it was at a session, and stays the same until it is decided. In each session some
pairs put a segment of its newest episodes against one of the incumbent's; these are labels like any other, and the reward
learns from them too. With p the probability that the challenger's segment is preferred, Wald's sequential test goes on
until

    log L = wins log(p1 / p0) + losses log((1 - p1) / (1 - p0)),    p0 = 1/2 - margin, p1 = 1/2 + margin

leaves [-log((1 - error) / error), +log((1 - error) / error)]: a challenger with p <= p0 wins, and one with p >= p1
loses, with a probability of ``error`` at most [Wald 1945]. Ties count for neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Decision = Literal["challenger", "incumbent"]


@dataclass
class SequentialTest:
    """Wins and losses of a challenger until it is decided."""

    margin: float  # of p0 and p1 from even odds
    error: float  # probability of either wrong decision
    score: float = 0.0  # log L

    def add(self, label: float) -> None:
        """An answer: 1 where the challenger's segment is better, 0 where the incumbent's is, 0.5 for a tie."""
        step = math.log((0.5 + self.margin) / (0.5 - self.margin))
        self.score += step * (2 * label - 1)

    @property
    def decision(self) -> Decision | None:
        bound = math.log((1 - self.error) / self.error)
        if abs(self.score) < bound:
            return None
        return "challenger" if self.score > 0 else "incumbent"


@dataclass
class Contender:
    """A policy as it was, and the episodes in which it acted, as (start, end) rows of the store."""

    policy: dict[str, Any]
    episodes: Sequence[tuple[int, int]] = field(default_factory=list)
