"""The reference's tables that are made from the code when the site is built: settings, methods and the command line."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.config import PRESETS, Config
from rlhf_bilevel.registries import METHODS

STEPS = 100_000  # of the run that shows what phases follow from
SIGNS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "KEY: VALUE"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def shown(value: Any) -> str:
    """A setting's value as one writes it after ``--set``."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`{','.join(map(str, value))}`"
    return "empty" if value in ("", {}) else f"`{value}`"


def kind(annotation: Any, metadata: Sequence[Any]) -> str:
    """Which values a field takes: its type and bounds."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "whole numbers, separated by commas"
    bound = {
        name: getattr(part, name) for part in unpacked(metadata) for of, name in SIGNS.items() if isinstance(part, of)
    }
    low = f"at least {bound['ge']:,}" if "ge" in bound else f"above {bound['gt']:,}" if "gt" in bound else ""
    high = (
        f"at most {bound['le']:,}" if bound.get("le", 1e9) < 1e9 else f"below {bound['lt']:,}" if "lt" in bound else ""
    )
    return ", ".join(part for part in (KINDS.get(get_origin(annotation) or annotation, "text"), low, high) if part)


def unpacked(metadata: Sequence[Any]) -> Iterator[Any]:
    """The bounds in a field's metadata, those inside of another ``Field`` too."""
    for part in metadata:
        yield from unpacked(part.metadata) if isinstance(part, FieldInfo) else [part]


def described(model: type[BaseModel], name: str) -> str:
    """The text below a field, or else the comment beside it. ValueError if it has neither."""
    if text := model.model_fields[name].description:
        return text
    for owner in model.__mro__:
        has_it = name in vars(owner).get("__annotations__", {})
        comment = has_it and re.search(rf"^    {name}: .*?  # (.+)$", inspect.getsource(owner), re.MULTILINE)
        if comment:
            return comment[1]
    raise ValueError(f"{model.__name__}.{name}: nothing says what it means")


def groups() -> dict[str, list[str]]:
    """The settings' names under the headings that config.py has for them."""
    found: dict[str, list[str]] = {}
    heading = "Budget"
    for line in inspect.getsource(Config).splitlines():
        if comment := re.match(r"    # ([^;,(]+)", line):
            heading = comment[1].strip()
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in Config.model_fields:
            found.setdefault(heading, []).append(field[1])
    return found


def settings() -> str:
    """All fields of ``Config``, a table for each part, and where presets differ."""
    example = Config(total_timesteps=STEPS)
    parts = []
    for heading, names in groups().items():
        rows = []
        for name in names:
            field = Config.model_fields[name]
            default = shown(field.default)
            if field.is_required():
                follows = f"follows; `{getattr(example, name)}` in {STEPS:,} steps with {example.labels} labels"
                default = "`--steps`" if name == "total_timesteps" else follows
            there = [f"`{preset}`: {shown(values[name])}" for preset, values in PRESETS.items() if name in values]
            rows.append([f"`{name}`", kind(field.annotation, field.metadata), "; ".join([default, *there]),
                         described(Config, name)])  # fmt: skip
        parts.append(f"## {heading}\n\n{table(['setting', 'value', 'default', 'meaning'], rows)}")
    return "\n\n".join(parts)


def methods() -> str:
    """What each method sets otherwise, and the options that it alone has."""
    parts = []
    for name in METHODS.ours:
        method = METHODS[name]
        lines = [f"## {name}"]
        if method.settings:
            differs = ", ".join(f"`{key}` {shown(value)}" for key, value in method.settings.items())
            lines.append(f"Differs from the defaults in {differs}.")
        rows = [[f"`{name}.{key}`", kind(field.annotation, field.metadata), shown(field.default),
                 described(method.options, key)] for key, field in method.options.model_fields.items()]  # fmt: skip
        lines.append(
            table(["option", "value", "default", "meaning"], rows) if rows else "It has no options of its own."
        )
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def command_line() -> str:
    """Every command with its arguments, from the parser itself."""
    top = parser()
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    parts = []
    for name, command in commands.choices.items():
        rows = [row(action) for action in command._actions if not isinstance(action, argparse._HelpAction)]
        about = str(command.description)
        lines = [f"## {name}", about[:1].upper() + about[1:] + "."]
        parts.append("\n\n".join([*lines, *([table(["argument", "default", "meaning"], rows)] if rows else [])]))
    return "\n\n".join(parts)


def row(action: argparse.Action) -> list[str]:
    """One argument: how it is written, its default, its help. A default that the help tells is taken from there."""
    text = (action.help or "").replace("%%", "%")
    told = re.search(r" ?\(default: ([^)]*)\)$", text)
    name = ", ".join(action.option_strings) or str(action.metavar)
    value = str(action.metavar or action.dest.upper()) if action.option_strings and action.nargs != 0 else ""
    default = told[1] if told else "" if action.default in (None, False, []) else str(action.default)
    default = "required" if action.required and action.option_strings else default
    return [f"`{f'{name} {value}'.strip()}`", default, text[: told.start()] if told else text]


GENERATED: dict[str, Callable[[], str]] = {"settings": settings, "methods": methods, "command-line": command_line}
"""What a page gets in place of the comment ``<!-- generated: NAME -->``."""
