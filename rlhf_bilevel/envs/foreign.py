"""Code of others, such as a user's environment: how it is called, and how its faults are told in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.files import one_line


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Code of others, which may raise anything: UserError in one line, with what to install where the error says so."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError):
            raise
        told = one_line(error)
        if isinstance(error, ModuleNotFoundError) and error.name and error.name not in what:
            told += f"; pip install {error.name.partition('.')[0]}"
        elif not isinstance(error, ImportError | gymnasium.error.Error):
            last = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]  # Gymnasium raises it again
            told = f"{type(error).__name__}: {told} ({last.filename}, line {last.lineno})"
        raise UserError(f"{what}: {told}") from error


UNGUARDED = 78  # exit code of a process that would start processes as it is itself being started; EX_CONFIG


class RemoteError(RuntimeError):
    """A failure in another process: what it was, and its traceback there."""

    def __str__(self) -> str:
        return self.args[0]


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, RemoteError) else f"{type(error).__name__}: {error}"


def _trace(error: BaseException) -> str:
    return error.args[1] if isinstance(error, RemoteError) else "".join(traceback.format_exception(error))
