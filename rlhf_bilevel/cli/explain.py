"""The weights of a reward that is no network."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_bilevel.cli.arguments import Work, add_trust_option, positive
from rlhf_bilevel.cli.checks import finished
from rlhf_bilevel.envs import registration
from rlhf_bilevel.utils.json_yaml import to_json

HELP = "show the weights of a run's linear, quadratic or additive reward, those that matter most first"
EXAMPLES = (
    "rlhf-bilevel explain runs/read",
    "rlhf-bilevel explain runs/read --top 5",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    sub.add_argument("--top", type=positive, default=20, help="features that are shown")
    sub.add_argument("--json", action="store_true", help="all of them, one JSON list on standard output")
    add_trust_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    finished(args.dir)

    def work() -> None:
        from rlhf_bilevel.agent import Agent
        from rlhf_bilevel.rewards.explain import weights_of
        from rlhf_bilevel.runs.asked_queries import load

        agent = Agent.load(args.dir, trust=args.trust)
        assert agent.reward is not None
        names, asked = registration.entry_names(agent.make_env()), load(args.dir, args.trust).segments
        weights = weights_of(agent.reward, names, asked.obs, asked.act)
        if args.json:
            print(to_json([weight._asdict() for weight in weights]))
            return
        width = max(len(weight.feature) for weight in weights[: args.top])
        print(f"{'feature':{width}}  {'weight':>9}  {'spread':>9}  {'effect':>9}")
        for weight in weights[: args.top]:
            print(f"{weight.feature:{width}}  {weight.weight:9.3f}  {weight.spread:9.3f}  {weight.effect:9.3f}")

    return work
