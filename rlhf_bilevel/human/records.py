"""What the book of labels takes and gives: people, pairs, answers, and what can be wrong with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.tables import EQUAL, LEFT


class ConflictError(UserError):
    """An answer that contradicts one that is stored."""


class NotFoundError(UserError):
    """An answer to what was not asked of this labeller."""


class ConsumedError(UserError):
    """An answer to what training has used already."""


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    REPEATED = "repeated"  # it had been stored before


class Labeller(NamedTuple):
    id: int
    name: str
    role: str


class Assignment(NamedTuple):
    """A pair in front of somebody. Only ``label`` counts as a label; ``repeat`` and ``gold`` are for quality.py."""

    query_id: str
    left_clip: str
    right_clip: str
    purpose: str


class Progress(NamedTuple):
    """What a labeller may know. An answer is any choice but a skip, whatever its pair was put before them for."""

    mine: int  # answers of this labeller
    total: int  # answers of everybody
    open: int  # queries that want more answers
    skipped: int  # those among them that this labeller skipped
    judged: int  # those that they answered, and that want somebody else's answer
    taken: int  # those that others are at, of which none is left for this labeller
    needed: int  # answers until training goes on, or that its next session will want
    can_undo: bool  # whether ``Book.undo`` would take something back


class Pending(NamedTuple):
    asked: int  # queries, without those that others took the place of
    missing: int  # those among them that wait for somebody: skipped ones do not


class Question(NamedTuple):
    """A query to ask: its segments as ``labels.pairs`` writes them, and what people see of them, ready for JSON."""

    first: bytes
    second: bytes
    first_clip: Mapping[str, Any]
    second_clip: Mapping[str, Any]


class Answered(NamedTuple):
    """A label 1 where the first segment is better, 0 where the second is, between where people differ or see none."""

    label: float
    first: bytes
    second: bytes


class Asked(NamedTuple):
    """A query with one of its choices, or without any; what was chosen is left, right, equal, cant_tell or skip."""

    query_id: str
    session: int
    first: bytes
    second: bytes
    asked_at: float
    labeller: str | None
    choice: str | None
    left_is_first: bool | None
    shown_at: float | None
    answered_at: float | None


class Chosen(NamedTuple):
    """A choice that was not withdrawn, as quality.py looks at it; in the order in which they came."""

    query_id: str
    labeller: Labeller
    purpose: str
    choice: str
    left_is_first: bool
    shown_at: float | None
    answered_at: float


@dataclass(frozen=True)
class Status:
    """Training's newest sign of life."""

    step: int
    steps: int
    labels: int  # that it has used
    wanted: int  # its budget of them
    waiting: bool  # for people
    needed: int  # answers until it goes on; while it goes on, those that its next session will want
    doing: str  # one sentence for people
    updated_at: float = 0.0
    spare: int | None = None  # queries that may wait for somebody while it goes on; None where it did not say


def first_better(choice: str, left_is_first: bool) -> float:
    """The label of a decided choice: 1 where the first segment is better, 0 where the second is, .5 for a tie."""
    return 0.5 if choice == EQUAL else float((choice == LEFT) == left_is_first)
