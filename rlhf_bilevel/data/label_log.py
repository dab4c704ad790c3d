"""The labels that training has used, in the order in which it did: one SQLite file, readable with any tool.

    sessions(number, asked, answered_at, sha256, asked_at)  a row for each time the teacher was asked
    answers(number, session, label, first, second)  label 1: first better, 0: second, .5: tie; segments as safetensors
    skipped(number, session, first, second)         the pairs that the teacher was asked about and left out

Times are seconds since 1970; sha256 is that of a session's answers, then of what was left out. A session is on the
disk, all of it or none, before training sees an answer (write-ahead log, synchronous=FULL). A log that was begun before
there was ``asked_at`` and ``skipped`` is read, with neither; one of a later form is refused.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save as to_bytes

from rlhf_bilevel.data.answers import answered, checked, nothing
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.types import Preferences, Queries, Segments, Teacher
from rlhf_bilevel.utils.files import tensors
from rlhf_bilevel.utils.sqlite import check, copied, named, safe, tables

FORM = 2  # 1 knew neither when a session was asked nor what was skipped
SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    number INTEGER PRIMARY KEY, asked INTEGER NOT NULL, answered_at REAL NOT NULL, sha256 BLOB NOT NULL, asked_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions, label REAL NOT NULL,
    first BLOB NOT NULL, second BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS skipped (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions, first BLOB NOT NULL, second BLOB NOT NULL
) STRICT;
"""
COLUMNS = ("number", "asked", "answered_at", "sha256", "asked_at")
SEGMENT = ("obs", "act", "truth")  # names in the file of the columns of ``Segments``
Pair = tuple[bytes, bytes]
Answer = tuple[float, bytes, bytes]


class Session(NamedTuple):
    asked: int
    asked_at: float | None
    answered_at: float
    answers: list[Answer]
    skipped: list[Pair]


class LabelLog:
    """Sessions by number, from 0 on. Opening it makes the file, and ``told`` is its name in messages.

    CorruptFileError where the file is not what was written, UserError where it cannot be read or written.
    """

    def __init__(self, path: Path, told: Path | None = None) -> None:
        self.path = told or path
        safe(path)
        with named(self.path):
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            with named(self.path):
                self._open()
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA trusted_schema=OFF")
        (form,) = execute("PRAGMA user_version").fetchone()
        if form > FORM:
            raise UserError(f"{self.path} has the form {form}, and this version reads forms up to {FORM}: update it")
        check(self._connection, self.path, _known())
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            execute(f"PRAGMA {pragma}")
        self._connection.executescript(SCHEMA)
        if "asked_at" not in [row[1] for row in execute("PRAGMA table_info(sessions)")]:
            execute("ALTER TABLE sessions ADD COLUMN asked_at REAL")
        execute(f"PRAGMA user_version = {FORM}")

    @classmethod
    @contextmanager
    def copy(cls, path: Path) -> Iterator[LabelLog]:
        """To be read only: nothing in its folder changes. Raises as opening it, and UserError where there is none."""
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        with copied(path) as copy, closing(cls(copy, path)) as log:
            yield log

    def __len__(self) -> int:
        return self._connection.execute("SELECT count(*) FROM sessions").fetchone()[0]

    def append(
        self, asked: int, answers: Preferences, skipped: Sequence[Pair] = (), asked_at: float | None = None
    ) -> None:
        """The next session: ``asked`` queries, what was answered and what left out. Committed when this returns.

        WriteError, an OSError, where the disk does not take it; then nothing of it is kept.
        """
        rows: list[Answer] = [
            (label, *pair) for label, pair in zip(answers.label.tolist(), pairs(answers), strict=True)
        ]
        execute, number = self._connection.execute, len(self)
        session = number, asked, time.time(), _sha256(rows, skipped), asked_at
        with named(self.path):
            execute("BEGIN IMMEDIATE")
            try:
                execute(
                    "INSERT INTO sessions (number, asked, answered_at, sha256, asked_at) VALUES (?, ?, ?, ?, ?)",
                    session,
                )
                for row in rows:
                    execute("INSERT INTO answers (session, label, first, second) VALUES (?, ?, ?, ?)", (number, *row))
                for pair in skipped:
                    execute("INSERT INTO skipped (session, first, second) VALUES (?, ?, ?)", (number, *pair))
                execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    execute("ROLLBACK")
                raise

    def __getitem__(self, number: int) -> Session:
        """A session, its answers in their order; CorruptFileError where they are not as they were written."""
        execute = self._connection.execute
        with named(self.path):
            asked, asked_at, answered_at, expected = execute(
                "SELECT asked, asked_at, answered_at, sha256 FROM sessions WHERE number = ?", (number,)
            ).fetchone() or (0, None, 0.0, b"")
            answers, skipped = (
                execute(f"SELECT {columns} WHERE session = ? ORDER BY number", (number,)).fetchall()
                for columns in ("label, first, second FROM answers", "first, second FROM skipped")
            )
        if _sha256(answers, skipped) != expected:
            raise CorruptFileError(
                f"{self.path} is damaged: the answers of session {number} are not as they were written"
            )
        return Session(asked, asked_at, answered_at, answers, skipped)

    def sha256(self, sessions: int) -> str:
        """Of all that the first so many sessions hold."""
        with named(self.path):
            rows = self._connection.execute(
                "SELECT sha256 FROM sessions WHERE number < ? ORDER BY number", (sessions,)
            ).fetchall()
        return hashlib.sha256(b"".join(digest for (digest,) in rows)).hexdigest()

    def used(self, sessions: Sequence[int], sha256: str) -> list[Preferences | None]:
        """The first so many answers of each of the first sessions; None for one without any.

        CorruptFileError where these are not the sessions of that ``sha256``, or not as they were written.
        """
        if len(sessions) > (known := len(self)):
            raise CorruptFileError(f"{self.path} holds {known} sessions and {len(sessions)} were used")
        if self.sha256(len(sessions)) != sha256:
            raise CorruptFileError(
                f"{self.path} is damaged: its first {len(sessions)} sessions are not those that the checkpoint knew"
            )
        rows = [self[number].answers[:count] for number, count in enumerate(sessions)]
        return [preferences(answers) if answers else None for answers in rows]

    def write(self, path: Path, sessions: int) -> None:
        """A new log of the first so many sessions."""
        with named(path), closing(sqlite3.connect(path)) as target:
            self._connection.backup(target)
            for table, number_of in (("answers", "session"), ("skipped", "session"), ("sessions", "number")):
                target.execute(f"DELETE FROM {table} WHERE {number_of} >= ?", (sessions,))
            target.commit()
            target.execute("VACUUM")

    def close(self) -> None:
        self._connection.close()


