"""Environments that fail: what is not finite is never passed on, and a failure costs an episode, not the run.

A failure ends the episode with ``info[FAULT]``, and the environment is made anew; the step that failed is not to be
stored. After ``LIMIT`` episodes in a row have failed, the first failure is raised. What breaks Gymnasium's interface
before the first sound step is raised at once: a new environment would do the same.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
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
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.interface import FAULT, InvalidEnvError, NotFiniteError

LIMIT = 10
UNGUARDED = 78  # exit code of a process that would start processes as it is itself being started; EX_CONFIG
START = 120.0  # seconds that a new process may take: simulators are slow to load


class Guard(Counting):
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


class RemoteError(RuntimeError):
    """A failure in another process: what it was, and its traceback there."""

    def __str__(self) -> str:
        return self.args[0]


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, RemoteError) else f"{type(error).__name__}: {error}"


def _trace(error: BaseException) -> str:
    return error.args[1] if isinstance(error, RemoteError) else "".join(traceback.format_exception(error))


class Isolated(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment in a process of its own, so that one that ends its process or hangs can be replaced.

    ``make`` makes one of ``env_id`` that counts its episodes; ``timeout`` is in seconds, for a step or a reset. What
    the process warns of is warned of here.
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
        try:
            self.observation_space, self.action_space, self.limit = self._receive(START)
        except BaseException:
            self.close()
            raise
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
            told, failure, said = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            if self._process.exitcode == UNGUARDED:
                guard = 'if __name__ == "__main__":'
                raise UserError(f"env_timeout: a new process imports the program anew: train under {guard}") from None
            raise RuntimeError(f"the environment's process ended with code {self._process.exitcode}") from None
        for line in said:
            warnings.warn(line, stacklevel=4)
        if failure:
            raise failure
        return told


def _serve(pipe: Connection, what: bytes) -> None:
    """The process of ``Isolated``: it ends with the pipe, or after the first failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard is for the run's own process
    said: list[str] = []
    warnings.showwarning = lambda message, *_: said.append(str(message))
    try:
        make, spec = cloudpickle.loads(what)
        if spec is not None:
            gymnasium.registry.setdefault(spec.id, spec)
        env = make()
        told: Any = env.observation_space, env.action_space, env.limit
        while True:
            _send(pipe, told, said)
            said.clear()
            name, *arguments = pipe.recv()
            if name == "reset":
                env.episode, options = arguments
                told = env.reset(options=options)
            else:
                told = env.step(*arguments)
    except EOFError:
        return
    except UserError as error:
        pipe.send((None, error, said))
    except Exception as error:
        pipe.send((None, RemoteError(_line(error), traceback.format_exc()), said))


def _send(pipe: Connection, told: Any, said: list[str]) -> None:
    """What an info holds and no other process can have is left out."""
    try:
        pipe.send((told, None, said))
    except OSError:
        raise
    except Exception:
        info = {key: value for key, value in told[-1].items() if _portable(key) and _portable(value)}
        pipe.send(((*told[:-1], info), None, said))


def _portable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
