"""URLs that are written into a run's config.yaml: of a labels database, and of a teacher that is asked by HTTP."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from rlhf_bilevel.errors import UserError


def check_database(url: str) -> None:
    """UserError unless ``url`` is that of a PostgreSQL database, without a password: config.yaml would show it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # checked only when read
    except ValueError as error:
        raise UserError(f"{url!r:.60} is no labels database: {error}") from None
    if parts.scheme not in ("postgresql", "postgresql+psycopg"):
        raise UserError(f"{parts.scheme or 'this'} is no labels database: postgresql://USER@HOST/DATABASE is")
    if parts.password is not None or "password" in parse_qs(parts.query):
        raise UserError("the labels database's URL has a password in it, which config.yaml would hold: "
                         "set PGPASSWORD or write it to ~/.pgpass")  # fmt: skip


VLM = "vlm:"
"""Prefix of the URL of a vision-language model."""

TOKEN = "RLHF_BILEVEL_TEACHER_TOKEN"
"""Environment variable with the token of a teacher by HTTP. The token is in no file."""

SECRETS = re.compile(r"(^|[_-])(api_?key|key|token|secret|password|pwd|sig|signature)$", re.IGNORECASE)
"""Names of a URL's parameters that hold secrets."""


def check_teacher_url(url: str) -> None:
    """UserError unless ``url`` can be a teacher's and holds no secret: it is written to the run's config.yaml."""
    inner = url.removeprefix(VLM)
    form = "vlm:https://HOST/v1?model=NAME" if inner != url else "https://HOST/PATH"
    try:
        parts = urlsplit(inner)
        _ = parts.port  # is checked when it is read, not before
    except ValueError as error:
        raise UserError(f"teacher {url!r:.60}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[!-~]+", inner):
        raise UserError(f"teacher {url!r:.60} is no URL of a teacher: {form} is")
    parameters = parse_qs(parts.query)
    if parts.username is not None or parts.password is not None or any(map(SECRETS.search, parameters)):
        raise UserError(f"the teacher's URL has a password or a key in it, which config.yaml would hold: set {TOKEN}")
    if inner != url and not parameters.get("model"):
        raise UserError(f"teacher {url!r:.60} names no model: {form} does")
