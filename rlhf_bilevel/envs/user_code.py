"""Code of others, such as a user's environment: how it is called, and how its errors are shown in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.files import one_line


@contextmanager
def faults_as_user_errors(what: str) -> Iterator[None]:
    """Any error of the code inside becomes a UserError in one line: ``what``, the error, and what to install if it says
    so.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError):
            raise
        message = one_line(error)
        if isinstance(error, ModuleNotFoundError) and error.name and error.name not in what:
            message += f"; pip install {error.name.partition('.')[0]}"
        elif not isinstance(error, ImportError | gymnasium.error.Error):
            frame = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]  # Gymnasium raises errors again
            message = f"{type(error).__name__}: {message} ({frame.filename}, line {frame.lineno})"
        raise UserError(f"{what}: {message}") from error
