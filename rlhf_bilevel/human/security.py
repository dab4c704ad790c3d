"""What is let through to the label server: requests to this server, from its own page, small and in good time.

Whoever can make a browser open a page can make it send requests to this machine's loopback; so a server is told by
which names it may be called (a name that somebody else points here is refused: DNS rebinding), and a choice is taken
from the server's own page only. The headers forbid the page everything that it does not need.

UserError with these statuses: a Host that is not this server's 421, a POST of another origin 403, one without JSON 415,
that is not plain JSON 422, above 4 kB 413, slower than ten seconds 408, another method 405. Of too many connections the
one that has gone longest without an answer is closed, so that who holds many keeps nobody else out.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT, BODY_SECONDS = 4096, 10.0  # bytes of a POST, and how long it may take to come
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class RequestError(Exception):
    """A status and a sentence, in place of an answer."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why


class Gate:
    """Wraps an ASGI application.

    :param hosts: values of the header Host that are this server's, such as ``127.0.0.1:8007``
    :param origins: values of Origin that may POST, such as ``http://127.0.0.1:8007``
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], origins: frozenset[str], body_seconds: float = BODY_SECONDS
    ) -> None:
        self.app, self.hosts, self.origins, self.body_seconds = app, hosts, origins, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in given
                ]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            receive = await self._admitted(scope, receive)
        except RequestError as refusal:
            body = json.dumps({"error": refusal.why}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers += [(b"connection", b"close")]  # what is still to come of this request is not read
            await with_headers({"type": "http.response.start", "status": refusal.status, "headers": headers})
            return await with_headers({"type": "http.response.body", "body": body})
        await self.app(scope, receive, with_headers)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """``receive`` for the application, once the request is in order. RequestError otherwise."""
        if _header(scope, b"host") not in self.hosts:
            raise RequestError(421, "this server has another name")
        if scope["method"] in ("GET", "HEAD"):
            return receive
        if scope["method"] != "POST":
            raise RequestError(405, "GET and POST only")
        if _header(scope, b"origin") not in self.origins:
            raise RequestError(403, "choices are taken from this server's own page only")
        if _header(scope, b"content-type").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "JSON only")
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await _body(receive)
        except TimeoutError:
            raise RequestError(408, f"the request did not come within {self.body_seconds:g} seconds") from None
        _check_json(body)
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        return replay


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            raise RequestError(413, f"a request has at most {BODY_LIMIT} bytes")
        if not message.get("more_body"):
            return body


def _check_json(body: bytes) -> None:
    """RequestError of what readers of JSON would take in different ways, or cannot take."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise RequestError(422, "a name is there twice")
        return dict(pairs)

    try:
        told = json.loads(body, object_pairs_hook=once)
        json.dumps(told, ensure_ascii=False).encode()  # halves of letters cannot be stored
    except (ValueError, RecursionError):
        raise RequestError(422, "this is not JSON") from None


def _header(scope: Scope, name: bytes) -> str:
    """The header's value where it is there once, else nothing."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
    return values[0] if len(values) == 1 else ""


class Impatient(H11Protocol):
    """uvicorn's HTTP, but ``timeout_keep_alive`` seconds are for all of a request's head, not for its first byte.

    At most ``most`` connections are open: a further one takes the place of the one that has waited longest, for a head,
    a body or somebody who reads. An honest one waits for a moment only, or begins again where it was idle.
    """

    most = 500  # a process may have 1,024 files open, as a rule

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if len(self.connections) > self.most:
            oldest = min((other for other in self.connections if isinstance(other, Impatient)), key=lambda o: o.since)
            self.connections.discard(oldest)  # it leaves by itself, but later than others may come
            oldest.transport.abort()

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        running, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if running is None:
            return
        if self.conn.their_state is h11.IDLE:  # its head is not whole yet
            self.timeout_keep_alive_task = running
        else:
            running.cancel()
