"""The label server: pairs out, choices in, and nothing else of the machine.

Every fact is in the book (``human.book``); the server keeps only the links that nobody has opened yet, so that it may
be killed and started again at any moment. It imports neither torch nor a simulator.

    GET  /                    the page                           GET  /join/{token}     begins a session
    GET  /quality             how well answers agree             POST /api/join         its token for a cookie
    GET  /api/next?count=2    pairs to judge, leased             POST /api/answers      a choice, stored once by its key
    GET  /api/status          progress, and what training does   POST /api/undo         takes the last choice back
    GET  /api/clips/{id}      a clip, gzipped JSON               POST /api/unskip       offers skipped pairs again
    GET  /static/{name}       a fixed list of files              GET  /api/scenes/{id}  what is drawn in a clip
    GET  /healthz             the server answers

UserError, beside what ``gate`` refuses: without a session, or as somebody else than it is of, 401; a link that was used
403; unknown things 404; an answer against what was answered 409; one that training has gone on without 410; what is no
answer 422; and everything while the database is away 503.
"""

import gzip
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException as PlainHTTPException

from rlhf_bilevel.human.records import ConflictError, ConsumedError, Labeller, NotFoundError
from rlhf_bilevel.human.security import Gate
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.utils.files import sha256

LEASE_SECONDS = 600.0  # a pair is nobody else's for so long
SESSION_DAYS = 30
LATE_SECONDS = 15.0  # a training that has told nothing for so long is not running
LATEST = 4102444800.0  # the year 2100: no browser's clock says a later time
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def packed(path: Path) -> tuple[bytes, str, str]:
    """Content, gzipped; its type; its tag, by which a browser knows whether its copy is still right."""
    data = path.read_bytes()
    return gzip.compress(data), TYPES[path.suffix], f'"{sha256(data)[:32]}"'


class Invitations:
    """Links that work once: a token of 128 bits stands for a labeller who has not come yet."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[str, str]] = {}

    def new(self, name: str, role: str) -> str:
        token = secrets.token_urlsafe(16)
        self._waiting[sha256(token.encode())] = (name, role)
        return token

    def take(self, token: str) -> tuple[str, str] | None:
        """Name and role, once. What is compared is a hash, so that no time tells how much of a token was right."""
        return self._waiting.pop(sha256(token.encode()), None)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Join(Strict):
    token: str = Field(max_length=64, pattern=r"^[\w-]*$")


class Answer(Strict):
    """Times are the browser's, in seconds since 1970; the book corrects those that cannot be."""

    query: str = Field(max_length=64, pattern=r"^[0-9a-f]*$")
    choice: Literal["left", "right", "equal", "cant_tell", "skip"]
    key: str = Field(min_length=16, max_length=64, pattern=r"^[0-9A-Za-z-]*$")
    shown_at: float = Field(ge=0, le=LATEST)
    answered_at: float = Field(ge=0, le=LATEST)


class Nothing(Strict):
    pass


