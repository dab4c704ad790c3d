"""Numbers from what people write."""

from __future__ import annotations

from contextlib import suppress
from numbers import Integral, Real


def parse_int(value: object) -> int:
    """A whole number: ``5000``, ``5_000``, ``5e3`` and ``5000.0`` are the same. ValueError for anything else."""
    with suppress(ValueError, OverflowError):  # int(infinity)
        parsed = parse_number(value)
        if parsed == int(parsed):
            return int(parsed)
    raise ValueError("must be a whole number")


def parse_number(value: object) -> int | float:
    """A number, also from text. ValueError for anything else, and for true and false."""
    if isinstance(value, str | Integral) and not isinstance(value, bool):
        with suppress(ValueError):
            return int(value)
    if isinstance(value, str | Real) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    raise ValueError("must be a number")
