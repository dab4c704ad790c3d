"""The tables of the label store, and the words that are stored in them. Times are seconds since 1970.

Several runs may share one database. Clips and scenes are gzipped JSON.
"""

from typing import Any

import sqlalchemy as sa

# What a person can choose
LEFTS = LEFT, SLIGHTLY_LEFT = "left", "slightly_left"
RIGHTS = SLIGHTLY_RIGHT, RIGHT = "slightly_right", "right"
TIES = EQUAL, BOTH_BAD = "equal", "both_bad"
DECIDED = (*LEFTS, *RIGHTS, *TIES)  # the choices that give a label
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


def only_where(rows: sa.ColumnElement[bool]) -> dict[str, Any]:
    """The keyword arguments of an index that holds only these rows, for SQLite and PostgreSQL."""
    return {"sqlite_where": rows, "postgresql_where": rows}


metadata = sa.MetaData()
Id = sa.String(32)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("facts", sa.Text, nullable=False),  # JSON: what training says about the run
    sa.Column("status", sa.Text),  # JSON of records.Status; null before the first report
    sa.Column("begun_at", sa.Double, nullable=False),
    sa.Column("collected_at", sa.Double),  # when training last took labels; null before
)
queries = sa.Table(
    "queries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("run", Id, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("session", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("first_clip", Id, sa.ForeignKey("clips.id"), nullable=False),
    sa.Column("second_clip", Id, sa.ForeignKey("clips.id"), nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    sa.Column("wanted", sa.Integer, nullable=False),  # how many answers the query needs
    sa.Column("complete_at", sa.Double),  # null while it has fewer answers
    sa.Column("retired_session", sa.Integer),  # the session that replaced the query; null while it is asked
    sa.Column("consumed_session", sa.Integer),  # the session that took its label; null before
    # Both segments, encoded by label_log.encode_pairs; last, as they are large and SQLite reads a row from its start
    sa.Column("first", sa.LargeBinary, nullable=False),
    sa.Column("second", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("run", "session", "position", name="queries_place"),
)
OPEN = (queries.c.complete_at.is_(None), queries.c.retired_session.is_(None))  # conditions of queries that are asked
sa.Index("queries_open", queries.c.run, queries.c.session.desc(), queries.c.position, **only_where(sa.and_(*OPEN)))
sa.Index("queries_asked", queries.c.run, queries.c.retired_session, queries.c.consumed_session, queries.c.complete_at)
clips = sa.Table(
    "clips",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("run", Id, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
scenes = sa.Table(
    "scenes",
    metadata,
    sa.Column("run", Id, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("id", sa.String(MAX_LETTERS), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("run", "id"),
)
labellers = sa.Table(
    "labellers",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", Id, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("name", sa.String(MAX_LETTERS), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.UniqueConstraint("run", "name", name="labellers_name"),
)
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("labeller", sa.Integer, sa.ForeignKey("labellers.id"), nullable=False),
)
assignments = sa.Table(  # pairs before one person, until they are answered
    "offers",
    metadata,
    sa.Column("query", Id, sa.ForeignKey("queries.id"), nullable=False),
    sa.Column("labeller", sa.Integer, sa.ForeignKey("labellers.id"), nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("left_is_first", sa.Boolean, nullable=False),
    sa.Column("offered_at", sa.Double, nullable=False),
    sa.Column("leased_until", sa.Double, nullable=False),
    sa.Column("shown_at", sa.Double),  # always null; kept so that stores of every version have the same tables
    sa.Column("undone_at", sa.Double),  # when undo brought the pair back; null otherwise
    sa.PrimaryKeyConstraint("query", "labeller"),
    sa.Index("offers_labeller", "labeller"),
)
choices = sa.Table(
    "choices",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("query", Id, sa.ForeignKey("queries.id"), nullable=False),
    sa.Column("labeller", sa.Integer, sa.ForeignKey("labellers.id"), nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("choice", sa.String(16), nullable=False),
    sa.Column("left_is_first", sa.Boolean, nullable=False),
    sa.Column("key", sa.String(MAX_LETTERS), nullable=False),
    sa.Column("shown_at", sa.Double),
    sa.Column("answered_at", sa.Double, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False),
    sa.Column("withdrawn_at", sa.Double),
    sa.Column("note", sa.Text),
    sa.UniqueConstraint("labeller", "key", name="choices_key"),
)
LIVE = choices.c.withdrawn_at.is_(None)  # the choice was not taken back
sa.Index("choices_once", *choices.c["query", "labeller", "purpose"], unique=True, **only_where(LIVE))
LABELS = (choices.c.purpose == LABEL, LIVE)  # conditions of the choices that count as labels


def count(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> Any:
    """How many rows of ``table`` meet the conditions, as a subquery that may refer to the current query."""
    return sa.select(sa.func.count()).select_from(table).where(*conditions).correlate(queries).scalar_subquery()


def exists(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> Any:
    """Whether any row of ``table`` meets the conditions, as a subquery that may refer to the current query."""
    return sa.select(table).where(*conditions).correlate(queries).exists()
