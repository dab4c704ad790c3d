"""Which pairs of the book may be put before a labeller: those in front of them, new ones, known ones once more.

Each is a look inside the transaction that offers them (``Book.offer``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, literal, or_, select

from rlhf_bilevel.human.records import Assignment, Labeller
from rlhf_bilevel.human.tables import (
    DECIDED,
    EXPERT,
    LABEL,
    LABELS,
    LIVE,
    REPEAT,
    SKIP,
    choices,
    count,
    exists,
    labellers,
    offers,
    queries,
)

RECENT = 5  # choices that one remembers: none of them is asked again


def _has_room(run: str, me: int, now: float) -> ColumnElement[bool]:
    """Whether a query wants one more than have answered it, and than others are at."""
    answers = count(choices, choices.c.query == queries.c.id, choices.c.choice != SKIP, *LABELS)
    others = count(
        offers,
        offers.c.query == queries.c.id,
        offers.c.purpose == LABEL,
        offers.c.labeller != me,
        offers.c.leased_until > now,
    )
    return and_(
        queries.c.run == run,
        queries.c.complete_at.is_(None),
        queries.c.retired_session.is_(None),
        answers + others < queries.c.wanted,
    )


def standing(c: Connection, run: str, me: int, now: float) -> tuple[int, int, int, int]:
    """How many queries are open; those among them that they skipped, that they answered, and that others are at."""
    is_open = queries.c.run == run, queries.c.complete_at.is_(None), queries.c.retired_session.is_(None)
    mine = choices.c.labeller == me, *LABELS
    theirs = select(func.count().filter(choices.c.choice == SKIP), func.count().filter(choices.c.choice != SKIP))
    skipped, judged = c.execute(theirs.select_from(choices.join(queries)).where(*is_open, *mine)).one()
    leased = offers.c.labeller != me, offers.c.purpose == LABEL, offers.c.leased_until > now
    elsewhere = queries.c.id.in_(select(offers.c.query).where(*leased)), ~_has_room(run, me, now)
    met = exists(choices, choices.c.query == queries.c.id, *mine)
    taken = c.scalar(select(func.count()).select_from(queries).where(*is_open, *elsewhere, ~met))
    return c.scalar(select(func.count()).select_from(queries).where(*is_open)) or 0, skipped, judged, taken or 0


def held(c: Connection, run: str, me: int, now: float) -> list[Any]:
    """Their open offers to which an answer is still wanted."""
    mine = select(queries.c.id).join(offers).where(offers.c.labeller == me, offers.c.purpose == LABEL)
    mine = mine.where(queries.c.complete_at.is_(None), queries.c.retired_session.is_(None))
    locked = c.scalars(mine.order_by(queries.c.id).with_for_update(of=queries)).all()
    # Looked at again under the lock: who waited for it sees what the other one did
    query = queries.c["id", "session", "position", "first_clip", "second_clip"]
    rows = select(offers, *query).join(queries).where(offers.c.labeller == me)
    rows = rows.where(or_(offers.c.purpose != LABEL, and_(queries.c.id.in_(locked), _has_room(run, me, now))))
    return sorted(c.execute(rows), key=lambda row: (-(row.undone_at or 0), row.offered_at, -row.session, row.position))


def fresh(c: Connection, run: str, me: int, most: int, now: float) -> Sequence[Any]:
    """Queries that they have not met; locked, so that nobody else is given the same place."""
    met = or_(
        exists(offers, offers.c.query == queries.c.id, offers.c.labeller == me),
        exists(choices, choices.c.query == queries.c.id, choices.c.labeller == me, LIVE),
    )
    newest = queries.c.session.desc(), queries.c.position
    room = _has_room(run, me, now)
    ids = select(queries.c.id).where(room, ~met).order_by(*newest).limit(most).with_for_update(skip_locked=True)
    while locked := c.scalars(ids).all():
        # Looked at again under the lock: the first look may be older than what another one did before
        rows = select(*queries.c["id", "first_clip", "second_clip"]).where(queries.c.id.in_(locked), room)
        if found := c.execute(rows.order_by(*newest)).all():
            return found
    return []


def decided_before(c: Connection, me: int, rng: random.Random) -> Any:
    """A pair that they decided a while ago and were not asked again; None where there is none."""
    rows = select(*choices.c["query", "purpose", "choice", "left_is_first"]).where(choices.c.labeller == me, LIVE)
    mine = c.execute(rows.order_by(choices.c.id)).all()
    asked = select(offers.c.query).where(offers.c.labeller == me, offers.c.purpose == REPEAT)
    known = {*c.scalars(asked), *(row.query for row in mine if row.purpose == REPEAT)}
    known |= {row.query for row in mine[-RECENT:]}
    found = [row for row in mine if row.purpose == LABEL and row.choice in DECIDED and row.query not in known]
    return _clips(c, rng.choice(found)) if found else None


def gold(c: Connection, run: str, labeller: Labeller, rng: random.Random) -> Any:
    """A complete pair that an expert decided and this labeller, who is none, has not met."""
    if labeller.role == EXPERT:
        return None
    expert = labellers.c.run == run, labellers.c.role == EXPERT
    rows = select(*choices.c["query", "left_is_first"]).join(labellers).where(*expert, *LABELS)
    decided = c.execute(rows.where(choices.c.choice.in_(DECIDED)).order_by(choices.c.id)).all()
    met = {
        query
        for table in (offers, choices)
        for query in c.scalars(select(table.c.query).where(table.c.labeller == labeller.id))
    }
    found = [row for row in decided if row.query not in met]
    chosen = _clips(c, rng.choice(found)) if found else None
    return chosen if chosen and chosen.complete_at is not None else None


def _clips(c: Connection, chosen: Any) -> Any:
    """The query of a choice, and which side its first segment was on."""
    columns = queries.c["id", "first_clip", "second_clip", "complete_at"]
    side = literal(chosen.left_is_first).label("left_is_first")
    return c.execute(select(*columns, side).where(queries.c.id == chosen.query)).one()


def offer(row: Any, left_is_first: bool, purpose: str) -> Assignment:
    """What goes to the labeller: the query's clips, by their sides."""
    both = (row.first_clip, row.second_clip) if left_is_first else (row.second_clip, row.first_clip)
    return Assignment(row.id, *both, purpose)
