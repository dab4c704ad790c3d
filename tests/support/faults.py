"""Faults on purpose: processes that are killed at a chosen moment, and a disk that is full at a chosen call."""

import csv
import errno
import os
import signal
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def child(work: Callable[[], Any]) -> int:
    """Runs ``work`` in a copy of this process; its exit status as ``os.waitpid`` gives it: 0, or what ended it."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def kill() -> None:
    """As ``kill -9`` and a power failure end a process: no handler and no ``finally`` runs."""
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def at_call(number: int, fault: Callable[[], None]) -> Iterator[list[str]]:
    """``fault`` happens at the ``number``-th call that changes a file, before it; the calls' names are collected.

    A write happens in two halves, so that a fault may also leave a file cut short.
    """
    calls: list[str] = []

    def meets(name: str) -> None:
        calls.append(name)
        if len(calls) == number:
            fault()

    def patched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            meets(f"{name} {Path(str(args[0])).name if args and not isinstance(args[0], int) else ''}".strip())
            return function(*args, **kwargs)

        return call

    class File:
        def __init__(self, path: Path, mode: str) -> None:
            self._file = original_open(path, mode, buffering=0)
            self._name = Path(path).name

        def write(self, data: bytes) -> int:
            half = len(data) // 2
            self._file.write(data[:half])
            meets(f"write {self._name}")
            self._file.write(data[half:])
            return len(data)

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *raised: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    from rlhf_bilevel.utils import files

    original_open = open
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
            patch.setattr(os, name, patched(getattr(os, name), name))
        patch.setattr(files, "open", File, raising=False)
        yield calls


def corrupted(data: bytes, rng: Any) -> bytes:
    """The bytes with one bit flipped, or cut short."""
    if rng.random() < 0.5:
        return data[: rng.integers(len(data))]
    place = int(rng.integers(len(data)))
    return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]


def tables(path: Path) -> list[list[tuple]]:
    """All that a label log holds, but for the times."""
    with sqlite3.connect(path) as connection:
        return [
            connection.execute("SELECT number, asked, sha256 FROM sessions ORDER BY number").fetchall(),
            connection.execute("SELECT * FROM answers ORDER BY number").fetchall(),
        ]


def logged(out: Path) -> list[dict[str, str]]:
    """What progress.csv holds, but for the wall-clock."""
    if not (out / "progress.csv").exists():
        return []
    with (out / "progress.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "time/fps"} for row in csv.DictReader(file)]


def events(out: Path, key: str) -> list[tuple[int, float]]:
    """Step and value of what TensorBoard's files hold of a metric, in order."""
    accumulator = EventAccumulator(str(out), purge_orphaned_data=False)
    accumulator.Reload()
    return sorted((event.step, event.value) for event in accumulator.Scalars(key))


def same_run(one: Path, other: Path) -> None:
    """Two finished runs have left the same networks, evaluations and labels."""
    for name in ("policy.safetensors", "reward.safetensors", "evaluations.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert tables(one / "labels.sqlite") == tables(other / "labels.sqlite")
