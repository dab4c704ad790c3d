"""Figures of runs."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from rlhf_bilevel.cli.arguments import Work, add_choice
from rlhf_bilevel.cli.checks import PATHS, gathered, new_file
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.plot import AXES, KINDS
from rlhf_bilevel.utils.files import reserve_new_file

HELP = "draw a figure of runs, such as learning curves, with 95 % intervals"
EXAMPLES = (
    "rlhf-bilevel plot runs/walker --out walker.svg",
    "rlhf-bilevel plot runs/sweep --kind improvement --baseline pebble --out improvement.png",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=PATHS)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help="a new file: .svg, .png or .pdf")
    add_choice(sub, "--kind", KINDS, "curves", f"of figure: {', '.join(KINDS)}")
    add_choice(sub, "--x", AXES, "steps", "against which --kind curves are drawn: steps, or minutes of labelling")
    sub.add_argument(
        "--baseline", metavar="METHOD", help="the method that --kind improvement compares with (default: pebble)"
    )


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    if args.baseline and args.kind != "improvement":
        raise UserError(f"--baseline {args.baseline}: only --kind improvement has one, not {args.kind}")
    if args.x != "steps" and args.kind != "curves":
        raise UserError(f"--x {args.x}: only --kind curves has it, not {args.kind}")
    out, found = new_file("--out", args.out, ".svg", ".png", ".pdf"), gathered(args.paths)

    def work() -> None:
        from rlhf_bilevel.evaluation.plot import caption, draw
        from rlhf_bilevel.evaluation.tasks import budget_warnings, group_by_task

        with reserve_new_file(out):
            print(draw(found.rows, out, args.kind, found.method(args.baseline), args.x))
        tasks = group_by_task(found.rows, together=args.kind != "curves")
        print(*caption(tasks, args.kind), sep="\n")
        for line in budget_warnings(tasks) if args.kind != "curves" else ():
            warnings.warn(line, stacklevel=1)

    return work
