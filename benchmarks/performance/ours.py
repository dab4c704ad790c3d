"""What is timed of this library."""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC

from benchmarks.performance.sized import ACT, OBS
from benchmarks.performance.worker import Work, serve
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.envs import registration
from rlhf_bilevel.feedback import query_rules
from rlhf_bilevel.runs.build import build
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.training.loop import train, update_reward
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.training.snapshot import capture
from rlhf_bilevel.types import Preferences, Queries, Segments
from rlhf_bilevel.utils.versions import installed_versions

UPDATES, PAIRS, LENGTH = 50, 128, 50


class Plain(SAC):
    """SB3's own update: a subclass may have changed it, and is not stacked."""


def run_of(
    method: str,
    rows: int,
    steps: int = 0,
    algorithm: Any = None,
    device: str = "cpu",
    env: str = "benchmarks.performance.sized:Sized-v0",
    **settings: Any,
) -> Run:
    """A run with random transitions in its store; by default of walker's sizes and with the method's algorithm.

    Rewards are networks, as the peers have.
    """
    spec = RunSpec(method, registration.resolve(env), {}, device=device)
    sizes = {"total_timesteps": max(rows, steps), "learning_starts": 1, "pretrain_steps": 0}
    config = validate(sizes | {"reward_form": "network"} | settings)
    run = build(spec, Parts.of(method, algorithm), config)
    grow(run, rows)
    return run


def grow(run: Run, rows: int) -> None:
    """Random transitions in episodes of 1000 steps."""
    store, rng = run.store, np.random.default_rng(run.store.size)
    for begun in range(0, rows, 1000):
        store.begin(begun // 1000 % len(run.learners))
        start, store.size = store.size, store.size + min(1000, rows - begun)
        for column in (store.obs, store.act, store.next_obs, store.env_reward):
            part = column[start : store.size]
            part.copy_(torch.from_numpy(rng.uniform(-1, 1, part.shape)))


def pairs(count: int, length: int = LENGTH) -> Queries:
    rng = torch.Generator().manual_seed(1)

    def segments() -> Segments:
        obs, act = torch.randn(count, length, OBS, generator=rng), torch.rand(count, length, ACT, generator=rng) * 2 - 1
        return Segments(obs, act, obs[..., 0])

    return Queries(segments(), segments())


def update(algorithm: Any = SAC, method: str = "sac") -> Work:
    run = run_of(method, 10_000, algorithm=algorithm)
    for learner in run.learners:
        learner.set_reward(run.store.true_reward)

    def work() -> None:
        for _ in range(UPDATES):  # one by one, as in a run
            run.improve(1, run.step)

    return UPDATES * len(run.learners), work


def looping(method: str, steps: int, **settings: Any) -> Run:
    """A quarter of the steps random, then an update a step; 20 labels after each of the first three quarters."""
    return run_of(
        method, 0, steps, learning_starts=steps // 4, num_interact=steps // 4, queries_per_session=20, labels=60,
        reward_epochs=10, reward_accuracy=1.0, reset_updates=0, **settings,
    )  # fmt: skip


def loop(method: str, refresh_every: int, steps: int = 1000, query: str = "disagreement") -> Work:
    def work() -> None:
        for _ in train(looping(method, steps, refresh_every=refresh_every, query=query)):
            pass

    return steps, work


def reward_update(hidden: tuple[int, ...]) -> Work:
    run = run_of("pebble", 10, reward_net_arch=hidden, reward_batch=PAIRS, reward_accuracy=1.0)
    queries = pairs(PAIRS)
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 2, PAIRS)).float()
    run.prefs.add(Preferences(*queries, label), torch.zeros(PAIRS))
    return 2 * PAIRS, partial(update_reward, run, 2)


def relabel(rows: int = 1_000_000) -> Work:
    run = run_of("pebble", rows)
    return rows, partial(run.store.learned(run.reward), torch.arange(rows))


def disagreement(count: int = 10_000) -> Work:
    run, candidates = run_of("pebble", 10), pairs(count)

    @torch.no_grad()
    def work() -> None:
        query_rules.best(candidates, query_rules.disagreement(run.reward.members, candidates), 100)

    return count, work


def k_center(count: int = 10_000) -> Work:
    return count, partial(query_rules.k_center, pairs(count), pairs(100), 100)


def checkpoint(rows: int = 100_000, new: int = 1000) -> Work:
    run = run_of("pebble", rows, total_timesteps=20 * rows)
    kept = Checkpoints(Path(tempfile.mkdtemp()), "")
    kept.save(0, *capture(run))

    def work() -> None:
        start, run.store.size = run.store.size, run.store.size + new
        run.store.obs[start : run.store.size] = 1
        kept.save(run.store.size, *capture(run))

    return 1, work


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serve(
        {
            "update": update,
            "update_two": partial(update, SAC, "twin"),
            "loop": partial(loop, "pebble", 0, query="uniform"),  # as imitation, which draws pairs at random
            "loop_pebble": partial(loop, "pebble", 50),
            "loop_penalty": partial(loop, "penalty", 50),
            "reward_update": partial(reward_update, (256, 256, 256)),
            "reward_update_small": partial(reward_update, (32, 32)),
            "relabel": relabel,
            "disagreement": disagreement,
            "k_center": k_center,
            "checkpoint": checkpoint,
        },
        installed_versions,
    )
