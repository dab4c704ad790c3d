"""The folder of a new run: empty, and taken by one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import AlreadyExistsError, UserError
from rlhf_bilevel.runs import fork
from rlhf_bilevel.runs.process import delayed_interrupts


def check_vacant(out: Path) -> None:
    """AlreadyExistsError if the folder of a new run holds something."""
    if not RunFolder(out).vacant:
        raise AlreadyExistsError(f"{out} exists already and is not overwritten")


@contextmanager
def claim_folder(out: Path) -> Iterator[FileLock]:
    """Creates the folder of a new run and locks it. The lock is released if the code inside fails.

    LockedError if another process has it; AlreadyExistsError if another process has begun and ended a run there.
    """
    with delayed_interrupts():
        out.mkdir(parents=True, exist_ok=True)
        lock = RunFolder(out).lock()
    try:
        check_vacant(out)
        if RunFolder(out).unfinished_fork:  # of a process that was killed
            fork.undo(out)
        yield lock
    except BaseException:
        lock.release()
        raise


def check_outside(out: Path | None, source: Path) -> None:
    """UserError if ``out`` lies inside ``source``, the folder of a run that may remove it with its checkpoints."""
    if out and source.resolve() in out.resolve().parents:
        raise UserError(f"{out} is inside {source}, which stays as it is: choose a folder outside")
