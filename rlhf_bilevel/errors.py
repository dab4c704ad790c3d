"""The errors of the library. What a user can mend is a ``UserError``; any other error is a fault of our own."""

from __future__ import annotations


class UserError(ValueError):
    """What the user asked for cannot be done. The message is one line that says why."""


class CorruptFileError(UserError):
    """A file does not hold what was written to it."""


class LockedError(UserError):
    """Another process is using what was asked for."""


class AlreadyExistsError(UserError, FileExistsError):
    """There is already something in the place of a new file or folder."""


class WriteError(UserError, OSError):
    """A file cannot be written: the disk is full, read-only or gone."""
