"""The label server: what it hands out and takes, and what it refuses."""

import asyncio
import gzip
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from rlhf_bilevel.cli.label import returns_of, wait
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.human.addresses import exposure_warning, listen, names
from rlhf_bilevel.human.guidelines import html, read
from rlhf_bilevel.human.overview import recent_returns, when_next_pairs
from rlhf_bilevel.human.page_text import PageText, page_text
from rlhf_bilevel.human.records import Pending, Status
from rlhf_bilevel.human.security import BODY_LIMIT, LimitedHTTP, SecurityMiddleware
from rlhf_bilevel.human.server import Invitations, create_app
from rlhf_bilevel.human.store import LabelStore
from tests.cli.test_cli import fails
from tests.support.label_page import application, ask, served

PORT = 8007
URL = f"http://127.0.0.1:{PORT}"
KEY = "0123456789abcdef"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Site:
    """A server without a socket, and a browser's way to talk to it."""

    def __init__(self, store: LabelStore, **told: Any) -> None:
        self.store, self.invitations = store, Invitations()
        self.app = application(store, self.invitations, PORT, **told)

    def browser(self) -> TestClient:
        return TestClient(self.app, URL, headers={"origin": URL})

    def joined(self, name: str = "human", role: str = "labeller") -> TestClient:
        browser = self.browser()
        assert browser.post("/api/join", json={"token": self.invitations.new(name, role)}).status_code == 204
        return browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with LabelStore.open(tmp_path / "book.sqlite", "run") as store:
        ask(store, 4)
        yield Site(store)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that leave nothing behind."""
    with LabelStore.open(tmp_path_factory.mktemp("shared") / "book.sqlite", "run") as store:
        store.set_run_info({"env": "Secret-v0"})
        ask(store, 4)
        yield Site(store)


def answer(pair: dict[str, str], choice: str = "left", key: str = KEY) -> dict[str, Any]:
    now = time.time()
    return {"query": pair["query"], "choice": choice, "key": key, "shown_at": now, "answered_at": now}


def test_a_link_begins_one_session_and_looking_at_it_does_not_use_it_up(site: Site) -> None:
    token, browser = site.invitations.new("ada", "labeller"), site.browser()
    assert browser.get(f"/join/{token}").status_code == 200 and browser.get("/").status_code == 401
    joined = browser.post("/api/join", json={"token": token})
    cookie = joined.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/")) and token not in cookie
    assert "ada" in [person.name for person in site.store.labellers()] and browser.get("/").status_code == 200
    assert site.browser().post("/api/join", json={"token": token}).status_code == 403


def test_a_session_outlives_the_server(site: Site) -> None:
    cookies = site.joined().cookies
    again = TestClient(Site(site.store).app, URL, cookies=cookies)
    assert again.get("/api/status").status_code == 200


ROUTES = (
    "/overview", "/api/next", "/api/status", "/api/history", "/api/clips/" + 32 * "0", "/api/scenes/0", "/", "/quality",
    "POST /api/answers", "POST /api/undo",
)  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_told_without_a_session(shared: Site, route: str) -> None:
    method, path = route.split() if " " in route else ("GET", route)
    joined = shared.joined()
    (cookie,) = joined.cookies.keys()
    body = {"json": {}} if method == "POST" else {}
    for wrong in ({}, {cookie: "x" * 22}, {cookie: ""}):
        refused = TestClient(shared.app, URL, headers={"origin": URL}, cookies=wrong).request(method, path, **body)
        assert refused.status_code == 401 and "Secret" not in refused.text
    assert joined.request(method, path, **body).status_code != 401


def test_pairs_their_clips_and_scenes_are_served_and_not_what_they_are_for(site: Site) -> None:
    site.store.add_scene("7", {"parts": []})
    browser = site.joined()
    pairs = browser.get("/api/next?count=3").json()["pairs"]
    assert len({pair["query"] for pair in pairs}) == 3 and {*pairs[0]} == {"query", "left", "right"}
    again = browser.get("/api/next?count=3").json()["pairs"]  # a reload shows the same
    assert sorted(map(str, again)) == sorted(map(str, pairs))
    clips = [browser.get(f"/api/clips/{pairs[0][side]}").json() for side in ("left", "right")]
    stored = [site.store.clip(pairs[0][side]) or b"" for side in ("left", "right")]
    assert clips == [json.loads(gzip.decompress(clip)) for clip in stored] and clips[0] != clips[1]
    assert browser.get("/api/scenes/7").json() == {"parts": []} and browser.get("/api/scenes/8").status_code == 404


def test_an_answer_is_stored_once_and_what_contradicts_it_is_refused(site: Site) -> None:
    browser = site.joined()
    first, second, *_ = browser.get("/api/next?count=2").json()["pairs"]
    given = answer(first)
    outcomes = [browser.post("/api/answers", json=given).json() for _ in range(3)]
    assert [outcome["outcome"] for outcome in outcomes] == ["accepted", "repeated", "repeated"]
    assert browser.post("/api/answers", json=given | {"choice": "right"}).status_code == 409  # the same key
    assert browser.post("/api/answers", json=answer(first, key=KEY[::-1])).status_code == 409  # it is answered
    assert browser.post("/api/answers", json=answer(second) | {"query": 32 * "0", "key": KEY * 2}).status_code == 404
    (chosen,) = site.store.all_chosen()
    assert (chosen.query_id, chosen.choice) == (first["query"], "left")
    assert [chosen.shown_at, chosen.answered_at] == pytest.approx([given["shown_at"], given["answered_at"]], abs=1e-3)


def test_undo_takes_back_what_training_has_not_used(site: Site) -> None:
    browser = site.joined()
    assert browser.post("/api/undo", json={}).status_code == 404
    (pair,) = browser.get("/api/next?count=1").json()["pairs"]
    browser.post("/api/answers", json=answer(pair))
    assert browser.post("/api/undo", json={}).json() == {"query": pair["query"], "note": ""}
    assert not site.store.all_chosen()
    assert browser.get("/api/next?count=1").json()["pairs"] == [pair]
    browser.post("/api/answers", json=answer(pair, "right", KEY[::-1]))
    site.store.collect(0, 9)
    assert browser.post("/api/undo", json={}).status_code == 404 and len(site.store.all_chosen()) == 1


def test_an_answer_of_the_history_is_taken_back_by_its_key(site: Site) -> None:
    browser = site.joined()
    first, second = browser.get("/api/next?count=2").json()["pairs"]
    for number, (pair, choice) in enumerate(((first, "slightly_left"), (second, "both_bad"))):
        sent = answer(pair, choice, f"{number}{KEY}") | {"note": f"note {number}"}
        assert browser.post("/api/answers", json=sent).json() == {"outcome": "accepted"}
    newest, oldest = browser.get("/api/history").json()["choices"]
    assert (newest["choice"], newest["note"], newest["can_change"]) == ("both_bad", "note 1", True)
    for past, pair in ((newest, second), (oldest, first)):
        assert (past["left"], past["right"]) == (pair["left"], pair["right"])
    assert "purpose" not in newest and site.joined("ada").get("/api/history").json()["choices"] == []
    assert site.joined("ada").post("/api/undo", json={"key": oldest["key"]}).status_code == 404
    undone = browser.post("/api/undo", json={"key": oldest["key"]}).json()
    assert undone == {"query": first["query"], "note": "note 0"}
    assert [chosen.query_id for chosen in site.store.all_chosen()] == [second["query"]]
    assert browser.post("/api/undo", json={"key": oldest["key"]}).status_code == 404


def test_once_training_is_over_no_answer_can_be_changed(tmp_path: Path) -> None:
    """Neither those that training never used, nor checks, which would be found by it."""
    ended = [False]
    with LabelStore.open(tmp_path / "book.sqlite", "run") as store:
        ask(store, 3)
        browser = Site(store, ended=lambda: ended[0]).joined()

        def changeable() -> tuple[bool, ...]:
            history = browser.get("/api/history").json()
            return history["over"], history["choices"][0]["can_change"], browser.get("/api/status").json()["can_undo"]

        for number, pair in enumerate(browser.get("/api/next?count=2").json()["pairs"]):
            browser.post("/api/answers", json=answer(pair, key=f"{number}{KEY}"))
        assert changeable() == (False, True, True)
        store.set_status(Status(60, 100, 8, 8, False, 0, "it trains"))  # with all its labels
        assert changeable() == (True, False, False) and browser.post("/api/undo", json={}).status_code == 404
        store.set_status(Status(60, 100, 7, 8, False, 0, "it trains"))
        ended[0] = True
        assert changeable() == (True, False, False) and browser.post("/api/undo", json={}).status_code == 404
        ended[0] = False
        assert browser.post("/api/undo", json={}).status_code == 200


def test_skipped_pairs_come_back_when_they_are_asked_for(site: Site) -> None:
    browser = site.joined()
    pairs = browser.get("/api/next?count=4").json()["pairs"]
    for number, pair in enumerate(pairs):
        browser.post("/api/answers", json=answer(pair, "skip", f"{number}{KEY}"))
    told = browser.get("/api/status").json()
    assert browser.get("/api/next").json() == {"pairs": []} and (told["open"], told["skipped"]) == (4, 4)
    assert browser.post("/api/unskip", json={}).json() == {"pairs": 4}
    assert len(browser.get("/api/next?count=4").json()["pairs"]) == 4


def test_a_page_of_somebody_else_is_told_so_and_its_answers_are_kept_by_it(site: Site) -> None:
    """Two links that were opened in one browser: the first one's page is still there, and the second has the cookie."""
    ada = site.joined("ada")
    pages = [re.findall('data-labeller="([^"]+)"', who.get("/").text) for who in (ada, site.joined("grace"))]
    assert [len(found) for found in pages] == [1, 1] and pages[0] != pages[1]
    (pair,) = ada.get("/api/next?count=1").json()["pairs"]
    for (page_of,), status in zip(pages, (200, 401), strict=True):
        given = ada.post("/api/answers", json=answer(pair), headers={"x-page-of": page_of})
        assert given.status_code == status and ("error" in given.json()) == (status == 401)


