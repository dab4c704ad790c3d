"""What a user may have meant by an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping


def did_you_mean(value: str, names: Collection[str], aliases: Mapping[str, str] = {}) -> str:
    """The end of a message about the unknown ``value``: the nearest of ``names``, or all of them if none is near.

    ``aliases`` are more spellings; each maps to the name that is shown for it.
    """
    # upper and lower case do not matter
    name_of = {**aliases, **{name.casefold(): name for name in reversed([*names])}}
    matches = difflib.get_close_matches(value.casefold(), name_of, n=1, cutoff=0.5)
    return f"did you mean {name_of[matches[0]]!r}?" if matches else f"known are {', '.join(names) or 'none'}"
