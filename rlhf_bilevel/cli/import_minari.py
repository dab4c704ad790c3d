"""A preference dataset made of a Minari dataset."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from rlhf_bilevel.cli.arguments import Work, add_choice, integer, positive
from rlhf_bilevel.cli.checks import new_file
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.files import reserve_new_file

HELP = "make a preference dataset of a local Minari dataset"
EXAMPLES = (
    "rlhf-bilevel import-minari mujoco/halfcheetah/expert-v0 --pairs 500 --out cheetah.parquet",
    "rlhf-bilevel import-minari mujoco/halfcheetah/expert-v0 --pairs 500 --teacher none --out open.parquet",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dataset", metavar="DATASET", help="its id, as minari list local shows it")
    sub.add_argument("--pairs", type=positive, required=True, help="how many queries")
    sub.add_argument("--segment-length", type=positive, default=50, help="steps")
    add_choice(sub, "--teacher", ("oracle", "none"), "oracle", "oracle, or none: open labels")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="made anew")
    sub.add_argument("--seed", type=integer, default=0, help="of all random numbers")


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    if not find_spec("minari"):
        raise UserError("import-minari: Minari is not installed; pip install 'rlhf-bilevel[minari]'")
    validate({"total_timesteps": 1000, "seed": args.seed})
    out = new_file("--out", args.out, ".parquet")

    def work() -> None:
        from rlhf_bilevel.data.minari import import_minari
        from rlhf_bilevel.feedback.teachers import OracleTeacher

        teacher = OracleTeacher() if args.teacher == "oracle" else None
        data = import_minari(args.dataset, args.pairs, args.segment_length, teacher, args.seed)
        with reserve_new_file(out):
            data.write(out)
        print(f"{out}: {len(data)} queries, {len(data.labelled)} of them with a label")

    return work
