"""Small environments and shortcuts that several tests share."""

import signal
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.reading import validate_as
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.envs import registration
from rlhf_bilevel.feedback.teachers import SimulatedTeacher
from rlhf_bilevel.learners.off_policy import SB3Learner
from rlhf_bilevel.learners.ppo import PPOLearner
from rlhf_bilevel.learners.together import Together
from rlhf_bilevel.registries import LEARNERS, METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.training.run import Run

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Steer(gymnasium.Env):
    """A point on a line, pushed by the action; the reward is how near it is to a target at 0.5."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.x.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x, self.t = np.clip(self.x + 0.2 * action, -2, 2).astype(np.float32), self.t + 1
        far = abs(self.x[0] - 0.5)
        return self.x.copy(), 1 - float(far), False, self.t == 50, {"success": far < 0.1}


gymnasium.register("Steer-v0", Steer)

SMALL: dict[str, Any] = {
    "net_arch": (16, 16), "batch_size": 16, "learning_rate": 3e-3, "reward_net_arch": (16,),
    "segment_length": 10, "entropy_states": 64, "reset_updates": 5, "reward_epochs": 5,
    "n_eval_episodes": 2, "labels": 40, "reward_batch": 16,
    "other_every": 2,  # so that two learners take turns within few steps
    "initial_comparison_frac": 0,  # so that sessions are alike
    "train_freq": 4,
    "reward_use_action": True,  # actions are what these tests can choose
}  # fmt: skip


SMALL_OPTIONS: dict[str, Any] = {"cost_hidden": (16,), "cost_steps": 5, "visit_batch": 64}
"""The same, of the methods that have them."""


FEW: dict[str, dict[str, Any]] = {
    "penalty": {"options": SMALL_OPTIONS},
    "prefppo": {"options": {"n_steps": 64}},
    "rime": {"options": {"warm_updates": 1}},
}
"""What a method needs to show itself in a few hundred steps."""


def small_config(steps: int = 300, **settings: Any) -> Config:
    return Config(**({"total_timesteps": steps, **SMALL} | settings))


def build(method: str, env_id: str = "Steer-v0", own: Mapping[str, Any] = {}, **settings: Any) -> Run:
    """``own`` are arguments of the learners. ``settings`` may have the method's options by their own names."""
    options = {key: settings.pop(key) for key in settings.keys() & METHODS[method].options.model_fields.keys()}
    small = {key: value for key, value in SMALL_OPTIONS.items() if key in METHODS[method].options.model_fields}
    options = small | options | settings.pop("options", {})
    config = small_config(**{**METHODS[method].settings, **SMALL, **settings, "options": options})
    training = [registration.make(env_id, config.seed) for _ in range(METHODS[method].learners)]
    sizes = training[0].observation_space.shape[0], training[0].action_space.shape[0]
    store, rng = ReplayBuffer(*sizes, config.total_timesteps), torch.Generator().manual_seed(config.seed)
    kind: Any = PPOLearner if METHODS[method].algorithm == "PPO" else SB3Learner
    arguments = METHODS[method].arguments(validate_as(METHODS[method].options, config.options, f"{method}."))
    arguments = {"algorithm": LEARNERS[METHODS[method].algorithm], **arguments, **own}
    learners = [kind(env, config, store, number, **arguments) for number, env in enumerate(training)]
    teacher, reward = SimulatedTeacher(config, store), RewardEnsemble.of(config, *sizes, rng)
    return Run(METHODS[method], config, training, learners, teacher, store, reward, rng, Together(learners))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
