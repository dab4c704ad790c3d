"""An environment in its own process, which may hang or die without harm to the run."""

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

from rlhf_bilevel.envs.foreign import UNGUARDED, RemoteError, error_line
from rlhf_bilevel.errors import UserError

START = 120.0  # seconds until a new process must be ready: simulators are slow to load


class SubprocessEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment in its own process, so that one that hangs or ends its process can be replaced.

    ``make`` makes an environment of ``env_id`` that counts its episodes. ``timeout`` is the most seconds for a step or
    a reset: TimeoutError after that. Warnings of the process are repeated here.
    """

    def __init__(self, make: Callable[[], Any], env_id: str, timeout: float) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit(UNGUARDED)
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._timeout = timeout
        # The new process does not have the environments registered in this one
        payload = cloudpickle.dumps((make, gymnasium.registry.get(env_id)))
        self._process = context.Process(target=_serve, args=(child_pipe, payload), daemon=True)
        self._process.start()
        child_pipe.close()
        try:
            self.observation_space, self.action_space, self.limit, self.simulator_steps = self._receive(START)
        except BaseException:
            self.close()
            raise
        self.episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts episode ``self.episode``; ``seed`` is ignored."""
        result = self._ask("reset", self.episode, options)
        self.episode += 1
        return result

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Gymnasium's step. TimeoutError if it takes too long, RuntimeError if the process ended."""
        return self._ask("step", action)

    def close(self) -> None:
        """Kills the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def _ask(self, *request: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):  # the process has ended: receiving will say so
            self._pipe.send(request)
        return self._receive(self._timeout)

    def _receive(self, timeout: float) -> Any:
        if not self._pipe.poll(timeout):
            raise TimeoutError(f"the environment has not answered within {timeout:g} s")
        try:
            result, failure, warned = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            if self._process.exitcode == UNGUARDED:
                guard = 'if __name__ == "__main__":'
                raise UserError(f"env_timeout: a new process imports the program anew: train under {guard}") from None
            raise RuntimeError(f"the environment's process ended with code {self._process.exitcode}") from None
        for line in warned:
            warnings.warn(line, stacklevel=4)
        if failure:
            raise failure
        return result


def _serve(pipe: Connection, payload: bytes) -> None:
    """The child process of ``SubprocessEnv``. It ends when the pipe closes, or after the first failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run's process
    warned: list[str] = []
    warnings.showwarning = lambda message, *_: warned.append(str(message))
    try:
        make, spec = cloudpickle.loads(payload)
        if spec is not None:
            gymnasium.registry.setdefault(spec.id, spec)
        env = make()
        result: Any = env.observation_space, env.action_space, env.limit, env.simulator_steps
        while True:
            _send(pipe, result, warned)
            warned.clear()
            name, *arguments = pipe.recv()
            if name == "reset":
                env.episode, options = arguments
                result = env.reset(options=options)
            else:
                result = env.step(*arguments)
    except EOFError:
        return
    except UserError as error:
        pipe.send((None, error, warned))
    except Exception as error:
        pipe.send((None, RemoteError(error_line(error), traceback.format_exc()), warned))


def _send(pipe: Connection, result: Any, warned: list[str]) -> None:
    """Sends a result. Entries of its info that cannot be pickled are left out."""
    try:
        pipe.send((result, None, warned))
    except OSError:
        raise
    except Exception:
        info = {key: value for key, value in result[-1].items() if _can_be_pickled(key) and _can_be_pickled(value)}
        pipe.send(((*result[:-1], info), None, warned))


def _can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
