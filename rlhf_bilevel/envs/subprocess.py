"""An environment in its own process, which may hang or die without harm to the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter, methodcaller
from typing import Any

import gymnasium
import numpy as np

from rlhf_bilevel.utils.child import START, Child

DESCRIBED = attrgetter("observation_space", "action_space", "limit", "simulator_steps")


class SubprocessEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment in its own process, so that one that hangs or ends its process can be replaced.

    ``make`` makes an environment of ``env_id`` that counts its episodes. ``timeout`` is the most seconds for a step or
    a reset: TimeoutError after that. Warnings of the process are repeated here.
    """

    def __init__(self, make: Callable[[], Any], env_id: str, timeout: float) -> None:
        self._timeout = timeout
        self._child = Child(registered(make, env_id), what="the environment", option="env_timeout")
        try:
            spaces_and_limits = self._child.call(DESCRIBED, timeout=START)
            self.observation_space, self.action_space, self.limit, self.simulator_steps = spaces_and_limits
        except BaseException:
            self.close()
            raise
        self.episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts episode ``self.episode``; ``seed`` is ignored."""
        result = self._child.call(_reset, self.episode, options, timeout=self._timeout)
        self.episode += 1
        return result

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Gymnasium's step. TimeoutError if it takes too long, RuntimeError if the process ended."""
        return self._child.call(methodcaller("step", action), timeout=self._timeout)

    def close(self) -> None:
        """Kills the process."""
        self._child.close()


def registered(make: Callable[[], Any], env_id: str) -> Callable[[], Any]:
    """``make`` for another process, which does not have the environments that were registered in this one."""
    return partial(_make_registered, make, gymnasium.registry.get(env_id))


def _make_registered(make: Callable[[], Any], spec: Any) -> Any:
    if spec is not None:
        gymnasium.registry.setdefault(spec.id, spec)
    return make()


def _reset(env: Any, episode: int, options: dict[str, Any] | None) -> Any:
    env.episode = episode
    return env.reset(options=options)
