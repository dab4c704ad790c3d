"""A reward fitted to a preference dataset alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_bilevel.cli.arguments import Work, add_set_option, add_trust_option, integer, up_to
from rlhf_bilevel.cli.checks import new_folder, run_folder
from rlhf_bilevel.cli.run_options import assigned
from rlhf_bilevel.config.fields import MOST_THREADS
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.json_yaml import to_json

HELP = "fit a reward to a preference dataset alone, and say how good it is"
EXAMPLES = (
    "rlhf-bilevel fit-reward runs/walker --env dm_control/walker-walk-v0",
    "rlhf-bilevel fit-reward walker.parquet --env dm_control/walker-walk-v0 --out rewards/walker",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("data", type=Path, metavar="DATA", help="a Parquet file, or a run's folder")
    sub.add_argument("--env", required=True, help="whose true reward it is compared with")
    sub.add_argument("--out", type=Path, help="a folder, made anew, for reward.safetensors and report.json")
    sub.add_argument("--seed", type=integer, default=0, help="of all random numbers")
    sub.add_argument("--threads", type=up_to(MOST_THREADS), default=1, help="CPU threads that torch may use")
    add_set_option(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_trust_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    args.env = registration.resolve(args.env)
    if not args.data.exists():
        raise UserError(f"{args.data}: no such file or folder")
    if args.data.is_dir():
        run_folder(args.data)
    settings = assigned(args.set, unused=("total_timesteps", "steps", "labels"))
    config = validate({"total_timesteps": 1000, "seed": args.seed} | settings)
    out = args.out and new_folder(args.out)
    registration.make(args.env, args.seed, kwargs=config.env_kwargs, flatten=config.flatten).close()

    def work() -> None:
        import torch

        from rlhf_bilevel.studies import offline_fit

        torch.set_num_threads(args.threads)
        found = offline_fit.fit_reward(args.data, args.env, seed=args.seed, trust=args.trust, **settings)
        if out:
            found.write(out)
        print(to_json(found.report) if args.json else offline_fit.table(found.report))

    return work
