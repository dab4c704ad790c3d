"""The label page in a browser: keys, undo, pairs that are ready beforehand, and no answer lost or doubled."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from rlhf_bilevel.human.guidelines import html
from rlhf_bilevel.human.location import run_id
from rlhf_bilevel.human.records import Chosen, Status
from rlhf_bilevel.human.store import LabelStore
from tests.support.label_page import Served, ask, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("these tests need Chromium: apt-get install -y chromium", allow_module_level=True)

AXE = Path(__import__("axe_core_python").__file__).parent / "axe.min.js"
WATCH = """window.violations = [];
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  window.violations.push(violatedDirective + " " + blockedURI));"""
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "equal": "ArrowUp", "both_bad": "b", "cant_tell": "ArrowDown"}
KEYS["skip"] = "s"
READY = ".stage:not(.front)[data-drawn]"  # the next pair
STATE, SHOWN = "document.body.dataset.state", "document.body.dataset.query"
MOVED_ON = f"before => {SHOWN} && {SHOWN} !== before"
IS_BRIGHTER = """() => {
  const mean = (side) => {
    const canvas = document.querySelector(`.front .${side} canvas`);
    const { data } = canvas.getContext("2d").getImageData(canvas.width / 2 | 0, canvas.height / 2 | 0, 8, 8);
    return data.reduce((sum, value) => sum + value, 0);
  };
  return mean("left") > mean("right") ? "left" : "right";
}"""

IS_DRAWN = """(side) => {
  const [left, right] = [...document.querySelectorAll("#history-list li:last-child .still canvas")].map((canvas) =>
    canvas.getContext("2d").getImageData(canvas.width / 4 | 0, canvas.height / 2 | 0, 1, 1).data[0]);
  return Math.max(left, right) > 0 && (left > right ? "left" : "right") === side;
}"""  # in the history, of the pair that was answered first


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
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, link: str, state: str = "pair") -> Page:
        self.page.goto(link)
        self.page.wait_for_selector(f"body[data-state={state}]")
        if state == "pair":
            looked(self.page)
        return self.page

    def press(self, key: str) -> None:
        """And waits until another pair, or none, is shown."""
        if self.page.evaluate(STATE) == "pair":
            looked(self.page)
        before = self.page.evaluate(SHOWN)
        self.page.keyboard.press(key)
        self.page.wait_for_function(f"before => {STATE} === 'empty' || ({MOVED_ON})(before)", arg=before)

    def sent(self) -> None:
        """Waits until no answer is waiting in the browser."""
        self.page.wait_for_function("() => !Object.keys(localStorage).some((key) => key.startsWith('answer:'))")


def looked(page: Page) -> None:
    """Waits until the pair was there long enough to be answered."""
    page.wait_for_selector("body[data-answerable]")


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


def chosen(store: LabelStore) -> dict[str, Chosen]:
    """By query; fails where a query was answered twice."""
    found = store.all_chosen()
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
    stored = chosen(server.store)
    assert {query: choice.choice for query, choice in stored.items()} == given
    decided = [choice for choice in stored.values() if choice.choice in ("left", "right")]
    # the second segment is the brighter one, whichever side it was on
    assert len(decided) == 16 and all((choice.choice == "left") != choice.left_is_first for choice in decided)
    assert {choice.left_is_first for choice in decided} == {True, False}
    assert all(0 < choice.answered_at - choice.shown_at < 60 for choice in stored.values() if choice.shown_at)


@pytest.mark.slow
def test_buttons_do_what_keys_do_and_a_held_key_is_one_answer(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    given = {}
    for choice in KEYS:
        looked(page)
        query = given[choice] = page.evaluate(SHOWN)
        page.click(f"[data-choice={choice}]")
        page.wait_for_function(MOVED_ON, arg=query)
    looked(page)
    query = given["held"] = page.evaluate(SHOWN)
    page.keyboard.down("ArrowLeft")
    page.wait_for_function(MOVED_ON, arg=query)
    for _ in range(5):
        page.keyboard.down("ArrowLeft")  # again without having been let go: the key repeats
    page.keyboard.up("ArrowLeft")
    visit.sent()
    stored = {query: choice.choice for query, choice in chosen(server.store).items()}
    assert stored == {given[choice]: choice for choice in KEYS} | {given["held"]: "left"}
    looked(page)
    query = page.evaluate(SHOWN)
    page.click("[data-choice=left]")  # whose focus must not turn the next space into an answer
    page.wait_for_function(MOVED_ON, arg=query)
    looked(page)
    page.keyboard.press(" ")
    expect(page.locator("#play-word")).to_have_text("Play")


def test_a_side_can_be_slightly_better_by_a_key_and_by_a_button(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    given = {page.evaluate(SHOWN): "slightly_left"}
    visit.press("Shift+ArrowLeft")
    given[page.evaluate(SHOWN)] = "slightly_right"
    page.click("#slightly")
    expect(page.locator("#slightly")).to_have_attribute("aria-pressed", "true")
    visit.press("ArrowRight")
    expect(page.locator("#slightly")).to_have_attribute("aria-pressed", "false")  # it is for one answer
    expect(page.locator("#notice")).to_have_text("Right is slightly better.")
    given[page.evaluate(SHOWN)] = "equal"
    page.click("#slightly")
    visit.press("ArrowUp")  # a tie is never slight
    given[page.evaluate(SHOWN)] = "left"
    visit.press("ArrowLeft")
    visit.sent()
    assert {query: choice.choice for query, choice in chosen(server.store).items()} == given


@pytest.mark.slow
def test_a_note_is_kept_with_the_answer_to_its_pair_also_after_undo(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    first = page.evaluate(SHOWN)
    page.keyboard.press("n")
    page.fill("#note", " It falls, <b>slowly</b>. ")
    audit(page)
    page.keyboard.press("Escape")
    expect(page.locator("#note-button")).to_have_class("quiet written")
    expect(page.locator("#notice")).to_have_text("Your note will be sent with your answer to this pair.")
    visit.press("ArrowLeft")
    expect(page.locator("#notice")).to_have_text("Left is better. Your note is kept: History shows it.")
    expect(page.locator("#note-button")).to_have_class("quiet")
    visit.press("ArrowLeft")
    visit.sent()
    page.keyboard.press("h")
    expect(page.locator("#history-list li").last).to_contain_text("Note: It falls, <b>slowly</b>.")
    expect(page.locator("#history-list li").first).not_to_contain_text("Note")
    page.keyboard.press("Escape")
    notes = {query: choice.note for query, choice in chosen(server.store).items()}
    assert notes[first] == "It falls, <b>slowly</b>." and sorted(notes.values())[0] == ""
    visit.press("u")
    page.reload()  # after which the server alone knows it
    page.wait_for_selector("body[data-state=pair]")
    visit.press("u")
    page.click("#note-button")
    expect(page.locator("#note")).to_have_value("It falls, <b>slowly</b>.")


@pytest.mark.slow
def test_a_note_goes_with_an_answer_that_comes_before_the_browser_tells_of_the_closed_dialog(
    server: Served, visit: Visit
) -> None:
    page = visit.open(server.link())
    page.keyboard.press("n")
    page.fill("#note", "It falls.")
    page.evaluate("""() => {
      document.getElementById("note-dialog").close();
      document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
    }""")
    visit.sent()
    assert [choice.note for choice in server.store.all_chosen()] == ["It falls."]
    expect(page.locator("#notice")).to_have_text("Left is better. Your note is kept: History shows it.")


@pytest.mark.slow
def test_an_answer_is_changed_in_the_history_until_training_has_used_it(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    first = page.evaluate(SHOWN)
    brighter = page.evaluate(IS_BRIGHTER)
    visit.press("ArrowLeft")
    visit.press("b")
    visit.sent()
    page.keyboard.press("h")
    items = page.locator("#history-list li")
    expect(items).to_have_count(2)
    expect(items.first).to_contain_text("Both bad")
    expect(items.last).to_contain_text("Left is better")
    stills = items.last.locator(".still canvas")
    expect(stills).to_have_count(2)
    page.wait_for_function(IS_DRAWN, arg=brighter)
    expect(items.last.locator(".still").first).to_have_class("still chosen")
    assert items.first.locator(".chosen").count() == 0
    audit(page)
    items.last.get_by_role("button").click()
    page.wait_for_function(f"first => {SHOWN} === first", arg=first)
    expect(page.locator("#notice")).to_contain_text("Judge this pair again, or keep your answer.")
    keep = page.get_by_role("button", name="Keep: left is better")
    keep.click()
    visit.sent()
    assert chosen(server.store)[first].choice == "left"
    expect(keep).to_be_hidden()
    page.keyboard.press("h")
    page.locator("#history-list li", has_text="Left is better").get_by_role("button").click()
    page.wait_for_function(f"first => {SHOWN} === first", arg=first)
    visit.press("ArrowRight")
    expect(keep).to_be_hidden()
    visit.sent()
    assert chosen(server.store)[first].choice == "right"
    server.store.collect(0, 9)
    page.click("#history-button")
    expect(items.first).to_contain_text("used by training")
    assert page.locator("#history-list button").count() == 0
    page.keyboard.press("Escape")
    server.store.set_status(Status(60, 100, 8, 8, False, 0, "it trains"))
    page.keyboard.press("h")
    expect(page.locator("#history-text")).to_contain_text("cannot be changed any more")
    assert "used" not in str(items.first.text_content())  # checks are not, and would be found by it


def test_the_second_of_two_quick_presses_answers_no_pair_that_nobody_saw(server: Served, visit: Visit) -> None:
    """However fast the machine is: no answer comes sooner after its pair than a person can look."""
    page = visit.open(server.link())
    page.wait_for_selector(READY, state="attached")
    for number in range(3):
        looked(page)
        if number:
            page.keyboard.press("ArrowLeft")
            page.keyboard.press("ArrowLeft")
        else:
            page.dblclick("[data-choice=left]")
    visit.sent()
    looks = [choice.answered_at - choice.shown_at for choice in server.store.all_chosen() if choice.shown_at]
    assert 3 <= len(looks) <= 6 and min(looks) > 0.29


def test_a_new_pair_plays_also_where_the_one_before_was_paused(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    page.keyboard.press(" ")
    expect(page.locator("#play-word")).to_have_text("Play")
    visit.press("ArrowLeft")
    expect(page.locator("#play-word")).to_have_text("Pause")
    moved = "before => document.getElementById('position').textContent !== before"
    page.wait_for_function(moved, arg=page.locator("#position").text_content())


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
    assert (page.evaluate(SHOWN), page.evaluate("document.body.dataset.left")) == (first, side)
    assert not server.store.all_chosen()
    visit.press("ArrowRight")
    assert page.evaluate(SHOWN) == second
    visit.sent()
    assert {query: choice.choice for query, choice in chosen(server.store).items()} == {first: "right"}
    page.reload()  # what was answered before it can be undone too
    page.wait_for_selector("body[data-state=pair]")
    visit.press("u")
    assert page.evaluate(SHOWN) == first and not server.store.all_chosen()
    page.keyboard.press("u")
    expect(page.locator("#notice")).to_contain_text("no answer to take back")


@pytest.mark.slow
def test_undo_works_before_the_server_has_told_its_status_and_with_one_of_before_the_answer(
    server: Served, visit: Visit
) -> None:
    page = visit.open(server.link())
    page.wait_for_selector(READY, state="attached")
    first = page.evaluate(SHOWN)
    held: list[tuple[Route, Any]] = []
    page.route("**/api/status", lambda route: held.append((route, route.fetch())))
    with page.expect_request("**/api/status"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(200)
    visit.press("ArrowLeft")
    visit.sent()
    route, answer = held.pop()
    route.fulfill(response=answer)
    page.wait_for_timeout(200)
    expect(page.locator("#mine")).to_have_text("1")
    visit.press("u")
    assert page.evaluate(SHOWN) == first and not server.store.all_chosen()
    visit.press("ArrowLeft")
    visit.sent()
    page.reload()  # and its status is held, too
    page.wait_for_selector("body[data-state=pair]")
    visit.press("u")
    assert page.evaluate(SHOWN) == first and not server.store.all_chosen()


@pytest.mark.slow
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
    assert set(chosen(server.store)) == {first}


@pytest.mark.slow
def test_a_reload_while_the_connection_is_gone_loses_no_answer(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    page.route("**/api/answers", lambda route: route.abort())
    given = []
    for number in range(3):
        given.append(page.evaluate(SHOWN))
        visit.press("ArrowLeft")
        expect(page.locator("#doing")).to_contain_text(f"{number + 1} answer{'s' * (number > 0)} not sent yet")
    page.reload()
    page.wait_for_selector("body[data-state=pair]")
    assert page.evaluate(SHOWN) not in given  # they are answered, though the server does not know it yet
    page.unroute("**/api/answers")
    visit.sent()
    assert set(chosen(server.store)) == set(given)


def start(folder: Path, port: int) -> tuple[subprocess.Popen, str]:
    """``rlhf-bilevel label`` in a process of its own, and its link."""
    command = [sys.executable, "-m", "rlhf_bilevel", "label", str(folder), "--port", str(port), "--repeats", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout
    return process, process.stdout.readline().split()[1]


@pytest.mark.slow
def test_a_server_that_is_killed_inside_a_post_loses_and_doubles_nothing(tmp_path: Path, visit: Visit) -> None:
    (tmp_path / "config.yaml").write_text("settings: {teacher_human: true}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with LabelStore.open(tmp_path / "book.sqlite", run_id(tmp_path)) as store:
        ask(store, 12)
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
            looked(page)
            given.append(page.evaluate(SHOWN))
            page.keyboard.press("ArrowLeft")  # nobody is there
            assert [choice.query_id for choice in store.all_chosen()] == given[:1]
            process, _ = start(tmp_path, port)
            visit.sent()  # with the session of before
            expect(page.locator("#notice")).to_contain_text("is back")
            page.wait_for_selector("body[data-state=pair]")
            given.append(page.evaluate(SHOWN))
            visit.press("ArrowRight")
            visit.sent()
            assert [choice.query_id for choice in store.all_chosen()] == given
        finally:
            process.terminate()
            process.wait()


@pytest.mark.slow
def test_a_pair_comes_up_by_itself_and_the_page_says_what_training_does(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path, 1) as server:
        server.store.set_status(Status(1200, 5000, 3, 10, True, 1, "it waits for answers", spare=0))
        page = visit.open(server.link())
        expect(page.locator("#doing")).to_have_text("Training waits for 1 more answer (step 1,200 of 5,000).")
        visit.press("ArrowLeft")
        expect(page.locator("#pause-heading")).to_have_text("Nothing to label now")
        has_them = "Training has the answers that it waited for, and goes on (step 1,200 of 5,000)."
        expect(page.locator("#doing")).to_have_text(has_them)
        server.store.set_status(Status(1300, 5000, 4, 10, False, 6, "the agent practises"))
        expect(page.locator("#doing")).to_contain_text("Training goes on, step 1,300 of 5,000: the agent practises.")
        expect(page.locator("#mine")).to_have_text("1")
        expect(page.locator("#used")).to_have_text("4 of 10 labels used")
        ask(server.store, 1, session=1)
        page.wait_for_selector("body[data-state=pair]")
        expect(page.locator("#said")).to_have_text("A new pair.")


@pytest.mark.slow
def test_without_a_connection_the_page_says_so_in_place_of_what_training_does(tmp_path: Path, visit: Visit) -> None:
    lost = "No connection: the server of this page has stopped, or the network is gone."
    with served(tmp_path, 1) as server:
        server.store.set_status(Status(1300, 5000, 4, 10, False, 6, "the agent practises"))
        page = visit.open(server.link())
        training, doing = page.locator("#training"), page.locator("#doing")
        expect(training).to_have_attribute("data-state", "on")
        page.route("**/api/**", lambda route: route.abort())
        expect(training).to_have_attribute("data-state", "unknown")
        expect(doing).to_have_text(lost)
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#pause-heading")).to_have_text("No connection")
        unsent = "1 answer not sent yet: keep this page open. It is sent once the server is back."
        expect(doing).to_have_text(f"{lost} {unsent}")
        expect(page.locator("#notice")).to_have_text(f"Left is better. {unsent}")
        expect(page.locator("#pause-text")).to_contain_text(unsent)
        expect(page.locator("#mine")).to_have_text("0")  # it is not stored yet
        page.unroute("**/api/**")
        expect(training).to_have_attribute("data-state", "on")
        expect(page.locator("#pause-heading")).to_have_text("Nothing to label now")
        expect(page.locator("#mine")).to_have_text("1")
        page.route("**/api/**", lambda route: route.abort())
        expect(page.locator("#pause-heading")).to_have_text("No connection")
        expect(doing).to_have_text(lost)
        page.unroute("**/api/**")


TRAINING = {
    "silent": ("Training has not reported for some seconds (step 5 of 9). It is busy, or it was stopped.", {}),
    "on": ("Training goes on, step 5 of 9: it learns. 2 more answers until the reward is updated.", {"needed": 2}),
    "waiting": ("Training waits for 1 more answer (step 5 of 9).", {"needed": 1}),
    "away": ("Training is not running. Answers are kept for it.", {}),
    "unheard": ("Training has not begun yet.", {}),
    "ended": ("Training has ended, step 5 of 9.", {}),
    "has all": ("Training goes on, step 5 of 9: it learns. It has all its labels.", {}),
}
OPEN = {
    "taken": (2, "Somebody else is looking at 2 pairs; what is not answered within ten minutes comes to you."),
    "judged": (1, "1 pair that you answered waits for another person’s answer, too."),
    "skipped": (1, "You skipped 1 pair: another person can judge it, or you look again."),
}
ALONE = "You skipped 1 pair: you can look at it again."
LATER = "The next pair comes up here by itself; you can leave this page open."
COMES = {
    "on": f"Training goes on, and asks again in about 2 minutes. {LATER}",
    "waiting": f"Training waits for 1 more answer. {LATER}",
    "silent": f"If training is only busy, it asks again later. {LATER}",
    "away": "Training is not running: the next pair comes up here by itself once it runs again. "
    "It runs again with: rlhf-bilevel resume runs/walker",
    "unheard": "Training is not running: the next pair comes up here by itself once it runs again.",
}
NOT_ASKED = {
    "unheard": "Training has not begun yet. It comes up here by itself once training asks.",
    "away": "Training is not running, and has not asked yet. It comes up here by itself once training runs again.",
}
COLLECTS = "The agent collects its first episodes. The first pair comes "
DONE = {
    "ended": "This run has ended. Thank you.",
    "has all": "Training has all the labels that it asked for. Thank you.",
}


@pytest.mark.slow
def test_what_is_said_of_training_and_of_the_pairs_fits_together(tmp_path: Path, visit: Visit) -> None:
    """Whatever training does, and for whatever reasons no pair is left for who looks at the page."""
    with served(tmp_path, 0) as server:
        fits_together(visit.open(server.link(), state="empty"))


def fits_together(page: Page) -> None:
    told = dict[str, Any]()
    page.route("**/api/status", lambda route: route.fulfill(json=told))
    zero = dict.fromkeys(("open", "skipped", "judged", "taken", "needed"), 0)
    zero |= {"mine": 3, "total": 4, "asked": 7, "people": 2, "can_undo": False}
    heard = {"step": 5, "steps": 9, "labels": 3, "wanted": 8, "doing": "it learns.", "next_pairs": 125.0}
    heard |= {"command": "rlhf-bilevel resume runs/walker"}
    reasons = [*chain.from_iterable(combinations(OPEN, count) for count in range(4)), ("alone",)]
    for training, (usual, more) in TRAINING.items():
        state = {"unheard": "away", "has all": "on"}.get(training, training)
        known = {} if training == "unheard" else heard | ({"labels": 8} if training == "has all" else {})
        if training in DONE:
            known.pop("command")
        for why in reasons:
            counts = {"skipped": 1} if why == ("alone",) else {name: OPEN[name][0] for name in why}
            told.update(zero | counts | {"open": sum(counts.values()), "training": {"state": state} | known} | more)
            told["people"] = 1 if why == ("alone",) else 2
            sentence, comes = usual, COMES.get(training, "")
            if training == "on" and why in ((), ("alone",)):  # nobody can give what is needed: it was not asked yet
                sentence = "Training goes on, step 5 of 9: it learns."
            if training == "waiting" and not why:
                told["needed"] = 0
                sentence = "Training has the answers that it waited for, and goes on (step 5 of 9)."
                comes = f"Training goes on in a moment. {LATER}"
            if training == "unheard":
                told["asked"] = len(why)
            if training == "ended" and why:
                sentence += " More answers are kept, but it does not use them."
            heading = "No pair is left for you now" if {*why} & {"taken", "judged"} else "Nothing to label now"
            told_why = [ALONE] if why == ("alone",) else [OPEN[name][1] for name in why]
            if heading == "Nothing to label now":
                told_why.insert(0, f"All {'other pairs' if why else 'pairs that were asked'} are answered.")
            text = " ".join([*told_why, comes])
            if training == "unheard" and not why:
                heading, text = "The first pair is not here yet", NOT_ASKED["unheard"]
            if training in DONE:
                heading, text = "All done", DONE[training]
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            expect(page.locator("#doing")).to_have_text(sentence)
            expect(page.locator("#pause-heading")).to_have_text(heading)
            expect(page.locator("#pause-text")).to_have_text(text)
            skipped = {*why} & {"skipped", "alone"}
            assert page.locator("#unskip").is_visible() == (bool(skipped) and training not in DONE)


@pytest.mark.slow
def test_who_chooses_among_policies_is_told_so_and_nothing_of_training(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path, 1, run="runs/chosen") as server:
        status = Status(50, 5000, 3, 8, True, 1, "it waits", spare=0, policies=4)
        server.store.set_status(status)
        page = visit.open(server.link(role="owner"))
        doing, used = page.locator("#doing"), page.locator("#used")
        heading, text = page.locator("#pause-heading"), page.locator("#pause-text")
        choice = "You choose among 4 policies: which of these behaviours is better?"
        expect(doing).to_have_text(choice)
        expect(used).to_have_text("3 of at most 8 answers used")
        visit.press("ArrowLeft")
        server.store.set_status(replace(status, labels=4, waiting=False, needed=0))
        expect(heading).to_have_text("The next pair is being made")
        expect(text).to_have_text(f"Two policies play an episode each, which takes some seconds. {LATER}")
        server.store.set_status(replace(status, stopped=True))
        expect(doing).to_have_text(f"{choice} The selection is not running now. Answers are kept for it.")
        expect(text).to_contain_text("once the same rlhf-bilevel select command runs again.")
        server.store.set_status(replace(status, labels=6, stopped=True, ended=True))
        expect(heading).to_have_text("All done")
        expect(doing).to_have_text("You chose among 4 policies.")
        thanks = "The agent now acts by the policy that was preferred. Thank you."
        expect(text).to_have_text(f"{thanks} To see the agent: rlhf-bilevel watch runs/chosen")
        assert page.evaluate("(bar => bar.value / bar.max)(document.getElementById('bar'))") == 1


@pytest.mark.slow
def test_before_the_first_question_the_page_says_what_the_agent_does_and_when_it_comes(
    tmp_path: Path, visit: Visit
) -> None:
    exploring = Status(100, 5000, 0, 10, False, 6, "The agent explores on its own.")
    with served(tmp_path, 0) as server:
        page = visit.open(server.link(), state="empty")
        heading, text = page.locator("#pause-heading"), page.locator("#pause-text")
        expect(text).to_have_text(NOT_ASKED["unheard"])
        for seconds, when in (
            (None, "once it has enough of them."),
            (9.0, "in less than a minute."),
            (125.0, "in about 2 minutes."),
            (7000.0, "in about 2 hours."),
        ):
            server.store.set_status(replace(exploring, next_session=seconds))
            expect(text).to_contain_text(COLLECTS + when)
            expect(heading).to_have_text("The first pair is not here yet")
        expect(page.locator("#outlook")).to_have_text(".")  # no answers are needed that nobody was asked for
        server.store.set_status(replace(exploring, stopped=True))
        expect(text).to_have_text(NOT_ASKED["away"])
        ask(server.store, 1)
        page.wait_for_selector("body[data-state=pair]")
        visit.press("ArrowLeft")
        server.store.set_status(replace(exploring, next_session=125.0))
        expect(heading).to_have_text("Nothing to label now")
        expect(text).to_contain_text("Training goes on, and asks again in about 2 minutes.")


@pytest.mark.slow
def test_a_run_that_goes_on_from_its_checkpoint_says_that_no_answer_is_lost(server: Served, visit: Visit) -> None:
    page, repeats = visit.open(server.link()), "It repeats what came after its last saved state."
    for again, kept, outlook in (
        (3, "; 3 more are kept, and used again later", repeats),
        (1, "; 1 more is kept, and used again later", repeats),
        (0, "", "6 more answers"),
    ):
        server.store.set_status(Status(1300, 5000, 4, 10, False, 6, "it trains.", again=again))
        expect(page.locator("#used")).to_have_text(f"4 of 10 labels used{kept}")
        expect(page.locator("#outlook")).to_contain_text(outlook)


@pytest.mark.slow
def test_the_page_says_what_the_reward_has_understood_and_its_owner_what_to_type(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path, 0, run="runs/walker") as server:
        page = visit.open(server.link(role="owner"), state="empty")
        text, status = page.locator("#pause-text"), Status(60, 100, 20, 40, False, 0, "it trains.")
        server.store.set_status(replace(status, fresh_accuracy=0.75, fresh_labels=12))
        expect(page.locator("#used")).to_have_text("20 of 40 labels used")
        expect(page.locator("#predicted")).to_have_text("The reward predicted 9 of the last 12 (ties left out)")
        server.store.set_status(replace(status, stopped=True))
        expect(text).to_contain_text("rlhf-bilevel resume runs/walker")
        server.store.set_status(replace(status, labels=40))
        expect(text).to_have_text(
            "Training has all the labels that it asked for. Thank you. "
            "It goes on without new labels until its last step. To see the agent then: rlhf-bilevel watch runs/walker"
        )


@pytest.mark.slow
def test_skipped_pairs_are_shown_again_when_they_are_asked_for(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path, 2) as server:
        page = visit.open(server.link())
        skipped = set()
        for _ in range(2):
            skipped.add(page.evaluate(SHOWN))
            visit.press("s")
        expect(page.locator("#pause-text")).to_contain_text("You skipped 2 pairs")
        page.click("#unskip")
        for _ in range(2):
            page.wait_for_selector("body[data-state=pair]")
            skipped.remove(page.evaluate(SHOWN))
            visit.press("ArrowLeft")
        visit.sent()
        assert len(chosen(server.store)) == 2
        expect(page.locator("#pause-heading")).to_have_text("Nothing to label now")


@pytest.mark.slow
def test_what_can_be_used_now_is_seen(tmp_path: Path, visit: Visit) -> None:
    """Undo where there is something to undo, and a player and answers where there is a pair."""
    with served(tmp_path, 2) as server:
        page = visit.open(server.link())
        undo, of_a_pair = page.locator("#undo"), page.locator(".transport, .choices, [data-choice=skip]")
        expect(undo).to_have_attribute("aria-disabled", "true")
        page.keyboard.press("u")
        expect(page.locator("#notice")).to_contain_text("no answer to take back")
        visit.press("ArrowLeft")
        expect(undo).to_have_attribute("aria-disabled", "false")
        assert all(part.is_visible() for part in of_a_pair.all())
        visit.press("u")
        expect(undo).to_have_attribute("aria-disabled", "true")
        visit.press("ArrowLeft")
        visit.press("ArrowLeft")
        for part in of_a_pair.all():
            expect(part).to_be_hidden()
        page.reload()
        page.wait_for_selector("body[data-state=empty]")
        expect(undo).to_have_attribute("aria-disabled", "false")
        visit.press("u")
        page.wait_for_selector("body[data-state=pair]")
        assert all(part.is_visible() for part in of_a_pair.all())
        visit.press("ArrowLeft")
        visit.sent()
        server.store.collect(0, 9)
        expect(undo).to_have_attribute("aria-disabled", "true")


@pytest.mark.slow
def test_the_focus_comes_back_with_the_next_pair(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path, 1) as server:
        page = visit.open(server.link())
        page.focus("[data-choice=right]")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-state=empty]")
        ask(server.store, 1, session=1)
        page.wait_for_selector("body[data-state=pair]")
        expect(page.locator("[data-choice=right]")).to_be_focused()


@pytest.mark.slow
def test_a_pair_that_is_answered_in_one_window_is_not_asked_in_the_other(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    other = visit.context.new_page()
    other.goto(server.url)
    other.wait_for_selector("body[data-state=pair]")
    first = page.evaluate(SHOWN)
    assert other.evaluate(SHOWN) == first
    visit.press("ArrowLeft")
    other.wait_for_function(MOVED_ON, arg=first)
    expect(other.locator("#notice")).to_have_text("That pair was answered in another window.")
    for window in (other, page, other):
        looked(window)
        before = window.evaluate(SHOWN)
        window.keyboard.press("ArrowLeft")
        for each in (page, other):  # neither still shows what the other has answered
            each.wait_for_function(MOVED_ON, arg=before)
    visit.sent()
    assert len(chosen(server.store)) == 4
    assert "not taken" not in (page.text_content("#notice") or "") + (other.text_content("#notice") or "")


@pytest.mark.slow
def test_a_pair_that_is_taken_back_in_one_window_can_be_judged_in_the_other(tmp_path: Path, visit: Visit) -> None:
    with served(tmp_path, 1) as server:
        page = visit.open(server.link())
        other = visit.context.new_page()
        other.goto(server.url)
        query = page.evaluate(SHOWN)
        visit.press("ArrowLeft")
        visit.sent()
        other.wait_for_selector("body[data-state=empty]")
        other.keyboard.press("u")
        other.wait_for_selector("body[data-state=pair]")
        other.close()
        page.wait_for_selector("body[data-state=pair]")
        assert page.evaluate(SHOWN) == query
        visit.press("ArrowRight")
        visit.sent()
        assert [choice.choice for choice in server.store.all_chosen()] == ["right"]


@pytest.mark.slow
def test_who_is_signed_out_is_told_so_and_no_answer_is_lost(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    page.wait_for_selector(READY, state="attached")
    first = page.evaluate(SHOWN)
    cookies = visit.context.cookies()
    visit.context.clear_cookies()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("body[data-state=gone]")
    expect(page.locator("#pause-heading")).to_have_text("You are signed out here")
    expect(page.locator("#training")).to_have_attribute("data-state", "unknown")
    expect(page.locator("#pause-text")).to_contain_text("Answers that are not sent yet are kept")
    expect(page.locator("#undo")).to_be_hidden()
    other = visit.context.new_page()
    other.goto(server.link("grace"))  # somebody else's, in the same browser
    other.wait_for_selector("body[data-state=pair]")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)
    assert page.evaluate(STATE) == "gone" and not server.store.all_chosen()
    other.close()
    visit.context.add_cookies(cookies)  # type: ignore[arg-type]
    page.wait_for_selector("body[data-state=pair]")
    visit.sent()
    assert list(chosen(server.store)) == [first]


@pytest.mark.slow
def test_another_program_at_the_address_takes_no_answer_away(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    first = page.evaluate(SHOWN)
    page.route("**/api/**", lambda route: route.fulfill(status=404, body="<h1>Not found</h1>"))
    visit.press("ArrowLeft")
    expect(page.locator("#notice")).to_contain_text("No connection")
    page.unroute("**/api/**")
    visit.sent()
    assert list(chosen(server.store)) == [first]


@pytest.mark.slow
def test_the_back_button_leads_back_to_the_pair(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    first = page.evaluate(SHOWN)
    visit.press("ArrowLeft")
    second = page.evaluate(SHOWN)
    visit.sent()
    page.goto(server.url + "/quality")
    page.go_back()
    page.wait_for_selector("body[data-state=pair]")
    assert page.evaluate(SHOWN) == second
    visit.press("ArrowLeft")
    visit.sent()
    assert set(chosen(server.store)) == {first, second}


CONTROLS = (
    "[data-choice], #slightly, #note-button, #history-button, #undo, #play, #restart, #help-button, #scrubber, #speed"
)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(360, 640), (320, 568), (640, 360), (568, 320)])
def test_everything_is_in_sight_on_a_small_screen(tmp_path: Path, chromium: Browser, size: tuple[int, int]) -> None:
    width, height = size
    visit = Visit(chromium, viewport={"width": width, "height": height}, reduced_motion="reduce")
    with served(tmp_path, 1, question="Which one is closer to standing on one leg?") as server:
        doing = "The agent tries what 138 labels tell it, 120 steps a second"
        server.store.set_status(Status(61_200, 1_000_000, 138, 200, False, 16, doing))
        page = visit.open(server.link())
        expect(page.locator("#doing")).to_contain_text("16 more answers")
        clips = [page.locator(f".front .{side}").bounding_box() for side in ("left", "right")]
        boxes = [found.bounding_box() for found in page.locator(CONTROLS).all()] + clips
        places = []
        for box in boxes:
            assert box and min(box["width"], box["height"]) >= 24
            places.append((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]))
            assert min(places[-1][:2]) >= 0 and places[-1][2] <= width and places[-1][3] <= height
        for a, b in combinations(places, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)  # none covers another
        assert all(clip and min(clip["width"], clip["height"]) > 100 for clip in clips)
        audit(page)
        page.click("[data-choice=skip]")
        page.wait_for_selector("body[data-state=empty]")
        for name in ("#unskip", "#undo"):
            box = page.locator(name).bounding_box()
            assert box and box["y"] + box["height"] <= height
        audit(page)
    visit.context.close()


@pytest.mark.slow
def test_a_telephone_is_told_of_its_buttons_and_not_of_keys(tmp_path: Path, chromium: Browser) -> None:
    visit = Visit(chromium, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    with served(tmp_path, 9) as server:
        page = visit.open(server.link(role="owner"))
        left, slightly = page.locator("[data-choice=left]"), page.locator("#slightly")
        expect(left).to_have_text(re.compile("Upper"))
        assert "slightly" not in left.inner_text()
        page.tap("#slightly")
        assert re.sub(r"\s+", " ", left.inner_text()).strip() == "Upper is slightly better"
        places = [part.bounding_box() for part in (left, slightly, page.locator("[data-choice=right]"))]
        assert len({place["y"] for place in places if place}) == 1  # it is between the buttons that it changes
        page.tap("[data-choice=left]")
        looked(page)
        page.tap("#help-button")
        told = page.locator("#help").inner_text()
        assert "Equally good" in told and not any(word in told for word in ("←", "⇧", "space", "keys", "(or press"))
        audit(page)
        page.locator("#help .close").first.tap()
        page.tap("#note-button")
        assert "Esc" not in page.locator("#note-dialog").inner_text()
        page.tap("#close-note")
        page.tap("[data-choice=left]")
        visit.sent()
        looked(page)
        page.tap("#history-button")
        line = page.locator("#history-list .when").first
        height = line.evaluate("(line) => line.clientHeight / parseFloat(getComputedStyle(line).lineHeight)")
        assert 0 < height < 1.5  # the date has one line
        page.locator("#history-list button").last.tap()
        expect(page.locator("#keep")).to_be_visible()
        places = [page.locator(name).bounding_box() for name in ("#keep", "#undo", "[data-choice=skip]")]
        assert all(place and place["y"] + place["height"] <= 800 for place in places)
        expect(page.locator("#keep")).to_have_text("Keep: upper is slightly better")
        audit(page)
        for name in ("/quality", "/overview"):
            page.goto(server.url + name)
            fits = "[...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth)"
            assert page.evaluate(fits)
            expect(page.locator("tbody td").nth(1)).to_have_css("display", "grid")
            audit(page)
    visit.context.close()


@pytest.mark.parametrize("width", [pytest.param(800, marks=pytest.mark.slow), 1200])
def test_long_words_are_not_cut_and_a_long_message_moves_nothing(tmp_path: Path, chromium: Browser, width: int) -> None:
    visit = Visit(chromium, viewport={"width": width, "height": 800}, reduced_motion="reduce")
    with served(tmp_path, 1) as server:
        server.store.set_run_info({"method": "pebble", "env": "dm_control/cartpole-balance-v0"})
        status = Status(61_200, 1_000_000, 138, 200, False, 16, "The agent tries what 138 labels tell it.")
        server.store.set_status(replace(status, fresh_accuracy=0.9, fresh_labels=30))
        page = visit.open(server.link())
        expect(page.locator("#predicted")).to_contain_text("27 of the last 30")
        cut = "(part) => part.scrollWidth > part.clientWidth + 1 || part.scrollHeight > part.clientHeight + 1"
        for name in (".title", "header", ".progress", *(f"[data-choice={choice}]" for choice in KEYS)):
            assert not page.locator(name).first.evaluate(cut), name
        rows = """(button) => {
          const text = document.createRange();
          text.selectNode(button.lastChild);
          return text.getClientRects().length;
        }"""
        assert page.locator("[data-choice=equal]").evaluate(rows) == 1  # in one line
        parts = "document.querySelectorAll('.front .clip, .choices, footer button')"
        whole = f"[...{parts}].map((part) => part.getBoundingClientRect().y)"
        before = page.evaluate(whole)
        page.evaluate("document.getElementById('notice').textContent = 'An answer was not taken. '.repeat(12)")
        assert page.evaluate(whole) == before
        page.click("#slightly")
        assert page.evaluate(whole) == before
    visit.context.close()


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
        drag = f"(range) => {{ range.value = {frame}; range.dispatchEvent(new Event('input')); }}"
        page.locator("#scrubber").evaluate(drag)
        left, right = (page.evaluate(column, side) for side in ("left", "right"))
        assert left == pytest.approx(right, abs=0.02)  # a frame is 0.083
        seen.append(left)
    assert seen == sorted(set(seen))  # the mark moves to the right as time goes on
    page.keyboard.press("r")
    expect(page.locator("#play-word")).to_have_text("Pause")
    position = page.locator("#position")
    before = position.text_content()
    page.wait_for_function("before => document.getElementById('position').textContent !== before", arg=before)


@pytest.mark.slow
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
    looked(page)
    first = page.evaluate(SHOWN)
    for key in (*KEYS.values(), " ", "u", "?"):
        page.keyboard.press(key)
    page.wait_for_timeout(200)
    assert page.evaluate(SHOWN) == first and not server.store.all_chosen() and not page.locator("#help").is_visible()
    page.click("[data-choice=left]")
    visit.sent()
    assert set(chosen(server.store)) == {first}


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


@pytest.mark.slow
def test_a_link_that_was_opened_before_leads_on_with_a_session_and_says_so_without(
    server: Served, visit: Visit, chromium: Browser
) -> None:
    link = server.link()
    visit.open(link)
    visit.open(link)
    other = Visit(chromium)
    for wrong in (link, f"{server.url}/join/invented", f"{server.url}/join/%E0%A4%A", f"{server.url}/join/a.b"):
        other.page.goto(wrong)
        expect(other.page.locator("h1")).to_have_text("This link does not work")
        expect(other.page.locator("#told")).to_contain_text("ask the person who sent it for a new one")
        assert other.page.title() == "This link does not work · rlhf-bilevel"
    audit(other.page)
    other.page.route("**/api/join", lambda route: route.fulfill(status=503))  # the database is away, say
    other.page.goto(server.link())
    expect(other.page.locator("h1")).to_have_text("The server does not answer")
    other.context.close()


def test_a_script_in_a_name_does_not_run(tmp_path: Path, visit: Visit) -> None:
    script = "<img src=x onerror=alert(1)>"
    with served(tmp_path, 2, question=script) as server:
        page = visit.open(server.link(script))
        expect(page.locator("h1")).to_have_text(script)
        assert page.locator("main img[src=x]").count() == 0


@pytest.mark.slow
def test_guidelines_are_shown_at_the_first_visit_and_where_they_are_others(tmp_path: Path, visit: Visit) -> None:
    file = tmp_path / "rules.md"
    long = "# Judge *the feet*\n\n" + "- up\n- down\n" * 40
    for text, opens in ((long, True), ("Judge the **arms**.", True), ("", False)):
        file.write_text(text)
        with served(tmp_path, 1 if opens else 0, guidelines=html(text)) as server:
            page = visit.open(server.link())
            assert page.locator("#help").is_visible() == opens
            if not opens:
                continue
            expect(page.locator("#guidelines")).to_contain_text("the feet" if text == long else "the arms")
            assert page.locator("#guidelines h3").count() == (text == long)
            audit(page)
            page.get_by_role("button", name="Close").first.click()  # in sight without scrolling
            expect(page.locator("#help")).to_be_hidden()
            assert page.evaluate("document.getElementById('help').scrollTop") == 0
            page.reload()
            page.wait_for_selector("body[data-state=pair]")
            expect(page.locator("#help")).to_be_hidden()


def test_the_question_is_the_pages_title_and_who_is_new_learns_where_help_is(server: Served, visit: Visit) -> None:
    page = visit.open(server.link())
    assert page.title() == "Which one is brighter? · penalty on Bright-v0"
    expect(page.locator("#notice")).to_have_text("New here? Help says how to label.")
    page.reload()
    page.wait_for_selector("body[data-state=pair]")
    expect(page.locator("#notice")).to_have_text("")


def test_the_policy_is_in_force(server: Served, chromium: Browser) -> None:
    """Without which no violations would prove nothing."""
    visit = Visit(chromium)
    page = visit.open(server.link())
    script = "Object.assign(document.createElement('script'), { textContent: 'window.ran = true' })"
    page.evaluate(f"document.body.append({script})")
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.wait_for_function("() => window.violations.length >= 2")
    assert page.evaluate("window.ran") is None
    visit.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), pytest.param(360, "dark", marks=pytest.mark.slow)])
def test_the_page_is_accessible_and_fits(tmp_path: Path, chromium: Browser, width: int, scheme: str) -> None:
    size = {"width": width, "height": 740 if width == 360 else 800}
    visit = Visit(chromium, viewport=size, color_scheme=scheme, reduced_motion="reduce")
    with served(tmp_path, 1) as server:
        server.store.set_status(Status(1200, 5000, 3, 10, True, 1, "it waits for answers"))
        page = visit.open(server.link(role="owner"))
        expect(page.locator("#play-word")).to_have_text("Play")  # with reduced motion nothing moves by itself
        expect(page.locator("#doing")).to_contain_text("Training waits")
        left, right = (page.locator(f".front .{side}").bounding_box() for side in ("left", "right"))
        assert left and right
        assert left["y"] + left["height"] <= right["y"] if width == 360 else left["x"] + left["width"] <= right["x"]
        assert min(left["width"], left["height"]) > 160
        for button in page.locator(CONTROLS).all():
            box = button.bounding_box()
            assert box and box["width"] >= 24 and box["height"] >= 24
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
        for choice in ("left", "right", "equal", "both_bad", "cant_tell"):  # at hand without scrolling
            box = page.locator(f"[data-choice={choice}]").bounding_box()
            assert box and box["y"] + box["height"] <= size["height"]
        audit(page)
        page.click("#help-button")
        audit(page)
        page.click("#close-help")
        page.keyboard.press("n")
        page.fill("#note", "It falls.")
        page.click("#close-note")
        page.click("[data-choice=left]")
        page.wait_for_selector("body[data-state=empty]")
        audit(page)
        for name in ("/quality", "/overview"):
            page.goto(server.url + name)
            audit(page)
        page.click("ul a")  # of the note
        page.wait_for_selector(".view canvas")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.view canvas')].every((canvas) => "
            "canvas.getContext('2d').getImageData(canvas.width / 2 | 0, canvas.height / 2 | 0, 1, 1).data[0] > 0)"
        )
        audit(page)
        page.click("#play")
        expect(page.locator("#play")).to_have_text("Pause")
        page.goto(server.url + "/nothing")
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
    page.evaluate("Promise.all(document.getAnimations().map((animation) => animation.finished))")  # colours fade in
    findings = "violations.map((v) => [v.impact, v.id, v.nodes.map((node) => node.html)])"
    found = page.evaluate(f"async () => (await axe.run()).{findings}")
    assert [finding for finding in found if finding[0] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
