"""A run's agent or labels for other programs."""

from __future__ import annotations

import argparse
import inspect
import io
from pathlib import Path

from rlhf_bilevel.cli.arguments import Work, add_trust_option
from rlhf_bilevel.cli.checks import finished, new_file, run_folder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.files import reserve_new_file, write

HELP = "write a run's agent as a plain Stable-Baselines3 file, or its labels as a dataset"
EXAMPLES = (
    "rlhf-bilevel export runs/walker --sb3 walker.zip",
    "rlhf-bilevel export runs/walker --preferences walker.parquet",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    sub.add_argument("--sb3", type=Path, metavar="FILE.zip", help="the agent")
    sub.add_argument("--preferences", type=Path, metavar="FILE.parquet", help="the labels, also of an unfinished run")
    add_trust_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    if args.sb3 is None and args.preferences is None:
        raise UserError("export what? --sb3 FILE.zip the agent, --preferences FILE.parquet what was asked and answered")
    if args.sb3:
        finished(args.dir)
    run_folder(args.dir)
    sb3 = args.sb3 and new_file("--sb3", args.sb3, ".zip")
    preferences = args.preferences and new_file("--preferences", args.preferences, ".parquet")

    def work() -> None:
        from gymnasium.spaces import Discrete

        from rlhf_bilevel.agent import Agent
        from rlhf_bilevel.envs import registration
        from rlhf_bilevel.runs.asked_queries import load
        from rlhf_bilevel.runs.environments import env_arguments

        if preferences:
            asked = load(args.dir, args.trust)
            with reserve_new_file(preferences):
                asked.write(preferences)
            print(f"{preferences}: {len(asked)} queries, {len(asked.labelled)} of them with a label")
        if sb3:
            agent = Agent.load(args.dir, trust=args.trust)
            model = agent.model
            if not type(model).__module__.startswith("stable_baselines3"):
                raise UserError(f"{args.dir} acts as {type(model).__name__}, which Stable-Baselines3 has not")
            file = io.BytesIO()
            model.save(file, exclude=["replay_buffer", "_last_obs"])
            with reserve_new_file(sb3):
                write(sb3, file.getvalue())
            c = agent.config
            assert c is not None
            made_with = {"protocol": c.protocol, "action_repeat": c.action_repeat} | env_arguments(c)
            made_with["discrete"] = isinstance(model.action_space, Discrete)
            usual = inspect.signature(registration.make).parameters
            told = {key: value for key, value in made_with.items() if value != usual[key].default}
            arguments = "".join(f", {key}={value!r}" for key, value in told.items())
            print(f"stable_baselines3.{type(model).__name__}.load({str(sb3)!r}) acts as this run's agent, in")
            print(f"    envs.registration.make({agent.env_id!r}, seed=0{arguments})")
            print(f"of rlhf_bilevel: observations flat float32 {model.observation_space.shape}, an action for "
                  f"{c.action_repeat} step{'s' * (c.action_repeat > 1)} of the simulator. "
                  "SB3 can train it on: its optimizers and temperature begin anew.")  # fmt: skip

    return work