def create_app(
    book: LabelStore,
    invitations: Invitations,
    *,
    question: str,
    hosts: Collection[str],
    origins: Collection[str],
    files: Mapping[str, Path],
    guidelines: str = "",
    ended: Callable[[], bool] = lambda: False,
    repeats: float = 0.05,
    gold: float = 0.05,
    clock: Callable[[], float] = time.time,
) -> Gate:
    """The server as an ASGI application.

    :param question: what people are asked about every pair
    :param guidelines: HTML that says more of it
    :param hosts: values of Host that are this server's; ``origins``: those of Origin that may send choices
    :param ended: whether the run has come to its end
    :param repeats: share of pairs that come again to whoever answered them; ``gold``: that an expert has answered
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    pages = Environment(loader=PackageLoader("rlhf_bilevel.human"), autoescape=True, undefined=StrictUndefined)
    static = {name: packed(path) for name, path in files.items()}
    short = sha256(book.run.encode())[:8]
    cookie = f"label-{short}"  # cookies are shared by all ports of a machine: one for each run

    def page(name: str, status: int = 200, **told: Any) -> HTMLResponse:
        facts = book.facts() if "me" in told else {}  # strangers learn nothing of the run
        title = " on ".join(str(facts[key]) for key in ("method", "env") if key in facts)
        return HTMLResponse(pages.get_template(name).render(title=title or "rlhf-bilevel", **told), status)

    def is_of(me: Labeller) -> str:
        """Whose page it is: what is kept in a browser is this labeller's, of this run."""
        return f"{short}-{me.id}"

    def visitor(request: Request) -> Labeller | None:
        token = request.cookies.get(cookie, "")
        return book.labeller(token) if token else None

    def signed_in(request: Request) -> Labeller:
        found = visitor(request)
        if found is None:
            raise HTTPException(401, "no session: open the link that rlhf-bilevel label printed")
        if request.headers.get("x-page-of", is_of(found)) != is_of(found):
            raise HTTPException(401, "this browser is signed in as somebody else now: reload the page")
        return found

    Me = Annotated[Any, Depends(signed_in)]

    @app.exception_handler(PlainHTTPException)
    def refuse(request: Request, error: PlainHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))[:100]
        return JSONResponse({"error": " ".join(f"{where}: {first['msg']}".split())}, 422)

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    def away(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the book of labels cannot be reached now"}, 503)

    @app.get("/healthz")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/")
    def label(request: Request) -> HTMLResponse:
        me = visitor(request)
        if me is None:
            return page("stranger.html", 401)
        return page("label.html", me=me, is_of=is_of(me), question=question, guidelines=Markup(guidelines))

    @app.get("/quality")
    def quality(request: Request) -> HTMLResponse:
        me = visitor(request)
        if me is None:
            return page("stranger.html", 401)
        from rlhf_bilevel.human.agreement import report  # SciPy takes a second to load

        told = report(book).model_dump()
        if me.role != "expert":  # what others did is theirs
            told["labellers"] = [row for row in told["labellers"] if row["name"] == me.name]
        found = [f"{row['name']}: {flag}" for row in told["labellers"] for flag in row["flags"]] + told.pop("flags")
        return page("quality.html", me=me, found=found, **told)

    @app.get("/join/{token}")
    def join_page(token: str) -> HTMLResponse:
        """Only its script takes the token: what fetches a link to show a preview of it must not use it up."""
        return page("join.html")

    @app.post("/api/join", status_code=204)
    def join(request: Request, asked: Join) -> Response:
        invited = invitations.take(asked.token)
        if invited is None:
            raise HTTPException(403, "this link was opened before, or is of an earlier start")
        answer = Response(status_code=204)
        token, secure = book.invite(*invited), request.headers["origin"].startswith("https:")
        answer.set_cookie(cookie, token, max_age=SESSION_DAYS * 86400, httponly=True, samesite="strict", secure=secure)
        return answer

    @app.get("/api/next")
    def following(me: Me, count: Annotated[int, Query(ge=1, le=16)] = 2) -> dict[str, Any]:
        """Whether a pair is asked for its label or to check its labeller is not told."""
        offers = book.offer(me, count, LEASE_SECONDS, repeats, gold)
        return {"pairs": [{"query": o.query_id, "left": o.left_clip, "right": o.right_clip} for o in offers]}

    @app.post("/api/answers")
    def answers(me: Me, given: Answer) -> dict[str, str]:
        try:
            outcome = book.choose(me, given.query, given.choice, given.key, given.shown_at, given.answered_at)
        except (NotFoundError, ConflictError, ConsumedError) as error:
            status = {NotFoundError: 404, ConflictError: 409, ConsumedError: 410}[type(error)]
            raise HTTPException(status, str(error)) from None
        return {"outcome": outcome}

    @app.post("/api/undo")
    def undo(me: Me, nothing: Nothing) -> dict[str, str]:
        query = book.undo(me)
        if query is None:
            raise HTTPException(404, "there is no answer of yours that training has not used")
        return {"query": query}

    @app.post("/api/unskip")
    def unskip(me: Me, nothing: Nothing) -> dict[str, int]:
        return {"pairs": book.unskip(me)}

    @app.get("/api/status")
    def status(me: Me) -> dict[str, Any]:
        """Of training: ``on``, ``waiting`` for answers, ``ended``, or ``away``, where nothing is heard of it."""
        told = book.status()
        if ended():
            state = "ended"
        elif told is None or clock() - told.updated_at > LATE_SECONDS:
            state = "away"
        else:
            state = "waiting" if told.waiting else "on"
        return book.progress(me)._asdict() | {"training": {"state": state} | (asdict(told) if told else {})}

    def zipped(name: str, find: Callable[[str], bytes | None]) -> Response:
        data = find(name) if name.isprintable() else None  # PostgreSQL refuses to look for some that are not
        if data is None:
            raise HTTPException(404, "there is no such thing")
        return Response(data, media_type="application/json", headers={"content-encoding": "gzip"})

    @app.get("/api/clips/{clip}")
    def clips(me: Me, clip: str) -> Response:
        return zipped(clip, book.clip)

    @app.get("/api/scenes/{scene}")
    def scenes(me: Me, scene: str) -> Response:
        return zipped(scene, book.scene)

    @app.get("/static/{name}")
    def file(request: Request, name: str) -> Response:
        if name not in static:
            raise HTTPException(404, "there is no such file")
        data, kind, tag = static[name]
        headers = {"cache-control": "no-cache", "etag": tag, "content-encoding": "gzip"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return Gate(app, frozenset(hosts), frozenset(origins))
