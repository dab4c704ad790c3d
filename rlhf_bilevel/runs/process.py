"""What a run needs of the process that it is in, whatever else the program does there."""

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

_trains = threading.Lock()


@contextmanager
def training() -> Iterator[None]:
    """While this process trains. UserError where it does already, in another thread or around this call.

    Random numbers are drawn from generators that a process has once (Python's, NumPy's, PyTorch's).
    """
    if not _trains.acquire(blocking=False):
        raise UserError("this process trains already: train one run after another, or each in a process of its own")
    try:
        with ordinary_torch():
            yield
    finally:
        _trains.release()


@contextmanager
def ordinary_torch() -> Iterator[None]:
    """Gradients, float32 and the CPU as PyTorch has them when it is imported; afterwards what the program chose."""
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
def generators_kept() -> Iterator[None]:
    """The process's generators go on afterwards as if nothing had been drawn: SB3 seeds them for each new model."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C waits until this is left: what it would cut here is a lock that stays closed, or half a file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda *told: came.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


class Interrupts:
    """Ctrl-C while this is entered: ``check`` raises KeyboardInterrupt again where other code has swallowed it.

    Python drops an exception that strikes while a finalizer runs, and some libraries catch all of them.
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
        if self._struck:
            raise KeyboardInterrupt

    def _strike(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before(number, frame)
        except KeyboardInterrupt:  # a handler of the program's own may do something else
            self._struck = True
            raise
