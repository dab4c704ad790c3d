"""Fresh episodes of a run's agent."""

from __future__ import annotations

import argparse
from math import isfinite
from pathlib import Path

from rlhf_bilevel.cli.arguments import EPISODES, Work, add_trust_option, up_to
from rlhf_bilevel.cli.checks import finished
from rlhf_bilevel.utils.json_yaml import to_json

HELP = "measure a run's agent: true return and success in new episodes"
EXAMPLES = (
    "rlhf-bilevel evaluate runs/walker",
    "rlhf-bilevel evaluate runs/walker --episodes 50 --json",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    sub.add_argument("--episodes", type=up_to(EPISODES), default=10, help="number of episodes")
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_trust_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    finished(args.dir)

    def work() -> None:
        from rlhf_bilevel.agent import Agent
        from rlhf_bilevel.evaluation.rollout import interval_text
        from rlhf_bilevel.evaluation.tasks import UNBOUNDED

        agent = Agent.load(args.dir, trust=args.trust)
        evaluation = agent.evaluate(args.episodes)
        summary = evaluation.summary()
        if args.json:
            print(to_json(summary))
            return
        if agent.asks_people:
            print("What the environment's own reward says, which may be about something else than the question:")
        for name in ("true_return", "success"):
            if summary[name]:
                print(f"{name}: {interval_text(summary[name])}")
        print(f"new episodes: {summary['episodes']}; train and compare use the evaluations made during training")
        if args.episodes > 1 and not all(map(isfinite, evaluation.within)):
            print(f"true_return: {UNBOUNDED}")

    return work
