"""The tables of the book of labels, and the words in them. Times are seconds since 1970.

runs(id, facts, status, begun_at)                 one run, or several that share a database
queries(id, run, session, position, first_clip, second_clip, asked_at, wanted,
        complete_at, retired_session, consumed_session, first, second)
clips(id, run, data)   scenes(run, id, data)      gzipped JSON
labellers(id, run, name, role)   tokens(sha256, labeller)
offers(query, labeller, purpose, left_is_first, offered_at, leased_until, shown_at, undone_at)
                                                  a pair in front of somebody, until it is answered
choices(query, labeller, purpose, choice, left_is_first, key, shown_at, answered_at, received_at, withdrawn_at)
"""

from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    func,
    select,
)

CHOICES = LEFT, RIGHT, EQUAL, CANT_TELL, SKIP = "left", "right", "equal", "cant_tell", "skip"
DECIDED = LEFT, RIGHT, EQUAL
PURPOSES = LABEL, REPEAT, GOLD = "label", "repeat", "gold"
ROLES = LABELLER, EXPERT = "labeller", "expert"
LONGEST = 100  # letters of a name or key


def where(rows: ColumnElement[bool]) -> dict[str, Any]:
    """For an index of those rows only, in either database."""
    return {"sqlite_where": rows, "postgresql_where": rows}


metadata = MetaData()
Id = String(32)
runs = Table(
    "runs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("facts", Text, nullable=False),  # JSON
    Column("status", Text),  # JSON; null before training's first sign of life
    Column("begun_at", Double, nullable=False),
)
queries = Table(
    "queries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("run", Id, ForeignKey("runs.id"), nullable=False),
    Column("session", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("first_clip", Id, ForeignKey("clips.id"), nullable=False),
    Column("second_clip", Id, ForeignKey("clips.id"), nullable=False),
    Column("asked_at", Double, nullable=False),
    Column("wanted", Integer, nullable=False),  # answers
    Column("complete_at", Double),  # null while it has fewer
    Column("retired_session", Integer),  # the session whose queries took its place; null where it is still asked
    Column("consumed_session", Integer),  # the session at which training took its label; null before
    Column("first", LargeBinary, nullable=False),  # segments, as labels.pairs writes them; large, and so the last:
    Column("second", LargeBinary, nullable=False),  # SQLite reads a row from its beginning
    UniqueConstraint("run", "session", "position", name="queries_place"),
)
Index(
    "queries_open",
    queries.c.run,
    queries.c.session.desc(),
    queries.c.position,
    **where(and_(queries.c.complete_at.is_(None), queries.c.retired_session.is_(None))),
)
Index("queries_asked", queries.c.run, queries.c.retired_session, queries.c.consumed_session, queries.c.complete_at)
clips = Table(
    "clips",
    metadata,
    Column("id", Id, primary_key=True),
    Column("run", Id, ForeignKey("runs.id"), nullable=False),
    Column("data", LargeBinary, nullable=False),
)
scenes = Table(
    "scenes",
    metadata,
    Column("run", Id, ForeignKey("runs.id"), nullable=False),
    Column("id", String(LONGEST), nullable=False),
    Column("data", LargeBinary, nullable=False),
    PrimaryKeyConstraint("run", "id"),
)
labellers = Table(
    "labellers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", Id, ForeignKey("runs.id"), nullable=False),
    Column("name", String(LONGEST), nullable=False),
    Column("role", String(16), nullable=False),
    UniqueConstraint("run", "name", name="labellers_name"),
)
tokens = Table(
    "tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("labeller", Integer, ForeignKey("labellers.id"), nullable=False),
)
offers = Table(
    "offers",
    metadata,
    Column("query", Id, ForeignKey("queries.id"), nullable=False),
    Column("labeller", Integer, ForeignKey("labellers.id"), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("left_is_first", Boolean, nullable=False),
    Column("offered_at", Double, nullable=False),
    Column("leased_until", Double, nullable=False),
    Column("shown_at", Double),
    Column("undone_at", Double),  # of an offer that came back by undo
    PrimaryKeyConstraint("query", "labeller"),
    Index("offers_labeller", "labeller"),
)
choices = Table(
    "choices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("query", Id, ForeignKey("queries.id"), nullable=False),
    Column("labeller", Integer, ForeignKey("labellers.id"), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("choice", String(16), nullable=False),
    Column("left_is_first", Boolean, nullable=False),
    Column("key", String(LONGEST), nullable=False),
    Column("shown_at", Double),
    Column("answered_at", Double, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("withdrawn_at", Double),
    UniqueConstraint("labeller", "key", name="choices_key"),
)
Index(
    "choices_once",
    choices.c.query,
    choices.c.labeller,
    choices.c.purpose,
    unique=True,
    **where(choices.c.withdrawn_at.is_(None)),
)

LIVE = choices.c.withdrawn_at.is_(None)
LABELS = (choices.c.purpose == LABEL, LIVE)  # the choices that count


def count(table: Table, *where: ColumnElement[bool]) -> Any:
    """Of a query's rows there."""
    return select(func.count()).select_from(table).where(*where).correlate(queries).scalar_subquery()


def exists(table: Table, *where: ColumnElement[bool]) -> Any:
    """Whether a query has such a row there."""
    return select(table).where(*where).correlate(queries).exists()
