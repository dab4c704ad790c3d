"""Command-line options: mistakes that are told in one line, and options that several commands have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.fields import MOST_THREADS
from rlhf_bilevel.config.names import MOVED, RENAMED
from rlhf_bilevel.runs.report import print_error
from rlhf_bilevel.utils.numbers import parse_int, parse_number
from rlhf_bilevel.utils.registry import Registry
from rlhf_bilevel.utils.suggest import did_you_mean

Work = Callable[[], None]  # what a command does once its options are checked

JOBS = 1024  # more than any machine has use for; each is a process
SEEDS, TRIALS, EPISODES = 10_000, 100_000, 100_000  # more than anyone waits for
WATCHED = 100  # episodes in one page


def fail(message: str) -> NoReturn:
    """Prints the message in one line and exits with code 2."""
    print_error(message)
    raise SystemExit(2)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help pages name the defaults, and keep the lines of the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default is None or action.default is False or action.default == []
        if none or action.default == argparse.SUPPRESS:
            return action.help
        return f"{action.help or ''} (default: %(default)s)".lstrip()


class Parser(argparse.ArgumentParser):
    """One line for a mistake, with the nearest right name, and exit code 2."""

    commands: Sequence[str] = ()

    def __init__(self, **settings: Any) -> None:
        own: dict[str, Any] = {"formatter_class": Formatter, "allow_abbrev": False}
        super().__init__(**own | settings)

    def parse_args(self, *given: Any) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's; an unknown option is refused with the nearest right one."""
        args, unknown = self.parse_known_args(*given)
        if unknown:
            option = unknown[0].split("=")[0]
            setting = option.lstrip("-").replace("-", "_")
            setting = RENAMED.get(setting, setting)
            name = f"{MOVED[setting][0]}.{setting}" if setting in MOVED else setting
            if (
                option.startswith("--")
                and (name != setting or setting in Config.model_fields)
                and "--set" in args.options
            ):
                fail(f"unknown argument {unknown[0]!r}; {setting} is a setting: --set {name}=VALUE")
            fail(f"unknown argument {unknown[0]!r}; {did_you_mean(option, sorted(args.options))}")
        return args

    def error(self, message: str) -> NoReturn:
        # A command: argparse lists all, and names no nearest
        """A mistake in one line; a wrong command also with the nearest right one."""
        if found := re.search(r"invalid choice: (['\"])(.*)\1 \(choose from", message):
            message = f"unknown command {found[2]!r}; {did_you_mean(found[2], self.commands)}"
        fail(message)


def one_of(kind: str, known: Collection[str], or_place: bool = False) -> Callable[[str], str]:
    """One of the ``known`` names; with ``or_place`` also ``module:NAME``, which is looked at later."""

    def parse(value: str) -> str:
        if value not in known and not (or_place and ":" in value):
            if isinstance(known, Registry):
                raise argparse.ArgumentTypeError(known.unknown(value))
            raise argparse.ArgumentTypeError(f"unknown {kind} {value!r}; {did_you_mean(value, known)}")
        return value

    return parse


def add_choice(sub: argparse.ArgumentParser, option: str, known: Collection[str], default: str, about: str) -> None:
    """Adds an option that takes one of the ``known`` names; ``about`` is its help."""
    sub.add_argument(option, default=default, type=one_of(option.lstrip("-"), known), help=about)


def integer(value: str) -> int:
    """A whole number as ``numbers.parse_int`` reads it."""
    try:
        return parse_int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r:.60} is not a whole number") from None


def number(value: str) -> float:
    """A finite number."""
    with suppress(ValueError):
        if isfinite(found := float(value)):
            return found
    raise argparse.ArgumentTypeError(f"{value!r:.60} is not a number")


def up_to(most: int, least: int = 1) -> Callable[[str], int]:
    """The type of an option: a whole number from ``least`` to ``most``."""

    def parse(value: str) -> int:
        found = integer(value)
        if found < least:
            raise argparse.ArgumentTypeError(f"{value!r:.60} is not a whole number of at least {least}")
        if found > most:
            raise argparse.ArgumentTypeError(f"{value!r:.60} is too large: at most {most:,}")
        return found

    return parse


positive, natural = up_to(10**9), up_to(10**9, least=0)


def positive_number(value: str) -> float:
    """A number above 0."""
    try:
        found = float(parse_number(value))
    except ValueError:
        found = 0.0
    if not 0 < found <= 1e9:
        raise argparse.ArgumentTypeError(f"{value!r:.60} is not a positive number")
    return found


AS_BEFORE = " (default: as before)"


def add_checkpoint_option(sub: argparse.ArgumentParser, resumes: bool = False) -> None:
    """Adds --checkpoint-every. A run that ``resumes`` goes on with what it had."""
    sub.add_argument(
        "--checkpoint-every",
        default=None if resumes else "1m",
        metavar="1m|STEPS",
        help=f"time between checkpoints, in minutes or in steps; 0: none{AS_BEFORE * resumes}",
    )


def add_threads_option(sub: argparse.ArgumentParser, default: int | None) -> None:
    """Adds --threads. Without a ``default``, a run goes on with as many as it had."""
    had = "" if default else AS_BEFORE
    sub.add_argument(
        "--threads",
        type=up_to(MOST_THREADS),
        default=default,
        metavar="N",
        help="CPU threads of a run; with 2 or more, two learners are updated at the same time, and evaluated "
        f"meanwhile{had}",
    )


def add_training_options(sub: argparse.ArgumentParser, resumes: bool = False) -> None:
    """Adds the options of commands that train one run, or let one that ``resumes`` go on."""
    add_checkpoint_option(sub, resumes)
    sub.add_argument(
        "--keep-every",
        type=natural,
        default=None if resumes else 0,
        metavar="STEPS",
        help=f"keep a checkpoint every so many steps, for watch and fork; 0: none{AS_BEFORE * resumes}",
    )
    sub.add_argument(
        "--reference", type=Path, metavar="FILE.csv", help="a table with runs of sac, to compare the result with"
    )
    sub.add_argument("--verbose", action="store_true", help="print the metrics instead of the progress bar")


def add_trust_option(sub: argparse.ArgumentParser) -> None:
    """Adds --trust, for commands that read a run's folder."""
    trusts = "allow what the folder names: modules to import, a labels database, a teacher elsewhere"
    sub.add_argument("--trust", action="store_true", help=trusts)


def add_set_option(sub: argparse.ArgumentParser, which: str = "(rlhf-bilevel settings lists them)") -> None:
    """Adds --set; ``which`` settings, its help says."""
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"a setting {which}; repeatable")
