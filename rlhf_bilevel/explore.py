"""State entropy as a reward before any label: log(1 + distance to the k-th nearest visited state) [PEBBLE, eq. 4]."""

from __future__ import annotations

import torch
from torch import Tensor


def state_entropy(states: Tensor, visited: Tensor, k: int) -> Tensor:
    """``states`` (N, o) against a sample of ``visited`` states (V, o), Euclidean: (N,).

    The 1 keeps the logarithm bounded where states repeat. k is capped by V.
    """
    distance = torch.cdist(states, visited)  # (N, V)
    return distance.kthvalue(min(k, len(visited)), dim=-1).values.log1p()
