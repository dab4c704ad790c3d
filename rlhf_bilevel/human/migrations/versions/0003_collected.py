"""A run knows when training last took labels: until then, checks may be changed as other answers may."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Updates the tables from the revision before."""
    op.add_column("runs", sa.Column("collected_at", sa.Double))
