"""How Alembic meets the book: through the connection that ``database.connect`` has, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
