"""The reference's tables that are made from the code when the site is built: settings, methods and the command line."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from rlhf_bilevel.__main__ import COMMANDS, parser
from rlhf_bilevel.cli.settings import Setting, rows_of, written
from rlhf_bilevel.config import Config
from rlhf_bilevel.registries import METHODS

SETTING = ("setting", "values", "default", "meaning")


BAR = re.compile(r"\|(?=(?:[^`]*`[^`]*`)*[^`]*$)")
"""A bar that is not in code: there the site's Markdown shows it as it is."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *([BAR.sub(r"\|", cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def row_of(setting: Setting) -> list[str]:
    """A setting's row. ValueError if nothing says what it means."""
    if not setting.text:
        raise ValueError(f"{setting.name}: nothing says what it means")
    default = [setting.default, *(f"{preset}: {value}" for preset, value in setting.presets.items())]
    return [f"`{setting.name}`", setting.values, "; ".join(default), setting.text]


def settings() -> str:
    """All settings, in a table for each heading that Config has."""
    groups: dict[str, list[list[str]]] = {}
    rows = {setting.name: row_of(setting) for setting in rows_of(Config)}
    heading = ""
    lines = inspect.getsource(Config).splitlines()
    for above, line in pairwise(lines):
        if not above and (comment := re.match(r"    # ([^;,(]+)", line)):  # below an empty line
            heading = comment[1].strip()
        elif (field := re.match(r"    (\w+): ", line)) and field[1] in rows:
            groups.setdefault(heading, []).append(rows[field[1]])
    return "\n\n".join(f"## {heading}\n\n{table(SETTING, rows)}" for heading, rows in groups.items())


def methods() -> str:
    """What each method sets otherwise, and the options that it alone has."""
    parts = []
    for name in METHODS.ours:
        method = METHODS[name]
        differs = ", ".join(f"`{key}={written(value)}`" for key, value in method.settings.items())
        rows = [row_of(setting) for setting in rows_of(method.options, f"{name}.")]
        lines = [f"## {name}", *([f"Its own defaults: {differs}."] if differs else [])]
        lines.append(table(SETTING, rows) if rows else "It has no options of its own.")
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def command_line() -> str:
    """Every command with its examples and arguments, from the parser itself."""
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = []
    for name, command in commands.choices.items():
        about = str(command.description)
        examples = "\n".join(("```", *COMMANDS[name].EXAMPLES, "```"))
        rows = [argument(action) for action in command._actions if not isinstance(action, argparse._HelpAction)]
        lines = [f"## {name}", f"{about[:1].upper()}{about[1:]}.", examples]
        parts.append("\n\n".join([*lines, *([table(("argument", "default", "meaning"), rows)] if rows else [])]))
    return "\n\n".join(parts)


def argument(action: argparse.Action) -> list[str]:
    """One argument: how it is written, its default, its help. A default that the help tells is taken from there."""
    text = (action.help or "").replace("%%", "%")
    told = re.search(r" ?\(default: ([^)]*)\)$", text)
    name = ", ".join(action.option_strings) or str(action.metavar)
    value = str(action.metavar or action.dest.upper()) if action.option_strings and action.nargs != 0 else ""
    none = action.default is None or action.default is False or action.default == []
    default = told[1] if told else "" if none else str(action.default)
    default = "required" if action.required and action.option_strings else default
    return [f"`{f'{name} {value}'.strip()}`", default, text[: told.start()] if told else text]


GENERATED: dict[str, Callable[[], str]] = {"settings": settings, "methods": methods, "command-line": command_line}
"""What a page gets in place of the comment ``<!-- generated: NAME -->``."""
