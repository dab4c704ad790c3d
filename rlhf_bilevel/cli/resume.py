"""Go on with a run that was cut off."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_bilevel.cli.arguments import Work, add_threads_option, add_training_options, add_trust_option
from rlhf_bilevel.cli.checks import run_folder, table_of
from rlhf_bilevel.config.reading import parse_checkpoint_every
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.runs.report import print_result

HELP = "go on with a run that was stopped, as if it had not been"
EXAMPLES = (
    "rlhf-bilevel resume runs/walker",
    "rlhf-bilevel resume runs/walker --verbose --checkpoint-every 5000",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    add_trust_option(sub)
    add_threads_option(sub, default=None)
    add_training_options(sub, resumes=True)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    run_folder(args.dir)
    if args.checkpoint_every is not None:
        parse_checkpoint_every(args.checkpoint_every)
    table_of(args.reference)
    if RunFolder(args.dir).ended:  # torch need not be loaded to say so; asked again under the run's lock
        raise UserError(f"{args.dir} has come to its end: there is nothing to resume")

    def work() -> None:
        from rlhf_bilevel.runs.session import Observers
        from rlhf_bilevel.runs.start import resume

        resume(
            args.dir,
            Observers(progress_bar=not args.verbose, screen=args.verbose),
            trust=args.trust,
            checkpoint_every=args.checkpoint_every,
            keep_every=args.keep_every,
            threads=args.threads,
        )
        print_result(args.dir, args.reference)

    return work
