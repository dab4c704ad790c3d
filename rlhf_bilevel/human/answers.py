"""How a choice is stored and taken back.

A choice is never changed, only withdrawn by the person who made it, and only until it is final: training has used it. A
check, which is not used, is final once training has taken labels after it, so that it looks like any other answer. All
functions run inside a transaction of ``LabelStore``. Times are seconds since 1970.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, func, insert, select, update

from rlhf_bilevel.human.records import ConflictError, ConsumedError, NotFoundError, Outcome, Past
from rlhf_bilevel.human.tables import LABEL, LABELS, LIVE, OPEN, SKIP, assignments, choices, labellers, queries, runs

UNDO_LEASE = 120.0  # seconds for which a pair that was taken back stays with its labeller


def lock_labeller(c: Connection, labeller: int) -> None:
    """Makes other transactions about this labeller wait, so that two windows of one person act one after the other."""
    if c.dialect.name != "sqlite":  # SQLite has one writer at a time anyway
        c.execute(select(labellers.c.id).where(labellers.c.id == labeller).with_for_update(key_share=True))


def store(
    c: Connection,
    run: str,
    labeller: int,
    query_id: str,
    choice: str,
    key: str,
    shown_at: float | None,
    answered_at: float | None,
    note: str,
    now: float,
) -> Outcome:
    """See ``LabelStore.choose``."""
    mine = choices.c.labeller == labeller
    sent_before = c.execute(select(*choices.c["query", "choice"]).where(mine, choices.c.key == key)).first()
    if sent_before:
        if tuple(sent_before) != (query_id, choice):
            raise ConflictError(f"the key {key!r} belongs to another answer")
        return Outcome.REPEATED
    columns = select(*queries.c["wanted", "complete_at", "consumed_session"])
    query = c.execute(columns.where(queries.c.id == query_id, queries.c.run == run).with_for_update()).first()
    of_pair = assignments.c.query == query_id, assignments.c.labeller == labeller
    assignment = c.execute(select(assignments).where(*of_pair)).first()
    if query is None or assignment is None:
        if c.scalar(select(choices.c.id).where(mine, choices.c.query == query_id, LIVE).limit(1)):
            raise ConflictError("this pair is answered already")
        raise NotFoundError("this pair was not put before this labeller")
    is_label = assignment.purpose == LABEL
    if is_label and query.consumed_session is not None:
        raise ConsumedError("training has used the answers to this pair already")
    if is_label and choice != SKIP and query.complete_at is not None:
        raise ConflictError("this pair has all the answers that it needs")
    c.execute(delete(assignments).where(*of_pair))
    shown_at, answered_at = corrected_times(
        shown_at,
        now if answered_at is None else answered_at,
        earliest=min(assignment.offered_at, now),
        latest=now,
    )
    c.execute(
        insert(choices).values(
            query=query_id,
            labeller=labeller,
            purpose=assignment.purpose,
            choice=choice,
            left_is_first=assignment.left_is_first,
            key=key,
            shown_at=shown_at,
            answered_at=answered_at,
            received_at=now,
            note=note or None,
        )
    )
    if is_label and choice != SKIP:
        answers = select(func.count()).where(choices.c.query == query_id, choices.c.choice != SKIP, *LABELS)
        if (c.scalar(answers) or 0) >= query.wanted:
            c.execute(update(queries).where(queries.c.id == query_id).values(complete_at=now))
    return Outcome.ACCEPTED


def undoable(c: Connection, labeller: int, key: str | None = None, lock: bool = True) -> Any:
    """The labeller's choice with this key, or else their last one, as a row; None if there is none, or if it is final.

    With ``lock``, training cannot use it until the transaction ends.
    """
    mine = select(choices).where(choices.c.labeller == labeller, LIVE)
    mine = mine if key is None else mine.where(choices.c.key == key)
    choice = c.execute(mine.order_by(choices.c.id.desc()).limit(1)).first()
    if choice is None:
        return None
    if lock:
        c.execute(select(queries.c.id).where(queries.c.id == choice.query).with_for_update())
    final = c.scalar(select(is_final()).select_from(choices.join(queries)).where(choices.c.id == choice.id))
    return None if final else choice


def is_final() -> ColumnElement[bool]:
    """Whether a choice cannot be taken back any more, for a statement that joins ``choices`` and ``queries``."""
    collected_at = select(runs.c.collected_at).where(runs.c.id == queries.c.run).scalar_subquery()
    used = queries.c.consumed_session.is_not(None)
    return case((choices.c.purpose == LABEL, used), else_=choices.c.received_at <= func.coalesce(collected_at, 0.0))


def history(c: Connection, labeller: int, limit: int) -> list[Past]:
    """See ``LabelStore.history``."""
    columns: list[Any] = [*choices.c["key", "query", "choice", "left_is_first", "note", "answered_at"], is_final()]
    columns += queries.c["first_clip", "second_clip"]
    rows = select(*columns).join(queries).where(choices.c.labeller == labeller, LIVE)
    newest = c.execute(rows.order_by(choices.c.id.desc()).limit(limit))
    return [
        Past(
            key,
            query,
            choice,
            left=first if left_is_first else second,
            right=second if left_is_first else first,
            note=note or "",
            answered_at=answered_at,
            can_change=not final,
        )
        for key, query, choice, left_is_first, note, answered_at, final, first, second in newest
    ]


def withdraw(c: Connection, choice: Any, now: float) -> None:
    """Takes ``choice`` back, a row of the table, and puts its pair before the same labeller again."""
    c.execute(update(choices).where(choices.c.id == choice.id).values(withdrawn_at=now))
    if choice.purpose == LABEL and choice.choice != SKIP:
        c.execute(update(queries).where(queries.c.id == choice.query).values(complete_at=None))
    # A repetition that is before the labeller goes too: the answer that it would be compared with is gone
    c.execute(delete(assignments).where(assignments.c.query == choice.query, assignments.c.labeller == choice.labeller))
    c.execute(
        insert(assignments).values(
            query=choice.query,
            labeller=choice.labeller,
            purpose=choice.purpose,
            left_is_first=choice.left_is_first,
            offered_at=now,
            leased_until=now + UNDO_LEASE,
            undone_at=now,
        )
    )


def withdraw_skips(c: Connection, run: str, labeller: int, now: float) -> int:
    """See ``LabelStore.unskip``."""
    skips = choices.c.labeller == labeller, choices.c.choice == SKIP, *LABELS
    of_open_queries = *skips, choices.c.query.in_(select(queries.c.id).where(queries.c.run == run, *OPEN))
    return c.execute(update(choices).where(*of_open_queries).values(withdrawn_at=now)).rowcount


def assign_for_import(c: Connection, run: str, labeller: int, query_id: str) -> None:
    """Puts a query before a labeller whose answer comes from elsewhere, unless they have chosen already."""
    exists = c.scalar(select(queries.c.id).where(queries.c.id == query_id, queries.c.run == run))
    chosen = choices.c.labeller == labeller, choices.c.query == query_id, LIVE
    if not exists or c.scalar(select(choices.c.id).where(*chosen).limit(1)):
        return
    c.execute(delete(assignments).where(assignments.c.query == query_id, assignments.c.labeller == labeller))
    row = {"query": query_id, "labeller": labeller, "purpose": LABEL, "left_is_first": True}
    c.execute(insert(assignments).values(**row, offered_at=0.0, leased_until=0.0))  # nobody knows when it was shown


def corrected_times(shown: float | None, answered: float, earliest: float, latest: float) -> tuple[float | None, float]:
    """The times of a labeller's clock, moved between ``earliest`` and ``latest`` if they lie outside.

    The time between the two stays the same where it fits. If the answer comes before the pair was shown, the clock was
    set back in between: then the time of showing is not known, and None.
    """
    if shown is None or answered < shown:
        return None, min(max(answered, earliest), latest)
    response_time = min(answered - shown, latest - earliest)
    shown = min(max(shown, earliest), latest - response_time)
    return shown, shown + response_time
