"""The label server: it hands out pairs, takes choices, and gives access to nothing else on the machine.

Everything that lasts is in the label store. The server itself keeps only the links that nobody has opened yet, so it
may be killed and started again at any moment. It imports neither torch nor a simulator.

    GET  /                    the label page                 GET  /join/{token}     the page that starts a session
    GET  /quality             how well answers agree         POST /api/join         exchanges its token for a cookie
    GET  /api/next?count=2    pairs to judge                 POST /api/answers      a choice, stored once for each key
    GET  /api/status          progress and training          POST /api/undo         takes a choice back
    GET  /api/clips/{id}      a clip, gzipped JSON           POST /api/unskip       shows skipped pairs again
    GET  /api/scenes/{id}     the scene of a clip            GET  /static/{name}    one of a fixed list of files
    GET  /api/history         one's own last choices         GET  /overview            what the owner wants to know
    GET  /healthz             whether the server answers   GET  /pair/{id}          one pair, for the owner

Errors, besides those of ``security``: 401 without a session, or with a session of another person than the page's; 403
for a link that was used; 404 for unknown things; 409 for an answer that contradicts a stored one; 410 if training has
used the pair; 422 for anything that is not an answer; 503 for everything while the database does not answer. Paths
under /api/ get them as JSON, and others as a page.
"""

import gzip
import secrets
import shlex
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

from rlhf_bilevel.human.overview import (
    SHORTEST,
    Returns,
    labelling_seconds,
    plain,
    seconds_to_next_pairs,
    speeds,
    when_next_pairs,
)
from rlhf_bilevel.human.records import ConflictError, ConsumedError, Labeller, NotFoundError
from rlhf_bilevel.human.security import SecurityMiddleware
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import CHOICES, EXPERT, MAX_LETTERS, MAX_NOTE, OWNER
from rlhf_bilevel.utils.files import sha256

LEASE_SECONDS = 600.0  # for which a pair is reserved for the person who sees it
SESSION_DAYS = 30
SEE_ALL = (EXPERT, OWNER)  # who sees what other people did
NOTES = 50  # that the overview lists
HISTORY = 50  # choices that the page lists
SILENT_SECONDS = 5.0  # without a report, after which nobody can say what training does: it reports once a second
AWAY_SECONDS = 60.0  # without a report, after which training counts as not running
LATEST_TIME = 4102444800.0  # the year 2100, in seconds since 1970: a browser's clock that says more is wrong
CONTENT_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def packed(path: Path) -> tuple[bytes, str, str]:
    """A file for the browser: its content, gzipped; its content type; its ETag."""
    data = path.read_bytes()
    return gzip.compress(data), CONTENT_TYPES[path.suffix], f'"{sha256(data)[:32]}"'


class Invitations:
    """Links that nobody has opened yet. Each has a token of 128 random bits and works once."""

    def __init__(self) -> None:
        self._unused: dict[str, tuple[str, str]] = {}  # by the hash: the time of a search says nothing about a token

    def new(self, name: str, role: str) -> str:
        """A new token for a person with this name and role."""
        token = secrets.token_urlsafe(16)
        self._unused[sha256(token.encode())] = (name, role)
        return token

    def take(self, token: str) -> tuple[str, str] | None:
        """The name and role of a token, which is used up by this; None if it is unknown or was used before."""
        return self._unused.pop(sha256(token.encode()), None)


class Body(BaseModel):
    """The JSON of a POST: exactly the fields that are declared, of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Join(Body):
    """What ``/join/{token}`` sends."""

    token: str = Field(max_length=64, pattern=r"^[\w-]*$")


class Answer(Body):
    """A choice. Times are those of the browser's clock, in seconds since 1970; the label store corrects wrong ones."""

    query: str = Field(max_length=64, pattern=r"^[0-9a-f]*$")
    choice: Literal[CHOICES]  # type: ignore[valid-type]
    key: str = Field(min_length=16, max_length=64, pattern=r"^[0-9A-Za-z-]*$")
    shown_at: float = Field(ge=0, le=LATEST_TIME)
    answered_at: float = Field(ge=0, le=LATEST_TIME)
    note: str = Field("", max_length=MAX_NOTE, pattern=r"^[^\x00]*$")


