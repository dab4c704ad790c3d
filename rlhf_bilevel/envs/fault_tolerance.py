"""Environments that fail. Numbers that are not finite are never passed on; a failure costs an episode, not the run.

A failure ends the episode with ``info[FAULT]``, and the environment is made anew. The step that failed must not be
stored. When ``LIMIT`` episodes in a row have failed, the first failure is raised. An environment that breaks
Gymnasium's interface before its first valid step is refused at once, as a new one would do the same.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_bilevel.envs.interface import FAULT, InvalidEnvError, NotFiniteError
from rlhf_bilevel.envs.wrappers import EpisodeCounter
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.child import error_line, error_traceback

LIMIT = 10  # failed episodes in a row


class FaultTolerantEnv(EpisodeCounter):
    """The environment that ``make`` returns (see ``registration.make``), replaced by a new one when it fails.

    Raises UserError if it breaks Gymnasium's interface, RuntimeError if its own code fails ``LIMIT`` times in a row.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(make())
        self._make, self._failures, self._has_stepped = make, 0, False
        self._first_failure: Exception = RuntimeError()
        self._obs = np.zeros(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts the next episode that can be started."""
        while True:
            number = self.episode
            try:
                self._obs, info = self.env.reset(seed=seed, options=options)
                return self._obs, info
            except (Exception, SystemExit) as error:
                self._renew(error, number + 1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Gymnasium's step. After a failure: the last observation, reward 0, truncated, reason in ``info[FAULT]``."""
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except (Exception, SystemExit) as error:
            self._renew(error, self.episode)
            return self._obs, 0.0, False, True, {FAULT: str(error)}
        self._obs, self._has_stepped = obs, True
        if terminated or truncated:
            self._failures = 0
        return obs, reward, terminated, truncated, info

    def _renew(self, error: BaseException, episode: int) -> None:
        """Makes the environment anew and continues with ``episode``."""
        self._count(error)
        warnings.warn(f"episode {episode - 1} is cut: {error_line(error)}", stacklevel=3)
        with contextlib.suppress(Exception, SystemExit):  # it has failed already
            self.env.close()
        while True:
            try:
                self.env = self._make()
                break
            except (Exception, SystemExit) as next_error:
                self._count(next_error)
                warnings.warn(f"the environment could not be made anew: {error_line(next_error)}", stacklevel=3)
        self.env.episode = episode

    def _count(self, error: BaseException) -> None:
        """Counts a failure. Raises if it is no use to go on."""
        if isinstance(error, UserError) and not isinstance(error, NotFiniteError) and not self._has_stepped:
            raise error
        self._failures += 1
        if self._failures == 1:
            summary = f"{LIMIT} episodes in a row failed; the first of them:"
            invalid = isinstance(error, InvalidEnvError)
            self._first_failure = (
                UserError(f"{summary} {error}") if invalid else RuntimeError(f"{summary}\n{error_traceback(error)}")
            )
        if self._failures >= LIMIT:
            raise self._first_failure from error
