"""The labels that training has used, in the order in which it did: one SQLite file, readable with any tool.

    sessions(number, asked, answered_at, sha256)    a row for each time the teacher was asked; sha256 of its answers
    answers(number, session, label, first, second)  label 1: first better, 0: second, .5: tie; segments as safetensors

A session is on the disk, all of it or none, before training sees an answer (write-ahead log, synchronous=FULL).
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes

from rlhf_bilevel.files import Damaged, Refused, tensors
from rlhf_bilevel.preference import take
from rlhf_bilevel.teacher import checked
from rlhf_bilevel.types import Preferences, Queries, Segments, Teacher

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    number INTEGER PRIMARY KEY, asked INTEGER NOT NULL, answered_at REAL NOT NULL, sha256 BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, session INTEGER NOT NULL REFERENCES sessions, label REAL NOT NULL,
    first BLOB NOT NULL, second BLOB NOT NULL
) STRICT;
"""
Answer = tuple[float, bytes, bytes]


class LabelLog:
    """Sessions by number, from 0 on. Opening it makes the file; Damaged where the file is not what was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            for pragma in ("trusted_schema=OFF", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            fault = self._connection.execute("PRAGMA quick_check").fetchone()[0]
            self._connection.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            fault = str(error)
        if fault != "ok":
            self._connection.close()
            raise Damaged(f"{path} is damaged: {fault}")

    def __len__(self) -> int:
        return self._connection.execute("SELECT count(*) FROM sessions").fetchone()[0]

    def append(self, asked: int, answers: Preferences) -> None:
        """The next session: ``asked`` queries, and what was answered. Committed when this returns."""
        rows: list[Answer] = [
            (label, _to_bytes(answers.first, i), _to_bytes(answers.second, i))
            for i, label in enumerate(answers.label.tolist())
        ]
        execute, number = self._connection.execute, len(self)
        execute("BEGIN IMMEDIATE")
        try:
            execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (number, asked, time.time(), _sha256(rows)))
            for row in rows:
                execute("INSERT INTO answers (session, label, first, second) VALUES (?, ?, ?, ?)", (number, *row))
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise

    def __getitem__(self, number: int) -> list[Answer]:
        """The answers of a session in their order; Damaged where they are not as they were written."""
        try:
            (expected,) = self._connection.execute(
                "SELECT sha256 FROM sessions WHERE number = ?", (number,)
            ).fetchone() or (b"",)
            rows = self._connection.execute(
                "SELECT label, first, second FROM answers WHERE session = ? ORDER BY number", (number,)
            ).fetchall()
        except sqlite3.DatabaseError as error:
            raise Damaged(f"{self.path} is damaged: {error}") from None
        if _sha256(rows) != expected:
            raise Damaged(f"{self.path} is damaged: the answers of session {number} are not as they were written")
        return rows

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
            rows = self._log[number]
            if not rows:
                return take(Preferences(*queries, torch.zeros(len(queries.first.truth))), slice(0))
            return _preferences(rows)
        answers = checked(self._teacher(queries), queries)
        self._log.append(len(queries.first.truth), answers)
        return answers


def sessions(path: Path) -> Iterator[Preferences]:
    """The answers in a run's label log, a session after the other without the empty ones, as they were given.

    Refused where there is no such file; Damaged where it is not what was written.
    """
    if not path.is_file():
        raise Refused(f"{path}: no such file")
    with closing(LabelLog(path)) as log:
        for number in range(len(log)):
            if rows := log[number]:
                yield _preferences(rows)


def _preferences(rows: Sequence[Answer]) -> Preferences:
    label, first, second = zip(*rows, strict=True)
    return Preferences(_segments(first), _segments(second), torch.tensor(label))


def _to_bytes(segments: Segments, i: int) -> bytes:
    return to_bytes({name: column[i].contiguous() for name, column in segments._asdict().items()})


def _segments(rows: Iterable[bytes]) -> Segments:
    parts = [tensors(row, "a segment") for row in rows]
    return Segments(*(torch.stack([part[name] for part in parts]) for name in Segments._fields))


def _sha256(rows: Iterable[Answer]) -> bytes:
    total = hashlib.sha256()
    for label, first, second in rows:
        for part in (struct.pack("<d", label), first, second):
            total.update(struct.pack("<q", len(part)) + part)
    return total.digest()
