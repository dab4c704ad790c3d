"""A teacher that is asked by HTTP: a pair goes out as JSON, and first, second, tie or skip comes back.

A pair is (docs/teachers.md has an example)

    {"version": 1, "question", "env", "names": {"obs": [...], "act": [...]}, "frame_steps": [...], "first", "second"}

and each segment {"obs": T x o numbers, "act": T x a, "frames": data:image/jpeg URLs at the steps ``frame_steps``}. The
true reward is never sent. The answer is {"answer": "first", "strength": 0.8}.

Whatever the other side does, a pair takes at most ``TRIES`` requests of ``teacher_timeout`` seconds each, and what came
of it is told. A pair without an answer costs no label; after ``FAILURES`` of them in a row the run stops.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPException
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import torch

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.request_log import Answer, RequestLog, check_answer, names
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback import vision_language
from rlhf_bilevel.feedback.pairs import take
from rlhf_bilevel.types import Preferences, Queries
from rlhf_bilevel.utils.files import one_line
from rlhf_bilevel.utils.urls import TOKEN, VLM

VERSION = 1  # of what is sent
TRIES = 3  # requests for a pair
WAITS = (1.0, 4.0)  # seconds between them; a server may ask for longer ones (Retry-After)
FAILURES = 5  # pairs in a row without an answer
LIMIT = 2**20  # bytes of a reply
LOGGED = 1000  # characters of a reply that are kept
AGAIN = (408, 425, 429)  # of the statuses from 400 to 499, those that another try may change


class PictureSource(Protocol):
    """Pictures of what happened at the rows of a store."""

    def pictures(self, rows: Sequence[int], steps: Sequence[int], /) -> list[str]:
        """At some ``steps`` of ``rows``, as data: URLs. RuntimeError where none can be drawn on this machine."""


class Reply(NamedTuple):
    """What a teacher answers to one pair, as JSON."""

    status: int
    body: bytes
    retry_after: float  # seconds that the server asks to wait


class Failed(Exception):
    """A request that brought no answer. ``again``: another try may."""

    def __init__(self, why: str, status: int | None = None, reply: str | None = None, again: bool = True) -> None:
        super().__init__(why)
        self.status, self.reply, self.again, self.wait = status, reply and reply[:LOGGED], again, 0.0


class HttpTeacher:
    """Whoever answers at ``config.teacher_url`` about the environment ``env``, whose ``obs`` and ``act`` have
    ``entries`` of these names.

    ``log`` has the answers that were given before: they are not asked for again. ``recorder`` has pictures of the rows
    of ``store``, from which segments are cut; None if there is none. ``resume`` is the command that continues the run;
    empty if there is none. ``seconds`` is how long the requests about the newest pairs took.
    """

    def __init__(
        self,
        config: Config,
        env: str,
        entries: dict[str, list[str]],
        log: RequestLog,
        store: ReplayBuffer,
        recorder: PictureSource | None = None,
        resume: str = "",
    ) -> None:
        self._config, self._env, self._names, self._log, self._store = config, env, entries, log, store
        self.recorder, self._draws = recorder, recorder is not None
        self._resume, self._in_a_row, self._told, self._last = resume, 0, False, ""
        self.seconds = 0.0
        self._url = config.teacher_url
        self._ask: Callable[[dict[str, Any]], dict[str, Any]] = lambda pair: pair
        self._read: Callable[[Any], Any] = lambda body: body
        if config.teacher_url.startswith(VLM):
            self._url, model = vision_language.endpoint(config.teacher_url)
            self._ask, self._read = partial(vision_language.request, model), vision_language.reply
        self._token = token_for(self._url)
        self._open = urllib.request.build_opener(_NoRedirects).open

    def __call__(self, queries: Queries) -> Preferences:
        """The answers to B pairs; pairs that were skipped or given up are left out."""
        labels, failed = list[float | None](), 0
        for number, name in enumerate(names(queries)):
            answer = self._log.answers.get(name)
            if answer is None and not self._used_up():
                answer = self._answer(name, take(queries, torch.tensor([number])))
                failed += answer is None
                if answer is None and failed == 1:
                    warnings.warn(f"{self._last}; it costs no label", stacklevel=2)
                self._in_a_row = 0 if answer else self._in_a_row + 1
                if self._in_a_row >= FAILURES:
                    going_on = f": {self._resume} goes on, and asks again" if self._resume else ""
                    raise UserError(f"{FAILURES} pairs in a row got no answer; {self._last}{going_on}")
            labels.append(answer.label if answer else None)
        if failed > 1:
            warnings.warn(f"{failed} of {len(labels)} pairs got no answer from {self._url}", stacklevel=2)
        self.seconds = sum(self._log.seconds.get(name, 0.0) for name in names(queries))
        rows = torch.tensor([number for number, label in enumerate(labels) if label is not None], dtype=torch.long)
        known = torch.tensor([math.nan if label is None else label for label in labels])
        return select(Preferences(*queries, known), rows)

    def _used_up(self) -> bool:
        most = self._config.teacher_max_requests
        used_up = bool(most) and self._log.requests >= most
        if used_up and not self._told:
            self._told = True
            told = f"teacher_max_requests={most} have been made: {self._url} is asked no more"
            warnings.warn(f"{told}, and training goes on without new answers", stacklevel=3)
        return used_up

    def _answer(self, name: str, pair: Queries) -> Answer | None:
        """What the teacher says of one pair; None where no try brought an answer, and ``_last`` says why."""
        data = json.dumps(self._ask(self._described(pair))).encode()
        for number in range(1, TRIES + 1):
            try:
                return self._request(name, number, data)
            except Failed as error:
                self._last = f"{self._url}: {error} ({number} tr{'y' if number == 1 else 'ies'})"
                if not error.again or number == TRIES or self._used_up():
                    return None
                time.sleep(min(max(WAITS[number - 1], error.wait), self._config.teacher_timeout))
        return None

    def _request(self, name: str, number: int, data: bytes) -> Answer:
        """One request, which is logged. Failed where it brings no answer."""
        started = time.monotonic()
        try:
            reply = self._post(data)
            text = self._hidden(reply.body.decode(errors="replace"))
            answer = self._understood(reply, text)
        except Failed as error:
            self._log.append(name, number, time.monotonic() - started, error.status, None, str(error), error.reply)
            raise
        self._log.append(name, number, time.monotonic() - started, reply.status, answer, None, text[:LOGGED])
        return answer

    def _understood(self, reply: Reply, text: str) -> Answer:
        status = reply.status
        if not 200 <= status < 300:
            where = " elsewhere: redirects are not followed" if 300 <= status < 400 else ""
            again = status >= 500 or status in AGAIN
            error = Failed(f"it answered {status}{where}: {_excerpt(text)}", status, text, again)
            error.wait = reply.retry_after
            raise error
        if len(reply.body) > LIMIT:
            raise Failed(f"it answered with more than {LIMIT:,} bytes", status, text)
        try:
            told = self._read(json.loads(text))
            if not isinstance(told, dict) or "answer" not in told:
                raise ValueError(f"it answered {_excerpt(text)}, and no object with an answer")
            return check_answer(told["answer"], told.get("strength"))
        except (json.JSONDecodeError, RecursionError):
            raise Failed(f"it answered {_excerpt(text)}, which is no JSON", status, text) from None
        except ValueError as error:
            raise Failed(str(error), status, text) from None

    def _post(self, data: bytes) -> Reply:
        """Bounded in time, however slowly the other side answers. Failed where nothing comes back."""
        headers = {"Content-Type": "application/json", "User-Agent": "rlhf-bilevel"}
        asked = urllib.request.Request(self._url, data, headers, method="POST")
        if self._token:
            asked.add_unredirected_header("Authorization", f"Bearer {self._token}")
        timeout = self._config.teacher_timeout
        done: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()

        def work() -> None:
            try:
                done.put(_sent(self._open, asked, timeout))
            except Exception as error:
                done.put(error)

        # A socket's timeout is one of silence: a byte now and then would hold it for ever, but holds only this thread
        threading.Thread(target=work, daemon=True).start()
        try:
            found = done.get(timeout=timeout)
        except queue.Empty:
            raise Failed(f"no answer within {timeout:g} s") from None
        if isinstance(found, TimeoutError) or isinstance(getattr(found, "reason", None), TimeoutError):
            raise Failed(f"no answer within {timeout:g} s")
        if isinstance(found, OSError | HTTPException):
            reason = getattr(found, "reason", None)
            why = one_line(reason if isinstance(reason, Exception) else found)
            raise Failed(f"it cannot be reached: {self._hidden(why)}")
        if isinstance(found, Exception):
            raise found
        return found

    def _described(self, pair: Queries) -> dict[str, Any]:
        """A pair, as JSON has it."""
        length = pair.first.obs.shape[1]
        count = min(self._config.teacher_frames, length)
        steps = [round(i * (length - 1) / max(1, count - 1)) for i in range(count)]
        sides = [{name: getattr(segments, name)[0].tolist() for name in ("obs", "act")} for segments in pair]
        told = {"version": VERSION, "question": self._config.teacher_question, "env": self._env, "names": self._names}
        if self.recorder and self._draws and steps:
            try:
                starts = [int(self._store.rows_of(segments)) for segments in pair]
                frames = [self.recorder.pictures(range(start, start + length), steps) for start in starts]
                sides = [side | {"frames": drawn} for side, drawn in zip(sides, frames, strict=True)]
                told["frame_steps"] = steps
            except RuntimeError as error:  # OpenGL is missing
                self._draws = False
                warnings.warn(f"{self._url} gets states and actions alone: {one_line(error)}", stacklevel=4)
        return told | {"first": sides[0], "second": sides[1]}

    def _hidden(self, text: str) -> str:
        """Without the token, which a server may send back."""
        return text.replace(self._token, "...") if self._token else text


def token_for(url: str) -> str:
    """The token that goes with requests, from the environment; empty where there is none. UserError where it is odd."""
    token = os.environ.get(TOKEN, "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError(f"{TOKEN} holds a space or a letter that no header of HTTP can have")
    parts = urlsplit(url)
    if token and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        warnings.warn(f"{TOKEN} goes to {parts.hostname} without encryption: https:// is safe", stacklevel=2)
    return token


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token, and what is asked, go to the named place alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _sent(send: Callable[..., Any], asked: urllib.request.Request, timeout: float) -> Reply:
    try:
        response = send(asked, timeout=timeout)
    except urllib.error.HTTPError as error:  # which is a response, too
        response = error
    with response:
        seconds = response.headers.get("Retry-After", "")
        return Reply(response.status, response.read(LIMIT + 1), float(seconds) if seconds.isdecimal() else 0.0)


def _excerpt(text: str) -> str:
    return json.dumps(text[:60]) if text else "nothing"