def test_pages_of_two_runs_at_one_address_keep_their_answers_apart(tmp_path: Path) -> None:
    """A page keeps unsent answers under this name; the labellers of both have the number 1."""
    names = set()
    for run_name in ("one", "two"):
        with LabelStore.open(tmp_path / f"{run_name}.sqlite", run_name) as store:
            names |= set(re.findall('data-labeller="([^"]+)"', Site(store).joined().get("/").text))
    assert len(names) == 2


def test_an_answer_that_training_went_on_without_is_gone(tmp_path: Path) -> None:
    with LabelStore.open(tmp_path / "book.sqlite", "run") as store:
        ask(store, 1)
        late, quick = (Site(store).joined(name) for name in ("late", "quick"))
        (pair,) = late.get("/api/next").json()["pairs"]
        store.import_answer("elsewhere", pair["query"], 1.0, KEY, 0.0, 1.0)
        store.collect(0, 9)
        assert late.post("/api/answers", json=answer(pair, key=KEY[::-1])).status_code == 410
        assert quick.get("/api/next").json() == {"pairs": []}


def test_what_belongs_to_another_run_cannot_be_reached(tmp_path: Path) -> None:
    with (
        LabelStore.open(tmp_path / "book.sqlite", "mine") as mine,
        LabelStore.open(tmp_path / "book.sqlite", "other") as other,
    ):
        ask(mine, 1)
        ask(other, 1)
        other.add_scene("7", {"parts": []})
        there, here = Site(other).joined(), Site(mine).joined()
        (pair,) = there.get("/api/next").json()["pairs"]
        assert there.get(f"/api/clips/{pair['left']}").status_code == 200
        hidden = [here.get(path).status_code for path in (f"/api/clips/{pair['left']}", "/api/scenes/7")]
        assert hidden == [404, 404]
        assert here.post("/api/answers", json=answer(pair)).status_code == 404
        assert TestClient(Site(mine).app, URL, cookies=there.cookies).get("/api/status").status_code == 401


