"""Environments that fail: what is not finite is never passed on, and a failure costs an episode, not the run.

A failure ends the episode with ``info["fault"]``, and the environment is made anew; the step that failed is not to be
stored. After ``LIMIT`` episodes in a row have failed, the first failure is raised.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

from rlhf_bilevel.envs import Counting
from rlhf_bilevel.files import Refused

LIMIT = 10
UNGUARDED = 78  # exit code of a process that would start processes as it is itself being started; EX_CONFIG
START = 120.0  # seconds that a new process may take: simulators are slow to load


class Guard(Counting):
    """An environment that ``make`` makes: one of ``envs.make``, which counts its episodes."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(make())
        self._make, self._failed, self._first = make, 0, ""
        self._obs = np.zeros(())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        while True:
            number = self.episode
            try:
                self._obs, info = self.env.reset(seed=seed, options=options)
                _refuse(self._obs, 0.0)
                return self._obs, info
            except (Exception, SystemExit) as error:
                self._renew(error, number + 1)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
            _refuse(obs, reward)
        except (Exception, SystemExit) as error:
            self._renew(error, self.episode)
            return self._obs, 0.0, False, True, {"fault": str(error)}
        self._obs = obs
        if terminated or truncated:
            self._failed = 0
        return obs, reward, terminated, truncated, info

    def _renew(self, error: BaseException, episode: int) -> None:
        """Goes on with ``episode`` in a new environment."""
        self._failed += 1
        if self._failed == 1:
            self._first = traceback.format_exc()
        if self._failed >= LIMIT:
            raise RuntimeError(f"{LIMIT} episodes in a row failed; the first of them:\n{self._first}") from error
        warnings.warn(f"episode {episode - 1} is cut: {type(error).__name__}: {error}", stacklevel=3)
        with contextlib.suppress(Exception, SystemExit):  # it has failed already
            self.env.close()
        self.env = self._make()
        self.env.episode = episode


class NotFinite(ArithmeticError):
    pass


def _refuse(obs: np.ndarray, reward: float) -> None:
    if not np.isfinite(obs).all():
        raise NotFinite(f"the observation holds {obs[~np.isfinite(obs)][0]}")
    if not np.isfinite(reward):
        raise NotFinite(f"the reward is {reward}")


class Isolated(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment in a process of its own, so that one that ends its process or hangs can be replaced.

    ``make`` makes one of ``env_id`` that counts its episodes; ``timeout`` is in seconds, for a step or a reset.
    """

    def __init__(self, make: Callable[[], Any], env_id: str, timeout: float) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit(UNGUARDED)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._timeout = timeout
        # The new process does not know what was registered in this one
        what = cloudpickle.dumps((make, gymnasium.registry.get(env_id)))
        self._process = context.Process(target=_serve, args=(theirs, what), daemon=True)
        self._process.start()
        theirs.close()
        self.observation_space, self.action_space = self._receive(START)
        self.episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        told = self._ask("reset", self.episode, options)
        self.episode += 1
        return told

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._ask("step", action)

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _ask(self, *request: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # the process has ended: that is what will be received
            self._pipe.send(request)
        return self._receive(self._timeout)

    def _receive(self, timeout: float) -> Any:
        if not self._pipe.poll(timeout):
            raise TimeoutError(f"the environment has not answered within {timeout:g} s")
        try:
            told, failure = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            if self._process.exitcode == UNGUARDED:
                guard = 'if __name__ == "__main__":'
                raise Refused(f"env_timeout: a new process imports the program anew: train under {guard}") from None
            raise RuntimeError(f"the environment's process ended with code {self._process.exitcode}") from None
        if failure:
            raise RuntimeError(failure)
        return told


def _serve(pipe: Connection, what: bytes) -> None:
    """The process of ``Isolated``: it ends with the pipe, or after the first failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard is for the run's own process
    make, spec = cloudpickle.loads(what)
    if spec is not None:
        gymnasium.registry.setdefault(spec.id, spec)
    try:
        env = make()
        told: Any = env.observation_space, env.action_space
        while True:
            pipe.send((told, None))
            name, *arguments = pipe.recv()
            if name == "reset":
                env.episode, options = arguments
                told = env.reset(options=options)
            else:
                told = env.step(*arguments)
    except EOFError:
        return
    except Exception:
        pipe.send((None, traceback.format_exc()))
