"""The records that go into the label store and come out of it, and the errors that an answer can cause.

The words: a *query* is a pair of segments that training asks about. An *assignment* is a query that was put before one
person. A *choice* is what that person decided; an *answer* is any choice except a skip. All times are seconds since
1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.tables import LEFT_BETTER


class ConflictError(UserError):
    """The answer contradicts an answer that is already stored."""


class NotFoundError(UserError):
    """This pair was not put before this labeller."""


class ConsumedError(UserError):
    """Training has already used the label of this pair."""


class Outcome(StrEnum):
    """What happened to an answer that was sent."""

    ACCEPTED = "accepted"  # stored now
    REPEATED = "repeated"  # the same answer was stored before


class Labeller(NamedTuple):
    """A person who labels for one run."""

    id: int
    name: str
    role: str  # one of tables.ROLES


class Assignment(NamedTuple):
    """A pair that was shown to one person.

    Only the purpose ``label`` gives training a label. ``repeat`` and ``gold`` measure how reliable a person is.
    """

    query_id: str
    left_clip: str  # the id of the clip on the left side
    right_clip: str
    purpose: str  # one of tables.PURPOSES


class Progress(NamedTuple):
    """What one labeller sees of the work that is done and of the work that is left. All but the last are counts."""

    mine: int  # answers of this labeller, for any purpose
    total: int  # answers of all labellers, for any purpose
    asked: int  # queries that training has asked
    open: int  # queries that need more answers
    skipped: int  # open queries that this labeller skipped
    judged: int  # open queries that this labeller answered, and that need another person's answer
    taken: int  # open queries that this labeller cannot get now, because others are looking at them
    people: int  # labellers of this run who have opened a link
    needed: int  # answers until training continues; while it runs, the answers that its next session will need
    can_undo: bool  # whether the labeller's last choice can be taken back


class Pending(NamedTuple):
    """How many queries training has asked, and how many of them still wait for a person."""

    asked: int  # all queries except those that newer ones replaced
    missing: int  # queries without enough answers; queries that everybody skipped are not counted


class Question(NamedTuple):
    """A query that training wants to ask.

    ``first`` and ``second`` are the segments, encoded by ``label_log.encode_pairs``. The clips are what people see of
    them, as content for JSON (see docs/human/clips.md).
    """

    first: bytes
    second: bytes
    first_clip: Mapping[str, Any]
    second_clip: Mapping[str, Any]


class Answered(NamedTuple):
    """The label of one query: the mean of what people decided.

    Each person's label is that of ``first_better``.
    """

    label: float  # in [0, 1]
    first: bytes  # as in ``Question``
    second: bytes


class Asked(NamedTuple):
    """A query with one of its choices. The fields from ``labeller`` on are None if nobody has chosen yet."""

    query_id: str
    session: int
    first: bytes  # as in ``Question``
    second: bytes
    asked_at: float
    labeller: str | None  # a name
    choice: str | None  # one of tables.CHOICES
    left_is_first: bool | None  # whether the first segment was on the left side
    shown_at: float | None
    answered_at: float | None


class Past(NamedTuple):
    """One choice in a labeller's history."""

    key: str  # identifies the choice
    query_id: str
    choice: str  # one of tables.CHOICES
    left: str  # the id of the clip that was on the left side
    right: str
    note: str
    answered_at: float
    can_change: bool  # False once it is final


class Pair(NamedTuple):
    """A query, to be looked at."""

    number: int  # in the order in which queries were asked, from 1
    clips: tuple[str, str]  # the ids of the clips of its first and second segment


class Undone(NamedTuple):
    """What was taken back."""

    query_id: str
    note: str


class Chosen(NamedTuple):
    """One choice of one person that was not taken back."""

    query_id: str
    labeller: Labeller
    purpose: str
    choice: str
    left_is_first: bool
    shown_at: float | None
    answered_at: float
    note: str = ""
    final: bool = True  # see ``answers.is_final``


@dataclass(frozen=True)
class Status:
    """What training reports about itself, about once a second. The label page shows it."""

    step: int  # of the run so far
    steps: int  # of the whole run
    labels: int  # labels that training has used
    wanted: int  # labels that training may use in all
    waiting: bool  # whether training waits for people
    needed: int  # answers until training continues; while it runs, the answers that its next session will need
    doing: str  # one sentence that tells people what training does
    updated_at: float = 0.0
    spare: int | None = None  # queries that may stay unanswered while training continues; None if it did not say
    next_session: float | None = None  # seconds until it asks again, at its present speed; None if not known, or never
    fresh_accuracy: float | None = None  # share of the newest labels that the reward model predicted; None before
    fresh_labels: int = 0  # the number of labels of which that is a share
    again: int = 0  # labels given after the checkpoint that it resumed from: it uses them again at their session
    stopped: bool = False  # whether training has ended or was stopped: this is its last report
    policies: int = 0  # that people choose among, if this is a selection; 0 if a run trains
    ended: bool = False  # whether a selection has chosen one


def first_better(choice: str, left_is_first: bool) -> float:
    """The label of a choice in ``tables.DECIDED``.

    It is 1 if the first segment is better, 0.75 if it is slightly better, 0.5 if both are equally good or bad, 0.25 if
    the second is slightly better, and 0 if the second is better.
    """
    return LEFT_BETTER[choice] if left_is_first else 1 - LEFT_BETTER[choice]
