"""The label page in a browser: keys, undo, pairs that are ready beforehand, and no answer lost or doubled."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_bilevel.human.book import Book, run_id
from rlhf_bilevel.human.facts import Chosen, Status
from tests.label_page import Served, ask, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("these tests need Chromium: apt-get install -y chromium", allow_module_level=True)
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright  # noqa: E402

AXE = Path(__import__("axe_core_python").__file__).parent / "axe.min.js"
WATCH = """window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  window.violations.push(violatedDirective + " " + blockedURI));"""
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "equal": "ArrowUp", "cant_tell": "ArrowDown", "skip": "s"}
READY = ".stage:not(.front)[data-drawn]"  # the next pair
SHOWN = "document.body.dataset.query"
IS_BRIGHTER = """() => {
  const mean = (side) => {
    const canvas = document.querySelector(`.front .${side} canvas`);
    const { data } = canvas.getContext("2d").getImageData(canvas.width / 2 | 0, canvas.height / 2 | 0, 8, 8);
    return data.reduce((sum, value) => sum + value, 0);
  };
  return mean("left") > mean("right") ? "left" : "right";
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser,
    ):
        yield browser


class Visit:
    """A browser window of its own, and what it complained about."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        self.context.set_default_timeout(60_000)
        self.context.add_init_script(WATCH)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on(
            "console", lambda message: self.complaints.append(message.text) if message.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, link: str, state: str = "pair") -> Page:
        self.page.goto(link)
        self.page.wait_for_selector(f"body[data-state={state}]")
        return self.page

    def press(self, key: str) -> None:
        """And waits until another pair, or none, is shown."""
        before = self.page.evaluate(SHOWN)
        self.page.keyboard.press(key)
        over = f"before => document.body.dataset.state === 'empty' || ({SHOWN} && {SHOWN} !== before)"
        self.page.wait_for_function(over, arg=before)

    def sent(self) -> None:
        """Waits until no answer is waiting in the browser."""
        self.page.wait_for_function("() => !Object.keys(localStorage).some((key) => key.startsWith('answer:'))")


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """Ends by seeing that the page broke no rule of its policy and threw nothing."""
    visit = Visit(chromium)
    yield visit
    violations = visit.page.evaluate("window.violations")
    visit.context.close()
    assert violations == []
    network = re.compile("Failed to load resource|ERR_")  # tests cut the connection on purpose
    assert [text for text in visit.complaints if not network.search(text)] == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, 24) as server:
        yield server


def chosen(book: Book) -> dict[str, Chosen]:
    """By query; fails where a query was answered twice."""
    found = book.all_chosen()
    assert len({choice.query_id for choice in found}) == len(found)
    return {choice.query_id: choice for choice in found}


def test_twenty_pairs_are_labelled_by_keys_as_they_were_seen(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    given = {}
    for number in range(20):
        choice = ["equal", "cant_tell", "skip"][number % 3] if number % 5 == 4 else page.evaluate(IS_BRIGHTER)
        given[page.evaluate(SHOWN)] = choice
        visit.press(KEYS[choice])
    visit.sent()
    stored = chosen(server.book)
    assert {query: choice.choice for query, choice in stored.items()} == given
    decided = [choice for choice in stored.values() if choice.choice in ("left", "right")]
    # the second segment is the brighter one, whichever side it was on
    assert len(decided) == 16 and all((choice.choice == "left") != choice.left_is_first for choice in decided)
    assert {choice.left_is_first for choice in decided} == {True, False}
    assert all(0 < choice.answered_at - choice.shown_at < 60 for choice in stored.values() if choice.shown_at)


def test_buttons_do_what_keys_do_and_a_held_key_is_one_answer(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    given = {}
    for choice in KEYS:
        query = given[choice] = page.evaluate(SHOWN)
        page.click(f"[data-choice={choice}]")
        page.wait_for_function(f"before => {SHOWN} && {SHOWN} !== before", arg=query)
    query = given["held"] = page.evaluate(SHOWN)
    page.keyboard.down("ArrowLeft")
    page.wait_for_function(f"before => {SHOWN} && {SHOWN} !== before", arg=query)
    for _ in range(5):
        page.keyboard.down("ArrowLeft")  # again without having been let go: the key repeats
    page.keyboard.up("ArrowLeft")
    visit.sent()
    stored = {query: choice.choice for query, choice in chosen(server.book).items()}
    assert stored == {given[choice]: choice for choice in KEYS} | {given["held"]: "left"}
    page.click("[data-choice=left]")  # whose focus must not turn the next space into an answer
    page.keyboard.press(" ")
    expect(page.locator("#play-word")).to_have_text("Play")


def test_the_next_pair_is_there_without_asking_for_it(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    page.wait_for_selector(READY, state="attached")
    page.route("**/api/**", lambda route: route.abort())
    first = page.evaluate(SHOWN)
    visit.press("ArrowLeft")
    assert page.evaluate(SHOWN) not in (first, None) and page.evaluate(IS_BRIGHTER) in ("left", "right")


def test_undo_brings_back_the_pair_as_it_was(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    first, side = page.evaluate(SHOWN), page.evaluate("document.body.dataset.left")
    visit.press("ArrowLeft")
    visit.sent()
    second = page.evaluate(SHOWN)
    visit.press("u")
    assert (page.evaluate(SHOWN), page.evaluate("document.body.dataset.left")) == (
        first,
        side,
    ) and not server.book.all_chosen()
    visit.press("ArrowRight")
    assert page.evaluate(SHOWN) == second
    visit.sent()
    assert {query: choice.choice for query, choice in chosen(server.book).items()} == {first: "right"}
    page.reload()  # what was answered before it can be undone too
    page.wait_for_selector("body[data-state=pair]")
    visit.press("u")
    assert page.evaluate(SHOWN) == first and not server.book.all_chosen()
    page.keyboard.press("u")
    expect(page.locator("#notice")).to_contain_text("no answer to take back")


def test_an_answer_that_was_never_sent_is_undone_here(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    page.wait_for_selector(READY, state="attached")
    first = page.evaluate(SHOWN)
    page.route("**/api/answers", lambda route: route.abort())
    visit.press("ArrowLeft")  # tried, and so perhaps arrived
    visit.press("ArrowLeft")  # waits behind it: not tried
    third = page.evaluate(SHOWN)
    visit.press("u")
    second = page.evaluate(SHOWN)
    assert second not in (first, third)
    page.unroute("**/api/answers")
    visit.sent()
    assert set(chosen(server.book)) == {first}


def test_a_reload_while_the_connection_is_gone_loses_no_answer(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    page.route("**/api/answers", lambda route: route.abort())
    given = []
    for _ in range(3):
        given.append(page.evaluate(SHOWN))
        visit.press("ArrowLeft")
    expect(page.locator("#notice")).to_contain_text("No connection")
    page.reload()
    page.wait_for_selector("body[data-state=pair]")
    assert page.evaluate(SHOWN) not in given  # they are answered, though the server does not know it yet
    page.unroute("**/api/answers")
    visit.sent()
    assert set(chosen(server.book)) == set(given)


def start(folder: Path, port: int) -> tuple[subprocess.Popen, str]:
    """``rlhf-bilevel label`` in a process of its own, and its link."""
    command = [sys.executable, "-m", "rlhf_bilevel", "label", str(folder), "--port", str(port), "--repeats", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout
    return process, process.stdout.readline().split()[1]


def test_a_server_that_is_killed_inside_a_post_loses_and_doubles_nothing(tmp_path: Path, visit: Visit) -> None:
    (tmp_path / "config.yaml").write_text("settings: {teacher_human: true}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Book.open(tmp_path / "book.sqlite", run_id(tmp_path)) as book:
        ask(book, 12)
        process, link = start(tmp_path, port)
        try:
            page = visit.open(link)
            page.wait_for_selector(READY, state="attached")

            def killed(route: Route) -> None:
                route.fetch()  # the answer is stored
                os.kill(process.pid, signal.SIGKILL)
                route.abort()  # and the browser does not hear of it

            page.route("**/api/answers", killed, times=1)
            given = [page.evaluate(SHOWN)]
            visit.press("ArrowLeft")
            expect(page.locator("#notice")).to_contain_text("No connection")
            process.wait()
            given.append(page.evaluate(SHOWN))
            page.keyboard.press("ArrowLeft")  # nobody is there
            assert [choice.query_id for choice in book.all_chosen()] == given[:1]
            process, _ = start(tmp_path, port)
            visit.sent()  # with the session of before
            expect(page.locator("#notice")).to_contain_text("is back")
            page.wait_for_selector("body[data-state=pair]")
            given.append(page.evaluate(SHOWN))
            visit.press("ArrowRight")
            visit.sent()
            assert [choice.query_id for choice in book.all_chosen()] == given
        finally:
            process.terminate()
            process.wait()


def test_a_pair_comes_up_by_itself_and_the_page_says_what_training_does(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path, 1) as server:
        server.book.beat(Status(1200, 5000, 3, 10, True, 1, "it waits for answers"))
        page = visit.open(server.link())
        expect(page.locator("#doing")).to_have_text("Training waits for 1 more answer (step 1,200 of 5,000).")
        visit.press("ArrowLeft")
        expect(page.locator("#pause-heading")).to_have_text("Nothing to label now")
        server.book.beat(Status(1300, 5000, 4, 10, False, 6, "the agent practises"))
        expect(page.locator("#doing")).to_contain_text(
            "Training goes on, step 1,300 of 5,000: the agent practises. 6 more answers"
        )
        expect(page.locator("#mine")).to_have_text("1")
        expect(page.locator("#used")).to_have_text("4 of 10 used")
        ask(server.book, 1, session=1)
        page.wait_for_selector("body[data-state=pair]")
        expect(page.locator("#said")).to_have_text("A new pair.")


def test_both_clips_keep_one_time(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    column = """(side) => {
      const canvas = document.querySelector(`.front .${side} canvas`), row = canvas.height / 2 | 0;
      const { data } = canvas.getContext("2d").getImageData(0, row, canvas.width, 1);
      return [...data].filter((_, i) => i % 4 === 0).findIndex((value) => value > 230) / canvas.width;
    }"""
    page.keyboard.press(" ")
    expect(page.locator("#play-word")).to_have_text("Play")
    seen = []
    for frame in (2, 5, 8):
        page.locator("#scrubber").evaluate(
            f"(range) => {{ range.value = {frame}; range.dispatchEvent(new Event('input')); }}"
        )
        left, right = (page.evaluate(column, side) for side in ("left", "right"))
        assert left == pytest.approx(right, abs=0.02)  # a frame is 0.083
        seen.append(left)
    assert seen == sorted(set(seen))  # the mark moves to the right as time goes on
    page.keyboard.press("r")
    expect(page.locator("#play-word")).to_have_text("Pause")
    position = page.locator("#position")
    before = position.text_content()
    page.wait_for_function("before => document.getElementById('position').textContent !== before", arg=before)


def test_single_keys_can_be_turned_off_for_good(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("ArrowLeft")  # is for the dialog
    page.uncheck("#keys")
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.reload()
    page.wait_for_selector("body[data-state=pair]")
    first = page.evaluate(SHOWN)
    for key in (*KEYS.values(), " ", "u", "?"):
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    assert page.evaluate(SHOWN) == first and not server.book.all_chosen() and not page.locator("#help").is_visible()
    page.click("[data-choice=left]")
    visit.sent()
    assert set(chosen(server.book)) == {first}


def test_arrows_move_the_scrubber_that_has_the_focus(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    first = page.evaluate(SHOWN)
    page.keyboard.press(" ")
    page.keyboard.press("r")
    page.keyboard.press(" ")
    page.focus("#scrubber")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#scrubber")).to_have_value("1")
    assert page.evaluate(SHOWN) == first


def test_a_link_that_was_opened_before_leads_on_with_a_session_and_says_so_without(
    server: Served, visit: Visit, chromium: Browser
) -> None:
    link = server.link()
    visit.open(link)
    visit.open(link)
    other = Visit(chromium)
    other.page.goto(link)
    expect(other.page.locator("#told")).to_contain_text("opened before")
    other.context.close()


def test_a_script_in_a_name_does_not_run(tmp_path: Path, visit: Visit) -> None:
    script = "<img src=x onerror=alert(1)>"
    with served(tmp_path, 2, question=script) as server:
        page = visit.open(server.link(script))
        expect(page.locator("h1")).to_have_text(script)
        assert page.locator("main img[src=x]").count() == 0


def test_the_policy_is_in_force(server: Served, chromium: Browser) -> None:
    """Without which no violations would prove nothing."""
    visit = Visit(chromium)
    page = visit.open(server.link())
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = true' }))"
    )
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.wait_for_function("() => window.violations.length >= 2")
    assert page.evaluate("window.ran") is None
    visit.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_the_page_is_accessible_and_fits(tmp_path: Path, chromium: Browser, width: int, scheme: str) -> None:
    size = {"width": width, "height": 740 if width == 360 else 800}
    visit = Visit(chromium, viewport=size, color_scheme=scheme, reduced_motion="reduce")
    with served(tmp_path, 1) as server:
        server.book.beat(Status(1200, 5000, 3, 10, True, 1, "it waits for answers"))
        page = visit.open(server.link())
        expect(page.locator("#play-word")).to_have_text("Play")  # with reduced motion nothing moves by itself
        expect(page.locator("#doing")).to_contain_text("Training waits")
        left, right = (page.locator(f".front .{side}").bounding_box() for side in ("left", "right"))
        assert left and right
        assert left["y"] + left["height"] <= right["y"] if width == 360 else left["x"] + left["width"] <= right["x"]
        assert min(left["width"], left["height"]) > 160
        for button in page.locator("[data-choice], #undo, #play, #restart, #help-button, #scrubber, #speed").all():
            box = button.bounding_box()
            assert box and box["width"] >= 24 and box["height"] >= 24
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
        for choice in ("left", "right", "equal", "cant_tell"):  # at hand without scrolling
            box = page.locator(f"[data-choice={choice}]").bounding_box()
            assert box and box["y"] + box["height"] <= size["height"]
        audit(page)
        page.click("#help-button")
        audit(page)
        page.click("#close-help")
        page.click("[data-choice=left]")
        page.wait_for_selector("body[data-state=empty]")
        audit(page)
        page.goto(server.url + "/quality")
        audit(page)
        page.goto(server.url + "/join/wrong")  # with a session: leads to the page
        page.wait_for_selector("body[data-state=empty]")
        page.context.clear_cookies()
        page.goto(server.url + "/")
        audit(page)
    visit.context.close()


def audit(page: Page) -> None:
    """No finding of axe-core that is serious or critical, and nothing that has to be scrolled for sidewards."""
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(AXE.read_text())
    found = page.evaluate(
        "async () => (await axe.run()).violations.map((v) => [v.impact, v.id, v.nodes.map((node) => node.html)])"
    )
    assert [finding for finding in found if finding[0] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
