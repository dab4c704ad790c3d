"""Training's side of the label store: it asks queries, counts those that wait for people, and takes their labels.

A query is *complete* when as many people as it wants have answered it, and *consumed* when a session of training has
taken its label. All functions run inside a transaction of ``LabelStore``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from rlhf_bilevel.human.records import Answered, Pending, first_better
from rlhf_bilevel.human.tables import DECIDED, LABELS, LIVE, assignments, choices, clips, count, exists, queries, runs

PackedQuestion = tuple[bytes, bytes, bytes, bytes]
"""The two segments and their two clips as gzipped JSON, in the order of ``records.Question``."""


def ask(c: Connection, run: str, session: int, questions: Sequence[PackedQuestion], wanted: int, now: float) -> int:
    """Inserts the queries of a session that are not there yet, and returns how many these were."""
    of_session = queries.c.run == run, queries.c.session == session
    existing = set(c.scalars(select(queries.c.position).where(*of_session)))
    new = [position for position in range(len(questions)) if position not in existing]
    for position in new:
        first, second, *packed_clips = questions[position]
        first_clip, second_clip = clip_ids = [secrets.token_hex(16) for _ in packed_clips]
        for clip_id, data in zip(clip_ids, packed_clips, strict=True):
            c.execute(insert(clips).values(id=clip_id, run=run, data=data))
        c.execute(
            insert(queries).values(
                id=secrets.token_hex(16),
                run=run,
                session=session,
                position=position,
                first_clip=first_clip,
                second_clip=second_clip,
                first=first,
                second=second,
                asked_at=now,
                wanted=wanted,
            )
        )
    return len(new)


def retire_surplus(c: Connection, run: str, session: int, max_open: int, now: float) -> None:
    """Marks the oldest queries that nobody has looked at as replaced by ``session``, until ``max_open`` are left."""
    unused = queries.c.run == run, queries.c.consumed_session.is_(None), queries.c.retired_session.is_(None)
    surplus = (c.scalar(select(func.count()).where(*unused)) or 0) - max_open
    if surplus <= 0:
        return
    seen = or_(
        exists(choices, choices.c.query == queries.c.id, LIVE),
        exists(assignments, assignments.c.query == queries.c.id, assignments.c.leased_until > now),
    )
    oldest = select(queries.c.id).where(*unused, queries.c.session < session, ~seen)
    oldest = oldest.order_by(queries.c.session, queries.c.position).limit(surplus).with_for_update(skip_locked=True)
    ids = c.scalars(oldest).all()
    c.execute(update(queries).where(queries.c.id.in_(ids)).values(retired_session=session))


def pending(c: Connection, run: str) -> Pending:
    """See ``LabelStore.pending``."""
    asked = queries.c.run == run, queries.c.retired_session.is_(None)
    choices_so_far = count(choices, choices.c.query == queries.c.id, *LABELS)
    incomplete = queries.c.complete_at.is_(None), choices_so_far < queries.c.wanted
    missing = c.scalar(select(func.count()).where(*asked, *incomplete))
    return Pending(c.scalar(select(func.count()).where(*asked)) or 0, missing or 0)


def labels_used(c: Connection, run: str, before_session: int) -> int:
    """See ``LabelStore.labels_used``."""
    decided = exists(choices, choices.c.query == queries.c.id, choices.c.choice.in_(DECIDED), *LABELS)
    consumed = queries.c.run == run, queries.c.consumed_session < before_session
    return c.scalar(select(func.count()).where(*consumed, decided)) or 0


def collect(c: Connection, run: str, session: int, limit: int, now: float) -> list[Answered]:
    """See ``LabelStore.collect``."""
    new = and_(queries.c.complete_at.is_not(None), queries.c.consumed_session.is_(None))
    available = queries.c.run == run, or_(queries.c.consumed_session == session, new)
    order = queries.c.consumed_session.is_(None), queries.c.session, queries.c.position
    rows = c.execute(select(queries).where(*available).order_by(*order).with_for_update()).all()
    values: dict[str, list[float]] = {row.id: [] for row in rows}
    decided = select(choices.c.query, choices.c.choice, choices.c.left_is_first)
    decided = decided.where(choices.c.query.in_(values), choices.c.choice.in_(DECIDED), *LABELS)
    for query, choice, left_is_first in c.execute(decided):
        values[query].append(first_better(choice, left_is_first))
    consumed, labels = [], list[Answered]()
    for row in rows:
        if len(labels) == limit:
            break
        consumed.append(row.id)
        if votes := values[row.id]:  # without a vote nobody could tell: the query is over, and gives no label
            labels.append(Answered(sum(votes) / len(votes), row.first, row.second))
    if any(row.consumed_session is None for row in rows[: len(consumed)]):
        c.execute(update(runs).where(runs.c.id == run).values(collected_at=now))
    c.execute(update(queries).where(queries.c.id.in_(consumed)).values(consumed_session=session))
    return labels
