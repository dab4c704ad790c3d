"""The label store: what people were asked, what was put before whom, and every choice as it was made.

A choice is stored safely on disk before its labeller hears that it was stored. It is never changed, only taken back by
the person who made it. A query is complete when as many people as it wants have answered it. It is consumed when
training has taken its label, the mean of what people decided; from then on its answers cannot be taken back.

The store is a SQLite file in the run's folder, or a PostgreSQL database. Each method that writes is one transaction,
and any thread and any process may call it. All times are seconds since 1970. This file does not import torch.
"""

from __future__ import annotations

import gzip
import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human import answers, assignment, questions
from rlhf_bilevel.human.database import connect, file_identity, file_replaced, insert_if_absent, is_sqlite
from rlhf_bilevel.human.location import database_of, run_id
from rlhf_bilevel.human.records import (
    Answered,
    Asked,
    Assignment,
    Chosen,
    Labeller,
    Outcome,
    Pair,
    Past,
    Pending,
    Progress,
    Question,
    Status,
    Undone,
)
from rlhf_bilevel.human.tables import (
    CHOICES,
    LABELLER,
    LABELS,
    LEFT_BETTER,
    LIVE,
    MAX_LETTERS,
    MAX_NOTE,
    ROLES,
    SKIP,
    choices,
    clips,
    labellers,
    queries,
    runs,
    scenes,
    tokens,
)
from rlhf_bilevel.utils.files import sha256
from rlhf_bilevel.utils.sqlite import read_only_copy


