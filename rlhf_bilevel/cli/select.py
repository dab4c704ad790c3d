"""The policy of a run that its teacher prefers."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_bilevel.cli.arguments import EPISODES, Work, add_trust_option, natural, number, positive, up_to
from rlhf_bilevel.cli.checks import finished, new_folder
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.selection import ERROR, LABELS, MARGIN, lead_of
from rlhf_bilevel.feedback.teacher_spec import teacher_settings
from rlhf_bilevel.utils.json_yaml import to_json

HELP = "ask the teacher which of a run's policies is best, and write that one as a run of its own"
EXAMPLES = (
    "rlhf-bilevel select runs/walker --labels 20 --out runs/chosen",
    "rlhf-bilevel select runs/walker --teacher human --out runs/chosen",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder, which stays as it is")
    sub.add_argument("--out", type=Path, metavar="NEW", help="a folder, made anew, for the chosen policy")
    sub.add_argument("--labels", type=positive, default=LABELS, help="answers that may be asked of the teacher")
    sub.add_argument("--margin", type=number, default=MARGIN, help="a test tells apart 1/2 - MARGIN and 1/2 + MARGIN")
    sub.add_argument("--error", type=number, default=ERROR, help="probability that the worse policy wins, at most")
    sub.add_argument("--segment-length", type=positive, metavar="STEPS", help="(default: the run's)")
    sub.add_argument("--teacher", help="as of train (default: the run's)")
    sub.add_argument("--seed", type=natural, default=0, help="of episodes and segments")
    sub.add_argument(
        "--evaluate",
        type=up_to(EPISODES),
        metavar="EPISODES",
        help="also print true returns of the last and the chosen policy, which are not used to choose",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_trust_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    lead = lead_of(args.margin, args.error)
    if args.labels < lead:
        raise UserError(f"--labels {args.labels}: one policy must be {lead} labels ahead, so {lead} are the least")
    if args.teacher is not None:
        teacher_settings(args.teacher)
    finished(args.dir)
    out = args.out
    if out and not RunFolder(out).selecting.is_file():  # one that was stopped goes on
        new_folder(out)

    def work() -> None:
        from rlhf_bilevel.agent import Agent

        agent = Agent.load(args.dir, trust=args.trust)
        last = agent.evaluate(args.evaluate) if args.evaluate else None
        chosen = agent.select(
            args.labels,
            margin=args.margin,
            error=args.error,
            segment_length=args.segment_length,
            teacher=args.teacher,
            seed=args.seed,
            out=out,
        )
        found = chosen.record()
        if last:
            returns = {"last": last, "chosen": agent.evaluate(args.evaluate)}
            found["true_return"] = {name: float(result.returns.mean()) for name, result in returns.items()}
        if args.json:
            print(to_json(found))
            return
        print(chosen)
        if last:
            print("true return over {} fresh episodes: last {last:.4g}, chosen {chosen:.4g}".format(
                args.evaluate, **found["true_return"]))  # fmt: skip
        print(f"Run: {out}" if out else "Nothing is written: --out NEW writes the chosen policy as a run of its own")

    return work
