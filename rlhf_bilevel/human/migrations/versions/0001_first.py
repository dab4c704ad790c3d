"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the tables in an empty database."""
    key = sa.String(32)
    op.create_table(
        "runs",
        sa.Column("id", key, primary_key=True),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("status", sa.Text),
        sa.Column("begun_at", sa.Double, nullable=False),
    )
    op.create_table(
        "clips",
        sa.Column("id", key, primary_key=True),
        sa.Column("run", key, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "scenes",
        sa.Column("run", key, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("id", sa.String(100), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("run", "id"),
    )
    op.create_table(
        "queries",
        sa.Column("id", key, primary_key=True),
        sa.Column("run", key, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("first_clip", key, sa.ForeignKey("clips.id"), nullable=False),
        sa.Column("second_clip", key, sa.ForeignKey("clips.id"), nullable=False),
        sa.Column("asked_at", sa.Double, nullable=False),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("complete_at", sa.Double),
        sa.Column("retired_session", sa.Integer),
        sa.Column("consumed_session", sa.Integer),
        sa.Column("first", sa.LargeBinary, nullable=False),
        sa.Column("second", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("run", "session", "position", name="queries_place"),
    )
    is_open = sa.text("complete_at IS NULL AND retired_session IS NULL")
    op.create_index(
        "queries_open",
        "queries",
        ["run", sa.text("session DESC"), "position"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_index("queries_asked", "queries", ["run", "retired_session", "consumed_session", "complete_at"])
    op.create_table(
        "labellers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run", key, sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.UniqueConstraint("run", "name", name="labellers_name"),
    )
    op.create_table(
        "tokens",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("labeller", sa.Integer, sa.ForeignKey("labellers.id"), nullable=False),
    )
    op.create_table(
        "offers",
        sa.Column("query", key, sa.ForeignKey("queries.id"), nullable=False),
        sa.Column("labeller", sa.Integer, sa.ForeignKey("labellers.id"), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("left_is_first", sa.Boolean, nullable=False),
        sa.Column("offered_at", sa.Double, nullable=False),
        sa.Column("leased_until", sa.Double, nullable=False),
        sa.Column("shown_at", sa.Double),
        sa.Column("undone_at", sa.Double),
        sa.PrimaryKeyConstraint("query", "labeller"),
    )
    op.create_index("offers_labeller", "offers", ["labeller"])
    op.create_table(
        "choices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("query", key, sa.ForeignKey("queries.id"), nullable=False),
        sa.Column("labeller", sa.Integer, sa.ForeignKey("labellers.id"), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("choice", sa.String(16), nullable=False),
        sa.Column("left_is_first", sa.Boolean, nullable=False),
        sa.Column("key", sa.String(100), nullable=False),
        sa.Column("shown_at", sa.Double),
        sa.Column("answered_at", sa.Double, nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("withdrawn_at", sa.Double),
        sa.UniqueConstraint("labeller", "key", name="choices_key"),
    )
    live = sa.text("withdrawn_at IS NULL")
    op.create_index(
        "choices_once",
        "choices",
        ["query", "labeller", "purpose"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
