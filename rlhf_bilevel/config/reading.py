"""Settings from what people write, with errors of one line."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from rlhf_bilevel.config.names import MOVED
from rlhf_bilevel.config.schema import Config
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.numbers import parse_int, parse_number
from rlhf_bilevel.utils.suggest import did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def validate(settings: Mapping[str, Any]) -> Config:
    """All settings of a run, from those in ``settings``.

    UserError, in one line, for the first wrong value or unknown name; the line has the nearest known name.
    """
    return validate_as(Config, settings)


def validate_as(model: type[Model], settings: Mapping[str, Any], prefix: str = "") -> Model:
    """Like ``validate``, for any ``model`` of settings. Messages put ``prefix`` before the names."""
    if not isinstance(settings, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'settings'}={settings!r:.60}: must be a mapping of names to values")
    names, values = [prefix + name for name in model.model_fields], {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name not in names or not isinstance(key, str):
            raise UserError(f"unknown setting {name!r:.60}; {did_you_mean_setting(name, names)}")
        value = value.tolist() if hasattr(value, "shape") else value  # numbers from NumPy or torch
        try:
            values[key] = parse_value(model.model_fields[key].annotation, value)
        except ValueError as error:
            raise UserError(f"{name}={value!r:.60}: {error}") from None
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        # An error without a place concerns several settings together
        place = f"{prefix}{first['loc'][0]}={first['input']!r:.60}: " if first["loc"] else ""
        raise UserError(place + first["msg"].removeprefix("Value error, ")) from None


def parse_value(kind: Any, value: Any) -> Any:
    """A setting's value from what people write: ``1e5`` for a whole number, ``[64, 64]`` or ``64,64`` for layers.

    ``kind`` is the type of the setting. ValueError if ``value`` is not such a number.
    """
    if value is None:
        return None
    if kind is int:
        return parse_int(value)
    if kind is float:
        return parse_number(value)
    if get_origin(kind) is not tuple:
        return value
    if isinstance(value, str):
        value = [item for item in value.strip("[]() ").split(",") if item.strip()]
    return tuple(map(parse_int, value if isinstance(value, list | tuple) else [value]))


def did_you_mean_setting(value: str, names: Collection[str], options: Collection[str] = ()) -> str:
    """Like ``did_you_mean``, for settings: these are too many to list in one line.

    ``options`` are those of the method, as ``method.name``: the name alone is found too.
    """
    short_names = {} if "." in value else {name: f"{methods[0]}.{name}" for name, methods in MOVED.items()}
    short_names |= {option.partition(".")[2]: option for option in options}
    hint = did_you_mean(value, names, short_names)
    if hint.startswith("did") or len(names) <= 30:
        return hint
    return "rlhf-bilevel settings lists them all, and with a METHOD its own"


def parse_checkpoint_every(text: object) -> tuple[float, float]:
    """``1m`` (minutes) or ``5000`` (steps) as (environment steps, seconds) between two checkpoints; one is infinite.

    ``0`` means never: both are infinite. UserError for anything else.
    """
    text = str(text)
    try:
        number_given = parse_int(text.removesuffix("m"))
    except ValueError:
        number_given = -1
    if not 0 <= number_given < 10**9:
        raise UserError(f"{text!r:.60} is no interval between checkpoints: 1m is a minute, 5000 so many steps, 0 never")
    every = number_given or math.inf
    return (math.inf, 60.0 * every) if text.endswith("m") else (every, math.inf)


def parse_keep_every(value: object) -> int:
    """Environment steps between two checkpoints that are kept; 0 for none. UserError for anything else."""
    with suppress(ValueError):
        if 0 <= parse_int(value) <= 10**9:
            return parse_int(value)
    raise UserError(f"keep_every={value!r:.60}: must be a whole number of steps, or 0 for no checkpoint that stays")
