"""The database of a label store: a SQLite file or PostgreSQL. Opening it creates its tables or updates them."""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as Migrations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.utils.files import lock as lock_on
from rlhf_bilevel.utils.sqlite import check_files, check_schema, naming_errors, table_definitions
from rlhf_bilevel.utils.urls import check_database

VERSION_TABLE = "alembic_version"  # holds the revision of the other tables
LOCK_NUMBER = 0x726C6866  # of the PostgreSQL advisory lock that is held while tables are updated


def connect(where: Path | str, display_path: Path | None = None) -> Engine:
    """Opens the database at ``where``, a SQLite file or a ``postgresql://`` URL, with the tables of this version.

    ``display_path`` is the path that messages show instead of ``where``. UserError if the database cannot be opened, or
    if a later version wrote it; CorruptFileError if the file is not a label store.
    """
    url, display_name = _parse(where, display_path)
    file_lock: AbstractContextManager[Any] = nullcontext()
    if url.drivername == "sqlite":
        # Two processes that create one file together would make SQLite refuse one of them, or let both wait forever
        path = Path(str(url.database))
        if not path.parent.is_dir():
            raise UserError(f"{display_name} cannot be opened: there is no folder {path.parent}")
        check_files(path)
        file_lock = lock_on(path.with_name(f".{path.name}.lock"), timeout=-1)
        engine = create_engine(url, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    try:
        with file_lock:
            if is_sqlite(engine):
                _check(Path(str(url.database)), display_name)
            with engine.begin() as c:
                _upgrade(c, display_name)
    except DatabaseError as error:
        engine.dispose()
        line = " ".join(str(error.orig).split())
        if is_sqlite(engine) and not isinstance(error, OperationalError):
            raise CorruptFileError(f"{display_name} is damaged or not a label store: {line}") from None
        raise UserError(f"{display_name} cannot be opened: {line}") from None
    except UserError:
        engine.dispose()
        raise
    except OSError as error:
        engine.dispose()
        raise UserError(f"{display_name} cannot be opened: {error.strerror}") from None
    return engine


def _parse(where: Path | str, display_path: Path | None) -> tuple[URL, str]:
    """The URL for SQLAlchemy, and the name for messages, which never contains a password."""
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(where)), str(display_path or where)
    check_database(where)
    url = make_url(where).set(drivername="postgresql+psycopg")
    return url, url.render_as_string()


def _check(path: Path, display_name: str) -> None:
    """CorruptFileError if the file holds other tables than this version's; UserError if a later version wrote it."""
    if not path.exists() or not path.stat().st_size:
        return
    with naming_errors(Path(display_name)), closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("PRAGMA trusted_schema=OFF")
        expected = _table_definitions()
        if table_definitions(connection).get(VERSION_TABLE) in expected[VERSION_TABLE]:
            row = connection.execute(f"SELECT version_num FROM {VERSION_TABLE} LIMIT 1").fetchone()
            _refuse_later_version(row[0] if row else None, display_name)
        check_schema(connection, Path(display_name), expected)


@cache
def _table_definitions() -> dict[str, set[str]]:
    """The SQL of each table in SQLite, by the table's name: as it was in each revision up to this version's."""
    definitions: dict[str, set[str]] = defaultdict(set)
    migrations, engine = _scripts(), create_engine("sqlite://")
    with engine.begin() as c:
        migrations.attributes["connection"] = c
        for script in reversed([*ScriptDirectory.from_config(migrations).walk_revisions()]):
            command.upgrade(migrations, script.revision)
            for name, definition in table_definitions(c.connection.driver_connection).items():  # type: ignore[arg-type]
                definitions[name].add(definition)
    engine.dispose()
    return definitions


def _scripts() -> Migrations:
    migrations = Migrations()
    migrations.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return migrations


def _refuse_later_version(revision: str | None, display_name: str) -> None:
    scripts = ScriptDirectory.from_config(_scripts())
    if revision and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise UserError(
            f"{display_name} was written by a later version, with tables of revision {revision}: update this one"
        )


def _upgrade(c: Connection, display_name: str) -> None:
    """Updates the tables to this version, in one process at a time; UserError if a later version wrote them."""
    migrations = _scripts()
    migrations.attributes["connection"] = c
    if c.dialect.name == "postgresql":
        c.execute(select(func.pg_advisory_xact_lock(LOCK_NUMBER)))
    revision = MigrationContext.configure(c).get_current_revision()
    _refuse_later_version(revision, display_name)
    if revision != ScriptDirectory.from_config(migrations).get_current_head():
        command.upgrade(migrations, "head")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # _begin_sqlite starts the transactions
    for pragma in ("trusted_schema=OFF", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(c: Connection) -> None:
    """A transaction that will write takes the lock at once: SQLite may refuse one that reads first and writes later."""
    c.exec_driver_sql("BEGIN" if c.get_execution_options().get("reading") else "BEGIN IMMEDIATE")


def is_sqlite(engine: Engine) -> bool:
    """Whether the database is a SQLite file."""
    return engine.dialect.name == "sqlite"


def insert_if_absent(c: Connection, table: Table, **row: Any) -> None:
    """Inserts ``row``, unless ``table`` has a row with the same key."""
    dialect: Any = {"sqlite": sqlite, "postgresql": postgresql}[c.dialect.name]
    c.execute(dialect.insert(table).values(**row).on_conflict_do_nothing())


def file_identity(engine: Engine) -> tuple[int, int] | None:
    """The device and inode of the file that is at the database's path now; None for PostgreSQL or a missing file."""
    if not is_sqlite(engine):
        return None
    with suppress(OSError):
        status = os.stat(str(engine.url.database))
        return status.st_dev, status.st_ino
    return None


def file_replaced(engine: Engine) -> OperationalError:
    """The error to raise when another file, or none, is at the database's path."""
    why = f"{engine.url.database} was removed or replaced: put it back, or start again"
    return OperationalError(None, None, sqlite3.OperationalError(why))
