"""The labels that training has used, in the order of their use: one SQLite file that any tool can read.

    sessions(number, asked, answered_at, sha256, asked_at, seconds)  a row for each query session; asked: number of
        queries; seconds: the labelling time, null if the teacher does not tell
    answers(number, session, label, first, second)  label 1: first better, 0: second, .5: tie; segments as safetensors
    skipped(number, session, first, second)         the pairs that the teacher did not answer

Times are seconds since 1970. sha256 is the hash of a session's answers and then of its skipped pairs. A session is
written completely or not at all before training sees its answers (write-ahead log, synchronous=FULL). A log of an
earlier form can be read: form 1 has neither ``asked_at`` nor ``skipped``, form 2 has no ``seconds``. A log of a later
form is refused.
"""

from __future__ import annotations

import hashlib
import math
import re
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

from rlhf_bilevel.data.answers import ask_teacher, check_answers, no_answers, seconds_of
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.types import Preferences, Queries, Segments, Teacher
from rlhf_bilevel.utils.files import load_tensors
from rlhf_bilevel.utils.sqlite import check_files, check_schema, naming_errors, read_only_copy, table_definitions

FORM = 3
SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    number INTEGER PRIMARY KEY, asked INTEGER NOT NULL, answered_at REAL NOT NULL, sha256 BLOB NOT NULL, asked_at REAL,
    seconds REAL
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions, label REAL NOT NULL,
    first BLOB NOT NULL, second BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS skipped (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions, first BLOB NOT NULL, second BLOB NOT NULL
) STRICT;
"""
COLUMNS = ("number", "asked", "answered_at", "sha256", "asked_at", "seconds")
LATER_COLUMNS = COLUMNS[4:]  # that earlier forms do not have
SEGMENT = ("obs", "act", "truth")  # names in the file of the columns of ``Segments``
Pair = tuple[bytes, bytes]
Answer = tuple[float, bytes, bytes]


class Session(NamedTuple):
    """One query session; ``asked_at`` is None if it is not known."""

    asked_at: float | None
    answered_at: float
    answers: list[Answer]
    skipped: list[Pair]
    seconds: float | None


class LabelLog:
    """The sessions of a run by number, from 0 on. Opening it creates the file. Messages call it ``name``.

    CorruptFileError if the file does not hold what was written, UserError if it cannot be read or written.
    """

    def __init__(self, path: Path, name: Path | None = None) -> None:
        self.path = name or path
        check_files(path)
        with naming_errors(self.path):
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            with naming_errors(self.path):
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
        check_schema(self._connection, self.path, _known_schemas())
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            execute(f"PRAGMA {pragma}")
        self._connection.executescript(SCHEMA)
        columns = [row[1] for row in execute("PRAGMA table_info(sessions)")]
        for name in LATER_COLUMNS:
            if name not in columns:
                execute(f"ALTER TABLE sessions ADD COLUMN {name} REAL")
        execute(f"PRAGMA user_version = {FORM}")

    @classmethod
    @contextmanager
    def copy(cls, path: Path) -> Iterator[LabelLog]:
        """A copy to read; nothing beside ``path`` changes. Raises as opening it, and UserError if it is missing."""
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        with read_only_copy(path) as copy, closing(cls(copy, path)) as log:
            yield log

    def __len__(self) -> int:
        return self._connection.execute("SELECT count(*) FROM sessions").fetchone()[0]

    def append(
        self,
        num_queries: int,
        answers: Preferences,
        skipped: Sequence[Pair] = (),
        asked_at: float | None = None,
        seconds: float | None = None,
    ) -> None:
        """Writes the next session: ``num_queries`` queries, their answers, the skipped pairs, the labelling time.

        It is on the disk when this returns. WriteError, an OSError, if it cannot be written; then none of it is kept.
        """
        rows: list[Answer] = [
            (label, *pair) for label, pair in zip(answers.label.tolist(), encode_pairs(answers), strict=True)
        ]
        execute, number = self._connection.execute, len(self)
        session = number, num_queries, time.time(), _sha256(rows, skipped), asked_at, seconds
        with naming_errors(self.path):
            execute("BEGIN IMMEDIATE")
            try:
                execute(f"INSERT INTO sessions ({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?)", session)
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
        """Session ``number``, its answers in order. CorruptFileError if they are not as they were written."""
        execute = self._connection.execute
        with naming_errors(self.path):
            asked_at, answered_at, expected, seconds = execute(
                "SELECT asked_at, answered_at, sha256, seconds FROM sessions WHERE number = ?", (number,)
            ).fetchone() or (None, 0.0, b"", None)
            answers, skipped = (
                execute(f"SELECT {columns} WHERE session = ? ORDER BY number", (number,)).fetchall()
                for columns in ("label, first, second FROM answers", "first, second FROM skipped")
            )
        if _sha256(answers, skipped) != expected or not (seconds is None or 0 <= seconds < math.inf):
            raise CorruptFileError(
                f"{self.path} is damaged: the answers of session {number} are not as they were written"
            )
        return Session(asked_at, answered_at, answers, skipped, seconds)

    def seconds(self) -> list[float | None]:
        """The labelling time of each session, None where it is not known."""
        with naming_errors(self.path):
            return [row[0] for row in self._connection.execute("SELECT seconds FROM sessions ORDER BY number")]

    def sha256(self, sessions: int) -> str:
        """Hash of all that the first ``sessions`` sessions hold."""
        with naming_errors(self.path):
            rows = self._connection.execute(
                "SELECT sha256 FROM sessions WHERE number < ? ORDER BY number", (sessions,)
            ).fetchall()
        return hashlib.sha256(b"".join(digest for (digest,) in rows)).hexdigest()

    def used(self, sessions: Sequence[int], sha256: str) -> list[Preferences | None]:
        """The first ``sessions[k]`` answers of each session k; None for a session without any.

        CorruptFileError if these are not the sessions with that ``sha256``, or not as they were written.
        """
        if len(sessions) > (stored := len(self)):
            raise CorruptFileError(f"{self.path} holds {stored} sessions and {len(sessions)} were used")
        if self.sha256(len(sessions)) != sha256:
            raise CorruptFileError(
                f"{self.path} is damaged: its first {len(sessions)} sessions are not those that the checkpoint knew"
            )
        rows = [self[number].answers[:count] for number, count in enumerate(sessions)]
        return [decode_answers(answers) if answers else None for answers in rows]

    def write(self, path: Path, sessions: int) -> None:
        """Writes a new log with the first ``sessions`` sessions to ``path``."""
        with naming_errors(path), closing(sqlite3.connect(path)) as target:
            self._connection.backup(target)
            for table, number_of in (("answers", "session"), ("skipped", "session"), ("sessions", "number")):
                target.execute(f"DELETE FROM {table} WHERE {number_of} >= ?", (sessions,))
            target.commit()
            target.execute("VACUUM")

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()


class RecordedTeacher:
    """A teacher whose answers are on the disk before they are used. A repeated session gets its answers from there.

    ``session`` is the number of the next session; set it to resume. ``seconds`` is the labelling time of the last one.
    """

    def __init__(self, teacher: Teacher, log: LabelLog, session: int = 0) -> None:
        self._teacher, self._log, self.session = teacher, log, session
        self.seconds: float | None = None

    def __call__(self, queries: Queries) -> Preferences:
        """The teacher's answers, which are in the log before they are returned."""
        number, self.session = self.session, self.session + 1
        if number < len(self._log):
            recorded = self._log[number]
            rows, self.seconds = recorded.answers, recorded.seconds
            try:
                return check_answers(decode_answers(rows), queries) if rows else no_answers(queries)
            except (TypeError, ValueError) as error:
                raise CorruptFileError(f"{self._log.path}: session {number} is of another run: {error}") from None
        asked_at = time.time()
        answers = ask_teacher(self._teacher, queries)
        # Late answers are to pairs of earlier sessions: they are not among the queries
        skipped = Counter(encode_pairs(queries)) - Counter(encode_pairs(answers))
        self.seconds = seconds_of(self._teacher)
        self._log.append(len(queries.first.env_reward), answers, list(skipped.elements()), asked_at, self.seconds)
        return answers


