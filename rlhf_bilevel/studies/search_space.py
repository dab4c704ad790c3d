"""What a search may choose from: a range or some values for each tuned setting.

    sigma=1..100,log      all numbers between, uniform in the logarithm; whole numbers if the setting is one
    query=uniform|disagreement

or in a YAML file ``sigma: 1..100,log`` and ``query: [uniform, disagreement]``. Values are written as for ``--set``.
Neither torch nor Optuna is imported here, so that mistakes are reported before anything slow is loaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.json_yaml import read_yaml


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool
    integer: bool


class Choice(NamedTuple):
    """Some values, as for ``--set``."""

    values: tuple[str, ...]


Space = dict[str, Range | Choice]


def read_space(file: Path | None, pairs: Sequence[str]) -> dict[str, str]:
    """The text for each setting, from a YAML file and KEY=TEXT pairs.

    UserError if a setting occurs twice, or there is none.
    """
    ranges: dict[str, str] = {}
    if file:
        for key, value in read_yaml(file).items():
            ranges[str(key)] = "|".join(map(_text, value)) if isinstance(value, list) else str(value)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--tune takes key=low..high or key=value|value, not {pair!r}")
        if key in ranges:
            raise UserError(f"{key} is to be tuned twice")
        ranges[key] = value
    if not ranges:
        raise UserError("nothing to tune: give --tune key=low..high or --space FILE.yaml")
    return ranges


def parse(key: str, text: str, read_setting: Callable[[str, str], Any]) -> Range | Choice:
    """The range or the values that ``text`` describes. UserError if it is not valid.

    ``read_setting(key, value)`` returns the setting that a run with ``--set key=value`` has, or raises UserError.
    """
    if ".." not in text:
        values = tuple(text.split("|"))
        if len(set(values)) < 2:
            raise UserError(f"{key}={text}: give a range, low..high, or at least two values, value|value")
        for value in values:
            read_setting(key, value)
        return Choice(values)
    ends, comma, scale = text.partition(",")
    if comma and scale != "log":
        raise UserError(f"{key}={text}: {scale!r} is no scale; did you mean 'log'?")
    ends_read = []
    for end in ends.split("..", 1):
        try:
            float(end)
        except ValueError:
            raise UserError(f"{key}={text}: {end!r} is not a number") from None
        ends_read.append(read_setting(key, end))
    if not all(type(value) in (int, float) for value in ends_read):
        raise UserError(f"{key} is no number: give its values, {key}=value|value")
    low, high = ends_read
    if low >= high:
        raise UserError(f"{key}={text}: the first number must be the smaller one")
    if scale and low <= 0:
        raise UserError(f"{key}={text}: a range on a logarithmic scale begins above 0")
    return Range(low, high, bool(scale), type(low) is int)


def as_options(chosen: Mapping[str, Any]) -> str:
    """The chosen settings as options of ``rlhf-bilevel train``."""
    return shlex.join(word for key, value in chosen.items() for word in ("--set", f"{key}={value}"))


def _text(value: Any) -> str:
    """A YAML value as ``--set`` takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
