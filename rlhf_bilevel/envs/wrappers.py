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
        self.env.episode = number

    @property
    def limit(self) -> int | None:
        """Simulator steps after which an episode ends at the latest; None where that is not known."""
        return self.env.limit

    @property
    def simulator_steps(self) -> int:
        """In a step of this environment."""
        return self.env.simulator_steps


class AbsorbingState(EpisodeCounter):
    """Episodes that end for good stay in an absorbing state until step ``steps``, so that all are equally long.

    Observations have an entry more at their end, 0 until then. The absorbing state is 0 but for this entry, which is 1;
    whatever is done there, it stays and pays nothing. ``info[ABSORBED]`` is set from the step on that leads there.
    [Kostrikov et al., ICLR 2019, "Discriminator-Actor-Critic"]
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
        self._step, self._absorbed = 0, False
        obs, info = self.env.reset(seed=seed, options=options)
        return np.append(obs, np.float32(0)), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        reward, info = 0.0, dict[str, Any]()
        if not self._absorbed:
            obs, reward, self._absorbed, truncated, info = self.env.step(action)
            if not self._absorbed:
                return np.append(obs, np.float32(0)), float(reward), False, truncated, info
        return self._state.copy(), float(reward), False, self._step >= self._steps, info | {ABSORBED: True}


class ActionRepeat(EpisodeCounter):
    """Each action acts for ``count`` steps, or until the episode ends; success at any of them is success."""

    def __init__(self, env: gymnasium.Env[Any, Any], count: int) -> None:
        super().__init__(env)
        self.count = count

    @property
    def simulator_steps(self) -> int:
        return self.count

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total, success = 0.0, list[bool]()
        for _ in range(self.count):
            obs, reward, terminated, truncated, info = self.env.step(copy.copy(action))
            total += reward
            if (found := interface.succeeded(info)) is not None:
                success.append(found)
            if terminated or truncated:
                break
        if success:
            info = {**info, "success": any(success)}
        return obs, interface.reward(total), terminated, truncated, info
