"""Behaviours that no reward function says, taught by a script in the person's place: do they succeed?

    python -m benchmarks.learning.behaviours --behaviour cartpole_spin --seeds 5 --out runs/behaviours

The script looks at the states of each pair and answers through the label store, as the page does, while
``rlhf-bilevel train --teacher human`` runs. Afterwards the policy is watched for ten episodes that it has not met, and
a random one beside it. A policy meets the criterion of its behaviour if at least eight of the ten do.
"""

import argparse
import csv
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

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
from rlhf_bilevel.utils.json_yaml import read_yaml

EPISODES, ENOUGH = 10, 8  # that a policy is watched for; of these, those that must meet the criterion
UNSURE = 0.02  # difference of two clips that the script cannot tell


class Behaviour(NamedTuple):
    """What is taught, and when it counts as learnt.

    ``likes`` maps observations (..., n) to how close they come (...), at most 1; of two clips the script prefers the
    one with the larger mean. ``measure`` maps the observations (T, n) of an episode to a number; the episode meets
    ``criterion`` if that is at least ``least``.
    """

    env: str
    question: str
    criterion: str
    likes: Callable[[Tensor], Tensor]
    measure: Callable[[Tensor], float]
    least: float
    steps: int
    labels: int = 200

    def meets(self, obs: Tensor) -> bool:
        """Whether an episode (T, n) meets the criterion."""
        return self.measure(obs) >= self.least


def turns(angle: Tensor) -> float:
    """Full turns from the first to the last of the angles (T,) in radians; those backwards are subtracted."""
    unwrapped = np.unwrap(angle.numpy())
    return float(unwrapped[-1] - unwrapped[0]) / (2 * np.pi)


def spins(obs: Tensor) -> Tensor:
    """How fast the pole of cartpole turns clockwise, up to 10 rad/s; backwards is negative."""
    return (obs[..., 4] / 10).clamp(-1, 1)


def one_leg(obs: Tensor) -> Tensor:
    """How much a walker (..., 24) stands on one leg (...), from 0 to 1: its torso high and upright, one foot lifted."""
    height, upright = obs[..., 14], obs[..., 0]  # metres; cosine to the vertical
    right, left = joints(obs).ankles
    lifted = ((right - left).abs() / 0.4).clamp(0, 1)
    return (height / 1.2).clamp(0, 1) * (1 + upright) / 2 * (0.4 + 0.6 * lifted)


def on_one_leg(obs: Tensor) -> Tensor:
    """Whether it does (...), as a strict judge would say: torso above 1 m and within 37 degrees, one foot 0.3 m up."""
    height, upright = obs[..., 14], obs[..., 0]
    low, high = joints(obs).ankles.sort(0).values
    return (height > 1) & (upright > 0.8) & (low < 0.25) & (high - low > 0.3)


def kneels(obs: Tensor) -> Tensor:
    """How much a walker (..., 24) kneels, from 0 to 1: its torso upright, its hip a thigh high, both knees down."""
    at = joints(obs)
    down = 1 - ((at.knees.amax(0) - 0.1) / 0.5).clamp(0, 1)
    return (1 + obs[..., 0]) / 2 * (at.hip / 0.45).clamp(0, 1) * down


def on_its_knees(obs: Tensor) -> Tensor:
    """Whether it does (...): torso within 37 degrees of the vertical, hip above 0.35 m, both knees below 0.2 m."""
    at = joints(obs)
    return (obs[..., 0] > 0.8) & (at.hip > 0.35) & (at.knees.amax(0) < 0.2)


class Joints(NamedTuple):
    """Heights in metres of a walker's hip (...), knees and ankles (2, ...)."""

    hip: Tensor
    knees: Tensor
    ankles: Tensor


def joints(obs: Tensor) -> Joints:
    """Lengths of the walker's torso, thighs and legs by cosines to the vertical."""
    hip = obs[..., 14] - 0.3 * obs[..., 0]
    knees = torch.stack([hip - 0.45 * obs[..., thigh] for thigh in (2, 8)])
    return Joints(hip, knees, knees - 0.5 * torch.stack([obs[..., leg] for leg in (4, 10)]))


def share(shown: Tensor) -> float:
    """Of the steps (T,) in which something is shown."""
    return shown.float().mean().item()


BEHAVIOURS = {
    "cartpole_spin": Behaviour(
        "dm_control/cartpole-balance-v0",
        "Which pole turns clockwise faster?",
        "the pole makes at least 5 full turns clockwise in an episode of 10 s",
        spins,
        lambda obs: turns(torch.atan2(obs[:, 2], obs[:, 1])),
        5,
        8_000,
        150,
    ),
    "walker_kneel": Behaviour(
        "dm_control/walker-walk-v0",
        "Which walker comes closer to kneeling with its torso upright?",
        "for at least half of an episode of 25 s the torso is within 37 degrees of the vertical, the hip above 0.35 m,"
        " and both knees below 0.2 m",
        kneels,
        lambda obs: share(on_its_knees(obs)),
        0.5,
        25_000,
    ),
    "walker_one_leg": Behaviour(
        "dm_control/walker-walk-v0",
        "Which one is closer to standing on one leg?",
        "for at least half of an episode of 25 s the torso is above 1 m and within 37 degrees of the vertical, and one"
        " foot 0.3 m above the other, which is on the floor",
        one_leg,
        lambda obs: share(on_one_leg(obs)),
        0.5,
        30_000,
    ),
}


class Result(NamedTuple):
    """One policy, watched for ``EPISODES`` episodes: how many ``meet`` the criterion, and means over all of them."""

    behaviour: str
    policy: str
    seed: int
    steps: int
    labels: int
    cant_tell: int
    meet: int
    measure: float
    likes: float
    commit: str