class Recorded:
    """A teacher whose answers are on the disk before they are used, and come from there when a run repeats a session.

    ``session`` is the number of the next one; set it to resume.
    """

    def __init__(self, teacher: Teacher, log: LabelLog, session: int = 0) -> None:
        self._teacher, self._log, self.session = teacher, log, session

    def __call__(self, queries: Queries) -> Preferences:
        number, self.session = self.session, self.session + 1
        if number < len(self._log):
            rows = self._log[number].answers
            try:
                return checked(preferences(rows), queries) if rows else nothing(queries)
            except (TypeError, ValueError) as error:
                raise CorruptFileError(f"{self._log.path}: session {number} is of another run: {error}") from None
        asked_at = time.time()
        answers = answered(self._teacher, queries)
        skipped = Counter(pairs(queries)) - Counter(pairs(answers))  # a late answer is to a pair of an earlier session
        self._log.append(len(queries.first.env_reward), answers, list(skipped.elements()), asked_at)
        return answers


def sessions(path: Path) -> Iterator[Preferences | None]:
    """The answers in a run's label log, a session after the other, as they were given; None for one without any.

    UserError where there is no such file; CorruptFileError where it is not what was written.
    """
    with LabelLog.copy(path) as log:
        for number in range(len(log)):
            rows = log[number].answers
            yield preferences(rows) if rows else None


def count(path: Path) -> int:
    """How many sessions a label log holds that this process may have open."""
    if not path.exists():
        return 0
    with closing(LabelLog(path)) as log:
        return len(log)


def preferences(rows: Sequence[tuple[float, bytes, bytes]]) -> Preferences:
    """Of labels and their segments as ``pairs`` gives them; at least one."""
    label, first, second = zip(*rows, strict=True)
    return Preferences(stacked(first), stacked(second), torch.tensor(label))


def pairs(asked: Queries | Preferences) -> list[Pair]:
    """Each pair's segments as safetensors; the same segments give the same bytes."""
    first, second = (
        [
            to_bytes({name: column[i].contiguous() for name, column in zip(SEGMENT, segments, strict=True)})
            for i in range(len(segments.env_reward))
        ]
        for segments in asked[:2]
    )
    return list(zip(first, second, strict=True))


def stacked(rows: Iterable[bytes]) -> Segments:
    """Segments (B, T, ...) of what ``pairs`` gave, B >= 1. CorruptFileError where it is something else."""
    parts = [tensors(row, "a segment") for row in rows]
    try:
        return Segments(*(torch.stack([part[name] for part in parts]) for name in SEGMENT))
    except (KeyError, RuntimeError) as error:
        raise CorruptFileError(f"a segment is damaged: {' '.join(str(error).split())}") from None


@cache
def _known() -> dict[str, set[str]]:
    """How the tables of a log are made, in this form and the first."""
    known: dict[str, set[str]] = {}
    for form in (SCHEMA, SCHEMA.replace(", asked_at REAL", "")):
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(form)
            for name, made in tables(connection).items():
                known.setdefault(name, set()).add(made)
    return known


def _sha256(answers: Iterable[Answer], skipped: Iterable[Pair]) -> bytes:
    total = hashlib.sha256()
    for parts in [*((struct.pack("<d", label), *pair) for label, *pair in answers), *skipped]:
        for part in parts:
            total.update(struct.pack("<q", len(part)) + part)
    return total.digest()
