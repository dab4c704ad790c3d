"""Environments whose reward is a learnt one: for Gymnasium, and for vectors of Stable-Baselines3.

The environment's own reward is in ``info["true_reward"]``. Nothing else of an environment changes: what it is worth
that an episode ends is left to the learner, as it is in training with ``termination=as_is``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from rlhf_bilevel.envs import interface
from rlhf_bilevel.envs.wrappers import ActionRepeat
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards.learned_reward import LearnedReward

TRUE = "true_reward"
COUNT = "simulator_steps"  # attribute of an environment that repeats actions: how many of its steps are one


class LearnedRewardWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """``reward`` in place of the environment's own: a ``LearnedReward``, or what ``LearnedReward.load`` takes.

    An action acts for as many steps as in the run that learnt the reward, unless the environment, one that
    ``rlhf_bilevel.envs.registration.make`` makes, repeats it itself. UserError where the reward is not of such an
    environment: of its observations' size, of its actions, of its repeated actions.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], reward: LearnedReward | Path | str) -> None:
        self.learned = _fitting(reward, env.observation_space, env.action_space)
        count = env.get_wrapper_attr(COUNT) if env.has_wrapper_attr(COUNT) else 1
        needed = self.learned.info.action_repeat
        if count not in (1, needed):
            raise UserError(_other_steps(needed, count))
        super().__init__(ActionRepeat(env, needed) if count < needed else env)
        self._obs: np.ndarray | None = None
        self._shape = env.observation_space.shape or ()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As Gymnasium's or SB3's."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = interface.check_observation(obs, self._shape)
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As Gymnasium's, with the learnt reward; ``info`` has the true one."""
        if self._obs is None:
            raise gymnasium.error.ResetNeeded("reset comes before the first step")
        reward = float(self.learned(self._obs, action))
        obs, truth, terminated, truncated, info = self.env.step(action)
        self._obs = interface.check_observation(obs, self._shape)
        return obs, reward, terminated, truncated, {**info, TRUE: interface.check_reward(truth)}


class LearnedRewardVecEnvWrapper(VecEnvWrapper):
    """The same for a vector of environments, all of whose steps are rewarded at once.

    A vector cannot repeat an action for one of its environments alone: where the reward is of repeated actions, put
    ``LearnedRewardWrapper`` around each environment in place of this.
    """

    def __init__(self, venv: VecEnv, reward: LearnedReward | Path | str) -> None:
        self.learned = _fitting(reward, venv.observation_space, venv.action_space)
        count = venv.get_attr(COUNT)[0] if venv.has_attr(COUNT) else 1
        needed = self.learned.info.action_repeat
        if count != needed:
            helps = "put LearnedRewardWrapper around each environment of the vector" if count == 1 else ""
            raise UserError(_other_steps(needed, count) + (f": {helps}" if helps else ""))
        super().__init__(venv)
        self._obs = self._actions = np.zeros(())

    def reset(self) -> np.ndarray:
        """As Gymnasium's or SB3's."""
        obs = self.venv.reset()
        assert isinstance(obs, np.ndarray)
        self._obs = np.array(obs)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """As SB3's."""
        self._actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """As SB3's, with learnt rewards; each ``info`` has the true one."""
        obs, truth, dones, infos = self.venv.step_wait()
        assert isinstance(obs, np.ndarray)
        rewards = self.learned(self._obs, self._actions)
        self._obs = np.array(obs)  # where an episode has ended, of the next one
        told = [{**info, TRUE: float(value)} for info, value in zip(infos, truth, strict=True)]
        return obs, rewards, dones, told


def _fitting(given: LearnedReward | Path | str, obs: Space[Any], act: Space[Any]) -> LearnedReward:
    """The reward. UserError where it is not of such spaces."""
    reward = given if isinstance(given, LearnedReward) else LearnedReward.load(given)
    reward.check(obs, act)
    if reward.info.termination == "absorb" and obs.shape and np.prod(obs.shape) < reward.info.observations:
        warnings.warn(
            "the reward was learnt with termination=absorb, and here an episode that ends is worth nothing more; "
            f"rlhf_bilevel.envs.registration.make({reward.info.env!r}, seed=0, absorb=True) ends as training did",
            stacklevel=3,
        )
    return reward


def _other_steps(needed: int, count: int) -> str:
    return f"the reward is of steps with action_repeat={needed}, and the environment has {count}"
