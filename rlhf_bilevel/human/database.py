"""Where the book of labels is kept: a SQLite file, or PostgreSQL; made or brought up to date when it is opened."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as Migrations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, OperationalError

from rlhf_bilevel.config import check_database
from rlhf_bilevel.files import Damaged, Refused

LOCK_NUMBER = 0x726C6866  # of PostgreSQL's advisory locks, while a database is upgraded


def connect(where: Path | str) -> Engine:
    """A database with this version's tables. Raises as ``Book.open``."""
    url, told = _url(where)
    alone: AbstractContextManager[Any] = nullcontext()
    if url.drivername == "sqlite":
        # Of two that make a new file at once, SQLite would tell one that it is locked, or let both wait in vain
        path = Path(str(url.database))
        if not path.parent.is_dir():
            raise Refused(f"{told} cannot be opened: there is no folder {path.parent}")
        alone = FileLock(path.with_name(f".{path.name}.lock"))
        engine = create_engine(url, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    try:
        with alone, engine.begin() as c:
            if is_sqlite(engine) and (fault := c.scalar(text("PRAGMA quick_check"))) != "ok":
                raise Damaged(f"{told} is damaged: {fault}")
            _upgrade(c, told)
    except DatabaseError as error:
        engine.dispose()
        line = " ".join(str(error.orig).split())
        if is_sqlite(engine) and not isinstance(error, OperationalError):
            raise Damaged(f"{told} is damaged or no book of labels: {line}") from None
        raise Refused(f"{told} cannot be opened: {line}") from None
    except (Refused, OSError) as error:
        engine.dispose()
        raise error if isinstance(error, Refused) else Refused(f"{told} cannot be opened: {error.strerror}") from None
    return engine


def _url(where: Path | str) -> tuple[URL, str]:
    """Of SQLAlchemy, and what to call it in messages."""
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(where)), str(where)
    check_database(where)
    url = make_url(where).set(drivername="postgresql+psycopg")
    return url, url.render_as_string()


def _upgrade(c: Connection, told: str) -> None:
    """Brings the tables up to this version, one process at a time; Refused where they are of a later one."""
    migrations = Migrations()
    migrations.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    migrations.attributes["connection"] = c
    if c.dialect.name == "postgresql":
        c.execute(select(func.pg_advisory_xact_lock(LOCK_NUMBER)))
    known, found = ScriptDirectory.from_config(migrations), MigrationContext.configure(c).get_current_revision()
    if found is not None and found not in {script.revision for script in known.walk_revisions()}:
        raise Refused(f"{told} was written by a later version, with tables of revision {found}: update this one")
    if found != known.get_current_head():
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
