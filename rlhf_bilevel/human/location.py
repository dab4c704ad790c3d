"""Which database holds the labels of a run, and what the run is called there."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.utils.files import check_trust, read
from rlhf_bilevel.utils.urls import check_database


def run_id(folder: Path) -> str:
    """The name of the run in ``folder`` in its label store: 32 hexadecimal digits.

    The first call draws it and writes it to the file ``run_id``. CorruptFileError if that file holds anything else.
    """
    path = RunFolder(folder).run_id
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            unfinished.write_text(secrets.token_hex(16))
            with suppress(FileExistsError):  # training and the label page may start together: the first name counts
                os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    name = read(path, 100).decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{32}", name):
        raise CorruptFileError(f"{path} is damaged: it holds no run's name")
    return name


def database_of(folder: RunFolder, trust: bool, requested: str | None) -> Path | str:
    """The SQLite file or the ``postgresql://`` URL that holds the labels of a run, as its config.yaml says.

    A URL is returned only with ``trust``, or if the user asked for the same URL (``requested``). UserError otherwise,
    and if the run is not labelled by people; CorruptFileError if config.yaml is not what a run writes.
    """
    settings = folder.read_config().get("settings", {})
    if not settings.get("teacher_human"):
        raise UserError(f"{folder} is not labelled by people: it was not started with --teacher human")
    url = settings.get("teacher_labels_db") or ""
    if not isinstance(url, str):
        raise CorruptFileError(f"{folder.config} is damaged: teacher_labels_db is not a text")
    if requested is not None and requested != url:
        raise UserError(f"--labels-db {requested}: {folder} keeps its labels in {url or folder.book.name}")
    if not url:
        return folder.book
    try:
        check_database(url)
    except UserError as error:
        raise CorruptFileError(f"{folder.config} is damaged: teacher_labels_db: {error}") from None
    check_trust(trust or requested is not None, f"{folder} would go to the database {url}")
    return url
