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
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from rlhf_bilevel.config import check_database
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.human import assignment
from rlhf_bilevel.human.database import connect, file_of, is_sqlite, replaced
from rlhf_bilevel.human.records import (
    Answered,
    Asked,
    Assignment,
    Chosen,
    ConflictError,
    ConsumedError,
    Labeller,
    NotFoundError,
    Outcome,
    Pending,
    Progress,
    Question,
    Status,
    first_better,
)
from rlhf_bilevel.human.tables import (
    CHOICES,
    DECIDED,
    EQUAL,
    GOLD,
    LABEL,
    LABELLER,
    LABELS,
    LEFT,
    LIVE,
    LONGEST,
    REPEAT,
    RIGHT,
    ROLES,
    SKIP,
    choices,
    clips,
    count,
    exists,
    labellers,
    offers,
    queries,
    runs,
    scenes,
    tokens,
)
from rlhf_bilevel.utils.files import check_trust, read
from rlhf_bilevel.utils.sqlite import read_only_copy

LEASE = 120.0  # seconds for which a pair that was undone stays with who undid it


class LabelStore:
    """The book of one run. ``clock`` gives the time, ``rng`` draws sides and what is asked again."""

    def __init__(self, engine: Engine, run: str, clock: Callable[[], float], rng: random.Random) -> None:
        self.run, self._clock, self._rng = run, clock, rng
        self._engine, self._reader = engine, engine.execution_options(reading=True)
        # SQLite has one writer, and those who wait for it would come in no order: here they queue
        self._turn: AbstractContextManager[Any] = threading.Lock() if is_sqlite(engine) else nullcontext()
        self._file = file_of(engine)
        with self._write() as c:
            _add(c, runs, id=run, facts="{}", begun_at=clock())

    @classmethod
    def open(
        cls,
        where: Path | str,
        run: str,
        *,
        told: Path | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random = random.SystemRandom(),  # noqa: B008  (no state)
    ) -> LabelStore:
        """Of ``run`` in a SQLite file or at a ``postgresql://`` URL, made or brought up to date where it must be.

        ``told`` is what a file is called in messages.
        UserError where it cannot be reached or is of a later version; CorruptFileError if it is not what was written.
        """
        return cls(connect(where, told), run, clock, rng)

    @classmethod
    def of(cls, folder: Path, trust: bool = False, database: str | None = None) -> LabelStore:
        """Of the run in ``folder``, as its config.yaml says. UserError where no people are asked by it.

        A database elsewhere is gone to with ``trust``, or where the user names the same ``database``.
        """
        run = RunFolder(folder)
        run.examine(writes=True)
        return cls.open(_where(run, trust, database), run_id(folder))

    @classmethod
    @contextmanager
    def reading(cls, folder: Path, trust: bool = False) -> Iterator[LabelStore]:
        """The same to be read only: of a copy of the file, so that nothing in the folder changes."""
        run = RunFolder(folder).examine()
        where = _where(run, trust, None)
        if not run.run_id.is_file() or (isinstance(where, Path) and not where.is_file()):
            raise UserError(f"{folder} has asked nobody yet")
        with ExitStack() as stack:
            told = where if isinstance(where, Path) else None
            where = stack.enter_context(read_only_copy(where)) if isinstance(where, Path) else where
            yield stack.enter_context(cls.open(where, run_id(folder), told=told))

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> LabelStore:
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
            exists(choices, choices.c.query == queries.c.id, LIVE),
            exists(offers, offers.c.query == queries.c.id, offers.c.leased_until > self._clock()),
        )
        oldest = select(queries.c.id).where(*unused, queries.c.session < session, ~seen)
        oldest = oldest.order_by(queries.c.session, queries.c.position).limit(surplus).with_for_update(skip_locked=True)
        ids = c.scalars(oldest).all()
        c.execute(update(queries).where(queries.c.id.in_(ids)).values(retired_session=session))

    def pending(self) -> Pending:
        asked = queries.c.run == self.run, queries.c.retired_session.is_(None)
        met = count(choices, choices.c.query == queries.c.id, *LABELS)
        with self._read() as c:
            missing = c.scalar(
                select(func.count()).where(*asked, queries.c.complete_at.is_(None), met < queries.c.wanted)
            )
            return Pending(c.scalar(select(func.count()).where(*asked)) or 0, missing or 0)

    def used(self, before: int) -> int:
        """Labels that training took in sessions before that one."""
        decided = exists(choices, choices.c.query == queries.c.id, choices.c.choice.in_(DECIDED), *LABELS)
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
            found = found.where(choices.c.query.in_(values), choices.c.choice.in_(DECIDED), *LABELS)
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

        Those that were given before stay valid, so that a browser outlives the server. UserError on a wrong name.
        """
        if role not in ROLES:
            raise UserError(f"unknown role {role!r}; known are {', '.join(ROLES)}")
        token = secrets.token_urlsafe(16)
        with self._write() as c:
            labeller = self._named(c, name)
            c.execute(update(labellers).where(labellers.c.id == labeller).values(role=role))
            c.execute(insert(tokens).values(sha256=_digest(token), labeller=labeller))
        return token

    def _named(self, c: Connection, name: str) -> int:
        """The labeller of that name, made where there is none."""
        if not (0 < len(name) <= LONGEST and name.isprintable() and name.strip() == name):
            raise UserError(f"a labeller's name has 1 to {LONGEST} printable letters: not {name[: LONGEST + 1]!r}")
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
    ) -> list[Assignment]:
        """Up to ``count`` pairs for that labeller, leased for so long: no more people are at a query than it wants.

        First those that are still in front of them, an undone one before all; then new ones, of the newest session
        first. In place of a new one comes, with the probability ``repeats``, a pair that they decided themselves, its
        sides swapped; with ``gold``, one that an expert decided.
        """
        now, me, rng = self._clock(), labeller.id, self._rng
        with self._write() as c:
            self._lock(c, labeller)
            held = assignment.held(c, self.run, me, now)[:count]
            for row in held:
                mine = offers.c.query == row.id, offers.c.labeller == me
                c.execute(update(offers).where(*mine).values(leased_until=now + lease_seconds))
            found = [assignment.offer(row, row.left_is_first, row.purpose) for row in held]
            while len(found) < count and (fresh := assignment.fresh(c, self.run, me, count - len(found), now)):
                for query in fresh:
                    row, left_is_first, purpose = query, rng.random() < 0.5, LABEL
                    drawn = rng.random()
                    if drawn < repeats and (again := assignment.decided_before(c, me, rng)):
                        row, left_is_first, purpose = again, not again.left_is_first, REPEAT
                    elif repeats <= drawn < repeats + gold and (known := assignment.gold(c, self.run, labeller, rng)):
                        row, purpose = known, GOLD
                    times = {"offered_at": now, "leased_until": now + lease_seconds}
                    side = {"left_is_first": left_is_first, "purpose": purpose}
                    c.execute(insert(offers).values(query=row.id, labeller=me, **side, **times))
                    found.append(assignment.offer(row, left_is_first, purpose))
        return found

    def _lock(self, c: Connection, labeller: Labeller) -> None:
        """What one labeller does happens in order, from however many windows."""
        if not is_sqlite(self._engine):
            c.execute(select(labellers.c.id).where(labellers.c.id == labeller.id).with_for_update(key_share=True))

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

        Times are of the labeller's clock; those before the pair was offered or after now are corrected (``_times``).
        Raises ConflictError where the key came with another payload, where this labeller has answered it, and where it
        has all the answers that it wanted; ConsumedError; NotFoundError; UserError on what is no choice.
        """
        if choice not in CHOICES:
            raise UserError(f"unknown choice {choice[:LONGEST]!r}; known are {', '.join(CHOICES)}")
        if not 0 < len(key) <= LONGEST:
            raise UserError(f"a key has 1 to {LONGEST} letters: not {len(key)}")
        mine, now = choices.c.labeller == labeller.id, self._clock()
        with self._write() as c:
            self._lock(c, labeller)
            before = c.execute(select(*choices.c["query", "choice"]).where(mine, choices.c.key == key)).first()
            if before:
                if tuple(before) != (query_id, choice):
                    raise ConflictError(f"the key {key!r} belongs to another answer")
                return Outcome.REPEATED
            columns = select(*queries.c["wanted", "complete_at", "consumed_session"])
            query = c.execute(
                columns.where(queries.c.id == query_id, queries.c.run == self.run).with_for_update()
            ).first()
            which = offers.c.query == query_id, offers.c.labeller == labeller.id
            offer = c.execute(select(offers).where(*which)).first()
            if query is None or offer is None:
                if c.scalar(select(choices.c.id).where(mine, choices.c.query == query_id, LIVE).limit(1)):
                    raise ConflictError("this pair is answered already")
                raise NotFoundError("no such pair was put before this labeller")
            counts = offer.purpose == LABEL
            if counts and query.consumed_session is not None:
                raise ConsumedError("training has used the answers to this pair already")
            if counts and choice != SKIP and query.complete_at is not None:
                raise ConflictError("this pair has all the answers that it wanted")
            c.execute(delete(offers).where(*which))
            shown_at = offer.shown_at if shown_at is None else shown_at
            answered_at = now if answered_at is None else answered_at
            shown_at, answered_at = _times(shown_at, answered_at, min(offer.offered_at, now), now)
            c.execute(
                insert(choices).values(
                    query=query_id,
                    labeller=labeller.id,
                    purpose=offer.purpose,
                    choice=choice,
                    left_is_first=offer.left_is_first,
                    key=key,
                    shown_at=shown_at,
                    answered_at=answered_at,
                    received_at=now,
                )
            )
            if counts and choice != SKIP:
                answers = select(func.count()).where(choices.c.query == query_id, choices.c.choice != SKIP, *LABELS)
                if (c.scalar(answers) or 0) >= query.wanted:
                    c.execute(update(queries).where(queries.c.id == query_id).values(complete_at=now))
        return Outcome.ACCEPTED

    def undo(self, labeller: Labeller) -> str | None:
        """Withdraws their last choice, of whatever purpose, and puts its pair before them again; the query's id.

        None where there is none, or training has consumed it.
        """
        now = self._clock()
        with self._write() as c:
            self._lock(c, labeller)
            last = _undoable(c, labeller, lock=True)
            if last is None:
                return None
            c.execute(update(choices).where(choices.c.id == last.id).values(withdrawn_at=now))
            if last.purpose == LABEL and last.choice != SKIP:
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

    def unskip(self, labeller: Labeller) -> int:
        """Withdraws their skips of queries that still want an answer, which are offered to them again; how many."""
        still = queries.c.run == self.run, queries.c.complete_at.is_(None), queries.c.retired_session.is_(None)
        skips = choices.c.labeller == labeller.id, choices.c.choice == SKIP, *LABELS
        with self._write() as c:
            self._lock(c, labeller)
            where = *skips, choices.c.query.in_(select(queries.c.id).where(*still))
            return c.execute(update(choices).where(*where).values(withdrawn_at=self._clock())).rowcount

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
        with self._read() as c:
            answers = select(func.count()).where(choices.c.choice != SKIP, LIVE)
            mine = c.scalar(answers.where(choices.c.labeller == labeller.id)) or 0
            total = c.scalar(answers.where(ours)) or 0
            standing = assignment.standing(c, self.run, labeller.id, self._clock())
            can_undo = _undoable(c, labeller, lock=False) is not None
        status = self.status()
        needed = status.needed if status else 0
        if status and status.spare is not None:  # training counts once a second, and answers come meanwhile
            needed = max(0, self.pending().missing - status.spare)
        return Progress(mine, total, *standing, needed, can_undo)

    # All that is in it

    def all_asked(self) -> list[Asked]:
        """Every query in order, a row for each of its choices that counts as a label, or one without any."""
        live = and_(choices.c.query == queries.c.id, *LABELS)
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
            found = c.execute(rows.where(labellers.c.run == self.run, LIVE).order_by(choices.c.id))
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
            met = choices.c.labeller == me, choices.c.query == query_id, LIVE
            if asked and not c.scalar(select(choices.c.id).where(*met).limit(1)):
                c.execute(delete(offers).where(offers.c.query == query_id, offers.c.labeller == me))
                offer = {"query": query_id, "labeller": me, "purpose": LABEL, "left_is_first": True}
                c.execute(insert(offers).values(**offer, offered_at=0.0, leased_until=0.0))  # nobody knows when
        choice = {1.0: LEFT, 0.0: RIGHT, 0.5: EQUAL}[label]
        return self.choose(Labeller(me, name, LABELLER), query_id, choice, key, shown_at, answered_at)

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        self._still_there()
        with self._turn, self._engine.begin() as c:
            yield c
        self._still_there()

    def _still_there(self) -> None:
        """OperationalError where what is committed now, or was, is in a file that nobody will read."""
        if file_of(self._engine) != self._file:
            raise replaced(self._engine)

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._reader.begin() as c:
            yield c


