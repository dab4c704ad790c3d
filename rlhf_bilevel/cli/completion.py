"""Completion of commands, options and names by the shell."""

from __future__ import annotations

import argparse

import shtab

from rlhf_bilevel.cli.arguments import Work, one_of
from rlhf_bilevel.cli.run_options import METHOD
from rlhf_bilevel.registries import METHODS

HELP = "print a script that completes commands, options and methods in a shell"
EXAMPLES = (
    'eval "$(rlhf-bilevel completion bash)"',
    "rlhf-bilevel completion zsh > ~/.zsh/completions/_rlhf-bilevel",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    shells = shtab.SUPPORTED_SHELLS
    sub.add_argument("shell", metavar="SHELL", type=one_of("shell", shells), help=", ".join(shells))


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""

    def work() -> None:
        commands = next(action for action in args.top._actions if isinstance(action, argparse._SubParsersAction))
        for command in commands.choices.values():
            for action in command._actions:
                if action.type is METHOD:
                    action.choices = tuple(METHODS)
        print(shtab.complete(args.top, args.shell))

    return work
