"""The command line: which commands there are, and what becomes of a mistake. Each command is a module of ``cli``.

A command has ``HELP``, two ``EXAMPLES``, ``add_arguments(parser)`` and ``run(args)``. ``run`` checks first, before
torch is loaded and before anything is written, and returns the work to be done.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


@contextmanager
def loading() -> Iterator[None]:
    """Ctrl-C ends the process at once: an interrupted import could raise a misleading error."""
    in_main = threading.current_thread() is threading.main_thread()
    usual = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


with loading():
    from rlhf_bilevel.cli.arguments import Parser, fail
    from rlhf_bilevel.data.run_folder import RunFolder
    from rlhf_bilevel.runs.report import prepare_streams, user_message
    from rlhf_bilevel.utils.versions import installed_versions

    COMMANDS: dict[str, ModuleType] = {
        name: import_module(f"rlhf_bilevel.cli.{name.replace('-', '_')}")
        for name in (
            "train", "resume", "fork", "label", "watch", "sweep", "tune", "evaluate", "select", "explain", "export",
            "fit-reward", "import-minari", "plot", "compare", "settings", "doctor", "completion",
        )
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """A ``UserError`` or an error of the system is one line on stderr and exit code 2; our own keep their traceback."""
    prepare_streams()
    args = argparse.Namespace(command=None)
    try:
        try:
            args = asked(sys.argv[1:] if argv is None else argv)
            COMMANDS[args.command].run(args)()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        going_on = "; the same command goes on" if args.command in ("sweep", "tune") else ""
        if args.command == "select" and args.out and RunFolder(args.out).selecting.is_file():
            going_on = "; the same command goes on"
        if args.command in ("train", "resume") and args.dir and RunFolder(args.dir).begun:
            going_on = f"; rlhf-bilevel resume {shlex.quote(str(args.dir))} goes on"
        print(f"rlhf-bilevel: interrupted{going_on}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nor does Python's own end try to write
        raise SystemExit(141) from None
    except Exception as error:
        line = user_message(error)
        if line is None:
            raise
        fail(line)


def asked(words: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; without any word, the help page and exit code 2."""
    if not words:
        parser().print_help(sys.stderr)
        raise SystemExit(2)
    return parser().parse_args(words)


def parser() -> Parser:
    """The parser of all ``COMMANDS``. What it parses has ``command``, the command's name, beside its arguments."""
    about = "Agents from preferences: a reward model learns which clip is better, Stable-Baselines3 learns the policy."
    more = "rlhf-bilevel COMMAND --help tells the options of a command, with examples. The first command is train."
    top = Parser(prog="rlhf-bilevel", description=about, epilog=more)
    top.commands = tuple(COMMANDS)
    top.add_argument("--version", action="version", version=f"rlhf-bilevel {installed_versions()['rlhf-bilevel']}")
    commands = top.add_subparsers(required=True, title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        does = command.HELP
        epilog = "\n  ".join(("examples:", *command.EXAMPLES))
        sub = commands.add_parser(name, help=does.replace("%", "%%"), description=does, epilog=epilog)
        sub.set_defaults(command=name, top=top, options=sub._option_string_actions, dir=None)
        command.add_arguments(sub)
    return top


if __name__ == "__main__":
    main()