def test_status_tells_progress_and_what_training_does(tmp_path: Path) -> None:
    now = [1000.0]
    ended = [False]
    with LabelStore.open(tmp_path / "book.sqlite", "run", clock=lambda: now[0]) as store:
        ask(store, 3)
        browser = Site(store, clock=lambda: now[0], ended=lambda: ended[0]).joined()
        assert browser.get("/api/status").json()["training"] == {"state": "away"}
        store.set_status(Status(50, 100, 7, 20, True, 2, "it waits"))
        (pair,) = browser.get("/api/next?count=1").json()["pairs"]
        browser.post("/api/answers", json=answer(pair))
        told = browser.get("/api/status").json()
        assert [told[name] for name in ("mine", "total", "open", "needed")] == [1, 1, 2, 2]
        assert (told["training"]["state"], told["training"]["step"], told["training"]["labels"]) == ("waiting", 50, 7)
        store.set_status(Status(60, 100, 8, 20, False, 2, "it trains"))

        def state() -> str:
            return browser.get("/api/status").json()["training"]["state"]

        seen = [state()]
        for seconds in (5, 1, 54, 1):
            now[0] += seconds
            seen.append(state())
        assert seen == ["on", "on", "silent", "silent", "away"]
        store.set_status(Status(60, 100, 8, 20, False, 2, "it trains"))
        assert state() == "on"
        store.set_status(Status(60, 100, 8, 20, False, 0, "Training has stopped.", stopped=True))
        assert state() == "away"  # at once
        ended[0] = True
        assert state() == "ended"
        ended[0] = False
        selection = Status(0, 100, 8, 20, False, 0, "it makes a pair", policies=3)
        store.set_status(selection)
        now[0] += 30
        assert state() == "on"  # it is silent while it plays episodes
        now[0] += 31
        assert state() == "away"
        store.set_status(replace(selection, stopped=True))
        assert state() == "away"
        store.set_status(replace(selection, stopped=True, ended=True))
        assert state() == "ended"  # before the chosen policy is written


def test_a_database_that_is_away_is_a_passing_fault(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = site.joined()

    def away(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("no route to host 10.0.0.1"))

    monkeypatch.setattr(site.store, "assign", away)
    refused = browser.get("/api/next")
    assert refused.status_code == 503 and "10.0.0.1" not in refused.text


# What is refused


def test_a_name_that_somebody_else_points_here_is_refused(shared: Site) -> None:
    browser = shared.joined()
    for host in ("evil.example", "127.0.0.1", "127.0.0.1:80", f"evil.example:{PORT}", "", f"127.0.0.1:{PORT}."):
        assert browser.get("/api/status", headers={"host": host}).status_code == 421, host


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1", None]
)
def test_choices_come_from_the_servers_own_page_only(site: Site, origin: str | None) -> None:
    browser = site.joined()
    (pair,) = browser.get("/api/next?count=1").json()["pairs"]
    forged = TestClient(site.app, URL, cookies=browser.cookies, headers={"origin": origin} if origin else {})
    assert forged.post("/api/answers", json=answer(pair)).status_code == 403 and not site.store.all_chosen()
    assert browser.post("/api/answers", json=answer(pair)).status_code == 200