def answer(folder: Path, behaviour: Behaviour, seconds: float, training: subprocess.Popen[bytes]) -> None:
    """Answers as the person would, until training has ended."""
    while not RunFolder(folder).begun and training.poll() is None:
        time.sleep(0.2)
    with LabelStore.of(folder) as label_store:
        me = label_store.labeller(label_store.invite("script"))
        assert me is not None
        while training.poll() is None:
            assigned = label_store.assign(me, 1, repeats=0, gold=0)
            time.sleep(seconds if assigned else 0.2)
            for assignment in assigned:
                with suppress(UserError):  # retired, or training has all that it wants
                    choice = judged(folder, behaviour, assignment)
                    label_store.choose(me, assignment.query_id, choice, assignment.query_id)


def judged(folder: Path, behaviour: Behaviour, assignment: Assignment) -> str:
    """The script's answer, of ``LEFT``, ``RIGHT`` and ``CANT_TELL``."""
    with closing(sqlite3.connect(RunFolder(folder).book, timeout=30)) as label_store:
        query = "SELECT first_clip, first, second FROM queries WHERE id = ?"
        asked = label_store.execute(query, (assignment.query_id,)).fetchone()
    first, second = behaviour.likes(decode_segments(asked[1:]).obs).mean(-1).tolist()
    if abs(first - second) < UNSURE:
        return CANT_TELL
    return LEFT if (first > second) == (assignment.left_clip == asked[0]) else RIGHT


def train(out: Path, name: str, seed: int, seconds: float = 0.0, steps: int = 0, labels: int = 0) -> None:
    """A run in the folder ``out``, taught to its end; 0 steps or labels are those of the behaviour.

    SystemExit if training fails.
    """
    behaviour = BEHAVIOURS[name]
    steps = steps or behaviour.steps
    told = ["--steps", str(steps), "--labels", str(labels or behaviour.labels), "--seed", str(seed), "--out", str(out)]
    told += ["--preset", "quick", "--teacher", "human", "--max-pending-share", "0", "--set", f"eval_freq={steps}"]
    words = [sys.executable, "-m", "rlhf_bilevel", "train", "pebble", "--env", behaviour.env, *told]
    training = subprocess.Popen(words)
    try:
        answer(out, behaviour, seconds, training)
    finally:
        training.terminate()
        failed = training.wait()
    if failed:
        raise SystemExit(f"{' '.join(words)} failed")


def watched(env: FaultTolerantEnv, act: Callable[[np.ndarray], np.ndarray]) -> list[Tensor]:
    """Observations (T, n) of each of ``EPISODES`` episodes of a policy."""
    seen = []
    for _ in range(EPISODES):
        obs, over, steps = env.reset()[0], False, []
        while not over:
            obs, _, terminated, truncated, _ = env.step(act(obs))
            steps.append(torch.as_tensor(obs))
            over = terminated or truncated
        seen.append(torch.stack(steps))
    return seen


def results(folder: Path, name: str) -> list[Result]:
    """Of the policy that was learnt in ``folder``, and of a random one."""
    agent, behaviour = Agent.load(folder), BEHAVIOURS[name]
    assert agent.config is not None
    with closing(sqlite3.connect(RunFolder(folder).book)) as book:
        choices = [choice for (choice,) in book.execute("SELECT choice FROM choices")]
    asked = len(choices) - choices.count(CANT_TELL), choices.count(CANT_TELL)
    commit = read_yaml(folder / "config.yaml")["commit"] or ""
    env, found = agent.make_env(), []
    env.action_space.seed(agent.config.seed)
    for policy, act in (
        ("learnt", lambda obs: agent.predict(obs)[0]),
        ("random", lambda _: env.action_space.sample()),
    ):
        episodes = watched(env, act)
        meet = sum(behaviour.meets(obs) for obs in episodes)
        measure = float(np.mean([behaviour.measure(obs) for obs in episodes]))
        likes = float(np.mean([behaviour.likes(obs).mean() for obs in episodes]))
        budget = (agent.config.total_timesteps, *asked) if policy == "learnt" else (0, 0, 0)
        found.append(Result(name, policy, agent.config.seed, *budget, meet, round(measure, 2), round(likes, 3), commit))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behaviour", choices=BEHAVIOURS, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="how many (5)")
    parser.add_argument("--first", type=int, default=100, help="the first seed (100)")
    parser.add_argument("--steps", type=int, default=0, help="of each run (those of the behaviour)")
    parser.add_argument("--labels", type=int, default=0, help="of each run (those of the behaviour)")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the script takes for an answer (0)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the runs; one that has ended is not repeated"
    )
    parser.add_argument("--results", type=Path, help="a CSV to write the rows to")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(BEHAVIOURS[args.behaviour].criterion, flush=True)
    rows = []
    for seed in range(args.first, args.first + args.seeds):
        folder = args.out / f"{args.behaviour}-{seed}"
        if not RunFolder(folder).ended:
            began = time.time()
            train(folder, args.behaviour, seed, args.seconds, args.steps, args.labels)
            print(f"{folder}: {time.time() - began:.0f} s", flush=True)
        rows += results(folder, args.behaviour)
        print(*rows[-2:], sep="\n", flush=True)
    learnt = sum(row.meet >= ENOUGH for row in rows if row.policy == "learnt")
    print(f"{learnt} of {args.seeds} runs meet the criterion in {ENOUGH} of {EPISODES} episodes or more")
    if args.results:
        with args.results.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Result._fields, *rows])


if __name__ == "__main__":
    main()
