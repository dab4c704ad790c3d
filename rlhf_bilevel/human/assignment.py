"""Which pairs are put before a labeller: those that they have already, new ones, and checks of how reliable they are.

All functions run inside a transaction of ``LabelStore``. An assignment is leased: until the lease ends, its place is
kept, so that no more people get a query than it needs answers. Times are seconds since 1970.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, literal, or_, select, update

from rlhf_bilevel.human.records import Assignment, Labeller
from rlhf_bilevel.human.tables import (
    DECIDED,
    EXPERT,
    GOLD,
    LABEL,
    LABELS,
    LIVE,
    OPEN,
    REPEAT,
    SKIP,
    assignments,
    choices,
    count,
    exists,
    labellers,
    queries,
)

RECENT = 5  # a labeller remembers their last choices: none of these pairs is repeated


def assign(
    c: Connection,
    run: str,
    labeller: Labeller,
    limit: int,
    now: float,
    lease_seconds: float,
    *,
    repeats: float,
    gold: float,
    rng: random.Random,
) -> list[Assignment]:
    """See ``LabelStore.assign``."""
    me = labeller.id
    assigned = []
    for row in _current(c, run, me, now)[:limit]:
        mine = assignments.c.query == row.id, assignments.c.labeller == me
        c.execute(update(assignments).where(*mine).values(leased_until=now + lease_seconds))
        assigned.append(_assignment(row, row.left_is_first, row.purpose))
    while len(assigned) < limit and (unseen := _unseen(c, run, me, limit - len(assigned), now)):
        for query in unseen:
            row, left_is_first, purpose = query, rng.random() < 0.5, LABEL
            drawn = rng.random()
            if drawn < repeats and (repeated := _repeat(c, me, rng)):
                row, left_is_first, purpose = repeated, not repeated.left_is_first, REPEAT
            elif repeats <= drawn < repeats + gold and (answered_by_expert := _gold(c, run, labeller, rng)):
                row, purpose = answered_by_expert, GOLD
            c.execute(
                insert(assignments).values(
                    query=row.id,
                    labeller=me,
                    left_is_first=left_is_first,
                    purpose=purpose,
                    offered_at=now,
                    leased_until=now + lease_seconds,
                )
            )
            assigned.append(_assignment(row, left_is_first, purpose))
    return assigned


def open_counts(c: Connection, run: str, labeller: int, now: float) -> tuple[int, int, int, int]:
    """The counts ``open``, ``skipped``, ``judged`` and ``taken`` of ``records.Progress`` for a labeller's id."""
    is_open = queries.c.run == run, *OPEN
    mine = choices.c.labeller == labeller, *LABELS
    counts = select(func.count().filter(choices.c.choice == SKIP), func.count().filter(choices.c.choice != SKIP))
    skipped, judged = c.execute(counts.select_from(choices.join(queries)).where(*is_open, *mine)).one()
    by_others = assignments.c.labeller != labeller, assignments.c.purpose == LABEL, assignments.c.leased_until > now
    all_places_taken = (
        queries.c.id.in_(select(assignments.c.query).where(*by_others)),
        ~_needs_another(run, labeller, now),
    )
    chosen_by_me = exists(choices, choices.c.query == queries.c.id, *mine)
    taken = c.scalar(select(func.count()).select_from(queries).where(*is_open, *all_places_taken, ~chosen_by_me))
    return c.scalar(select(func.count()).select_from(queries).where(*is_open)) or 0, skipped, judged, taken or 0


def _needs_another(run: str, me: int, now: float) -> ColumnElement[bool]:
    """Whether a query needs more answers than it has, plus those that other people are giving now."""
    answers = count(choices, choices.c.query == queries.c.id, choices.c.choice != SKIP, *LABELS)
    others = count(
        assignments,
        assignments.c.query == queries.c.id,
        assignments.c.purpose == LABEL,
        assignments.c.labeller != me,
        assignments.c.leased_until > now,
    )
    return and_(queries.c.run == run, *OPEN, answers + others < queries.c.wanted)


