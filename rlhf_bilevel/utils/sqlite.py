"""SQLite files from a stranger: only known tables are allowed, and reading leaves no trace in their folder.

A view in place of a table can run a query of the stranger's that never ends; a check or an index can run a function. A
journal can name another journal anywhere, which SQLite then removes.
"""

from __future__ import annotations

import math
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from io import SEEK_END
from pathlib import Path
from tempfile import TemporaryDirectory

from rlhf_bilevel.errors import CorruptFileError, UserError, WriteError
from rlhf_bilevel.utils.files import check_plain_file, naming_write_errors, open_to_read

DISK = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
}  # fmt: skip
"""Error codes that do not mean that a file's content is damaged."""
BESIDE = "-wal", "-shm", "-journal"  # name endings of the files that SQLite keeps beside a database
NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")  # last bytes of a journal that names another one
STEPS = 10**6  # most steps of SQLite's virtual machine to list the tables
TRIES = 20


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """SQLite's errors become CorruptFileError, or WriteError if the disk is at fault; both name the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in DISK:
            raise WriteError(f"{path} cannot be used: {error}") from error
        raise CorruptFileError(f"{path} is damaged: {error}") from None


def check_files(path: Path) -> None:
    """UserError if SQLite would follow a link, wait for a pipe, or remove another file."""
    for file in (path, *(path.with_name(path.name + end) for end in BESIDE)):
        check_plain_file(file)
    journal = path.with_name(path.name + "-journal")
    try:
        with open_to_read(journal, math.inf) as data:
            data.seek(max(0, data.seek(0, SEEK_END) - len(NAMES_ANOTHER)))
            names_another = data.read() == NAMES_ANOTHER
    except UserError:
        if not journal.exists():  # there is none, or another process has just ended its transaction
            return
        raise
    if names_another:
        raise UserError(f"{journal} names a journal of another database: it is neither read nor written")


def table_definitions(connection: sqlite3.Connection) -> dict[str, str]:
    """How each table, index, view and trigger of a database is defined, without spaces and quotes."""
    connection.set_progress_handler(lambda: 1, STEPS)
    try:
        rows = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
    finally:
        connection.set_progress_handler(None, 0)
    return {
        str(name): re.sub(r"[\s\"'`\[\]]|IF NOT EXISTS", "", str(sql or "")).lower()
        for name, sql in rows
        if sql or not str(name).startswith("sqlite_autoindex_")
    }


def check_schema(connection: sqlite3.Connection, path: Path, allowed: Mapping[str, Collection[str]]) -> None:
    """CorruptFileError unless the file is valid and has only ``allowed`` definitions (see ``table_definitions``)."""
    size = sum(file.stat().st_size for file in (path, path.with_name(path.name + "-wal")) if file.exists())
    longest = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(2**20, size))  # longer values are refused
    with naming_errors(path):
        for name, definition in table_definitions(connection).items():
            if definition not in allowed.get(name, ()):
                raise CorruptFileError(
                    f"{path} is damaged: {name[:50]!r} in it is none of its tables, or of another form"
                )
        fault = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if fault != "ok":
        raise CorruptFileError(f"{path} is damaged: {fault}")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)


@contextmanager
def read_only_copy(path: Path) -> Iterator[Path]:
    """A copy of the database, for as long as this is open; SQLite writes even when it only reads.

    The database may be in use. UserError if it changes all the time.
    """
    check_files(path)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for _ in range(TRIES):
            before = _state(path)
            for end in ("", "-wal", "-journal"):
                target = copy.with_name(copy.name + end)
                target.unlink(missing_ok=True)
                if (source := path.with_name(path.name + end)).exists():
                    with naming_write_errors(target), open_to_read(source, math.inf) as file, target.open("xb") as to:
                        shutil.copyfileobj(file, to)
            if _state(path) == before:
                yield copy
                return
        raise UserError(f"{path} is being written to all the time: try again later")


def _state(path: Path) -> list[tuple[int, int, int] | None]:
    files = [path.with_name(path.name + end) for end in ("", "-wal", "-journal")]
    statuses = [file.stat() if file.exists() else None for file in files]
    return [(status.st_ino, status.st_size, status.st_mtime_ns) if status else None for status in statuses]
