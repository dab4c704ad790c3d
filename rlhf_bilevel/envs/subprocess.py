"""An environment in a process of its own, which may hang or die without harm to the run."""

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

from rlhf_bilevel.envs.foreign import UNGUARDED, RemoteError, _line
from rlhf_bilevel.errors import UserError

START = 120.0  # seconds that a new process may take: simulators are slow to load


class SubprocessEnv(gymnasium.Env[np.ndarray, np.ndarray]):
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
            self.observation_space, self.action_space, self.limit, self.simulator_steps = self._receive(START)
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
        told: Any = env.observation_space, env.action_space, env.limit, env.simulator_steps
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
