"""The book of labels: what people were asked, what was put before whom, and each choice as it was made.

A choice is a fact: it is committed before anybody is told so, and never changed, only withdrawn by who made it. A query
is complete when as many people as it wanted have answered it, and consumed when training has taken its label, the mean
of the decided answers; from then on nothing of it can be undone.

SQLite in the run's folder, or PostgreSQL. What a method writes is one transaction, and any thread and process may call
it. Times are seconds since 1970. This file imports no torch.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from rlhf_bilevel.files import CONFIG, Refused, read_yaml
from rlhf_bilevel.human.database import connect, is_sqlite
from rlhf_bilevel.human.tables import (
    CHOICES,
    DECIDED,
    EQUAL,
    EXPERT,
    GOLD,
    LABEL,
    LABELLER,
    LEFT,
    LONGEST,
    REPEAT,
    RIGHT,
    ROLES,
    SKIP,
    choices,
    clips,
    labellers,
    offers,
    queries,
    runs,
    scenes,
    tokens,
)

BOOK, RUN_ID = "book.sqlite", "run_id"  # in a run's folder
LEASE = 120.0  # seconds for which a pair that was undone stays with who undid it
RECENT = 5  # choices that one remembers: none of them is asked again

_LIVE = choices.c.withdrawn_at.is_(None)
_LABELS = (choices.c.purpose == LABEL, _LIVE)


class Conflict(Refused):
    """An answer that contradicts one that is stored."""


class Unknown(Refused):
    """An answer to what was not asked of this labeller."""


class Consumed(Refused):
    """An answer to what training has used already."""


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    REPEATED = "repeated"  # it had been stored before


class Labeller(NamedTuple):
    id: int
    name: str
    role: str


class Offer(NamedTuple):
    """A pair in front of somebody. Only ``label`` counts as a label; ``repeat`` and ``gold`` are for quality.py."""

    query_id: str
    left_clip: str
    right_clip: str
    purpose: str


class Progress(NamedTuple):
    mine: int  # answers of this labeller
    total: int  # answers of all to what counts as a label
    open: int  # queries that want more answers
    needed: int  # answers until training goes on, or that its next session will want


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


class Book:
    """The book of one run. ``clock`` gives the time, ``rng`` draws sides and what is asked again."""

    def __init__(self, engine: Engine, run: str, clock: Callable[[], float], rng: random.Random) -> None:
        self.run, self._clock, self._rng = run, clock, rng
        self._engine, self._reader = engine, engine.execution_options(reading=True)
        # SQLite has one writer, and those who wait for it would come in no order: here they queue
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite(engine) else nullcontext()
        with self._write() as c:
            _add(c, runs, id=run, facts="{}", begun_at=clock())

    @classmethod
    def open(
        cls,
        where: Path | str,
        run: str,
        *,
        clock: Callable[[], float] = time.time,
        rng: random.Random = random.SystemRandom(),  # noqa: B008  (no state)
    ) -> Book:
        """Of ``run`` in a SQLite file or at a ``postgresql://`` URL, made or brought up to date where it must be.

        Refused where it cannot be reached or is of a later version; Damaged where the file is not what was written.
        """
        return cls(connect(where), run, clock, rng)

    @classmethod
    def of(cls, folder: Path) -> Book:
        """Of the run in ``folder``, as its config.yaml says. Refused where no people are asked by it."""
        if not (folder / CONFIG).is_file():
            raise Refused(f"{folder} is not a run's folder: it has no {CONFIG}")
        settings = read_yaml(folder / CONFIG).get("settings")
        if not isinstance(settings, dict) or not settings.get("teacher_human"):
            raise Refused(f"{folder} is not labelled by people: it was not started with --teacher human")
        return cls.open(str(settings.get("teacher_labels_db") or "") or folder / BOOK, run_id(folder))

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # Training's side

    def runs(self) -> list[str]:
        """All runs of this database, the newest last."""
        with self._read() as c:
            return list(c.scalars(select(runs.c.id).order_by(runs.c.begun_at)))

    def begin(self, facts: Mapping[str, Any]) -> None:
        """What people may want to know of the run, ready for JSON."""
        with self._write() as c:
            c.execute(update(runs).where(runs.c.id == self.run).values(facts=json.dumps(facts)))

    def add_scene(self, scene: str, content: Mapping[str, Any]) -> None:
        """What a clip's ``scene`` names; the first one that is given stays."""
        data = _packed(content)
        with self._write() as c:
            _add(c, scenes, run=self.run, id=scene, data=data)

    def asked(self, session: int) -> int:
        """How many queries of that session are in the book."""
        with self._read() as c:
            return c.scalar(select(func.count()).where(queries.c.run == self.run, queries.c.session == session)) or 0

    def ask(self, session: int, questions: Sequence[Question], wanted: int = 1, left: int | None = None) -> int:
        """Asks them of people, the newest first, for ``wanted`` answers each; how many were not in the book before.

        What a session has asked stays as it is if it asks again. With ``left``, the oldest open queries that nobody has
        looked at are retired, so that no more than so many are open.
        """
        packed = [[_packed(clip) for clip in question[2:]] for question in questions]
        with self._write() as c:
            where = queries.c.run == self.run, queries.c.session == session
            known = set(c.scalars(select(queries.c.position).where(*where)))
            new = [i for i in range(len(questions)) if i not in known]
            for i in new:
                names = [secrets.token_hex(16) for _ in packed[i]]
                for name, data in zip(names, packed[i], strict=True):
                    c.execute(insert(clips).values(id=name, run=self.run, data=data))
                c.execute(
                    insert(queries).values(
                        id=secrets.token_hex(16),
                        run=self.run,
                        session=session,
                        position=i,
                        first_clip=names[0],
                        second_clip=names[1],
                        first=questions[i].first,
                        second=questions[i].second,
                        asked_at=self._clock(),
                        wanted=wanted,
                    )
                )
            if left is not None:
                self._retire(c, session, left)
        return len(new)

    def _retire(self, c: Connection, session: int, left: int) -> None:
        unused = queries.c.run == self.run, queries.c.consumed_session.is_(None), queries.c.retired_session.is_(None)
        surplus = (c.scalar(select(func.count()).where(*unused)) or 0) - left
        if surplus <= 0:
            return
        seen = or_(
            _exists(choices, choices.c.query == queries.c.id, choices.c.withdrawn_at.is_(None)),
            _exists(offers, offers.c.query == queries.c.id, offers.c.leased_until > self._clock()),
        )
        oldest = select(queries.c.id).where(*unused, queries.c.session < session, ~seen)
        oldest = oldest.order_by(queries.c.session, queries.c.position).limit(surplus).with_for_update(skip_locked=True)
        ids = c.scalars(oldest).all()
        c.execute(update(queries).where(queries.c.id.in_(ids)).values(retired_session=session))

    def pending(self) -> Pending:
        asked = queries.c.run == self.run, queries.c.retired_session.is_(None)
        met = _count(choices, choices.c.query == queries.c.id, choices.c.purpose == LABEL, _LIVE)
        with self._read() as c:
            missing = c.scalar(
                select(func.count()).where(*asked, queries.c.complete_at.is_(None), met < queries.c.wanted)
            )
            return Pending(c.scalar(select(func.count()).where(*asked)) or 0, missing or 0)

    def used(self, before: int) -> int:
        """Labels that training took in sessions before that one."""
        decided = _exists(choices, choices.c.query == queries.c.id, choices.c.choice.in_(DECIDED), *_LABELS)
        with self._read() as c:
            where = queries.c.run == self.run, queries.c.consumed_session < before, decided
            return c.scalar(select(func.count()).where(*where)) or 0

    def collect(self, session: int, limit: int) -> list[Answered]:
        """The labels that ``session`` takes, at most ``limit``: of all complete queries that no session has taken.

        They are consumed by it. A session that collects again gets the same ones, and then what has come since.
        """
        with self._write() as c:
            new = and_(queries.c.complete_at.is_not(None), queries.c.consumed_session.is_(None))
            where = queries.c.run == self.run, or_(queries.c.consumed_session == session, new)
            order = queries.c.consumed_session.is_(None), queries.c.session, queries.c.position
            rows = c.execute(select(queries).where(*where).order_by(*order).with_for_update()).all()
            values: dict[str, list[float]] = {row.id: [] for row in rows}
            found = select(choices.c.query, choices.c.choice, choices.c.left_is_first)
            found = found.where(choices.c.query.in_(values), choices.c.choice.in_(DECIDED), *_LABELS)
            for query, choice, left_is_first in c.execute(found):
                values[query].append(first_better(choice, left_is_first))
            taken, labels = [], list[Answered]()
            for row in rows:
                if len(labels) == limit:
                    break
                taken.append(row.id)
                if given := values[row.id]:  # nobody could tell: it is over, without a label
                    labels.append(Answered(sum(given) / len(given), row.first, row.second))
            c.execute(update(queries).where(queries.c.id.in_(taken)).values(consumed_session=session))
        return labels

    def beat(self, status: Status) -> None:
        """Training's sign of life, about once a second."""
        told = json.dumps({**asdict(status), "updated_at": self._clock()})
        with self._write() as c:
            c.execute(update(runs).where(runs.c.id == self.run).values(status=told))

    # People's side

    def facts(self) -> dict[str, Any]:
        with self._read() as c:
            return json.loads(c.scalar(select(runs.c.facts).where(runs.c.id == self.run)) or "{}")

    def status(self) -> Status | None:
        """None before training has given a sign of life."""
        with self._read() as c:
            told = c.scalar(select(runs.c.status).where(runs.c.id == self.run))
        return Status(**json.loads(told)) if told else None

    def invite(self, name: str, role: str = LABELLER) -> str:
        """A token of 128 random bits for the labeller of that name, who is made where there is none.

        Those that were given before stay valid, so that a browser outlives the server. ValueError on a wrong name.
        """
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; known are {', '.join(ROLES)}")
        token = secrets.token_urlsafe(16)
        with self._write() as c:
            labeller = self._named(c, name)
            c.execute(update(labellers).where(labellers.c.id == labeller).values(role=role))
            c.execute(insert(tokens).values(sha256=_digest(token), labeller=labeller))
        return token

    def _named(self, c: Connection, name: str) -> int:
        """The labeller of that name, made where there is none."""
        if not (0 < len(name) <= LONGEST and name.isprintable() and name.strip() == name):
            raise ValueError(f"a labeller's name has 1 to {LONGEST} printable letters: not {name[: LONGEST + 1]!r}")
        _add(c, labellers, run=self.run, name=name, role=LABELLER)
        return c.scalars(select(labellers.c.id).where(labellers.c.run == self.run, labellers.c.name == name)).one()

    def labeller(self, token: str) -> Labeller | None:
        """Who was given that token, in this run."""
        who = select(*labellers.c["id", "name", "role"]).join(tokens)
        with self._read() as c:
            row = c.execute(who.where(tokens.c.sha256 == _digest(token), labellers.c.run == self.run)).first()
        return Labeller(*row) if row else None

    def offer(
        self, labeller: Labeller, count: int, lease_seconds: float = LEASE, repeats: float = 0.05, gold: float = 0.05
    ) -> list[Offer]:
        """Up to ``count`` pairs for that labeller, leased for so long: no more people are at a query than it wants.

        First those that are still in front of them, an undone one before all; then new ones, of the newest session
        first. In place of a new one comes, with the probability ``repeats``, a pair that they decided themselves, its
        sides swapped; with ``gold``, one that an expert decided.
        """
        now = self._clock()
        with self._write() as c:
            self._lock(c, labeller)
            held = self._held(c, labeller.id, now)[:count]
            for row in held:
                mine = offers.c.query == row.id, offers.c.labeller == labeller.id
                c.execute(update(offers).where(*mine).values(leased_until=now + lease_seconds))
            found = [_offer(row, row.left_is_first, row.purpose) for row in held]
            while len(found) < count and (fresh := self._fresh(c, labeller.id, count - len(found), now)):
                for query in fresh:
                    row, left_is_first, purpose = query, self._rng.random() < 0.5, LABEL
                    drawn = self._rng.random()
                    if drawn < repeats and (again := self._decided_before(c, labeller.id)):
                        row, left_is_first, purpose = again, not again.left_is_first, REPEAT
                    elif repeats <= drawn < repeats + gold and (known := self._gold(c, labeller)):
                        row, purpose = known, GOLD
                    times = {"offered_at": now, "leased_until": now + lease_seconds}
                    side = {"left_is_first": left_is_first, "purpose": purpose}
                    c.execute(insert(offers).values(query=row.id, labeller=labeller.id, **side, **times))
                    found.append(_offer(row, left_is_first, purpose))
        return found

    def _lock(self, c: Connection, labeller: Labeller) -> None:
        """What one labeller does happens in order, from however many windows."""
        if not is_sqlite(self._engine):
            c.execute(select(labellers.c.id).where(labellers.c.id == labeller.id).with_for_update(key_share=True))

    def _has_room(self, me: int, now: float) -> ColumnElement[bool]:
        """Whether a query wants one more than have answered it, and than others are at."""
        answers = _count(choices, choices.c.query == queries.c.id, choices.c.choice != SKIP, *_LABELS)
        others = _count(
            offers,
            offers.c.query == queries.c.id,
            offers.c.purpose == LABEL,
            offers.c.labeller != me,
            offers.c.leased_until > now,
        )
        return and_(
            queries.c.run == self.run,
            queries.c.complete_at.is_(None),
            queries.c.retired_session.is_(None),
            answers + others < queries.c.wanted,
        )

    def _held(self, c: Connection, me: int, now: float) -> list[Any]:
        """Their open offers to which an answer is still wanted."""
        mine = select(queries.c.id).join(offers).where(offers.c.labeller == me, offers.c.purpose == LABEL)
        mine = mine.where(queries.c.complete_at.is_(None), queries.c.retired_session.is_(None))
        locked = c.scalars(mine.order_by(queries.c.id).with_for_update(of=queries)).all()
        # Looked at again under the lock: who waited for it sees what the other one did
        query = queries.c["id", "session", "position", "first_clip", "second_clip"]
        rows = select(offers, *query).join(queries).where(offers.c.labeller == me)
        rows = rows.where(or_(offers.c.purpose != LABEL, and_(queries.c.id.in_(locked), self._has_room(me, now))))
        return sorted(
            c.execute(rows), key=lambda row: (-(row.undone_at or 0), row.offered_at, -row.session, row.position)
        )

    def _fresh(self, c: Connection, me: int, count: int, now: float) -> Sequence[Any]:
        """Queries that they have not met; locked, so that nobody else is given the same place."""
        met = or_(
            _exists(offers, offers.c.query == queries.c.id, offers.c.labeller == me),
            _exists(choices, choices.c.query == queries.c.id, choices.c.labeller == me, _LIVE),
        )
        newest = queries.c.session.desc(), queries.c.position
        room = self._has_room(me, now)
        ids = select(queries.c.id).where(room, ~met).order_by(*newest).limit(count).with_for_update(skip_locked=True)
        while locked := c.scalars(ids).all():
            # Looked at again under the lock: the first look may be older than what another one did before
            rows = select(*queries.c["id", "first_clip", "second_clip"]).where(queries.c.id.in_(locked), room)
            if found := c.execute(rows.order_by(*newest)).all():
                return found
        return []

    def _decided_before(self, c: Connection, me: int) -> Any:
        """A pair that they decided a while ago and were not asked again; None where there is none."""
        rows = select(*choices.c["query", "purpose", "choice", "left_is_first"]).where(choices.c.labeller == me, _LIVE)
        mine = c.execute(rows.order_by(choices.c.id)).all()
        asked = select(offers.c.query).where(offers.c.labeller == me, offers.c.purpose == REPEAT)
        known = {*c.scalars(asked), *(row.query for row in mine if row.purpose == REPEAT)}
        known |= {row.query for row in mine[-RECENT:]}
        found = [row for row in mine if row.purpose == LABEL and row.choice in DECIDED and row.query not in known]
        return self._clips(c, self._rng.choice(found)) if found else None

    def _gold(self, c: Connection, labeller: Labeller) -> Any:
        """A complete pair that an expert decided and this labeller, who is none, has not met."""
        if labeller.role == EXPERT:
            return None
        expert = labellers.c.run == self.run, labellers.c.role == EXPERT
        rows = select(*choices.c["query", "left_is_first"]).join(labellers).where(*expert, *_LABELS)
        decided = c.execute(rows.where(choices.c.choice.in_(DECIDED)).order_by(choices.c.id)).all()
        met = {
            query
            for table in (offers, choices)
            for query in c.scalars(select(table.c.query).where(table.c.labeller == labeller.id))
        }
        found = [row for row in decided if row.query not in met]
        gold = self._clips(c, self._rng.choice(found)) if found else None
        return gold if gold and gold.complete_at is not None else None

    def _clips(self, c: Connection, chosen: Any) -> Any:
        """The query of a choice, and which side its first segment was on."""
        columns = queries.c["id", "first_clip", "second_clip", "complete_at"]
        side = literal(chosen.left_is_first).label("left_is_first")
        return c.execute(select(*columns, side).where(queries.c.id == chosen.query)).one()

    def shown(self, labeller: Labeller, query_id: str, at: float | None = None) -> None:
        """When that pair was first on the screen; what is not in front of this labeller is ignored."""
        where = offers.c.query == query_id, offers.c.labeller == labeller.id, offers.c.shown_at.is_(None)
        with self._write() as c:
            c.execute(update(offers).where(*where).values(shown_at=self._clock() if at is None else at))

    def choose(
        self,
        labeller: Labeller,
        query_id: str,
        choice: str,
        key: str,
        shown_at: float | None = None,
        answered_at: float | None = None,
    ) -> Outcome:
        """Stores a choice; on the disk when this returns. The same ``key`` with the same payload is stored once.

        Raises Conflict where the key came with another payload, where this labeller has answered it, and where it has
        all the answers that it wanted; Consumed; Unknown; ValueError on what is no choice.
        """
        if choice not in CHOICES:
            raise ValueError(f"unknown choice {choice[:LONGEST]!r}; known are {', '.join(CHOICES)}")
        if not 0 < len(key) <= LONGEST:
            raise ValueError(f"a key has 1 to {LONGEST} letters: not {len(key)}")
        mine, now = choices.c.labeller == labeller.id, self._clock()
        with self._write() as c:
            self._lock(c, labeller)
            before = c.execute(select(*choices.c["query", "choice"]).where(mine, choices.c.key == key)).first()
            if before:
                if tuple(before) != (query_id, choice):
                    raise Conflict(f"the key {key!r} belongs to another answer")
                return Outcome.REPEATED
            columns = select(*queries.c["wanted", "complete_at", "consumed_session"])
            query = c.execute(
                columns.where(queries.c.id == query_id, queries.c.run == self.run).with_for_update()
            ).first()
            which = offers.c.query == query_id, offers.c.labeller == labeller.id
            offer = c.execute(select(offers).where(*which)).first()
            if query is None or offer is None:
                if c.scalar(select(choices.c.id).where(mine, choices.c.query == query_id, _LIVE).limit(1)):
                    raise Conflict("this pair is answered already")
                raise Unknown("no such pair was put before this labeller")
            counts = offer.purpose == LABEL
            if counts and query.consumed_session is not None:
                raise Consumed("training has used the answers to this pair already")
            if counts and choice != SKIP and query.complete_at is not None:
                raise Conflict("this pair has all the answers that it wanted")
            c.execute(delete(offers).where(*which))
            c.execute(
                insert(choices).values(
                    query=query_id,
                    labeller=labeller.id,
                    purpose=offer.purpose,
                    choice=choice,
                    left_is_first=offer.left_is_first,
                    key=key,
                    shown_at=offer.shown_at if shown_at is None else shown_at,
                    answered_at=now if answered_at is None else answered_at,
                    received_at=now,
                )
            )
            if counts and choice != SKIP:
                answers = select(func.count()).where(choices.c.query == query_id, choices.c.choice != SKIP, *_LABELS)
                if (c.scalar(answers) or 0) >= query.wanted:
                    c.execute(update(queries).where(queries.c.id == query_id).values(complete_at=now))
        return Outcome.ACCEPTED

    def undo(self, labeller: Labeller) -> str | None:
        """Withdraws their last choice, of whatever purpose, and puts its pair before them again; the query's id.

        None where there is none, or training has consumed it.
        """
        now, mine = self._clock(), (choices.c.labeller == labeller.id, _LIVE)
        with self._write() as c:
            self._lock(c, labeller)
            last = c.execute(select(choices).where(*mine).order_by(choices.c.id.desc()).limit(1)).first()
            if last is None:
                return None
            query = select(queries.c.consumed_session).where(queries.c.id == last.query).with_for_update()
            counts = last.purpose == LABEL
            if counts and c.execute(query).one().consumed_session is not None:
                return None
            c.execute(update(choices).where(choices.c.id == last.id).values(withdrawn_at=now))
            if counts and last.choice != SKIP:
                c.execute(update(queries).where(queries.c.id == last.query).values(complete_at=None))
            # Its repetition is off: what it would be compared with is no more
            c.execute(delete(offers).where(offers.c.query == last.query, offers.c.labeller == labeller.id))
            c.execute(
                insert(offers).values(
                    query=last.query,
                    labeller=labeller.id,
                    purpose=last.purpose,
                    left_is_first=last.left_is_first,
                    offered_at=now,
                    leased_until=now + LEASE,
                    undone_at=now,
                )
            )
        return last.query

    def clip(self, clip_id: str) -> bytes | None:
        """Gzipped JSON; None where this run has no such clip."""
        with self._read() as c:
            return c.scalar(select(clips.c.data).where(clips.c.id == clip_id, clips.c.run == self.run))

    def scene(self, scene_id: str) -> bytes | None:
        """Gzipped JSON; None where this run has no such scene."""
        with self._read() as c:
            return c.scalar(select(scenes.c.data).where(scenes.c.id == scene_id, scenes.c.run == self.run))

    def progress(self, labeller: Labeller) -> Progress:
        ours = choices.c.labeller.in_(select(labellers.c.id).where(labellers.c.run == self.run))
        where = queries.c.run == self.run, queries.c.complete_at.is_(None), queries.c.retired_session.is_(None)
        with self._read() as c:
            answers = select(func.count()).where(choices.c.choice != SKIP, _LIVE)
            mine = c.scalar(answers.where(choices.c.labeller == labeller.id)) or 0
            total = c.scalar(answers.where(ours, choices.c.purpose == LABEL)) or 0
            wanting = c.scalar(select(func.count()).where(*where)) or 0
        status = self.status()
        return Progress(mine, total, wanting, status.needed if status else 0)

    # All that is in it

    def all_asked(self) -> list[Asked]:
        """Every query in order, a row for each of its choices that counts as a label, or one without any."""
        live = and_(choices.c.query == queries.c.id, *_LABELS)
        query = queries.c["id", "session", "first", "second", "asked_at"]
        chosen = choices.c["choice", "left_is_first", "shown_at", "answered_at"]
        rows = select(*query, labellers.c.name, *chosen).select_from(queries.outerjoin(choices, live))
        rows = rows.outerjoin(labellers, labellers.c.id == choices.c.labeller).where(queries.c.run == self.run)
        with self._read() as c:
            found = c.execute(rows.order_by(queries.c.session, queries.c.position, choices.c.id))
            return [Asked._make(row) for row in found]

    def all_chosen(self) -> list[Chosen]:
        """Every choice that was not withdrawn, of every purpose, in the order in which they came."""
        columns = choices.c["purpose", "choice", "left_is_first", "shown_at", "answered_at"]
        rows = select(choices.c.query, *labellers.c["id", "name", "role"], *columns).join(labellers)
        with self._read() as c:
            found = c.execute(rows.where(labellers.c.run == self.run, _LIVE).order_by(choices.c.id))
            return [Chosen(row[0], Labeller(*row[1:4]), *row[4:]) for row in found]

    def everybody(self) -> list[Labeller]:
        with self._read() as c:
            rows = select(*labellers.c["id", "name", "role"]).where(labellers.c.run == self.run)
            return [Labeller(*row) for row in c.execute(rows.order_by(labellers.c.id))]

    def enter(
        self, name: str, query_id: str, label: float, key: str, shown_at: float | None, answered_at: float | None
    ) -> Outcome:
        """An answer 1, 0 or .5 that somebody of that name gave elsewhere; raises as ``choose`` does."""
        with self._write() as c:
            me = self._named(c, name)
            asked = c.scalar(select(queries.c.id).where(queries.c.id == query_id, queries.c.run == self.run))
            met = choices.c.labeller == me, choices.c.query == query_id, _LIVE
            if asked and not c.scalar(select(choices.c.id).where(*met).limit(1)):
                c.execute(delete(offers).where(offers.c.query == query_id, offers.c.labeller == me))
                offer = {"query": query_id, "labeller": me, "purpose": LABEL, "left_is_first": True}
                c.execute(insert(offers).values(**offer, offered_at=self._clock(), leased_until=0.0))
        choice = {1.0: LEFT, 0.0: RIGHT, 0.5: EQUAL}[label]
        return self.choose(Labeller(me, name, LABELLER), query_id, choice, key, shown_at, answered_at)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._turn, self._engine.begin() as c:
            yield c

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._reader.begin() as c:
            yield c


