"""Which requests the label server lets through: requests to this server, from its own page, small and in time.

Any web page that a user opens can send requests to a server on the same machine. So the server knows the names by which
it may be called, and refuses every other name (an attack called DNS rebinding). It takes choices only from its own
page. The headers of its replies forbid the page everything that it does not need.

Refusals, by HTTP status: 421 if Host is not one of this server's names; 405 if the method is not GET, HEAD or POST; 403
if a POST comes from another origin; 415 if it is not JSON by its type; 413 if it is larger than BODY_LIMIT; 408 if it
takes longer than BODY_SECONDS; 422 if it is not plain JSON.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import h11
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT = 4096  # bytes of a POST
BODY_SECONDS = 10.0  # until a POST must be complete
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class SecurityMiddleware:
    """An ASGI application that checks each request, passes it on to ``app``, and adds HEADERS to the reply.

    :param hosts: the values of the header Host that name this server, such as ``127.0.0.1:8007``
    :param origins: the values of the header Origin that may send a POST, such as ``http://127.0.0.1:8007``
    :param body_seconds: how long a POST may take until it is complete
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], origins: frozenset[str], body_seconds: float = BODY_SECONDS
    ) -> None:
        self.app, self.hosts, self.origins, self.body_seconds = app, hosts, origins, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, as ASGI says."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                missing = [
                    (name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in present
                ]
                message = {**message, "headers": [*message["headers"], *missing]}
            await send(message)

        try:
            receive = await self._checked(scope, receive)
        except HTTPException as refusal:
            body = json.dumps({"error": refusal.detail}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            headers += [(b"connection", b"close")]  # the rest of this request is not read
            await send_with_headers({"type": "http.response.start", "status": refusal.status_code, "headers": headers})
            return await send_with_headers({"type": "http.response.body", "body": body})
        await self.app(scope, receive, send_with_headers)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """A ``receive`` for the application, once the request is complete and in order. HTTPException otherwise."""
        if _header(scope, b"host") not in self.hosts:
            raise HTTPException(421, "this server has another name")
        if scope["method"] in ("GET", "HEAD"):
            return receive
        if scope["method"] != "POST":
            raise HTTPException(405, "GET and POST only")
        if _header(scope, b"origin") not in self.origins:
            raise HTTPException(403, "choices are taken from this server's own page only")
        if _header(scope, b"content-type").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "JSON only")
        try:
            async with asyncio.timeout(self.body_seconds):
                body = await _body(receive)
        except TimeoutError:
            raise HTTPException(408, f"the request did not come within {self.body_seconds:g} seconds") from None
        _check_json(body)
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        return replay


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            raise HTTPException(413, f"a request has at most {BODY_LIMIT} bytes")
        if not message.get("more_body"):
            return body


def _check_json(body: bytes) -> None:
    """HTTPException if this is not JSON, or JSON that different readers understand differently."""

    def without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise HTTPException(422, "a name is there twice")
        return dict(pairs)

    try:
        content = json.loads(body, object_pairs_hook=without_duplicates)
        json.dumps(content, ensure_ascii=False).encode()  # fails for half of a surrogate pair, which cannot be stored
    except (ValueError, RecursionError):
        raise HTTPException(422, "this is not JSON") from None


def _header(scope: Scope, name: bytes) -> str:
    """The value of a header that is there exactly once; otherwise the empty string."""
    values = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]
    return values[0] if len(values) == 1 else ""


class LimitedHTTP(H11Protocol):
    """uvicorn's HTTP protocol, with limits that no client can get around.

    The whole head of a request must come within ``timeout_keep_alive`` seconds; uvicorn asks this of the first byte
    only. At most ``max_connections`` connections are open. One more closes the connection that has waited longest for a
    request or for its reader, so that nobody can keep others out by holding many connections.
    """

    max_connections = 500  # a process may usually have 1,024 files open

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """uvicorn calls this for each new connection."""
        super().connection_made(transport)
        self.waits_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if len(self.connections) > self.max_connections:
            limited = [other for other in self.connections if isinstance(other, LimitedHTTP)]
            oldest = min(limited, key=lambda connection: connection.waits_since)
            self.connections.discard(oldest)  # it would remove itself, but only after others may have come
            oldest.transport.abort()

    def on_response_complete(self) -> None:
        """uvicorn calls this after each reply."""
        self.waits_since = self.loop.time()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """uvicorn calls this for all data that comes. The time limit runs on until the head is complete."""
        running_limit, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        if running_limit is None:
            return
        if self.conn.their_state is h11.IDLE:  # the head is not complete
            self.timeout_keep_alive_task = running_limit
        else:
            running_limit.cancel()