def run_id(folder: Path) -> str:
    """The name of a run in its book: 128 random bits, drawn once."""
    path = RunFolder(folder).run_id
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            unfinished.write_text(secrets.token_hex(16))
            with suppress(FileExistsError):  # training and the label page may start at once: the first one counts
                os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    name = read(path, 100).decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise CorruptFileError(f"{path} is damaged: it holds no run's name")
    return name


def _where(folder: RunFolder, trust: bool, database: str | None) -> Path | str:
    """Where the labels of a run are kept."""
    told = folder.read_config().get("settings", {})
    if not told.get("teacher_human"):
        raise UserError(f"{folder} is not labelled by people: it was not started with --teacher human")
    url = told.get("teacher_labels_db") or ""
    if not isinstance(url, str):
        raise CorruptFileError(f"{folder.config} is damaged: teacher_labels_db is no text")
    if database is not None and database != url:
        raise UserError(f"--labels-db {database}: {folder} keeps its labels in {url or folder.book.name}")
    if not url:
        return folder.book
    try:
        check_database(url)
    except UserError as error:
        raise CorruptFileError(f"{folder.config} is damaged: teacher_labels_db: {error}") from None
    check_trust(trust or database is not None, f"{folder} would go to the database {url}")
    return url


def _undoable(c: Connection, labeller: Labeller, lock: bool) -> Any:
    """Their last choice; None where there is none or training has used it, which ``lock`` keeps it from."""
    mine = choices.c.labeller == labeller.id, LIVE
    last = c.execute(select(choices).where(*mine).order_by(choices.c.id.desc()).limit(1)).first()
    if last is None or last.purpose != LABEL:
        return last
    query = select(queries.c.consumed_session).where(queries.c.id == last.query)
    return None if c.execute(query.with_for_update() if lock else query).one().consumed_session is not None else last


def _times(shown: float | None, answered: float, earliest: float, latest: float) -> tuple[float | None, float]:
    """What a labeller's clock says, where it can be, else the nearest that can: within ``earliest`` and ``latest``.

    The time between the two stays where it fits. A clock that was set back between them does not tell it: None.
    """
    if shown is None or answered < shown:
        return None, min(max(answered, earliest), latest)
    took = min(answered - shown, latest - earliest)
    shown = min(max(shown, earliest), latest - took)
    return shown, shown + took


def _add(c: Connection, table: Table, **row: Any) -> None:
    """A row, unless there is one of the same key."""
    dialect: Any = {"sqlite": sqlite, "postgresql": postgresql}[c.dialect.name]
    c.execute(dialect.insert(table).values(**row).on_conflict_do_nothing())


def _packed(content: Mapping[str, Any]) -> bytes:
    return gzip.compress(json.dumps(content, separators=(",", ":"), allow_nan=False).encode(), mtime=0)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
