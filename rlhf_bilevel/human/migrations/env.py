"""Runs the Alembic migrations in the connection and the transaction of ``database.connect``."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
