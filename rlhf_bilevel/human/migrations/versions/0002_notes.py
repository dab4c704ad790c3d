"""Choices may have a note, and there are new ones: slightly_left, slightly_right and both_bad."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Updates the tables from the revision before."""
    op.add_column("choices", sa.Column("note", sa.Text))
