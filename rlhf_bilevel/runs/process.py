"""What a run needs from its process, whatever else the program does there."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.child import check_guarded

_trains = threading.Lock()


@contextmanager
def exclusive_training() -> Iterator[None]:
    """Only one run trains in this process at a time: UserError if one is training already.

    Random numbers come from generators that a process has only once (Python's, NumPy's, PyTorch's). A child process of
    a run that comes here because it imports the program anew is ended.
    """
    check_guarded()
    if not _trains.acquire(blocking=False):
        raise UserError("this process trains already: train one run after another, or each in a process of its own")
    try:
        with default_torch():
            yield
    finally:
        _trains.release()


@contextmanager
def default_torch() -> Iterator[None]:
    """Gradients, float32 and the CPU as PyTorch has them at its start; afterwards what the program had chosen."""
    chosen = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(chosen)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Afterwards, the process's generators continue as if nothing had been drawn. SB3 seeds them for each new model."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Ctrl-C waits until this is left: otherwise it could leave a lock taken, or half a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        yield
        return
    signal.signal(signal.SIGINT, lambda *signal_arguments: received.append(signal_arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


class Interrupts:
    """While this is entered, ``check`` raises KeyboardInterrupt again if other code has swallowed it.

    Python drops an exception that is raised while a finalizer runs, and some libraries catch all exceptions.
    """

    def __init__(self) -> None:
        self._struck = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._strike)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.check()

    def check(self) -> None:
        """KeyboardInterrupt if Ctrl-C was pressed."""
        if self._struck:
            raise KeyboardInterrupt

    def _strike(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before(number, frame)
        except KeyboardInterrupt:  # the program's own handler may do something else
            self._struck = True
            raise