def _current(c: Connection, run: str, me: int, now: float) -> list[Any]:
    """The labeller's assignments that still need an answer; a pair that came back by undo is the first."""
    mine = select(queries.c.id).join(assignments).where(assignments.c.labeller == me, assignments.c.purpose == LABEL)
    locked = c.scalars(mine.where(*OPEN).order_by(queries.c.id).with_for_update(of=queries)).all()
    # Read again under the lock: another process may have changed the queries while this one waited for it
    query = queries.c["id", "session", "position", "first_clip", "second_clip"]
    rows = select(assignments, *query).join(queries).where(assignments.c.labeller == me)
    still_needed = and_(queries.c.id.in_(locked), _needs_another(run, me, now))
    rows = rows.where(or_(assignments.c.purpose != LABEL, still_needed))
    return sorted(c.execute(rows), key=lambda row: (-(row.undone_at or 0), row.offered_at, -row.session, row.position))


def _unseen(c: Connection, run: str, me: int, limit: int, now: float) -> Sequence[Any]:
    """Queries that the labeller has not seen, newest session first. They are locked against other labellers."""
    seen = or_(
        exists(assignments, assignments.c.query == queries.c.id, assignments.c.labeller == me),
        exists(choices, choices.c.query == queries.c.id, choices.c.labeller == me, LIVE),
    )
    newest = queries.c.session.desc(), queries.c.position
    needed = _needs_another(run, me, now)
    ids = select(queries.c.id).where(needed, ~seen).order_by(*newest).limit(limit).with_for_update(skip_locked=True)
    while locked := c.scalars(ids).all():
        # Read again under the lock: the first read may be older than what another process has done
        rows = select(*queries.c["id", "first_clip", "second_clip"]).where(queries.c.id.in_(locked), needed)
        if still_needed := c.execute(rows.order_by(*newest)).all():
            return still_needed
    return []


def _repeat(c: Connection, me: int, rng: random.Random) -> Any:
    """A random pair that the labeller decided a while ago and that was not repeated; None if there is none."""
    rows = select(*choices.c["query", "purpose", "choice", "left_is_first"]).where(choices.c.labeller == me, LIVE)
    mine = c.execute(rows.order_by(choices.c.id)).all()
    current = select(assignments.c.query).where(assignments.c.labeller == me, assignments.c.purpose == REPEAT)
    excluded = {*c.scalars(current), *(row.query for row in mine if row.purpose == REPEAT)}
    excluded |= {row.query for row in mine[-RECENT:]}
    candidates = [row for row in mine if row.purpose == LABEL and row.choice in DECIDED and row.query not in excluded]
    return _with_clips(c, rng.choice(candidates)) if candidates else None


def _gold(c: Connection, run: str, labeller: Labeller, rng: random.Random) -> Any:
    """A random complete pair that an expert decided and this labeller has not seen; None if there is none.

    Experts themselves get none.
    """
    if labeller.role == EXPERT:
        return None
    by_expert = labellers.c.run == run, labellers.c.role == EXPERT
    rows = select(*choices.c["query", "left_is_first"]).join(labellers).where(*by_expert, *LABELS)
    decided = c.execute(rows.where(choices.c.choice.in_(DECIDED)).order_by(choices.c.id)).all()
    seen = {
        query
        for table in (assignments, choices)
        for query in c.scalars(select(table.c.query).where(table.c.labeller == labeller.id))
    }
    candidates = [row for row in decided if row.query not in seen]
    query = _with_clips(c, rng.choice(candidates)) if candidates else None
    return query if query and query.complete_at is not None else None


def _with_clips(c: Connection, choice: Any) -> Any:
    """The query of a choice, and on which side its first segment was."""
    columns = queries.c["id", "first_clip", "second_clip", "complete_at"]
    side = literal(choice.left_is_first).label("left_is_first")
    return c.execute(select(*columns, side).where(queries.c.id == choice.query)).one()


def _assignment(row: Any, left_is_first: bool, purpose: str) -> Assignment:
    left, right = (row.first_clip, row.second_clip) if left_is_first else (row.second_clip, row.first_clip)
    return Assignment(row.id, left, right, purpose)
