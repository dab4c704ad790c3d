"""Environments that fail: what is not finite is never passed on, and a failure costs an episode, not the run.

A failure ends the episode with ``info[FAULT]``, and the environment is made anew; the step that failed is not to be
stored. After ``LIMIT`` episodes in a row have failed, the first failure is raised. What breaks Gymnasium's interface
before the first sound step is raised at once: a new environment would do the same.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_bilevel.envs.foreign import _line, _trace
from rlhf_bilevel.envs.interface import FAULT, InvalidEnvError, NotFiniteError
from rlhf_bilevel.envs.wrappers import EpisodeCounter
from rlhf_bilevel.errors import UserError

LIMIT = 10


class FaultTolerantEnv(EpisodeCounter):
    """An environment that ``make`` makes: one of ``envs.make``, which counts its episodes and checks what it passes on.

    Raises UserError where the environment breaks Gymnasium's interface, RuntimeError where its code fails too often.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(make())
        self._make, self._failed, self._sound = make, 0, False
        self._first: Exception = RuntimeError()
        self._obs = np.zeros(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        while True:
            number = self.episode
            try:
                self._obs, info = self.env.reset(seed=seed, options=options)
                return self._obs, info
            except (Exception, SystemExit) as error:
                self._renew(error, number + 1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except (Exception, SystemExit) as error:
            self._renew(error, self.episode)
            return self._obs, 0.0, False, True, {FAULT: str(error)}
        self._obs, self._sound = obs, True
        if terminated or truncated:
            self._failed = 0
        return obs, reward, terminated, truncated, info

    def _renew(self, error: BaseException, episode: int) -> None:
        """Goes on with ``episode`` in a new environment."""
        self._count(error)
        warnings.warn(f"episode {episode - 1} is cut: {_line(error)}", stacklevel=3)
        with contextlib.suppress(Exception, SystemExit):  # it has failed already
            self.env.close()
        while True:
            try:
                self.env = self._make()
                break
            except (Exception, SystemExit) as another:
                self._count(another)
                warnings.warn(f"the environment could not be made anew: {_line(another)}", stacklevel=3)
        self.env.episode = episode

    def _count(self, error: BaseException) -> None:
        """Raises where there is no use in going on."""
        if isinstance(error, UserError) and not isinstance(error, NotFiniteError) and not self._sound:
            raise error
        self._failed += 1
        if self._failed == 1:
            told = f"{LIMIT} episodes in a row failed; the first of them:"
            unfit = isinstance(error, InvalidEnvError)
            self._first = UserError(f"{told} {error}") if unfit else RuntimeError(f"{told}\n{_trace(error)}")
        if self._failed >= LIMIT:
            raise self._first from error
