"""How many runs learn to end their episodes, where ending is never worth it: one line for each remedy.

    python -m benchmarks.learning.ending --seeds 8

In ``Quit`` every step pays between .55 and 2, and a second action above .8 ends the episode after step 12 of 100. Each
run's agent is tested on ten episodes, the same ones for all.
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from rlhf_bilevel import Agent
from rlhf_bilevel.envs.interface import ABSORBED

LIMIT = 100
REMEDIES = {
    "pebble": ("pebble", "as_is"),
    "pebble, absorb": ("pebble", "absorb"),
    "pebble, nonnegative": ("pebble", "nonnegative"),
    "sac on the true reward": ("sac", "as_is"),
}
SETTINGS: dict[str, Any] = {
    "net_arch": (64, 64),
    "batch_size": 64,
    "train_freq": 2,
    "learning_rate": 1e-3,
    "reward_form": "network",
    "reward_net_arch": (64, 64),
    "reward_lr": 3e-3,
    "reward_batch": 32,
    "segment_length": 10,
    "labels": 60,
    "n_eval_episodes": 1,
}


class Quit(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point that hardly moves; a step pays 2 - |x|."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1.4, 1.4)), 0
        return np.array([self.x], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x, self.t = float(np.clip(self.x + 0.005 * action[0], -1.45, 1.45)), self.t + 1
        return np.array([self.x], np.float32), 2 - abs(self.x), bool(action[1] > 0.8 and self.t > 12), False, {}


gymnasium.register("Quit-v0", entry_point=lambda **_: Quit(), max_episode_steps=LIMIT)


def lengths(method: str, termination: str, seed: int, steps: int, episodes: int = 10, **settings: Any) -> np.ndarray:
    """Steps of each of the agent's test episodes (episodes,), until they end for good or at the time limit."""
    agent = Agent(method, "Quit-v0", seed=seed, termination=termination, **SETTINGS | settings).learn(steps)
    env, found = agent.make_env(), np.zeros(episodes)
    for number in range(episodes):
        obs, over = env.reset()[0], False
        while not over:
            obs, _, terminated, truncated, info = env.step(agent.predict(obs)[0])
            over = terminated or truncated or ABSORBED in info
            found[number] += 1
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="how many, the same for all (8)")
    parser.add_argument("--first", type=int, default=500, help="the first seed (500)")
    parser.add_argument("--steps", type=int, default=4000)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| | runs that end an episode | episodes that are ended | steps of an episode, mean |\n|---|---|---|---|")
    for name, (method, termination) in REMEDIES.items():
        seeds = range(args.first, args.first + args.seeds)
        found = np.array([lengths(method, termination, seed, args.steps) for seed in seeds])  # (seeds, episodes)
        ended = found < LIMIT
        runs = f"{ended.any(1).sum()} of {len(found)}"
        print(f"| {name} | {runs} | {ended.mean():.0%} | {found.mean():.0f} |", flush=True)


if __name__ == "__main__":
    main()