WRONG: tuple[dict[str, Any], ...] = (
    {"\ud800": 1}, {"a\nb": 1}, {"labeller": 2}, {"choice": "better"}, {"key": "\0" * 16}, {"key": "short"},
    {"query": "\0"}, {"query": "\ud800"}, {"query": "０"}, {"query": "0" * 65}, {"query": "q"},
    {"shown_at": 1e308}, {"shown_at": "1"}, {"shown_at": float("nan")}, {"answered_at": 10**400}, {"answered_at": -1},
    {"answered_at": True}, {"answered_at": None}, {"note": "x" * 501}, {"note": "\0"}, {"note": None},
)  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (415, b"{}", "text/plain"),
        (415, b"query=1", "application/x-www-form-urlencoded"),
        (413, b" " * (BODY_LIMIT + 1), "application/json"),
        (422, b"{", "application/json"),
        (422, b"[" * 4000, "application/json"),
        (422, b"", "application/json"),
        (422, b'{"query": "0", "query": "1"}', "application/json"),
        (422, b"\xff\xfe", "application/json"),
        (422, b"{}", "application/json"),
        *((422, json.dumps(answer({"query": "0"}) | wrong).encode(), "application/json") for wrong in WRONG),
    ],
)
def test_what_is_no_answer_is_refused_in_one_line(shared: Site, status: int, body: bytes, kind: str) -> None:
    refused = shared.joined().post("/api/answers", content=body, headers={"content-type": kind})
    assert refused.status_code == status and "Traceback" not in refused.text
    assert "\n" not in refused.json()["error"] and not shared.store.all_chosen()


@pytest.mark.parametrize("body", [{"token": "\ud800"}, {"token": "\0"}, {"token": 1}, {"token": "x" * 65}, [], 1, None])
def test_what_is_no_token_is_refused_in_one_line(shared: Site, body: Any) -> None:
    told = json.dumps(body).encode()
    refused = shared.browser().post("/api/join", content=told, headers={"content-type": "application/json"})
    assert refused.status_code == 422 and "\n" not in refused.json()["error"]


@pytest.mark.parametrize("name", ["%00", "%ff", "%ed%a0%80", "%0a", "x" * 5000, "%F0%9F%98%80", "0" * 32 + "%00"])
def test_names_that_cannot_be_are_not_found(shared: Site, name: str) -> None:
    browser = shared.joined()
    assert [browser.get(f"/api/{kind}/{name}").status_code for kind in ("clips", "scenes")] == [404, 404]


def test_methods_and_counts_that_are_not_known_are_refused(shared: Site) -> None:
    browser = shared.joined()
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert browser.request(method, "/api/answers").status_code == 405
    for count in ("0", "17", "-1", "x", "1e9"):
        assert browser.get(f"/api/next?count={count}").status_code == 422


@pytest.mark.parametrize(
    "path",
    ["/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd",
     "/static/..%5cserver.py", "/api/clips/..%2f..%2fbook.sqlite", "/api/scenes/%2fetc%2fpasswd",
     "/static/page.js%00.css", "/static/", "/docs", "/openapi.json", "/server.py", "//etc/passwd"],
)  # fmt: skip
def test_no_path_leads_to_a_file(shared: Site, path: str) -> None:
    browser = shared.joined()
    found = browser.get(path)
    assert found.status_code == 404 and "create_app" not in found.text and "root:" not in found.text
    assert browser.get("/static/page.js").status_code == 200


def test_guidelines_are_paragraphs_lists_and_emphasis_and_all_else_is_text(tmp_path: Path) -> None:
    file = tmp_path / "rules.md"
    file.write_text("A *b* **c**\n\n- d\n- e\n\n1. f\n\n# g\n<script>h</script> [i](javascript:j) ![k](l) <m@n.o>\n")
    told = html(read(file))
    assert all(part in told for part in ("<em>b</em>", "<strong>c</strong>", "<li>d</li>", "<ol>", "<h3>g</h3>"))
    assert set(re.findall(r"<(\w+)", told)) == {"h3", "p", "em", "strong", "ul", "ol", "li"}
    assert html("Taste\n=====\n\n###### <b>x</b>\n").split() == ["<h3>Taste</h3>", "<h6>&lt;b&gt;x&lt;/b&gt;</h6>"]
    file.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not text in UTF-8"):
        read(file)


