"""What was meant by a name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping


def nearest(value: str, known: Collection[str], others: Mapping[str, str] = {}) -> str:
    """``others`` are more names, by those that are as near to what was meant."""
    # PEBBLE is as near to pebble as can be
    written = {**others, **{name.casefold(): name for name in reversed([*known])}}
    near = difflib.get_close_matches(value.casefold(), written, n=1, cutoff=0.5)
    return f"did you mean {written[near[0]]!r}?" if near else f"known are {', '.join(known) or 'none'}"