class LabelStore:
    """The label store of one run. ``clock`` gives the time; ``rng`` draws the sides and the pairs that are repeated."""

    def __init__(self, engine: Engine, run: str, clock: Callable[[], float], rng: random.Random) -> None:
        self.run, self._clock, self._rng = run, clock, rng
        self._engine, self._read = engine, engine.execution_options(reading=True).begin
        # SQLite lets one thread write and wakes the others in any order: this lock makes them queue
        self._write_lock: AbstractContextManager[Any] = threading.Lock() if is_sqlite(engine) else nullcontext()
        self._file = file_identity(engine)
        with self._write() as c:
            insert_if_absent(c, runs, id=run, facts="{}", begun_at=clock())

    # Opening

    @classmethod
    def open(
        cls,
        where: Path | str,
        run: str,
        *,
        display_path: Path | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random = random.SystemRandom(),  # noqa: B008  (has no state)
    ) -> LabelStore:
        """Opens the label store of ``run`` at ``where``: a SQLite file, or a ``postgresql://`` URL.

        Tables are created, or updated to this version. ``display_path`` is the path that messages show instead of
        ``where``. UserError if the database cannot be opened or a later version wrote it; CorruptFileError if the file
        is not a label store.
        """
        return cls(connect(where, display_path), run, clock, rng)

    @classmethod
    def of(cls, folder: Path, trust: bool = False, database: str | None = None) -> LabelStore:
        """Opens the label store of the run in ``folder``, where its config.yaml says.

        A database elsewhere is opened only with ``trust``, or if ``database`` is the same URL. UserError if the run is
        not labelled by people; otherwise as ``open``.
        """
        run = RunFolder(folder)
        run.examine(writes=True)
        return cls.open(database_of(run, trust, database), run_id(folder))

    @classmethod
    @contextmanager
    def reading(cls, folder: Path, trust: bool = False) -> Iterator[LabelStore]:
        """Opens a copy of the run's SQLite file, so that nothing in ``folder`` changes; otherwise as ``of``."""
        run = RunFolder(folder).examine()
        where = database_of(run, trust, None)
        if not run.run_id.is_file() or (isinstance(where, Path) and not where.is_file()):
            raise UserError(f"{folder} has asked nobody yet")
        with ExitStack() as stack:
            display_path = where if isinstance(where, Path) else None
            where = stack.enter_context(read_only_copy(where)) if isinstance(where, Path) else where
            yield stack.enter_context(cls.open(where, run_id(folder), display_path=display_path))

    def close(self) -> None:
        """Closes all connections to the database."""
        self._engine.dispose()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # The run

    def set_run_info(self, info: Mapping[str, Any]) -> None:
        """Stores what people may want to know about the run, as content for JSON."""
        with self._write() as c:
            c.execute(update(runs).where(runs.c.id == self.run).values(facts=json.dumps(info)))

    def run_info(self) -> dict[str, Any]:
        """What ``set_run_info`` stored; empty before that."""
        with self._read() as c:
            return json.loads(c.scalar(select(runs.c.facts).where(runs.c.id == self.run)) or "{}")

    def set_status(self, status: Status) -> None:
        """Stores what training reports about itself, with the present time."""
        data = json.dumps({**asdict(status), "updated_at": self._clock()})
        with self._write() as c:
            c.execute(update(runs).where(runs.c.id == self.run).values(status=data))

    def status(self) -> Status | None:
        """What training reported last; None before its first report."""
        with self._read() as c:
            data = c.scalar(select(runs.c.status).where(runs.c.id == self.run))
        return Status(**json.loads(data)) if data else None

    def add_scene(self, scene: str, content: Mapping[str, Any]) -> None:
        """Stores the scene that clips name ``scene``, as content for JSON. A scene that is there already stays."""
        data = _packed(content)
        with self._write() as c:
            insert_if_absent(c, scenes, run=self.run, id=scene, data=data)

    def pair(self, query_id: str) -> Pair | None:
        """A query that was asked; None if this run has no such query."""
        place = queries.c["session", "position", "first_clip", "second_clip"]
        with self._read() as c:
            found = c.execute(select(*place).where(queries.c.id == query_id, queries.c.run == self.run)).first()
            if found is None:
                return None
            same_session = and_(queries.c.session == found.session, queries.c.position < found.position)
            before = or_(queries.c.session < found.session, same_session)
            number = c.scalar(select(func.count()).where(queries.c.run == self.run, before)) or 0
        return Pair(number + 1, (found.first_clip, found.second_clip))

    def scene(self, scene_id: str) -> bytes | None:
        """A scene as gzipped JSON; None if this run has no such scene."""
        with self._read() as c:
            return c.scalar(select(scenes.c.data).where(scenes.c.id == scene_id, scenes.c.run == self.run))

    def clip(self, clip_id: str) -> bytes | None:
        """A clip as gzipped JSON; None if this run has no such clip."""
        with self._read() as c:
            return c.scalar(select(clips.c.data).where(clips.c.id == clip_id, clips.c.run == self.run))

    # Training asks and takes labels

    def ask(self, session: int, new_questions: Sequence[Question], wanted: int = 1, max_open: int | None = None) -> int:
        """Asks people these questions, for ``wanted`` answers each, and returns how many were not asked before.

        A session that asks again keeps the queries that it asked first. With ``max_open``, the oldest unanswered
        queries that nobody has looked at are retired, until no more than ``max_open`` queries are unused.
        """
        packed = [(q.first, q.second, _packed(q.first_clip), _packed(q.second_clip)) for q in new_questions]
        with self._write() as c:
            added = questions.ask(c, self.run, session, packed, wanted, self._clock())
            if max_open is not None:
                questions.retire_surplus(c, self.run, session, max_open, self._clock())
        return added

    def asked(self, session: int) -> int:
        """How many queries ``session`` has asked."""
        with self._read() as c:
            return c.scalar(select(func.count()).where(queries.c.run == self.run, queries.c.session == session)) or 0

    def pending(self) -> Pending:
        """How many queries were asked, and how many of them still wait for a person."""
        with self._read() as c:
            return questions.pending(c, self.run)

    def labels_used(self, before_session: int) -> int:
        """How many labels training took in the sessions before ``before_session``."""
        with self._read() as c:
            return questions.labels_used(c, self.run, before_session)

    def collect(self, session: int, limit: int) -> list[Answered]:
        """Takes at most ``limit`` labels for ``session``, of all complete queries that no other session has taken.

        A session that collects again gets the same labels first, and then those that have come since.
        """
        with self._write() as c:
            return questions.collect(c, self.run, session, limit, self._clock())

    # People answer

    def invite(self, name: str, role: str = LABELLER) -> str:
        """A new session token of 128 random bits for the labeller ``name``, who is added if not there yet.

        Earlier tokens stay valid. UserError if the name or the role is not allowed.
        """
        if role not in ROLES:
            raise UserError(f"unknown role {role!r}: choose from {', '.join(ROLES)}")
        token = secrets.token_urlsafe(16)
        with self._write() as c:
            labeller = self._add_labeller(c, name)
            c.execute(update(labellers).where(labellers.c.id == labeller).values(role=role))
            c.execute(insert(tokens).values(sha256=sha256(token.encode()), labeller=labeller))
        return token

    def labeller(self, token: str) -> Labeller | None:
        """The labeller of this run who has the token; None if nobody has."""
        of_token = tokens.c.sha256 == sha256(token.encode()), labellers.c.run == self.run
        with self._read() as c:
            row = c.execute(select(*labellers.c["id", "name", "role"]).join(tokens).where(*of_token)).first()
        return Labeller(*row) if row else None

    def labellers(self) -> list[Labeller]:
        """All labellers of the run, in the order in which they came."""
        with self._read() as c:
            rows = select(*labellers.c["id", "name", "role"]).where(labellers.c.run == self.run)
            return [Labeller(*row) for row in c.execute(rows.order_by(labellers.c.id))]

    def assign(
        self,
        labeller: Labeller,
        limit: int,
        lease_seconds: float = answers.UNDO_LEASE,
        repeats: float = 0.05,
        gold: float = 0.05,
    ) -> list[Assignment]:
        """Puts up to ``limit`` pairs before a labeller. Each is reserved for them for ``lease_seconds``.

        The labeller's earlier assignments come first, a pair that came back by undo before all others; then queries
        that they have not seen, the newest session first. In place of a new query comes, with the probability
        ``repeats``, a pair that they decided themselves, with its sides swapped; with the probability ``gold``, a pair
        that an expert decided. A query is never put before more people than it needs.
        """
        with self._write() as c:
            answers.lock_labeller(c, labeller.id)
            return assignment.assign(
                c, self.run, labeller, limit, self._clock(), lease_seconds, repeats=repeats, gold=gold, rng=self._rng
            )

    def choose(
        self,
        labeller: Labeller,
        query_id: str,
        choice: str,
        key: str,
        shown_at: float | None = None,
        answered_at: float | None = None,
        note: str = "",
    ) -> Outcome:
        """Stores a choice, with a ``note`` of at most MAX_NOTE letters. When this returns, the choice is on disk.

        ``key`` identifies the answer: sending the same answer again stores it once. The times are those of the
        labeller's clock, and are corrected if they cannot be true (``answers.corrected_times``).

        UserError if ``choice``, ``key`` or ``note`` is not allowed. ConflictError if the key came with another answer,
        if this labeller has answered the pair already, or if the pair has all its answers. NotFoundError if the pair
        was not put before this labeller. ConsumedError if training has used the answers to the pair.
        """
        if choice not in CHOICES:
            raise UserError(f"unknown choice {choice[:MAX_LETTERS]!r}: choose from {', '.join(CHOICES)}")
        if not 0 < len(key) <= MAX_LETTERS:
            raise UserError(f"a key has 1 to {MAX_LETTERS} letters, not {len(key)}")
        if len(note) > MAX_NOTE:
            raise UserError(f"a note has at most {MAX_NOTE} letters, not {len(note)}")
        with self._write() as c:
            answers.lock_labeller(c, labeller.id)
            return answers.store(
                c, self.run, labeller.id, query_id, choice, key, shown_at, answered_at, note, self._clock()
            )

    def undo(self, labeller: Labeller, key: str | None = None) -> Undone | None:
        """Takes back a choice of the labeller, for any purpose, and puts its pair before them again.

        It is the choice that came with ``key``, or else their last one. None if there is no such choice, or if it is
        final (``Chosen.final``).
        """
        with self._write() as c:
            answers.lock_labeller(c, labeller.id)
            choice = answers.undoable(c, labeller.id, key)
            if choice is None:
                return None
            answers.withdraw(c, choice, self._clock())
        return Undone(choice.query, choice.note or "")

    def history(self, labeller: Labeller, limit: int) -> list[Past]:
        """The labeller's last ``limit`` choices that were not taken back, for any purpose, the newest first."""
        with self._read() as c:
            return answers.history(c, labeller.id, limit)

    def unskip(self, labeller: Labeller) -> int:
        """Takes back the labeller's skips of open queries, so that they can get them again; returns how many."""
        with self._write() as c:
            answers.lock_labeller(c, labeller.id)
            return answers.withdraw_skips(c, self.run, labeller.id, self._clock())

    def import_answer(
        self, name: str, query_id: str, label: float, key: str, shown_at: float | None, answered_at: float | None
    ) -> Outcome:
        """Stores a label that the person ``name`` gave elsewhere: 1, 0.75, 0.5, 0.25 or 0. Raises as ``choose``."""
        with self._write() as c:
            labeller = self._add_labeller(c, name)
            answers.assign_for_import(c, self.run, labeller, query_id)
        choice = next(choice for choice, value in LEFT_BETTER.items() if value == label)
        return self.choose(Labeller(labeller, name, LABELLER), query_id, choice, key, shown_at, answered_at)

    def progress(self, labeller: Labeller) -> Progress:
        """The work that is done and the work that is left, for one labeller."""
        of_run = choices.c.labeller.in_(select(labellers.c.id).where(labellers.c.run == self.run))
        with self._read() as c:
            answer_count = select(func.count()).where(choices.c.choice != SKIP, LIVE)
            mine = c.scalar(answer_count.where(choices.c.labeller == labeller.id)) or 0
            total = c.scalar(answer_count.where(of_run)) or 0
            open_counts = assignment.open_counts(c, self.run, labeller.id, self._clock())
            joined = select(func.count(labellers.c.id.distinct())).join(tokens).where(labellers.c.run == self.run)
            people = c.scalar(joined) or 0
            can_undo = answers.undoable(c, labeller.id, lock=False) is not None
        status, pending = self.status(), self.pending()
        needed = status.needed if status else 0
        if status and status.spare is not None:  # training counts once a second: answers have come since
            needed = max(0, pending.missing - status.spare)
        return Progress(mine, total, pending.asked, *open_counts, people, needed, can_undo)

    # Everything that is stored

    def all_asked(self) -> list[Asked]:
        """All queries in the order in which they were asked: a row for each choice that counts as a label, or one."""
        of_query = and_(choices.c.query == queries.c.id, *LABELS)
        query = queries.c["id", "session", "first", "second", "asked_at"]
        choice = choices.c["choice", "left_is_first", "shown_at", "answered_at"]
        rows = select(*query, labellers.c.name, *choice).select_from(queries.outerjoin(choices, of_query))
        rows = rows.outerjoin(labellers, labellers.c.id == choices.c.labeller).where(queries.c.run == self.run)
        with self._read() as c:
            ordered = c.execute(rows.order_by(queries.c.session, queries.c.position, choices.c.id))
            return [Asked._make(row) for row in ordered]

    def all_chosen(self) -> list[Chosen]:
        """All choices that were not taken back, for every purpose, in the order in which they came."""
        columns: list[Any] = [*choices.c["purpose", "choice", "left_is_first", "shown_at", "answered_at", "note"]]
        columns += [answers.is_final()]
        rows = select(choices.c.query, *labellers.c["id", "name", "role"], *columns).join(labellers).join(queries)
        with self._read() as c:
            ordered = c.execute(rows.where(labellers.c.run == self.run, LIVE).order_by(choices.c.id))
            return [
                Chosen(query, Labeller(*who), purpose, choice, left_is_first, shown_at, answered_at, note or "", final)
                for query, *who, purpose, choice, left_is_first, shown_at, answered_at, note, final in ordered
            ]

    # Transactions

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        self._check_file()
        with self._write_lock, self._engine.begin() as c:
            yield c
        self._check_file()

    def _check_file(self) -> None:
        """OperationalError if another file is at the store's path, so that nobody would read what is written here."""
        if file_identity(self._engine) != self._file:
            raise file_replaced(self._engine)

    def _add_labeller(self, c: Connection, name: str) -> int:
        """The id of the labeller ``name``, who is added if not there yet. UserError if the name is not allowed."""
        check_labeller(name)
        insert_if_absent(c, labellers, run=self.run, name=name, role=LABELLER)
        return c.scalars(select(labellers.c.id).where(labellers.c.run == self.run, labellers.c.name == name)).one()


def check_labeller(name: str) -> None:
    """UserError if nobody can have that name."""
    if not (0 < len(name) <= MAX_LETTERS and name.isprintable() and name.strip() == name):
        raise UserError(f"a labeller's name has 1 to {MAX_LETTERS} printable letters, not {name[:MAX_LETTERS]!r}")


def _packed(content: Mapping[str, Any]) -> bytes:
    return gzip.compress(json.dumps(content, separators=(",", ":"), allow_nan=False).encode(), mtime=0)
