"""Which pairs to ask about: candidates are cut from recent episodes, and the best by a score are asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_bilevel.preference import logits
from rlhf_bilevel.types import Preferences, Queries, RewardFn, Segments

Members = RewardFn
"""A reward with a leading axis of ensemble members: (..., o), (..., a) to (M, ...)."""

Score = Callable[[Members, Queries], Tensor]
"""The higher (B,), the rather is a pair asked."""


def uniform(members: Members, candidates: Queries) -> Tensor:
    """All alike; candidates come in random order, so the first ones are a uniform draw."""
    return torch.zeros(len(candidates.first.obs))


def disagreement(members: Members, candidates: Queries) -> Tensor:
    """Standard deviation over members of P(first better) [PEBBLE, B-Pref]."""
    return logits(members, candidates).sigmoid().std(0, correction=0)


def k_center(candidates: Queries, asked: Queries | Preferences | None, count: int) -> Queries:
    """Pairs far from one another and from those ``asked`` before: greedy k-center [Sener and Savarese 2018; B-Pref].

    A pair is the vector of its observations. Each pick is the candidate whose nearest chosen or asked pair is furthest,
    Euclidean; the first, where nothing was asked, is the first candidate.
    """
    points = _points(candidates)
    nearest = torch.full((len(points),), torch.inf)
    for start in _points(asked).split(1000) if asked else ():
        nearest = nearest.minimum(torch.cdist(points, start).amin(1))
    picks: list[int] = []
    for _ in range(min(count, len(points))):
        picks.append(int(nearest.argmax()))
        nearest = nearest.minimum(torch.linalg.vector_norm(points - points[picks[-1]], dim=1))
        nearest[picks[-1]] = -torch.inf  # once is enough, also where candidates repeat
    return _take(candidates, torch.tensor(picks))


def _points(pairs: Queries | Preferences) -> Tensor:
    """(B, 2 T o)."""
    return torch.cat([segments.obs.flatten(1) for segments in pairs[:2]], dim=1)


def best(candidates: Queries, score: Tensor, count: int) -> Queries:
    """The ``count`` candidates with the highest scores, ties in the order given."""
    return _take(candidates, score.argsort(descending=True, stable=True)[:count])


def _take(candidates: Queries, rows: Tensor) -> Queries:
    first, second = (Segments(*(column[rows] for column in segments)) for segments in candidates)
    return Queries(first, second)
