"""Many runs: methods x environments x seeds."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from rlhf_bilevel.cli import run_options
from rlhf_bilevel.cli.arguments import JOBS, SEEDS, Work, add_checkpoint_option, add_choice, integer, up_to
from rlhf_bilevel.cli.checks import one_teacher, writable_folder
from rlhf_bilevel.cli.run_options import add_method, add_run_options
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.scheduler import Executor, LocalExecutor, begin_together, run_all
from rlhf_bilevel.studies.worker import all_settings, check_same_run
from rlhf_bilevel.utils.files import check_writable

HELP = "train many runs: methods x environments x seeds; the same command goes on with what is missing"
EXAMPLES = (
    "rlhf-bilevel sweep penalty pebble --env dm_control/walker-walk-v0 --steps 100000 --seeds 5",
    "rlhf-bilevel sweep pebble --env Pendulum-v1 --env Reacher-v5 --steps 20000 --preset quick --cohort",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_method(sub, nargs="+")
    sub.add_argument("--env", required=True, action="append", help="as for train; repeatable")
    sub.add_argument("--seed", type=integer, help="the first seed (default: 0)")
    sub.add_argument("--seeds", type=up_to(SEEDS), default=5, help="number of seeds")
    sub.add_argument("--out", type=Path, default=Path("runs/sweep"), help="a folder, with a folder in it for each run")
    sub.add_argument("--jobs", type=up_to(JOBS), help="runs at the same time on this machine (default: 2)")
    add_choice(sub, "--engine", ("local", "ray"), "local", "where runs are trained: local or ray")
    sub.add_argument("--cohort", action="store_true", help="train all seeds of a method in one process, in one update")
    add_run_options(sub)
    add_checkpoint_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    on_cluster(args)
    if args.cohort:
        for method in args.method:
            learner = args.algorithm or METHODS[method].algorithm
            if learner != "SAC":
                raise UserError(f"--cohort takes learners of plain SAC: {method} learns by {learner}")
    writable_folder("--out", args.out)
    runs: dict[Path, RunSpec] = {}
    first = args.seed or 0
    foreign = {method for method in args.method if ":" in method}  # a user's module has them
    for env in args.env:
        kind = one_teacher(run_options.spec(args, args.method[0], env))
        limit = None
        for number, (method, seed) in enumerate(product(args.method, range(first, first + args.seeds))):
            out = args.out / f"{method.replace(':', '.')}-{kind.env.split('/')[-1]}-{seed}"
            if out in runs:
                raise UserError(f"two runs of this sweep would share the folder {out}")
            own = without_options_of(foreign - {method}, kind.settings)
            runs[check_writable(out)] = run = replace(kind, method=method, out=out, settings=own).having(seed=seed)
            if not number:
                limit = run.check_env()
            if seed == first or run.folder.begun:
                check_same_run(run, all_settings(run, limit))

    planned = list(runs.values())

    def work() -> None:
        from rlhf_bilevel.studies.progress import ProgressBoard
        from rlhf_bilevel.studies.results import collect, table

        args.out.mkdir(parents=True, exist_ok=True)
        if args.cohort:
            begin_together(planned)
        engine = engine_of(args)
        try:
            with ProgressBoard(planned) as board:
                failed = run_all(planned, engine, board.update)
        finally:
            rows = collect(args.out)
        print(f"{table(rows)}\nEvery evaluation: {args.out / 'results.csv'}, and the same as Parquet")
        print(f"With intervals: rlhf-bilevel compare {args.out}")
        if failed:
            raise UserError(f"{len(failed)} of {len(planned)} runs failed: the same command tries them again")

    return work


def on_cluster(args: argparse.Namespace) -> None:
    """UserError if an option does not work on a cluster."""
    if args.engine == "local":
        return
    for option, used in (("--jobs", args.jobs), ("--cohort", args.cohort), ("--device", args.device != "cpu")):
        if used:
            raise UserError(f"{option} is for --engine local: on a cluster a run is a task on the CPU, as many as fit")
    if not find_spec("ray"):
        raise UserError("--engine ray: Ray is not installed; pip install 'rlhf-bilevel[ray]'")


def engine_of(args: argparse.Namespace) -> Executor:
    """What runs the runs: processes of this machine, or Ray."""
    if args.engine == "local":
        return LocalExecutor(args.jobs or 2)
    from rlhf_bilevel.studies.executors.ray import RayExecutor

    return RayExecutor(args.threads)


def without_options_of(methods: Collection[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of users' own ``methods``, which the checks of another method's run do not know."""
    theirs = tuple(f"{METHODS[method].name}." for method in methods)
    return {key: value for key, value in settings.items() if not key.startswith(theirs)}
