"""Where the book of labels is kept: a SQLite file, or PostgreSQL; made or brought up to date when it is opened."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as Migrations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from rlhf_bilevel.config import check_database
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.utils.files import lock as lock_on
from rlhf_bilevel.utils.sqlite import check_files, check_schema, naming_errors, table_definitions

VERSIONS = "alembic_version"  # the table that tells of which revision the others are
LOCK_NUMBER = 0x726C6866  # of PostgreSQL's advisory locks, while a database is upgraded


def connect(where: Path | str, name: Path | None = None) -> Engine:
    """A database with this version's tables, in messages by that ``name``. Raises as ``Book.open``."""
    url, told = _url(where, name)
    alone: AbstractContextManager[Any] = nullcontext()
    if url.drivername == "sqlite":
        # Of two that make a new file at once, SQLite would tell one that it is locked, or let both wait in vain
        path = Path(str(url.database))
        if not path.parent.is_dir():
            raise UserError(f"{told} cannot be opened: there is no folder {path.parent}")
        check_files(path)
        alone = lock_on(path.with_name(f".{path.name}.lock"), timeout=-1)
        engine = create_engine(url, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    try:
        with alone:
            if is_sqlite(engine):
                _check(Path(str(url.database)), told)
            with engine.begin() as c:
                _upgrade(c, told)
    except DatabaseError as error:
        engine.dispose()
        line = " ".join(str(error.orig).split())
        if is_sqlite(engine) and not isinstance(error, OperationalError):
            raise CorruptFileError(f"{told} is damaged or no book of labels: {line}") from None
        raise UserError(f"{told} cannot be opened: {line}") from None
    except (UserError, OSError) as error:
        engine.dispose()
        raise (
            error if isinstance(error, UserError) else UserError(f"{told} cannot be opened: {error.strerror}")
        ) from None
    return engine


def _url(where: Path | str, name: Path | None) -> tuple[URL, str]:
    """Of SQLAlchemy, and what to call it in messages."""
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(where)), str(name or where)
    check_database(where)
    url = make_url(where).set(drivername="postgresql+psycopg")
    return url, url.render_as_string()


def _check(path: Path, told: str) -> None:
    """CorruptFileError where a file holds anything but this version's tables; UserError where it is of a later one."""
    if not path.exists() or not path.stat().st_size:
        return
    with naming_errors(Path(told)), closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("PRAGMA trusted_schema=OFF")
        known = _known()
        if table_definitions(connection).get(VERSIONS) == known[VERSIONS]:
            _not_later(connection.execute(f"SELECT version_num FROM {VERSIONS} LIMIT 1").fetchone(), told)
        check_schema(connection, Path(told), {name: {made} for name, made in known.items()})


@cache
def _known() -> dict[str, str]:
    """How this version makes its tables in SQLite."""
    engine = create_engine("sqlite://")
    with engine.begin() as c:
        _upgrade(c, "")
        made = table_definitions(c.connection.driver_connection)  # type: ignore[arg-type]
    engine.dispose()
    return made


def _scripts() -> Migrations:
    migrations = Migrations()
    migrations.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return migrations


def _not_later(found: Sequence[str] | None, told: str) -> None:
    known = ScriptDirectory.from_config(_scripts())
    if found and found[0] not in {script.revision for script in known.walk_revisions()}:
        raise UserError(f"{told} was written by a later version, with tables of revision {found[0]}: update this one")


def _upgrade(c: Connection, told: str) -> None:
    """Brings the tables up to this version, one process at a time; UserError where they are of a later one."""
    migrations = _scripts()
    migrations.attributes["connection"] = c
    if c.dialect.name == "postgresql":
        c.execute(select(func.pg_advisory_xact_lock(LOCK_NUMBER)))
    found = MigrationContext.configure(c).get_current_revision()
    _not_later(found and [found], told)
    if found != ScriptDirectory.from_config(migrations).get_current_head():
        command.upgrade(migrations, "head")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin as _begin_sqlite says
    for pragma in ("trusted_schema=OFF", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(c: Connection) -> None:
    """Who will write takes the lock at once: who read first and wants it later may be refused."""
    c.exec_driver_sql("BEGIN" if c.get_execution_options().get("reading") else "BEGIN IMMEDIATE")


def is_sqlite(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"


def file_of(engine: Engine) -> tuple[int, int] | None:
    """Which file is in the database's place now; None where there is none, and of PostgreSQL."""
    if not is_sqlite(engine):
        return None
    with suppress(OSError):
        found = os.stat(str(engine.url.database))
        return found.st_dev, found.st_ino
    return None


def replaced(engine: Engine) -> OperationalError:
    why = f"{engine.url.database} was removed or replaced: put it back, or start again"
    return OperationalError(None, None, sqlite3.OperationalError(why))
