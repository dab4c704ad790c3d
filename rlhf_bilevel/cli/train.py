"""Train one agent."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from rlhf_bilevel.cli import run_options
from rlhf_bilevel.cli.arguments import Work, add_training_options, integer
from rlhf_bilevel.cli.checks import new_folder, table_of
from rlhf_bilevel.cli.run_options import add_method, add_run_options, assigned
from rlhf_bilevel.errors import AlreadyExistsError, LockedError, UserError
from rlhf_bilevel.runs.report import print_result
from rlhf_bilevel.runs.spec import check_owners
from rlhf_bilevel.utils.files import check_writable

HELP = "train an agent from preference labels"
EXAMPLES = (
    "rlhf-bilevel train pebble --env dm_control/walker-walk-v0 --steps 100000 --labels 500 --out runs/walker",
    "rlhf-bilevel train penalty --env Pendulum-v1 --preset quick --steps 20000 --set penalty.sides=two",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_method(sub)
    sub.add_argument(
        "--env",
        required=True,
        help="such as Pendulum-v1, dm_control/walker-walk-v0, Meta-World/door-open-v3, or module:Id of your own",
    )
    sub.add_argument("--seed", type=integer, help="fixes all random numbers (default: 0)")
    sub.add_argument(
        "--out", type=Path, help="a new folder for the run (default: runs/METHOD-ENV-SEED, then -2, -3 ...)"
    )
    sub.add_argument(
        "--max-pending-share",
        type=float,
        metavar="0..1",
        help="--teacher human: train on while at most this share of queries is unanswered (default: 0.5)",
    )
    sub.add_argument(
        "--labels-db",
        metavar="postgresql://...",
        help="--teacher human: where labels are kept (default: in the folder)",
    )
    add_run_options(sub, people="human; ")
    add_training_options(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    people = {"teacher_pending_share": args.max_pending_share, "teacher_labels_db": args.labels_db}
    spec = run_options.spec(args, args.method, args.env, people, keep_every=args.keep_every)
    labelled_by_people(args, spec.settings)
    args.dir = default = Path("runs") / f"{spec.method.replace(':', '.')}-{spec.env.split('/')[-1]}-{spec.seed}"
    check_writable(default)
    if args.out:
        args.dir = new_folder(args.out)
    table_of(args.reference)
    spec.resolve()
    check_owners(args.method, assigned(args.set))
    spec.check_env()

    def work() -> None:
        from rlhf_bilevel.runs.session import Observers
        from rlhf_bilevel.runs.start import train

        for out in [args.out] if args.out else numbered(default):
            args.dir = out  # told where training is interrupted
            try:
                train(replace(spec, out=out), Observers(progress_bar=not args.verbose, screen=args.verbose))
                break
            except (AlreadyExistsError, LockedError):  # by another process, just now
                if args.out:
                    raise
        print_result(args.dir, args.reference)

    return work


def labelled_by_people(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """UserError where people cannot be asked as the options say; their database is brought up to date."""
    if not settings.get("teacher_human"):
        for option, given in (("--max-pending-share", args.max_pending_share), ("--labels-db", args.labels_db)):
            if given is not None:
                raise UserError(f"{option} {given}: only --teacher human has it")
    elif settings.get("teacher_labels_db"):
        from rlhf_bilevel.human.database import connect

        connect(settings["teacher_labels_db"]).dispose()


def numbered(path: Path) -> Iterator[Path]:
    """``path``, path-2, path-3 ...: those that do not exist yet. Prints which one it is if it is not the first."""
    for number in count(1):
        out = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not os.path.lexists(out):
            if number > 1:
                print(f"{path} is there already: this run goes to {out}", flush=True)
            yield out
