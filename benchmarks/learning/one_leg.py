"""A walker that is to stand on one leg, which no reward function says: what so many labels come to.

A script stands in for the person: it looks at each pair's states, takes its time, and answers through the label store,
as the page does, while ``rlhf-bilevel train --teacher human`` runs. Afterwards the policy is watched, and a random one
beside it.

    python -m benchmarks.learning.one_leg --out runs/one-leg --seconds 2.5
"""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel import Agent
from rlhf_bilevel.data.label_log import decode_segments
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.records import Assignment
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import CANT_TELL, LEFT, RIGHT

ENV = "dm_control/walker-walk-v0"
UNSURE = 0.02  # difference of two clips that the script cannot tell


def one_leg(obs: Tensor) -> Tensor:
    """How much a walker (..., 24) stands on one leg (...), from 0 to 1: its torso high and upright, one foot lifted."""
    height, upright = obs[..., 14], obs[..., 0]  # metres; cosine to the vertical
    right, left = ankles(obs)
    lifted = ((right - left).abs() / 0.4).clamp(0, 1)
    return (height / 1.2).clamp(0, 1) * (1 + upright) / 2 * (0.4 + 0.6 * lifted)


def stands(obs: Tensor) -> Tensor:
    """Whether it does (...), as a strict judge would say: torso above 1 m and within 37 degrees, one foot 0.3 m up."""
    height, upright = obs[..., 14], obs[..., 0]
    low, high = ankles(obs).sort(0).values
    return (height > 1) & (upright > 0.8) & (low < 0.25) & (high - low > 0.3)


def ankles(obs: Tensor) -> Tensor:
    """Their heights (2, ...) in metres: lengths of the walker's torso, thighs and legs by cosines to the vertical."""
    hip = obs[..., 14] - 0.3 * obs[..., 0]
    return torch.stack([hip - 0.45 * obs[..., thigh] - 0.5 * obs[..., thigh + 2] for thigh in (2, 8)])


def label(folder: Path, seconds: float, training: subprocess.Popen) -> dict[str, int]:
    """Answers until training has ended; what was answered how often."""
    given = dict.fromkeys((LEFT, RIGHT, CANT_TELL), 0)
    while not RunFolder(folder).begun and training.poll() is None:
        time.sleep(0.2)
    with LabelStore.of(folder) as label_store:
        me = label_store.labeller(label_store.invite("script"))
        assert me is not None
        while training.poll() is None:
            assigned = label_store.assign(me, 1, repeats=0, gold=0)
            time.sleep(seconds if assigned else 0.2)
            for assignment in assigned:
                choice = judged(folder, assignment)
                with suppress(UserError):  # retired, or training has all that it wants
                    label_store.choose(me, assignment.query_id, choice, assignment.query_id)
                    given[choice] += 1
    return given


def judged(folder: Path, assignment: Assignment) -> str:
    with closing(sqlite3.connect(RunFolder(folder).book, timeout=30)) as label_store:
        query = "SELECT first_clip, first, second FROM queries WHERE id = ?"
        asked = label_store.execute(query, (assignment.query_id,)).fetchone()
    first, second = one_leg(decode_segments(asked[1:]).obs).mean(-1).tolist()
    if abs(first - second) < UNSURE:
        return CANT_TELL
    return LEFT if (first > second) == (assignment.left_clip == asked[0]) else RIGHT


def watched(env: FaultTolerantEnv, act: Callable[[np.ndarray], np.ndarray], episodes: int) -> Tensor:
    """Observations (episodes, T, 24) of a policy."""
    seen = []
    for _ in range(episodes):
        obs, over, steps = env.reset()[0], False, []
        while not over:
            obs, _, terminated, truncated, _ = env.step(act(obs))
            steps.append(torch.as_tensor(obs))
            over = terminated or truncated
        seen.append(torch.stack(steps))
    return torch.stack(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder: new, or of a run that has ended")
    parser.add_argument("--method", default="pebble")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.2, help="of all that was asked that may be unanswered")
    parser.add_argument("--seconds", type=float, default=2.5, help="that the script takes for an answer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.out.exists():
        told = f"--preset quick --steps {args.steps} --labels {args.labels} --seed {args.seed} --teacher human"
        told += f" --max-pending-share {args.share} --set eval_freq={args.steps} --out {args.out}"
        command = f"train {args.method} --env {ENV} {told}"
        began = time.time()
        training = subprocess.Popen([sys.executable, "-m", "rlhf_bilevel", *command.split()])
        print(label(args.out, args.seconds, training), f"{time.time() - began:.0f} s")
    agent = Agent.load(args.out)
    env = agent.make_env()
    env.action_space.seed(0)
    for name, act in (("learnt", lambda obs: agent.predict(obs)[0]), ("random", lambda _: env.action_space.sample())):
        obs = watched(env, act, 10)
        share = stands(obs).float().mean(1)
        print(f"{name}: one_leg {one_leg(obs).mean():.2f}, stands so {share.mean():.0%} of the time", end="; ")
        print(f"torso {obs[..., 14].mean():.2f} m high; by episode", *(f"{value:.0%}" for value in share))


if __name__ == "__main__":
    main()
