"""Wrappers of environments: absorbing states, repeated actions."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rlhf_bilevel.envs import interface
from rlhf_bilevel.envs.interface import ABSORBED


class EpisodeCounter(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A wrapper around an environment that counts its episodes, as those of ``make`` do."""

    env: Any

    @property
    def episode(self) -> int:
        """Number of the next episode."""
        return self.env.episode

    @episode.setter
    def episode(self, number: int) -> None:
        """Sets the number of the next episode."""
        self.env.episode = number

    @property
    def limit(self) -> int | None:
        """The most simulator steps in an episode; None if that is not known."""
        return self.env.limit

    @property
    def simulator_steps(self) -> int:
        """Simulator steps in one step of this environment."""
        return self.env.simulator_steps


class AbsorbingState(EpisodeCounter):
    """Episodes that terminate go on in an absorbing state until step ``steps``, so that all have the same length.

    Observations have one more entry at their end, which is 0 until then. In the absorbing state this entry is 1 and all
    others are 0; every action leads back to it, with reward 0. ``info[ABSORBED]`` is set from the step that leads
    there. [Kostrikov et al., ICLR 2019, "Discriminator-Actor-Critic"]
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], steps: int) -> None:
        super().__init__(env)
        inner = env.observation_space
        assert isinstance(inner, Box)
        low, high = np.append(np.minimum(inner.low, 0), 0), np.append(np.maximum(inner.high, 0), 1)
        self.observation_space = Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self._steps, self._step, self._absorbed = steps, 0, False
        self._state = np.append(np.zeros(inner.shape, np.float32), np.float32(1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode: the first observation (o + 1,) and info."""
        self._step, self._absorbed = 0, False
        obs, info = self.env.reset(seed=seed, options=options)
        return np.append(obs, np.float32(0)), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Gymnasium's step; never ``terminated``, and ``truncated`` at step ``steps``."""
        self._step += 1
        reward, info = 0.0, dict[str, Any]()
        if not self._absorbed:
            obs, reward, self._absorbed, truncated, info = self.env.step(action)
            if not self._absorbed:
                return np.append(obs, np.float32(0)), float(reward), False, truncated, info
        return self._state.copy(), float(reward), False, self._step >= self._steps, info | {ABSORBED: True}


class ActionRepeat(EpisodeCounter):
    """Each action is repeated for ``count`` simulator steps or until the episode ends. Success at any of them is
    success.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], count: int) -> None:
        super().__init__(env)
        self.count = count

    @property
    def simulator_steps(self) -> int:
        """Simulator steps in one step."""
        return self.count

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The last observation and info, and the sum of the rewards."""
        total, successes = 0.0, list[bool]()
        for _ in range(self.count):
            obs, reward, terminated, truncated, info = self.env.step(copy.copy(action))
            total += reward
            if (step_success := interface.success_of(info)) is not None:
                successes.append(step_success)
            if terminated or truncated:
                break
        if successes:
            info = {**info, "success": any(successes)}
        return obs, interface.check_reward(total), terminated, truncated, info
