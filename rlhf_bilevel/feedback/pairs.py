"""Pairs of segments: some of them, all of them, how different they look, and which of them a run has asked about."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_bilevel.types import Preferences, Queries, Segments


def take(candidates: Queries, rows: Int[Tensor, " n"]) -> Queries:
    """The candidates at ``rows``."""
    first, second = (Segments(*(column[rows] for column in segments)) for segments in candidates)
    return Queries(first, second)


def joined(parts: Sequence[Queries | Preferences]) -> Queries:
    """All pairs of ``parts``, at least one, one part after the other."""
    first, second = (Segments(*map(torch.cat, zip(*(part[side] for part in parts), strict=True))) for side in (0, 1))
    return Queries(first, second)


def differences(pairs: Queries, unit: Float[Tensor, " o"]) -> Float[Tensor, " B"]:
    """How different the two segments of each pair look, (B,): small where a person hardly sees a difference.

    It is the root mean square, over steps and entries, of the difference of their observations, step by step, in
    ``unit`` of each entry. Of two random segments it is about the root of 2, in standard deviations.
    """
    return ((pairs.first.obs - pairs.second.obs) / unit).square().flatten(1).mean(1).sqrt()


class AskedPairs:
    """The pairs that a run has asked about, answered or not. Segments are equal if their obs and act are equal."""

    def __init__(self) -> None:
        self._hashes: dict[tuple[int, int], None] = {}  # of both segments, in the order in which they were asked

    def __len__(self) -> int:
        """How many pairs have been asked about."""
        return len(self._hashes)

    def new(self, candidates: Queries) -> Queries:
        """The candidates that a label would tell something about: two different segments, not asked about before.

        Of equal pairs only the first stays; which segment comes first makes no difference.
        """
        rows: dict[tuple[int, int], int] = {}
        for row, pair in enumerate(pair_hashes(candidates)):
            if pair[0] != pair[1] and pair not in self._hashes:
                rows.setdefault(pair, row)
        if len(rows) == len(candidates.first.obs):
            return candidates
        return take(candidates, torch.tensor([*rows.values()], dtype=torch.long))

    def add(self, pairs: Queries) -> None:
        """Records that these pairs have been asked about."""
        self._hashes |= dict.fromkeys(pair_hashes(pairs))

    def state_dict(self) -> Int[Tensor, "N 2"]:
        """Two hashes for each pair asked about: (N, 2), int64."""
        return torch.tensor([*self._hashes], dtype=torch.long).reshape(-1, 2)

    def load_state_dict(self, state: Int[Tensor, "N 2"]) -> None:
        """Replaces all pairs by those of ``state_dict``."""
        self._hashes = {(first, second): None for first, second in state.tolist()}


def pair_hashes(pairs: Queries) -> list[tuple[int, int]]:
    """The hashes of the two segments of each pair, the smaller one first."""

    def segment_hash(obs: Tensor, act: Tensor) -> int:
        digest = hashlib.blake2b(obs.numpy().tobytes() + act.numpy().tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    first, second = ([segment_hash(obs, act) for obs, act, _ in zip(*segments, strict=True)] for segments in pairs[:2])
    return [(min(pair), max(pair)) for pair in zip(first, second, strict=True)]
