"""A table of runs."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from rlhf_bilevel.cli.arguments import Work, positive_number
from rlhf_bilevel.cli.checks import PATHS, gathered
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.json_yaml import to_json

HELP = "compare methods: a table of their runs, with 95 % intervals"
EXAMPLES = (
    "rlhf-bilevel compare runs/sweep --at-minutes 10",
    "rlhf-bilevel compare benchmarks/results/quick.csv --baseline sac --json",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=PATHS)
    sub.add_argument("--baseline", metavar="METHOD", help="the method that others are compared with (default: pebble)")
    sub.add_argument(
        "--at-minutes",
        type=positive_number,
        metavar="MINUTES",
        help="compare at equal labelling minutes (default: at equal steps)",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    found = gathered(args.paths)

    def work() -> None:
        from rlhf_bilevel.evaluation.compare import rows_by_task, rows_over_all, table
        from rlhf_bilevel.evaluation.scores import choose_baseline
        from rlhf_bilevel.evaluation.tasks import budget_warnings, group_by_task, minutes_warnings

        minutes = args.at_minutes
        tasks = group_by_task(found.rows, together=True, minutes=minutes)
        baseline = choose_baseline(found.method(args.baseline), tasks)
        for line in budget_warnings(tasks) if minutes is None else minutes_warnings(tasks, minutes):
            warnings.warn(line, stacklevel=1)
        lines = rows_by_task(tasks, baseline, minutes)
        if len(tasks) > 1:
            try:
                lines += rows_over_all(tasks, baseline, minutes)
            except UserError as error:
                warnings.warn(f"no lines over all environments: {error}", stacklevel=1)
        print(to_json([line._asdict() for line in lines]) if args.json else table(lines))

    return work
