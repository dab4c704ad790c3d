"""A new run that goes on from a checkpoint of another."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_bilevel.cli.arguments import (
    Work,
    add_set_option,
    add_threads_option,
    add_training_options,
    add_trust_option,
    integer,
    positive,
)
from rlhf_bilevel.cli.checks import new_folder, run_folder, table_of
from rlhf_bilevel.cli.run_options import METHOD, assigned
from rlhf_bilevel.config.reading import parse_checkpoint_every
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teacher_spec import teacher_settings
from rlhf_bilevel.runs.report import print_result
from rlhf_bilevel.runs.spec import check_owners

HELP = "begin a new run at a checkpoint of another: with more steps, more labels or other settings"
EXAMPLES = (
    "rlhf-bilevel fork runs/walker --steps 150000 --labels 800 --out runs/longer",
    "rlhf-bilevel fork runs/walker --at 60000 --set anchor_share=0.8 --out runs/anchored",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="DIR", help="the other run's folder")
    sub.add_argument("--out", type=Path, required=True, help="a new folder for the new run")
    sub.add_argument(
        "--at",
        type=positive,
        metavar="STEP",
        help="begin at the newest checkpoint up to this step (default: the newest)",
    )
    sub.add_argument("--steps", type=positive, help="of the new run, those before included (default: as the other)")
    sub.add_argument("--labels", type=integer, help="of the new run, those before included (default: as the other)")
    sub.add_argument("--method", metavar="METHOD", type=METHOD, help="of the new run (default: as the other)")
    sub.add_argument("--seed", type=integer, help="another seed draws all random numbers anew (default: as the other)")
    sub.add_argument("--teacher", help="as for train (default: as the other)")
    add_set_option(sub, "that differs")
    add_trust_option(sub)
    add_threads_option(sub, default=None)
    add_training_options(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    from rlhf_bilevel.agent import Agent  # what can be forked is known when the checkpoint has been read

    run_folder(args.dir)
    asked = {"total_timesteps": args.steps, "labels": args.labels, "seed": args.seed, **assigned(args.set)}
    changes = {key: value for key, value in asked.items() if value is not None}
    changes |= teacher_settings(args.teacher) if args.teacher is not None else {}
    parse_checkpoint_every(args.checkpoint_every)
    table_of(args.reference)
    out = new_folder(args.out)
    agent = Agent.fork(
        args.dir,
        at=args.at,
        out=out,
        method=args.method,
        trust=args.trust,
        checkpoint_every=args.checkpoint_every,
        keep_every=args.keep_every,
        threads=args.threads,
        **changes,
    )
    check_owners(agent.method.name, assigned(args.set))
    steps = args.steps or RunFolder(args.dir).trusted_config(args.trust)["settings"]["total_timesteps"]
    if steps <= agent.forked_at:
        raise UserError(f"{args.dir} is at step {agent.forked_at} of {steps}: --steps says how many there are to be")

    def work() -> None:
        import torch

        if args.threads is None:
            torch.set_num_threads(RunFolder(args.dir).read_config()["threads"])
        print(f"{out} goes on from step {agent.forked_at:,} of {args.dir}", flush=True)
        agent.learn(steps - agent.forked_at, progress_bar=not args.verbose, screen=args.verbose)
        print_result(out, args.reference)

    return work
