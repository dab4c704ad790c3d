"""Teachers that answer queries. Any object with this one method serves: see ``types.Teacher``."""

from __future__ import annotations

from rlhf_bilevel.types import Preferences, Queries


class OracleTeacher:
    """Prefers the segment with the higher true return, without noise; equal returns are a tie."""

    def __call__(self, queries: Queries) -> Preferences:
        margin = queries.first.truth.sum(-1) - queries.second.truth.sum(-1)  # (B,)
        return Preferences(*queries, label=(margin.sign() + 1) / 2)
