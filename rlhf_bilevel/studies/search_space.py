"""What a search may choose from: a range or some values for each tuned setting.

    sigma=1..100,log      all numbers between, uniform in the logarithm; whole numbers where the setting is one
    query=uniform|disagreement

or in a YAML file ``sigma: 1..100,log`` and ``query: [uniform, disagreement]``. Values are what ``--set`` takes. Neither
torch nor Optuna is imported here, so that a mistake is told before anything slow is loaded.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.files import read_yaml


class Range(NamedTuple):
    low: float
    high: float
    log: bool
    whole: bool


class Choice(NamedTuple):
    values: tuple[str, ...]


Space = dict[str, Range | Choice]


def read_space(file: Path | None, pairs: Sequence[str]) -> dict[str, str]:
    """What is told of each setting, as text. UserError where it is told twice or nothing is."""
    told: dict[str, str] = {}
    if file:
        for key, value in read_yaml(file).items():
            told[str(key)] = "|".join(map(_text, value)) if isinstance(value, list) else str(value)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--tune takes key=low..high or key=value|value, not {pair!r}")
        if key in told:
            raise UserError(f"{key} is to be tuned twice")
        told[key] = value
    if not told:
        raise UserError("nothing to tune: give --tune key=low..high or --space FILE.yaml")
    return told


def parse(key: str, told: str, settle: Callable[[str, str], Any]) -> Range | Choice:
    """``settle(key, value)`` is the setting as a run with ``--set key=value`` would have it, or raises UserError."""
    if ".." not in told:
        values = tuple(told.split("|"))
        if len(set(values)) < 2:
            raise UserError(f"{key}={told}: give a range, low..high, or at least two values, value|value")
        for value in values:
            settle(key, value)
        return Choice(values)
    ends, comma, scale = told.partition(",")
    if comma and scale != "log":
        raise UserError(f"{key}={told}: {scale!r} is no scale; did you mean 'log'?")
    settled = []
    for end in ends.split("..", 1):
        try:
            float(end)
        except ValueError:
            raise UserError(f"{key}={told}: {end!r} is not a number") from None
        settled.append(settle(key, end))
    if not all(type(value) in (int, float) for value in settled):
        raise UserError(f"{key} is no number: give its values, {key}=value|value")
    low, high = settled
    if low >= high:
        raise UserError(f"{key}={told}: the first number must be the smaller one")
    if scale and low <= 0:
        raise UserError(f"{key}={told}: a range on a logarithmic scale begins above 0")
    return Range(low, high, bool(scale), type(low) is int)


def pasted(chosen: Mapping[str, Any]) -> str:
    """As options of ``rlhf-bilevel train``."""
    return shlex.join(word for key, value in chosen.items() for word in ("--set", f"{key}={value}"))


def _text(value: Any) -> str:
    """A YAML value as ``--set`` takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
