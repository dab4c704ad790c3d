"""A PostgreSQL server of our own, on a socket in a folder of its own, for as long as somebody tests with it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MISSING = "PostgreSQL is missing: apt-get install -y postgresql"
USER = "postgres"  # who runs it where we are root, which it refuses to be run by


def programs() -> Path | None:
    """Where initdb and pg_ctl are: Debian puts them on nobody's path."""
    found = shutil.which("pg_ctl")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return Path(found).parent if found else debian[-1].parent if debian else None


@contextmanager
def server() -> Iterator[str]:
    """The URL of its database."""
    where = programs()
    assert where is not None, MISSING
    user = USER if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="labels-"))

    def run(*command: str) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=True, user=user, cwd=folder, **quiet)  # type: ignore[call-overload]

    try:
        if user:
            shutil.chown(folder, user)
        data = str(folder / "data")
        run(f"{where}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--no-locale")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=80"
        run(f"{where}/pg_ctl", "-D", data, "-w", "-o", options, "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run(f"{where}/pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
