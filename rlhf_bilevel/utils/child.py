"""An object in a process of its own, which may hang or die without harm to this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from rlhf_bilevel.errors import UserError

START = 120.0  # seconds until a new process must be ready: simulators are slow to load
GRACE = 5.0  # seconds for a process with children of its own to end them
UNGUARDED = 78  # exit code of a child process that tries to start processes while it starts (EX_CONFIG)


class RemoteError(RuntimeError):
    """A failure in another process: its message, and its traceback there."""

    def __str__(self) -> str:
        return self.args[0]


class ProcessEndedError(RuntimeError):
    """A process has ended before it answered."""


def error_line(error: BaseException) -> str:
    """An error's type and message."""
    return str(error) if isinstance(error, RemoteError) else f"{type(error).__name__}: {error}"


def error_traceback(error: BaseException) -> str:
    """An error's traceback; of a ``RemoteError``, the one from the other process."""
    return error.args[1] if isinstance(error, RemoteError) else "".join(traceback.format_exception(error))


def check_guarded() -> None:
    """Ends this process if it is a child that still imports the program, which would start children in turn."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(UNGUARDED)


class Child:
    """The object that ``make(*arguments)`` returns in a new process. Functions are called there, with it first.

    ``what`` it is, and the ``option`` that asked for it, are for messages. ``make`` may be any function; ``arguments``
    go as ``multiprocessing`` sends them, so that memory that is shared stays shared. A child that is a ``parent`` may
    start processes. It ends after a failure. Its warnings are repeated here.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, what: str, option: str, parent: bool = False) -> None:
        check_guarded()
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._what, self._option, self._parent = what, option, parent
        answer = (child_pipe, cloudpickle.dumps(make), arguments)
        self._process = context.Process(target=_serve, args=answer, daemon=not parent)
        with _without_interrupts():
            self._process.start()
        child_pipe.close()

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> Any:
        """``function(object, *arguments)`` there. See ``receive``."""
        self.send(function, *arguments)
        return self.receive(timeout)

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begins ``function(object, *arguments)`` there. Its result is the next that ``receive`` gives."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended: receiving will say so
            self._pipe.send((function, *arguments))

    @property
    def ready(self) -> bool:
        """Whether ``receive`` would not wait."""
        return self._pipe.poll(0)

    def receive(self, timeout: float | None = None) -> Any:
        """The next result, in the order of ``send``. Raises what was raised there.

        TimeoutError after ``timeout`` seconds (None: never), ProcessEndedError if the process ended.
        """
        try:
            if not self._pipe.poll(timeout):
                raise TimeoutError(f"{self._what} has not answered within {timeout:g} s")
            result, failure, warned = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            if self._process.exitcode == UNGUARDED:
                guard = 'if __name__ == "__main__":'
                raise UserError(
                    f"{self._option}: a new process imports the program anew: train under {guard}"
                ) from None
            raise ProcessEndedError(f"{self._what}'s process ended with code {self._process.exitcode}") from None
        for line in warned:
            warnings.warn(line, stacklevel=4)
        if failure:
            raise failure
        return result

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._pipe.close()
        if self._parent:
            self._process.terminate()
            self._process.join(GRACE)
        self._process.kill()
        self._process.join()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process that is started inside never gets Ctrl-C, whatever its code asks for; here Ctrl-C only comes later."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started by the first process inside, it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, make_bytes: bytes, arguments: tuple[Any, ...]) -> None:
    """What the process does. It ends when the pipe closes, on SIGTERM, and after the first failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run's process
    with contextlib.suppress(KeyboardInterrupt):
        # No environment takes a KeyboardInterrupt for its own
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            _answer(pipe, make_bytes, arguments)
        finally:  # it ends already: a SIGTERM that comes before this line is suppressed above
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _answer(pipe: Connection, make_bytes: bytes, arguments: tuple[Any, ...]) -> None:
    """Makes what is served, and answers until the pipe closes or something fails."""
    warned: list[str] = []
    warnings.showwarning = lambda message, *_: warned.append(str(message))
    try:
        served = cloudpickle.loads(make_bytes)(*arguments)
        while True:
            function, *given = pipe.recv()
            _send(pipe, function(served, *given), warned)
            warned.clear()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except UserError as error:
        _fail(pipe, error, warned)
    except Exception as error:
        _fail(pipe, RemoteError(error_line(error), error_traceback(error)), warned)


def _fail(pipe: Connection, failure: Exception, warned: list[str]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        pipe.send((None, failure, warned))


def _send(pipe: Connection, result: Any, warned: list[str]) -> None:
    """Sends a result. Of a dict that ends a tuple, as an environment's info, what cannot be pickled is left out."""
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
