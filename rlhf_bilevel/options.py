"""Command-line options whose mistakes are told in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rlhf_bilevel.config import nearest


def fail(message: str) -> NoReturn:
    print(f"rlhf-bilevel: {message}", file=sys.stderr)
    raise SystemExit(2)


class Parser(argparse.ArgumentParser):
    """One line for a mistake, with the nearest right name, and exit code 2."""

    commands: Sequence[str] = ()

    def parse_args(self, *given: Any) -> argparse.Namespace:  # type: ignore[override]
        args, unknown = self.parse_known_args(*given)
        if unknown:
            fail(f"unknown argument {unknown[0]!r}; {nearest(unknown[0].split('=')[0], sorted(args.options))}")
        return args

    def error(self, message: str) -> NoReturn:
        if "invalid choice: " in message:  # a command: argparse lists all, and names no nearest
            wrong = message.split("invalid choice: ")[1].split("'")[1]
            message = f"unknown command {wrong!r}; {nearest(wrong, self.commands)}"
        fail(message)


def one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in known:
            raise argparse.ArgumentTypeError(f"unknown {kind} {value!r}; {nearest(value, known)}")
        return value

    return parse


def positive(value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)
