"""Which pairs to ask about: candidates are cut from recent episodes, and the best by a score are asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_bilevel.preference import logits
from rlhf_bilevel.types import Queries, RewardFn, Segments

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


def best(candidates: Queries, score: Tensor, count: int) -> Queries:
    """The ``count`` candidates with the highest scores, ties in the order given."""
    rows = score.argsort(descending=True, stable=True)[:count]
    first, second = (Segments(*(column[rows] for column in segments)) for segments in candidates)
    return Queries(first, second)