def test_the_next_page_of_a_run_asks_the_same_and_so_does_the_selection_among_its_policies(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert page_text(run) == PageText() and not run.label_page.exists()
    text = "# Feet\n" + "\U0001f600" * 16_000  # the most that guidelines may have
    page_text(run, "Which one is slower?", text)
    page_text(run, guidelines=None)
    assert page_text(run) == PageText(question="Which one is slower?", guidelines=text)
    assert page_text(run, guidelines="Other") == PageText(question="Which one is slower?", guidelines="Other")
    for content, told in (('{"question": ""}', "question: "), ("{", "damaged"), ('{"answer": "x"}', "answer: ")):
        run.label_page.write_text(content)
        with pytest.raises(CorruptFileError, match=told):
            page_text(run)


def test_names_and_questions_are_text(tmp_path: Path) -> None:
    script = "<script>alert('x')</script>"
    with LabelStore.open(tmp_path / "book.sqlite", "run") as store:
        store.set_run_info({"method": script, "env": "\"'>" + script})
        browser = Site(store, question=script).joined(script)
        for path in ("/", "/quality"):
            page = browser.get(path).text
            assert script not in page and "&lt;script&gt;" in page


def test_every_reply_bears_the_headers_and_pages_have_no_inline_script_or_style(shared: Site) -> None:
    browser = shared.joined()
    replies = [browser.get(path) for path in ("/", "/quality", "/join/x", "/api/status", "/nothing", "/static/page.js")]
    replies += [shared.browser().get("/"), browser.get("/", headers={"host": "evil"})]
    replies.append(browser.post("/api/answers", json=1))
    for reply in replies:
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == ("no-cache" if "/static/" in str(reply.url) else "no-store")
    inline = r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son\w+=|https?://(?!www.w3.org)"
    for reply in replies[:3]:
        assert not re.search(inline, reply.text)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    sent: list[dict] = []

    async def never() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"a:1"), (b"origin", b"http://a:1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    gate = SecurityMiddleware(never, frozenset({"a:1"}), frozenset({"http://a:1"}), body_seconds=0.05)  # type: ignore[arg-type]
    asyncio.run(gate(scope, never, send))
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]


def test_a_connection_that_sends_its_head_in_drops_is_closed(tmp_path: Path) -> None:
    with served(tmp_path, 0) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        slow.settimeout(0.1)
        for _ in range(200):  # a second is what the test's server gives; such drops would keep uvicorn's own open
            try:
                slow.sendall(b"x")
                if slow.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("the connection stayed open")


@pytest.mark.slow
def test_a_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"
    with served(tmp_path, 0) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as patient:
        for _ in range(3):
            request = whole % server.port
            patient.sendall(request[:20])
            time.sleep(0.4)
            patient.sendall(request[20:])
            reply = b""
            while not reply.endswith(b"}"):
                reply += patient.recv(4096)
            assert reply.startswith(b"HTTP/1.1 200")


