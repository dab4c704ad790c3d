"""Every setting, with its default, the values that it takes, and what it means."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf_bilevel.cli.arguments import Work
from rlhf_bilevel.cli.run_options import METHOD
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.presets import PRESETS
from rlhf_bilevel.config.schema import FORM_DEFAULTS, NAMED
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.utils.json_yaml import to_json

HELP = "list every setting: its default, the values that it takes, and what it means"
EXAMPLES = (
    "rlhf-bilevel settings",
    "rlhf-bilevel settings surf --json",
)

UNREACHED = (10**9,)  # bounds that nobody comes to, and that need not be told


class Setting(NamedTuple):
    """One setting of ``--set``."""

    name: str
    default: str
    presets: dict[str, str]  # the default by presets, where it is another
    values: str  # which values it takes
    text: str


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument(
        "method",
        metavar="METHOD",
        nargs="?",
        type=METHOD,
        help="also list this method's settings, and use its defaults",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""

    def work() -> None:
        rows = settings(args.method)
        if args.json:
            print(to_json([row._asdict() for row in rows]))
            return
        for row in rows:
            presets = "".join(f"; {name}: {value}" for name, value in row.presets.items())
            print(f"{row.name} = {row.default}{presets}    [{row.values}]")
            print(textwrap.fill(row.text, 100, initial_indent="    ", subsequent_indent="    "))

    return work


def settings(method: str | None = None) -> list[Setting]:
    """All settings of ``Config``; with a ``method`` also its own, with the defaults that it has. UserError if it cannot
    be loaded."""
    if method is None:
        return rows_of(Config)
    chosen = METHODS[method]
    return rows_of(chosen.options, f"{chosen.name}.") + rows_of(Config, defaults=chosen.settings)


def rows_of(model: type[BaseModel], prefix: str = "", defaults: Mapping[str, Any] = {}) -> list[Setting]:
    """The settings of one ``model``: ``prefix`` goes before their names, and ``defaults`` replace the model's own."""
    rows = []
    for name, field in model.model_fields.items():
        if name == "options":
            continue
        default = written(defaults[name]) if name in defaults else default_of(name, field)
        presets = {preset: written(changed[name]) for preset, changed in PRESETS.items() if name in changed}
        text = " ".join((field.description or "").split())
        rows.append(Setting(prefix + name, default, {} if prefix else presets, values_of(name, field), text))
    return rows


def default_of(name: str, field: FieldInfo) -> str:
    """The default of a setting, as text."""
    if name == "total_timesteps":
        return "(--steps)"
    if name in FORM_DEFAULTS["network"]:
        return "(from reward_form)"
    return "(from --steps and --labels)" if field.is_required() else written(field.default)


def values_of(name: str, field: FieldInfo) -> str:
    """The values that a setting takes, in words."""
    if name in NAMED:
        return "|".join([*NAMED[name], "module:NAME"])
    kind = field.annotation
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if kind is bool:
        return "true|false"
    if get_origin(kind) is tuple:
        return "whole numbers: 64,64"
    if kind not in (int, float):
        return {"ent_coef": "number|auto|auto_NUMBER", "env_kwargs": "mapping"}.get(name, "text")
    limits = [
        f"{sign} {written(getattr(limit, attribute))}"
        for limit in field.metadata
        for attribute, sign in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if getattr(limit, attribute, None) not in (None, *UNREACHED)
    ]
    return ", ".join(["whole number" if kind is int else "number", *limits])


def written(value: Any) -> str:
    """A value as ``--set`` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "(empty)" if value in ("", {}) else str(value)
