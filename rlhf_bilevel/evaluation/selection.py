"""Which of several policies a teacher prefers: sequential tests with a stated error, within a budget of labels.

The newest policy is the first incumbent. Older ones challenge it, the newest of them first. A label prefers a segment
of one of the two; ties count for neither. Whoever is ``lead`` labels ahead wins. With p the probability that the
challenger is preferred, this is Wald's sequential probability ratio test of p <= 1/2 - margin against p >= 1/2 +
margin: each label moves its statistic by one fixed step [Wald 1945]. The worse policy wins with probability (gambler's
ruin)

    1 / (1 + (p' / (1 - p'))^lead),    p' the probability that the better one is preferred,

which is at most ``error`` where p' >= 1/2 + margin. An incumbent stays unless it lost such a test: what a user gets is
the newest policy, or one that was preferred to it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_bilevel.errors import UserError

MARGIN, ERROR, LABELS = 0.2, 0.1, 20  # defaults
SILENT = 20  # pairs of a match without an answer, after which it ends

Ask = Callable[[int, int], float | None]
"""Asks the teacher about a new pair of segments: takes the numbers of challenger and incumbent. Returns 1 if the
challenger's is better, 0 if the incumbent's is, 0.5 for a tie, values between for a slight preference, and None if
there is no answer."""


@dataclass
class Match:
    """A challenger against an incumbent, by their numbers, and the challenger's labels so far."""

    challenger: int
    incumbent: int
    lead: int
    wins: int = 0
    losses: int = 0
    ties: int = 0

    @property
    def labels(self) -> int:
        """How many labels it took."""
        return self.wins + self.losses + self.ties

    @property
    def decided(self) -> bool:
        """Whether one of the two is ``lead`` ahead."""
        return abs(self.wins - self.losses) >= self.lead

    @property
    def winner(self) -> int:
        """The challenger if it is ``lead`` ahead, and otherwise the incumbent."""
        return self.challenger if self.wins - self.losses >= self.lead else self.incumbent

    def play(self, labels: int, ask: Ask) -> None:
        """Asks until it is decided, or ``labels`` are used, or ``SILENT`` pairs got no answer."""
        silent = 0
        while not self.decided and self.labels < labels and silent < SILENT:
            label = ask(self.challenger, self.incumbent)
            if label is None:
                silent += 1
            elif label == 0.5:
                self.ties += 1
            elif label > 0.5:
                self.wins += 1
            else:
                self.losses += 1
        if silent >= SILENT:
            warnings.warn(f"{SILENT} pairs got no answer: the incumbent stays", stacklevel=2)


def lead_of(margin: float, error: float) -> int:
    """How many labels one of two policies must be ahead. UserError unless both are shares below 1/2."""
    for name, value in (("margin", margin), ("error", error)):
        if not isinstance(value, int | float) or not 0 < value < 0.5:
            raise UserError(f"{name}={value!r:.60}: must lie between 0 and 0.5")
    return math.ceil(math.log((1 - error) / error) / _log_odds(margin) - 1e-9)


def error_of(margin: float, lead: int) -> float:
    """The probability that the worse of two policies gets ``lead`` ahead, if the better one is preferred with
    probability 1/2 + margin.
    """
    return 1 / (1 + math.exp(lead * _log_odds(margin)))


def challengers_of(count: int, labels: int, lead: int) -> list[int]:
    """The numbers of the challengers of the newest of ``count`` policies, in their order.

    They are as many as ``labels`` can decide, evenly spaced in time. UserError if not even one test could be decided.
    """
    if labels < lead:
        raise UserError(f"labels={labels}: one policy must be {lead} labels ahead, so {lead} are the least")
    number = min(count - 1, labels // lead)
    return [round((count - 1) * (place + 1) / number) - 1 for place in reversed(range(number))]


def select(count: int, labels: int, margin: float, error: float, ask: Ask) -> list[Match]:
    """The matches among ``count`` >= 2 policies in the order of time; the last one's ``winner`` is chosen.

    A match may use an equal share of the labels that are left. UserError if margin, error or labels cannot be used.
    """
    lead = lead_of(margin, error)
    incumbent, matches = count - 1, list[Match]()
    challengers = challengers_of(count, labels, lead)
    for place, challenger in enumerate(challengers):
        match = Match(challenger, incumbent, lead)
        match.play(labels // (len(challengers) - place), ask)
        labels, incumbent = labels - match.labels, match.winner
        matches.append(match)
    return matches


def _log_odds(margin: float) -> float:
    return math.log((0.5 + margin) / (0.5 - margin))
