"""The errors of the library. What a user can mend is a ``UserError``; any other error is a fault of our own."""

from __future__ import annotations


class UserError(ValueError):
    """What a user asks for cannot be done; the message says why in one line."""


class CorruptFileError(UserError):
    """A file is not what was written."""


class LockedError(UserError):
    """Another process has what is asked for."""


class AlreadyExistsError(UserError, FileExistsError):
    """Where something new was to be made, something is already."""


class WriteError(UserError, OSError):
    """The disk does not take what is written: it is full, read-only or away."""