def first_better(choice: str, left_is_first: bool) -> float:
    """The label of a decided choice: 1 where the first segment is better, 0 where the second is, .5 for a tie."""
    return 0.5 if choice == EQUAL else float((choice == LEFT) == left_is_first)


def run_id(folder: Path) -> str:
    """The name of a folder's run in its book: 128 random bits, drawn once."""
    path = folder / RUN_ID
    if not path.exists():
        unfinished = folder / f"{RUN_ID}.{secrets.token_hex(8)}"
        try:
            unfinished.write_text(secrets.token_hex(16))
            with suppress(FileExistsError):  # training and the label page may start at once: the first one counts
                os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path.read_text().strip()


def _add(c: Connection, table: Table, **row: Any) -> None:
    """A row, unless there is one of the same key."""
    dialect: Any = {"sqlite": sqlite, "postgresql": postgresql}[c.dialect.name]
    c.execute(dialect.insert(table).values(**row).on_conflict_do_nothing())


def _count(table: Table, *where: ColumnElement[bool]) -> Any:
    return select(func.count()).select_from(table).where(*where).correlate(queries).scalar_subquery()


def _exists(table: Table, *where: ColumnElement[bool]) -> Any:
    return select(table).where(*where).correlate(queries).exists()


def _offer(row: Any, left_is_first: bool, purpose: str) -> Offer:
    both = (row.first_clip, row.second_clip) if left_is_first else (row.second_clip, row.first_clip)
    return Offer(row.id, *both, purpose)


def _packed(content: Mapping[str, Any]) -> bytes:
    return gzip.compress(json.dumps(content, separators=(",", ":"), allow_nan=False).encode(), mtime=0)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
