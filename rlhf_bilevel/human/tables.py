"""The tables of the label store, and the words that are stored in them. Times are seconds since 1970.

runs(id, facts, status, begun_at, collected_at)   several runs may share one database
queries(id, run, session, position, first_clip, second_clip, asked_at, wanted,
        complete_at, retired_session, consumed_session, first, second)
clips(id, run, data)   scenes(run, id, data)      gzipped JSON
labellers(id, run, name, role)   tokens(sha256, labeller)
offers(query, labeller, purpose, left_is_first, offered_at, leased_until, shown_at, undone_at)
                                                  a pair before one person, until it is answered
choices(query, labeller, purpose, choice, left_is_first, key, shown_at, answered_at, received_at, withdrawn_at, note)
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

# What a person can choose
SIDES = LEFT, SLIGHTLY_LEFT, SLIGHTLY_RIGHT, RIGHT = "left", "slightly_left", "slightly_right", "right"
TIES = EQUAL, BOTH_BAD = "equal", "both_bad"
DECIDED = (*SIDES, *TIES)  # the choices that give a label
CANT_TELL, SKIP = "cant_tell", "skip"
CHOICES = (*DECIDED, CANT_TELL, SKIP)
LEFT_BETTER = {LEFT: 1.0, SLIGHTLY_LEFT: 0.75, EQUAL: 0.5, BOTH_BAD: 0.5, SLIGHTLY_RIGHT: 0.25, RIGHT: 0.0}
"""How much better the left side is, from 0 to 1: the label if the first segment was on the left side."""
# Why a pair is put before a person: for its label, once more to the same person, or because an expert has answered it
PURPOSES = LABEL, REPEAT, GOLD = "label", "repeat", "gold"
# An expert's answers check those of others. Experts and owners see what everybody did
ROLES = LABELLER, EXPERT, OWNER = "labeller", "expert", "owner"
MAX_LETTERS = 100  # of a name or key
MAX_NOTE = 500  # letters of a note


def only_where(rows: ColumnElement[bool]) -> dict[str, Any]:
    """The keyword arguments of an index that holds only these rows, for SQLite and PostgreSQL."""
    return {"sqlite_where": rows, "postgresql_where": rows}


metadata = MetaData()
Id = String(32)
runs = Table(
    "runs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("facts", Text, nullable=False),  # JSON: what training says about the run
    Column("status", Text),  # JSON of records.Status; null before the first report
    Column("begun_at", Double, nullable=False),
    Column("collected_at", Double),  # when training last took labels; null before
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
    Column("wanted", Integer, nullable=False),  # how many answers the query needs
    Column("complete_at", Double),  # null while it has fewer answers
    Column("retired_session", Integer),  # the session that replaced the query; null while it is asked
    Column("consumed_session", Integer),  # the session that took its label; null before
    # Both segments, encoded by label_log.encode_pairs; last, as they are large and SQLite reads a row from its start
    Column("first", LargeBinary, nullable=False),
    Column("second", LargeBinary, nullable=False),
    UniqueConstraint("run", "session", "position", name="queries_place"),
)
Index(
    "queries_open",
    queries.c.run,
    queries.c.session.desc(),
    queries.c.position,
    **only_where(and_(queries.c.complete_at.is_(None), queries.c.retired_session.is_(None))),
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
    Column("id", String(MAX_LETTERS), nullable=False),
    Column("data", LargeBinary, nullable=False),
    PrimaryKeyConstraint("run", "id"),
)
labellers = Table(
    "labellers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", Id, ForeignKey("runs.id"), nullable=False),
    Column("name", String(MAX_LETTERS), nullable=False),
    Column("role", String(16), nullable=False),
    UniqueConstraint("run", "name", name="labellers_name"),
)
tokens = Table(
    "tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("labeller", Integer, ForeignKey("labellers.id"), nullable=False),
)
assignments = Table(
    "offers",
    metadata,
    Column("query", Id, ForeignKey("queries.id"), nullable=False),
    Column("labeller", Integer, ForeignKey("labellers.id"), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("left_is_first", Boolean, nullable=False),
    Column("offered_at", Double, nullable=False),
    Column("leased_until", Double, nullable=False),
    Column("shown_at", Double),  # always null; kept so that stores of every version have the same tables
    Column("undone_at", Double),  # when undo brought the pair back; null otherwise
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
    Column("key", String(MAX_LETTERS), nullable=False),
    Column("shown_at", Double),
    Column("answered_at", Double, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("withdrawn_at", Double),
    Column("note", Text),
    UniqueConstraint("labeller", "key", name="choices_key"),
)
Index(
    "choices_once",
    choices.c.query,
    choices.c.labeller,
    choices.c.purpose,
    unique=True,
    **only_where(choices.c.withdrawn_at.is_(None)),
)

LIVE = choices.c.withdrawn_at.is_(None)  # the choice was not taken back
LABELS = (choices.c.purpose == LABEL, LIVE)  # conditions of the choices that count as labels


def count(table: Table, *conditions: ColumnElement[bool]) -> Any:
    """How many rows of ``table`` meet the conditions, as a subquery that may refer to the current query."""
    return select(func.count()).select_from(table).where(*conditions).correlate(queries).scalar_subquery()


def exists(table: Table, *conditions: ColumnElement[bool]) -> Any:
    """Whether any row of ``table`` meets the conditions, as a subquery that may refer to the current query."""
    return select(table).where(*conditions).correlate(queries).exists()