def test_many_connections_that_send_no_request_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than eight the oldest make room: those that sent half a head, half a body, or nothing."""
    monkeypatch.setattr(LimitedHTTP, "max_connections", 8)
    halves = (
        b"GET /healthz HTTP/1.1\r\nHost: ",
        b"POST /api/join HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nOrigin: http://127.0.0.1:%d\r\n"
        b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        b"",
    )
    with served(tmp_path, 0, patience=600) as server, ExitStack() as stack:
        slow = []
        for number in range(24):
            slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)))
            half = halves[number % 3]
            slow[-1].sendall(half % ((server.port,) * 2) if b"%d" in half else half)
        with urlopen(f"{server.url}/healthz", timeout=30) as told:
            assert told.status == 200
        for oldest in slow[:16]:
            with suppress(ConnectionError):
                assert oldest.recv(1) == b""  # closed, without an answer


# The command


def run(folder: Path, human: bool = True) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"settings: {{teacher_human: {str(human).lower()}}}\n")
    return folder


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "nowhere/run",
            "nowhere/run: there is no run, and no folder nowhere; start it first: rlhf-bilevel train METHOD --env ENV "
            "--steps STEPS --labels LABELS --teacher human --out nowhere/run; the nearest runs are ",
        ),
        ("other", "other is not a run's folder: it has no config.yaml; the nearest runs are "),
        ("other/notes.txt", "other/notes.txt is not a run's folder"),
        ("nothing --import answers.parquet", "nothing is not a run's folder"),
        ("simulated", "not labelled by people"),
        ("human --repeats 2", "--repeats 2: a share from 0 to 0.5"),
        ("human --labeller ada --expert ada", "'ada' is named twice"),
        ("human --labeller=\x07", "1 to 100 printable letters"),
        ("human --port 0", "'0'"),
        ("human --port 99999", "--port 99999"),
        ("human --url labels.example.org", "--url labels.example.org: http or https"),
        ("human --url http://[::1", "--url http://[::1: http or https"),
        ("human --url http://", "--url http://: http or https"),
        (f"human --host {'a' * 64}", f"--host {'a' * 60}: this is not the name of a host"),
        ("human --import none.parquet", "--import none.parquet: no such file"),
        ("human --guidelines none.md", "--guidelines none.md: No such file"),
        ("human --guidelines other", "--guidelines other: Is a directory"),
        ("human --guidelines answers.parquet", "answers.parquet: the text must have 1 to 65,536 bytes, not 0"),
        ("human --labeler ada", "did you mean '--labeller'?"),
        ("human --host no.such.host.invalid", "--host no.such.host.invalid"),
    ],
)
def test_a_mistake_costs_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "human")
    run(tmp_path / "simulated", human=False)
    (tmp_path / "other").mkdir()
    for name in ("other/notes.txt", "answers.parquet"):
        (tmp_path / name).touch()
    assert told in fails(capsys, "label", *command.split(" "))
    assert not list(tmp_path.glob("*/book.sqlite"))


@pytest.mark.parametrize("empty", [False, True])
def test_it_waits_for_a_run_that_is_not_made_yet_and_makes_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, empty: bool
) -> None:
    """As training makes it: a folder, its lock, a file that is not whole, config.yaml, and more."""
    folder = tmp_path / "walker"
    run(tmp_path / "walked")
    if empty:  # training takes one that is empty
        folder.mkdir()
    steps: list[Callable[[], object]] = [
        lambda: folder.mkdir(exist_ok=True),
        (folder / ".lock").touch,
        (folder / "config.yaml.tmp").touch,
        lambda: (folder / "config.yaml.tmp").rename(folder / "config.yaml"),
        (folder / "progress.csv").touch,
    ]
    seen = []

    def passes(_: float) -> None:
        seen.append({file.name for file in folder.iterdir()} if folder.exists() else None)
        steps.pop(0)()

    monkeypatch.setattr(time, "sleep", passes)
    wait(folder)
    assert seen == [set() if empty else None, set(), {".lock"}, {".lock", "config.yaml.tmp"}] and len(steps) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"{folder}: there is no run yet")
    assert f"--teacher human --out {folder}\n" in told.err and f"a run is {tmp_path / 'walked'}. " in told.err
    assert told.err.endswith(f"  rlhf-bilevel select RUN --teacher human --out {folder}\n") and not told.out


def test_what_turns_out_to_be_no_run_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "walker"

    def passes(_: float) -> None:
        folder.mkdir()
        (folder / "notes.txt").touch()

    monkeypatch.setattr(time, "sleep", passes)
    with pytest.raises(UserError, match="walker is not a run's folder"):
        wait(folder)


def test_started_before_training_it_serves_once_the_run_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "walker"
    command = [sys.executable, "-m", "rlhf_bilevel", "label", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        try:
            assert process.stderr.readline().startswith(f"{folder}: there is no run yet") and not folder.exists()
            run(folder)
            link = process.stdout.readline().split()[1]
            with urlopen(link, timeout=30) as page:
                assert page.status == 200
        finally:
            process.terminate()


def test_a_second_page_of_a_run_says_so_and_works(tmp_path: Path) -> None:
    folder = run(tmp_path / "walker")
    command = [sys.executable, "-m", "rlhf_bilevel", "label", str(folder)]
    other = f"Another label page of {folder} is open. "
    with ExitStack() as pages:

        def begun() -> tuple[str, subprocess.Popen[str]]:
            process = pages.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            pages.callback(process.terminate)
            assert process.stdout
            link, _ = process.stdout.readline().split()[1], process.stdout.readline()
            with urlopen(link, timeout=30) as page:
                assert page.status == 200
            return link, process

        (first_link, first), (second_link, second) = begun(), begun()
        assert urlsplit(first_link).port != urlsplit(second_link).port
        assert second.stdout and second.stdout.readline().startswith(other)
        first.terminate()
        assert first.stdout and not first.stdout.read()  # it was told nothing


def test_a_port_that_is_taken_is_passed_over_unless_it_was_asked_for() -> None:
    with listen("127.0.0.1", None) as first, listen("127.0.0.1", None) as second:
        taken = first.getsockname()[1]
        assert second.getsockname()[1] > taken
        with pytest.raises(ValueError, match=f"--port {taken}"):
            listen("127.0.0.1", taken)


def test_a_server_answers_to_its_own_names_only() -> None:
    hosts, origins = names("127.0.0.1", 8007, None)
    assert hosts == {"127.0.0.1:8007", "localhost:8007", "[::1]:8007"} and "http://localhost:8007" in origins
    hosts, origins = names("0.0.0.0", 80, "https://labels.example.org")
    assert {"labels.example.org", f"{socket.gethostname()}:80"} <= hosts and "https://labels.example.org" in origins
    assert "https://127.0.0.1:80" not in origins and "other.example.org" not in hosts
    assert "plain HTTP" in exposure_warning("0.0.0.0", 8007)


def test_the_server_loads_neither_torch_nor_a_simulator() -> None:
    modules = "rlhf_bilevel.cli.label, rlhf_bilevel.human.server, rlhf_bilevel.human.agreement"
    code = f"import sys, {modules}\n"
    code += "print([name for name in ('torch', 'mujoco', 'gymnasium') if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_behind_https_the_session_is_sent_over_https_only(site: Site) -> None:
    hosts, origins = names("127.0.0.1", PORT, "https://labels.example.org")
    app = create_app(site.store, site.invitations, question="?", hosts=hosts, origins=origins, files={})
    for base, secure in ((URL, False), ("https://labels.example.org", True)):
        token = site.invitations.new("ada", "labeller")
        joined = TestClient(app, base, headers={"origin": base}).post("/api/join", json={"token": token})
        assert ("secure" in joined.headers["set-cookie"].lower()) == secure


def test_the_owner_alone_is_told_what_to_type_next(tmp_path: Path) -> None:
    with LabelStore.open(tmp_path / "book.sqlite", "run") as store:
        site = Site(store, run="runs/a walker")
        ada, owner = site.joined("ada"), site.joined("olga", "owner")
        assert "command" not in owner.get("/api/status").json()["training"]  # nothing has been trained that could go on
        status = Status(60, 100, 8, 20, False, 0, "it trains")
        for stopped, command in ((True, "resume"), (False, "watch")):
            store.set_status(replace(status, stopped=stopped))
            assert owner.get("/api/status").json()["training"]["command"] == f"rlhf-bilevel {command} 'runs/a walker'"
            assert "command" not in ada.get("/api/status").json()["training"]
        store.set_status(replace(status, stopped=True, policies=3))  # resume cannot go on with a selection
        assert "command" not in owner.get("/api/status").json()["training"]
        store.set_status(replace(status, stopped=True, policies=3, ended=True))
        assert owner.get("/api/status").json()["training"]["command"] == "rlhf-bilevel watch 'runs/a walker'"


def test_the_overview_tells_the_owner_what_people_and_training_do(tmp_path: Path) -> None:
    now, state = [10_000.0], ["on"]
    with LabelStore.open(tmp_path / "book.sqlite", "run", clock=lambda: now[0]) as store:
        ask(store, 5)
        rows = [{"rollout/true_return": "1.5", "rollout/learned_return": ""}, {"rollout/true_return": ""}]
        rows.append({"rollout/true_return": "2.5", "rollout/learned_return": "8.25"})
        returns, ended = (lambda: recent_returns(rows)), (lambda: state[0] == "ended")
        site = Site(store, clock=lambda: now[0], returns=returns, ended=ended)
        ada, owner = site.joined("ada"), site.joined("olga", "owner")
        assert "Training has not begun yet" in owner.get("/overview").text
        assert ada.get("/overview").status_code == 403 and site.browser().get("/overview").status_code == 401
        for number, seconds in enumerate((0, 18, 18, 4000, 108)):
            now[0] += seconds
            (pair,) = ada.get("/api/next?count=1").json()["pairs"]
            now[0] += 12
            sent = answer(pair, "left", f"{number}{KEY}") | {"shown_at": now[0] - 12, "answered_at": now[0]}
            ada.post("/api/answers", json=sent | {"note": "<b>falls</b>" if number == 1 else ""})
        told = Status(50, 100, 7, 20, False, 0, "it trains", next_session=300.0, fresh_accuracy=0.75, fresh_labels=20)
        store.set_status(told)
        text = " ".join(re.sub("<[^>]+>", " ", owner.get("/overview").text).split())
        assert "ada 5 1.0 2 60" in text and "olga 0 0.0 0 –" in text  # gaps of 30, 30, 120 s; 4000 s is a break
        assert "It was right for 15 of the last 20 labels" in text and "learnt from 7 of at most 20 labels" in text
        assert "last 2 episodes of training is 2 by this reward" in text and "a scale of its own, it is 8.25" in text
        assert "for a minute of labelling" not in text  # that were five looks of 12 s
        assert "come in about 5 minutes" in text and "again" not in text
        assert "Pair 2 , ada, “left is better”: &lt;b&gt;falls&lt;/b&gt;" in text
        (link,) = re.findall('href="(/pair/[^"]+)"', owner.get("/overview").text)
        shown = [re.findall('data-clip="([^"]+)"', owner.get(link).text) for link in (link, link.split("?")[0])]
        past = ada.get("/api/history").json()["choices"][3]
        assert shown[0] == [past["left"], past["right"]] and sorted(shown[1]) == sorted(shown[0])
        refused = [ada.get(link), site.browser().get(link), owner.get("/pair/0"), owner.get(link[:-4])]
        assert [reply.status_code for reply in refused] == [403, 401, 404, 404]
        store.set_status(replace(told, again=3))
        assert "training uses the 3 labels of these answers again" in owner.get("/overview").text
        rows[:] = [{"rollout/true_return": "1712.6", "rollout/learned_return": "0.00001234"}]
        for number in range(10, 15):
            ask(store, 1, session=number)
            (pair,) = ada.get("/api/next?count=1").json()["pairs"]
            now[0] += 60
            sent = answer(pair, "left", f"{number}{KEY}") | {"shown_at": now[0] - 60, "answered_at": now[0]}
            ada.post("/api/answers", json=sent)
        text = owner.get("/overview").text
        assert "is 1,710 by this reward, which is 285 for a minute" in text and "it is 0.0000123." in text
        store.set_status(told)
        rows[:] = [{"rollout/true_return": "0.0", "rollout/learned_return": "8.25"}]  # it pays nothing
        assert "own reward" not in owner.get("/overview").text
        now[0] += 6
        assert "Training has not reported for some seconds" in owner.get("/overview").text
        state[0] = "ended"
        assert "No more pairs come" in owner.get("/overview").text
        store.set_status(replace(told, policies=3))
        assert "People choose among 3 policies of a run" in owner.get("/overview").text
        assert [">Overview<" in who.get("/").text for who in (ada, owner)] == [False, True]


SAME_SPEED = "if training goes on as fast as now."


@pytest.mark.parametrize(
    ("state", "missing", "more", "expected"),
    [
        ("waiting", 1, {}, "1 pair waits for an answer now."),
        ("on", 0, {}, "It is not known yet when the next pairs come."),
        ("silent", 0, {"next_session": 9.0}, "It is not known yet when the next pairs come."),
        ("away", 0, {"next_session": 9.0}, "It is not known when the next pairs come: training is not running."),
        ("on", 0, {"labels": 20}, "No more pairs come: training has all its labels."),
        ("on", 0, {"policies": 3}, "The next pair comes in some seconds."),
        ("away", 0, {"policies": 3}, "The next pair comes once the same rlhf-bilevel select command runs again."),
        ("ended", 0, {"policies": 3}, "No more pairs come: the choice is made."),
        ("ended", 0, {}, "No more pairs come: training has ended."),
        ("on", 0, {"next_session": 70.0}, "The next pairs come in less than a minute."),  # 20 seconds ago
        ("on", 0, {"next_session": 90.0}, f"The next pairs come in about 1 minute, {SAME_SPEED}"),
        ("on", 0, {"next_session": 7220.0}, f"The next pairs come in about 2 hours, {SAME_SPEED}"),
    ],
)
def test_the_owner_learns_when_the_next_pairs_come(state: str, missing: int, more: Any, expected: str) -> None:
    status = replace(Status(50, 100, 7, 20, False, 0, "it trains", updated_at=80.0), **more)
    assert when_next_pairs(state, status, Pending(4, missing), now=100.0) == expected
    first = "The first pairs come some time after training has begun."
    assert when_next_pairs("away", None, Pending(0, 0), now=0.0) == first


def test_everybody_learns_whether_pairs_were_asked_and_when_the_next_ones_come(tmp_path: Path) -> None:
    now = [1000.0]
    with LabelStore.open(tmp_path / "book.sqlite", "run", clock=lambda: now[0]) as store:
        browser = Site(store, clock=lambda: now[0]).joined()
        store.set_status(Status(50, 100, 0, 20, False, 0, "it explores", next_session=90.0))
        now[0] += 4
        told = browser.get("/api/status").json()
        assert (told["asked"], told["training"]["next_pairs"]) == (0, 86.0)
        now[0] += 4  # and it has not reported since
        ask(store, 3)
        told = browser.get("/api/status").json()
        assert (told["asked"], told["training"]["next_pairs"]) == (3, None)


def test_a_wrong_path_and_a_page_of_others_are_told_in_a_sentence_and_a_link(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = site.joined("ada")
    replies = [ada.get(path) for path in ("/overview", "/nothing", "/pair/0")]
    assert [reply.status_code for reply in replies] == [403, 404, 403]
    replies += [site.browser().get("/nothing")]
    for role, links in (("owner", 1), ("labeller", 0)):
        assert site.joined(role, role).get("/quality").text.count('href="/overview"') == links
    monkeypatch.setattr(site.store, "all_chosen", lambda: (_ for _ in ()).throw(OperationalError("", {}, Exception())))
    replies.append(ada.get("/quality"))
    for reply in replies:
        assert reply.headers["content-type"].startswith("text/html") and '<a href="/">' in reply.text
        assert "{" not in reply.text and "Bright" not in reply.text
    assert ada.get("/api/nothing").json() == {"error": "Not Found"}


def test_a_progress_file_that_is_missing_or_wrong_gives_no_returns(tmp_path: Path) -> None:
    assert returns_of(tmp_path) is None
    (tmp_path / "progress.csv").write_text("step,rollout/true_return\n1,3.5\n2,half a ro")
    found = returns_of(tmp_path)
    assert found and (found.episodes, found.true, found.learned) == (1, 3.5, None)
    (tmp_path / "progress.csv").write_text("step,rollout/true_return\n1,many\n")
    assert returns_of(tmp_path) is None


def test_what_others_did_is_shown_to_experts_alone(site: Site) -> None:
    for name in ("ada", "grace"):
        browser = site.joined(name)
        pair = browser.get("/api/next?count=1").json()["pairs"][0]
        assert browser.post("/api/answers", json=answer(pair)).status_code == 200
    assert [name in browser.get("/quality").text for name in ("ada", "grace")] == [False, True]
    assert all(name in site.joined("barbara", "expert").get("/quality").text for name in ("ada", "grace"))


def test_who_labels_alone_is_not_told_of_others(site: Site) -> None:
    def told(browser: TestClient) -> list[bool]:
        text = browser.get("/quality").text
        return [words in text for words in ("everybody", "Between labellers", "Same as an expert")]

    ada = site.joined("ada")
    pair = ada.get("/api/next?count=1").json()["pairs"][0]
    ada.post("/api/answers", json=answer(pair))
    assert told(ada) == [False, False, False]
    site.joined("grace")
    assert told(ada) == [True, True, False]


def test_what_stands_out_is_said_once_and_to_experts_and_who_it_is_about(site: Site) -> None:
    assert "Nobody has answered yet" in site.joined("eve").get("/quality").text
    for number in range(6):
        ask(site.store, 4, session=number + 1)
        for name in ("ada", "grace"):
            browser = site.joined(name)
            for place, pair in enumerate(browser.get("/api/next?count=2").json()["pairs"]):
                browser.post("/api/answers", json=answer(pair, key=f"{number}{place}{KEY}"))
    flag = "chose the left side 12 of 12 times"
    assert site.joined("ada").get("/quality").text.count(flag) == 1
    assert site.joined("barbara", "expert").get("/quality").text.count(flag) == 2
    assert "grace" not in site.joined("ada").get("/quality").text