def read_sessions(path: Path) -> Iterator[Preferences | None]:
    """The answers in a run's label log, session by session; None for a session without any.

    UserError if there is no such file; CorruptFileError if it does not hold what was written.
    """
    with LabelLog.copy(path) as log:
        for number in range(len(log)):
            rows = log[number].answers
            yield decode_answers(rows) if rows else None


def read_seconds(path: Path) -> list[float | None]:
    """The labelling time of each session in a label log, which this process may have open. Raises as ``LabelLog``."""
    if not path.exists():
        return []
    with closing(LabelLog(path)) as log:
        return log.seconds()


def decode_answers(rows: Sequence[tuple[float, bytes, bytes]]) -> Preferences:
    """Answers from at least one row of a label and two segments as ``encode_pairs`` gives them."""
    label, first, second = zip(*rows, strict=True)
    return Preferences(decode_segments(first), decode_segments(second), torch.tensor(label))


def encode_pairs(queries: Queries | Preferences) -> list[Pair]:
    """The two segments of each pair as safetensors. Equal segments have equal bytes."""
    first, second = (
        [
            to_bytes({name: column[i].contiguous() for name, column in zip(SEGMENT, segments, strict=True)})
            for i in range(len(segments.env_reward))
        ]
        for segments in queries[:2]
    )
    return list(zip(first, second, strict=True))


def decode_segments(rows: Iterable[bytes]) -> Segments:
    """Segments (B, T, ...), B >= 1, from the bytes that ``encode_pairs`` gave. CorruptFileError for other bytes."""
    parts = [load_tensors(row, "a segment") for row in rows]
    try:
        return Segments(*(torch.stack([part[name] for part in parts]) for name in SEGMENT))
    except (KeyError, RuntimeError) as error:
        raise CorruptFileError(f"a segment is damaged: {' '.join(str(error).split())}") from None


@cache
def _known_schemas() -> dict[str, set[str]]:
    """How each table of a log may be defined: in this form, or in an earlier one."""
    schemas: dict[str, set[str]] = {}
    without_seconds = re.sub(r",\s+seconds REAL", "", SCHEMA)
    for form in (SCHEMA, without_seconds, without_seconds.replace(", asked_at REAL", "")):
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.executescript(form)
            for name, made in table_definitions(connection).items():
                schemas.setdefault(name, set()).add(made)
    return schemas


def _sha256(answers: Iterable[Answer], skipped: Iterable[Pair]) -> bytes:
    total = hashlib.sha256()
    for parts in [*((struct.pack("<d", label), *pair) for label, *pair in answers), *skipped]:
        for part in parts:
            total.update(struct.pack("<q", len(part)) + part)
    return total.digest()