class Undo(Body):
    """Which choice to take back: the one that came with ``key``, or else the last one."""

    key: str | None = Field(None, max_length=MAX_LETTERS, pattern=r"^[0-9A-Za-z-]*$")


class Empty(Body):
    """A request without content."""


def create_app(
    store: LabelStore,
    invitations: Invitations,
    *,
    question: str,
    hosts: Collection[str],
    origins: Collection[str],
    files: Mapping[str, Path],
    guidelines: str = "",
    run: str = "",
    ended: Callable[[], bool] = lambda: False,
    returns: Callable[[], Returns | None] = lambda: None,
    repeats: float = 0.05,
    gold: float = 0.05,
    clock: Callable[[], float] = time.time,
) -> SecurityMiddleware:
    """The label server as an ASGI application.

    :param store: the label store of the run
    :param invitations: the links that start a session
    :param question: what people are asked about every pair
    :param hosts: the values of the header Host that name this server
    :param origins: the values of the header Origin that may send choices
    :param files: the files under ``/static/``, by name
    :param guidelines: HTML that explains the question
    :param run: the run's folder, for the commands that its owner is told
    :param ended: tells whether the run has ended
    :param returns: returns the mean returns of the last episodes of training
    :param repeats: the share of pairs that a person gets a second time
    :param gold: the share of pairs that an expert has answered
    :param clock: the time in seconds since 1970
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    pages = Environment(loader=PackageLoader("rlhf_bilevel.human"), autoescape=True, undefined=StrictUndefined)
    pages.filters["plain"] = plain
    static = {name: packed(path) for name, path in files.items()}
    run_hash = sha256(store.run.encode())[:8]
    cookie = f"label-{run_hash}"  # all ports of a machine share their cookies: each run has its own

    def page(name: str, status_code: int = 200, **content: Any) -> HTMLResponse:
        run_info = store.run_info() if "me" in content else {}  # without a session, nothing about the run is shown
        title = " on ".join(str(run_info[key]) for key in ("method", "env") if key in run_info)
        return HTMLResponse(pages.get_template(name).render(title=title or "rlhf-bilevel", **content), status_code)

    def page_owner(me: Labeller) -> str:
        """A name for this labeller of this run. The browser stores unsent answers under it."""
        return f"{run_hash}-{me.id}"

    def visitor(request: Request) -> Labeller:
        token = request.cookies.get(cookie, "")
        me = store.labeller(token) if token else None
        if me is None:
            raise HTTPException(401, "no session: open the link that rlhf-bilevel label printed")
        return me

    def overseer(request: Request) -> Labeller:
        me = visitor(request)
        if me.role not in SEE_ALL:
            raise HTTPException(403, "Only the owner of the run and experts see it.")
        return me

    def signed_in(request: Request) -> Labeller:
        me = visitor(request)
        if request.headers.get("x-page-of", page_owner(me)) != page_owner(me):
            raise HTTPException(401, "this browser is signed in as somebody else now: reload the page")
        return me

    def agreement_seen_by(me: Labeller) -> dict[str, Any]:
        """The report on all people, or on ``me`` alone; its flags have names."""
        from rlhf_bilevel.human.agreement import report  # SciPy takes a second to load

        content = report(store, hide_new_checks=not is_over()).model_dump()
        content["alone"] = len(content["labellers"]) < 2
        if me.role not in SEE_ALL:
            content["labellers"] = [row for row in content["labellers"] if row["name"] == me.name]
        flags = [f"{row['name']}: {flag}" for row in content["labellers"] for flag in row["flags"]]
        return content | {"flags": flags + content["flags"]}

    def training_state() -> str:
        """Training is ``on``, ``waiting`` for answers, ``ended``, ``away`` if it is not running, or ``silent``.

        A long evaluation or update of the reward is silent, and so is training that was killed.
        """
        status = store.status()
        if ended() or (status and status.ended):
            return "ended"
        silence = clock() - status.updated_at if status else 0.0
        if status is None or status.stopped or silence > AWAY_SECONDS:
            return "away"
        if silence > SILENT_SECONDS and not status.policies:  # a selection is silent while it makes a pair
            return "silent"
        return "waiting" if status.waiting else "on"

    def is_over() -> bool:
        """Whether training uses no more answers."""
        status = store.status()
        return training_state() == "ended" or (status is not None and 0 < status.wanted <= status.labels)

    Me = Annotated[Any, Depends(signed_in)]

    @app.exception_handler(PlainHTTPException)
    def refuse(request: Request, error: PlainHTTPException) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": error.detail}, error.status_code)
        if error.status_code == 401:
            return page("stranger.html", 401)
        heading = "There is no such page" if error.status_code == 404 else "You cannot see this page"
        text = "Check the address." if error.status_code == 404 else error.detail
        return page("message.html", error.status_code, heading=heading, text=text)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        if not request.url.path.startswith("/api/"):
            return refuse(request, PlainHTTPException(404))
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))[:100]
        return JSONResponse({"error": " ".join(f"{where}: {first['msg']}".split())}, 422)

    @app.exception_handler(OperationalError)
    @app.exception_handler(InterfaceError)
    def away(request: Request, error: Exception) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": "the label store cannot be reached now"}, 503)
        heading, text = "The answers cannot be read now", "Nothing is lost. Load this page again in a moment."
        return page("message.html", 503, heading=heading, text=text)

    @app.get("/healthz")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/")
    def label(request: Request) -> HTMLResponse:
        me = visitor(request)
        content: dict[str, Any] = {"question": question, "guidelines": Markup(guidelines), "max_note": MAX_NOTE}
        return page("label.html", me=me, page_owner=page_owner(me), sees_all=me.role in SEE_ALL, **content)

    @app.get("/quality")
    def quality(request: Request) -> HTMLResponse:
        me = visitor(request)
        return page("quality.html", me=me, sees_all=me.role in SEE_ALL, **agreement_seen_by(me))

    @app.get("/overview")
    def overview(request: Request) -> HTMLResponse:
        me = overseer(request)
        choices, status, state = store.all_chosen(), store.status(), training_state()
        seen, seconds, recent = agreement_seen_by(me), labelling_seconds(choices), returns()
        noted = [chosen for chosen in choices if chosen.note][: -NOTES - 1 : -1]
        return page(
            "overview.html",
            me=me,
            state=state,
            status=status,
            next_pairs=when_next_pairs(state, status, store.pending(), clock()),
            speeds=speeds(store.labellers(), choices, clock()),
            per_minute=recent.true / (seconds / 60) if recent and seconds >= SHORTEST else None,
            returns=recent,
            agreement=seen["agreement"],
            flags=seen["flags"],
            notes=[(chosen, store.pair(chosen.query_id)) for chosen in noted],
        )

    @app.get("/pair/{query}")
    def pair(request: Request, query: str, left: Literal["first", "second"] = "first") -> HTMLResponse:
        """One pair, to be looked at; ``left`` is the clip on the left side."""
        me = overseer(request)
        found = store.pair(query) if query.isascii() and query.isalnum() else None
        if found is None:
            raise HTTPException(404, "there is no such pair")
        shown = found.clips if left == "first" else found.clips[::-1]
        return page("pair.html", me=me, page_owner=page_owner(me), number=found.number, clips=shown)

    @app.get("/join/{token}")
    def join_page(token: str) -> HTMLResponse:
        """The page's script sends the token: a chat that fetches the link to show a preview must not use it up."""
        return page("join.html")

    @app.post("/api/join", status_code=204)
    def join(request: Request, sent: Join) -> Response:
        invited = invitations.take(sent.token)
        if invited is None:
            raise HTTPException(
                403, "this link does not work: it was opened before, is of an earlier start, or is mistyped"
            )
        response = Response(status_code=204)
        token, secure = store.invite(*invited), request.headers["origin"].startswith("https:")
        response.set_cookie(
            cookie, token, max_age=SESSION_DAYS * 86400, httponly=True, samesite="strict", secure=secure
        )
        return response

    @app.get("/api/next")
    def next_pairs(me: Me, count: Annotated[int, Query(ge=1, le=16)] = 2) -> dict[str, Any]:
        """The reply does not say for which purpose a pair is shown."""
        assigned = store.assign(me, count, LEASE_SECONDS, repeats, gold)
        return {"pairs": [{"query": a.query_id, "left": a.left_clip, "right": a.right_clip} for a in assigned]}

    @app.post("/api/answers")
    def answers(me: Me, sent: Answer) -> dict[str, str]:
        try:
            outcome = store.choose(me, sent.query, sent.choice, sent.key, sent.shown_at, sent.answered_at, sent.note)
        except (NotFoundError, ConflictError, ConsumedError) as error:
            status = {NotFoundError: 404, ConflictError: 409, ConsumedError: 410}[type(error)]
            raise HTTPException(status, str(error)) from None
        return {"outcome": outcome}

    @app.post("/api/undo")
    def undo(me: Me, sent: Undo) -> dict[str, Any]:
        undone = None if is_over() else store.undo(me, sent.key)
        if undone is None:
            raise HTTPException(404, "there is no answer of yours that training has not used")
        return {"query": undone.query_id, "note": undone.note}

    @app.get("/api/history")
    def history(me: Me) -> dict[str, Any]:
        """The reply does not say for which purpose a pair was shown."""
        over = is_over()
        listed = [past._replace(can_change=past.can_change and not over) for past in store.history(me, HISTORY)]
        return {"choices": [past._asdict() for past in listed], "over": over}

    @app.post("/api/unskip")
    def unskip(me: Me, empty: Empty) -> dict[str, int]:
        return {"pairs": store.unskip(me)}

    @app.get("/api/status")
    def status(me: Me) -> dict[str, Any]:
        training, state = store.status(), training_state()
        told = asdict(training) | {"next_pairs": seconds_to_next_pairs(state, training, clock())} if training else {}
        if run and training and me.role in SEE_ALL and (state == "ended" or not training.policies):
            told["command"] = f"rlhf-bilevel {'resume' if state == 'away' else 'watch'} {shlex.quote(run)}"
        progress = store.progress(me)
        progress = progress._replace(can_undo=progress.can_undo and not is_over())
        return progress._asdict() | {"training": {"state": state} | told}

    def gzipped(name: str, find: Callable[[str], bytes | None]) -> Response:
        data = find(name) if name.isprintable() else None  # PostgreSQL refuses some names that are not printable
        if data is None:
            raise HTTPException(404, "there is no such thing")
        return Response(data, media_type="application/json", headers={"content-encoding": "gzip"})

    @app.get("/api/clips/{clip}")
    def clips(me: Me, clip: str) -> Response:
        return gzipped(clip, store.clip)

    @app.get("/api/scenes/{scene}")
    def scenes(me: Me, scene: str) -> Response:
        return gzipped(scene, store.scene)

    @app.get("/static/{name}")
    def file(request: Request, name: str) -> Response:
        if name not in static:
            raise HTTPException(404, "there is no such file")
        data, kind, tag = static[name]
        headers = {"cache-control": "no-cache", "etag": tag, "content-encoding": "gzip"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return SecurityMiddleware(app, frozenset(hosts), frozenset(origins))
