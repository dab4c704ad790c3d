"""The book of labels, on SQLite and on PostgreSQL: what was acknowledged is stored once, and nobody is misled."""

import gzip
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, text

from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.human import database, tables
from rlhf_bilevel.human.records import (
    Answered,
    Assignment,
    ConflictError,
    ConsumedError,
    Labeller,
    NotFoundError,
    Outcome,
    Pending,
    Question,
    Status,
)
from rlhf_bilevel.human.store import LabelStore, run_id
from rlhf_bilevel.human.tables import CANT_TELL, EQUAL, EXPERT, GOLD, LABEL, LEFT, REPEAT, RIGHT, SKIP
from tests.support import postgres
from tests.support.faults import corrupted

Open = Callable[..., LabelStore]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if postgres.programs() is None:
        pytest.skip(postgres.MISSING)
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "book.sqlite" if request.param == "sqlite" else request.getfixturevalue("server")


@pytest.fixture
def opened(where: Path | str) -> Iterator[Open]:
    """Opens the book of one run, which no other test has."""
    run, books = secrets.token_hex(16), list[LabelStore]()

    def opened(clock: Callable[[], float] = time.time, seed: int = 0, run: str = run) -> LabelStore:
        books.append(LabelStore.open(where, run, clock=clock, rng=random.Random(seed)))
        return books[-1]

    yield opened
    for book in books:
        book.close()


@pytest.fixture
def book(opened: Open) -> LabelStore:
    return opened()


def asked(book: LabelStore, session: int = 0, count: int = 4, wanted: int = 1, **more: Any) -> int:
    """Query i of session s is about segments ``s.i better`` and ``s.i worse``, which its clips show, too."""
    names = [f"{session}.{i}" for i in range(count)]
    clips = [({"shows": f"{name} better"}, {"shows": f"{name} worse"}) for name in names]
    pairs = [(f"{name} better".encode(), f"{name} worse".encode()) for name in names]
    return book.ask(session, [Question(*pair, *clip) for pair, clip in zip(pairs, clips, strict=True)], wanted, **more)


def somebody(book: LabelStore, name: str = "Ann", role: str = "labeller") -> Labeller:
    found = book.labeller(book.invite(name, role))
    assert found is not None
    return found


def sees(book: LabelStore, clip_id: str) -> str:
    data = book.clip(clip_id)
    assert data is not None
    return json.loads(gzip.decompress(data))["shows"]


def name(book: LabelStore, offer: Assignment) -> str:
    return sees(book, offer.left_clip).split()[0]


def honest(book: LabelStore, offer: Assignment) -> str:
    """The better one, by what is seen."""
    return LEFT if sees(book, offer.left_clip).endswith("better") else RIGHT


def label(
    book: LabelStore, who: Labeller, count: int = 1, choice: str | None = None, **shares: float
) -> list[Assignment]:
    """Answers so many pairs, one after another."""
    done = []
    for _ in range(count):
        (offer,) = book.offer(who, 1, **{"repeats": 0, "gold": 0, **shares})
        book.choose(who, offer.query_id, choice or honest(book, offer), secrets.token_hex(8))
        done.append(offer)
    return done


def test_what_is_chosen_by_eye_is_the_label_on_whatever_side_it_was(book: LabelStore) -> None:
    asked(book, count=30)
    sides = Counter(honest(book, offer) for offer in label(book, somebody(book), 30))
    assert book.collect(0, 99) == [Answered(1.0, f"0.{i} better".encode(), f"0.{i} worse".encode()) for i in range(30)]
    assert min(sides[LEFT], sides[RIGHT]) > 5  # fewer with a probability of 10^-4, were the seed not fixed


def test_a_choice_is_stored_once_however_often_it_is_sent(book: LabelStore) -> None:
    asked(book)
    ann = somebody(book)
    first, second = book.offer(ann, 2, repeats=0)
    assert book.choose(ann, first.query_id, LEFT, "key") == Outcome.ACCEPTED
    assert [book.choose(ann, first.query_id, LEFT, "key") for _ in range(3)] == [Outcome.REPEATED] * 3
    for query, choice, key, error, told in (
        (first.query_id, RIGHT, "key", ConflictError, "belongs to another answer"),
        (second.query_id, LEFT, "key", ConflictError, "belongs to another answer"),
        (first.query_id, LEFT, "other", ConflictError, "answered already"),
        ("f" * 32, LEFT, "other", NotFoundError, "no such pair"),
    ):
        with pytest.raises(error, match=told):
            book.choose(ann, query, choice, key)
    for choice, key, told in (("up", "key", "unknown choice 'up'"), (LEFT, "", "1 to 100"), (LEFT, "k" * 101, "101")):
        with pytest.raises(ValueError, match=told):
            book.choose(ann, second.query_id, choice, key)
    assert [(c.query_id, c.choice) for c in book.all_chosen()] == [(first.query_id, LEFT)]
    with pytest.raises(NotFoundError):  # it was put before Ann alone
        book.choose(somebody(book, "Bob"), second.query_id, LEFT, "key")


def test_undo_brings_the_pair_back_as_it_was_until_training_has_taken_it(opened: Open) -> None:
    clock = Clock()
    book = opened(clock)
    asked(book, count=6)
    ann, bob = somebody(book, "Ann"), somebody(book, "Bob")
    assert book.undo(ann) is None
    one, two = label(book, ann, 2)
    book.offer(ann, 1, 10, 0)  # the next one is on the screen already
    clock.now += 1
    assert book.undo(ann) == two.query_id
    clock.now += 1
    assert book.undo(ann) == one.query_id and book.undo(ann) is None
    assert book.collect(0, 99) == [] and book.progress(ann).total == 0
    assert not {one, two} & set(book.offer(bob, 2, 10, 0))  # they are still in front of Ann
    assert book.offer(ann, 3, 10, 0)[:2] == [one, two]
    book.choose(ann, one.query_id, EQUAL, "again")
    assert [answer.label for answer in book.collect(0, 99)] == [0.5]
    with pytest.raises(ConflictError):
        book.choose(ann, one.query_id, LEFT, "once more")
    assert book.undo(ann) is None
    label(book, ann, 1, SKIP)
    skipped = book.undo(ann)  # a skip is a choice, too
    assert skipped == two.query_id == book.offer(ann, 1)[0].query_id


def test_a_query_wants_its_answers_and_no_more(opened: Open) -> None:
    clock = Clock()
    book = opened(clock)
    asked(book, count=1, wanted=2)
    ann, bob, eve = (somebody(book, name) for name in ("Ann", "Bob", "Eve"))
    (before_ann,), (before_bob,) = book.offer(ann, 2, 60), book.offer(bob, 2, 60)
    assert book.offer(eve, 2, 60) == []
    clock.now += 61
    (before_eve,) = book.offer(eve, 2, 60)  # Ann and Bob have gone away
    assert book.offer(bob, 2, 60) == [before_bob] and book.offer(ann, 2, 60) == []
    book.choose(bob, before_bob.query_id, honest(book, before_bob), "bob")
    assert book.collect(0, 99) == [] and book.pending() == Pending(1, 1)
    book.choose(ann, before_ann.query_id, EQUAL, "ann")  # late, but as yet it is wanted
    with pytest.raises(ConflictError, match="all the answers"):
        book.choose(eve, before_eve.query_id, LEFT, "eve")
    assert book.pending() == Pending(1, 0)
    assert [answer.label for answer in book.collect(0, 99)] == [0.75]


def test_a_skip_is_for_others_and_cant_tell_is_an_answer_without_a_label(book: LabelStore) -> None:
    asked(book, count=3)
    ann, bob = somebody(book, "Ann"), somebody(book, "Bob")
    skipped = label(book, ann, 2, SKIP)
    label(book, ann, 1, CANT_TELL)
    assert book.offer(ann, 3) == []
    assert book.pending() == Pending(3, 0)  # nobody is there to be waited for
    assert book.collect(0, 99) == [] and book.progress(ann)[:3] == (1, 1, 2)
    assert {offer.query_id for offer in label(book, bob, 2)} == {offer.query_id for offer in skipped}
    assert [answer.label for answer in book.collect(1, 99)] == [1.0, 1.0]


def test_each_open_pair_that_is_not_offered_to_somebody_has_its_reason(opened: Open) -> None:
    clock = Clock()
    book = opened(clock)
    asked(book, 0, 4, wanted=1)
    asked(book, 1, 1, wanted=2)
    ann, bob = somebody(book, "Ann"), somebody(book, "Bob")
    assert len(book.offer(bob, 1, 60, 0, 0)) == 1  # of session 1, which wants two: Ann may have it, too
    label(book, ann, 1)
    label(book, ann, 2, SKIP)
    book.offer(bob, 4, 60, 0, 0)  # and what Ann skipped, and one of the two that are left
    told = book.progress(ann)
    assert (told.open, told.skipped, told.judged, told.taken) == (5, 2, 1, 1)
    assert len(book.offer(ann, 9, repeats=0, gold=0)) == told.open - told.skipped - told.judged - told.taken == 1
    clock.now += 61
    assert book.progress(ann).taken == 0 and len(book.offer(ann, 9, repeats=0, gold=0)) == 2


def test_skipped_pairs_are_offered_again_where_they_still_want_an_answer(book: LabelStore) -> None:
    asked(book, count=3)
    ann, bob = somebody(book, "Ann"), somebody(book, "Bob")
    skipped = {offer.query_id for offer in label(book, ann, 3, SKIP)}
    (taken,) = label(book, bob, 1)
    assert book.offer(ann, 3) == [] and book.unskip(bob) == 0 and book.pending().missing == 0
    assert book.unskip(ann) == 2 and book.unskip(ann) == 0
    assert {offer.query_id for offer in book.offer(ann, 3)} == skipped - {taken.query_id}
    assert book.pending().missing == 2 and book.progress(ann).skipped == 0


def test_it_says_whether_there_is_something_to_undo(book: LabelStore) -> None:
    asked(book, count=3)
    ann = somebody(book)
    assert not book.progress(ann).can_undo
    label(book, ann, 2)
    for undone in (2, 1, 0):
        assert book.progress(ann).can_undo == (undone > 0) == (book.undo(ann) is not None)
    label(book, ann, 1)
    book.collect(0, 9)
    assert not book.progress(ann).can_undo and book.undo(ann) is None


@pytest.mark.parametrize(
    ("told", "stored"),
    [
        ((1003.0, 1005.0), (1003.0, 1005.0)),
        ((5000.0, 5002.0), (1008.0, 1010.0)),  # the labeller's clock is ahead
        ((1.0, 3.0), (1000.0, 1002.0)),  # or behind
        ((1005.0, 1003.0), (None, 1003.0)),  # or was set back meanwhile
        ((0.0, 1e308), (1000.0, 1010.0)),
        ((1e308, 1e308), (1010.0, 1010.0)),
    ],
)
def test_times_that_cannot_be_are_corrected_by_the_servers_clock(
    opened: Open, told: tuple[float, float], stored: tuple[float | None, float]
) -> None:
    """The pair is offered at 1000, and the answer comes at 1010."""
    clock = Clock()
    book = opened(clock)
    asked(book)
    ann = somebody(book)
    (offer,) = book.offer(ann, 1)
    clock.now = 1010.0
    book.choose(ann, offer.query_id, LEFT, "key", *told)
    assert [(c.shown_at, c.answered_at) for c in book.all_chosen()] == [stored]


def test_newest_queries_come_first_and_take_the_place_of_those_that_nobody_has_looked_at(opened: Open) -> None:
    clock = Clock()
    book = opened(clock)
    ann = somebody(book)
    asked(book, 0, 4)
    (kept,) = book.offer(ann, 1, 60)
    clock.now += 1
    assert asked(book, 1, 4, left=5) == 4 and asked(book, 1, 4, left=5) == 0  # asked again, it is the same session
    assert book.asked(1) == 4 and book.pending() == Pending(5, 5)
    for _ in range(2):  # a page that is loaded again shows what it showed
        assert [name(book, offer) for offer in book.offer(ann, 9, 60, 0)] == ["0.0", "1.0", "1.1", "1.2", "1.3"]
    assert name(book, kept) == "0.0"


def test_a_session_takes_each_label_once_and_the_same_ones_again(book: LabelStore) -> None:
    ann = somebody(book)
    asked(book, 0, 5)
    label(book, ann, 3)
    taken = book.collect(0, 2)
    assert len(taken) == 2 and book.collect(0, 2) == taken and (book.used(0), book.used(1)) == (0, 2)
    assert book.collect(0, 9)[:2] == taken and len(book.collect(0, 9)) == 3
    (offer,) = book.offer(ann, 1, repeats=0)
    asked(book, 1, 1)
    label(book, somebody(book, "Bob"))
    assert [answer.first for answer in book.collect(1, 9)] == [b"1.0 better"]
    book.choose(ann, offer.query_id, LEFT, "late")
    late = book.collect(2, 9)
    assert len(late) == 1 and late[0].first.startswith(b"0.") and book.collect(0, 9)[:2] == taken


def test_who_is_late_learns_that_training_has_used_the_answer(opened: Open) -> None:
    clock = Clock()
    book = opened(clock)
    asked(book, 0, 1)
    ann, bob = somebody(book, "Ann"), somebody(book, "Bob")
    (offer,) = book.offer(ann, 1, 60)
    clock.now += 61
    label(book, bob)
    book.collect(0, 9)
    with pytest.raises(ConsumedError, match="has used"):
        book.choose(ann, offer.query_id, LEFT, "key")


def test_pairs_are_asked_again_with_their_sides_swapped_and_count_for_nothing(book: LabelStore) -> None:
    asked(book, count=30)
    ann = somebody(book)
    offers = label(book, ann, 40, repeats=0.4)
    before = {offer.query_id: (number, offer) for number, offer in enumerate(offers) if offer.purpose == LABEL}
    again = [(number, offer) for number, offer in enumerate(offers) if offer.purpose == REPEAT]
    assert len(again) == len({offer.query_id for _, offer in again}) > 5
    for number, offer in again:
        first, known = before[offer.query_id]
        assert (offer.left_clip, offer.right_clip) == (known.right_clip, known.left_clip) and number - first > 5
    taken = book.collect(0, 99)
    assert len(taken) == len(before) and {answer.label for answer in taken} == {1.0}
    assert book.progress(ann)[:2] == (40, 40)  # all are answers: a smaller number would tell which ones are checks
    label(book, ann, 30 - len(before))
    assert book.offer(ann, 2, repeats=1.0) == []  # nobody is kept busy with repetitions while there is nothing to label


def test_an_experts_answers_are_gold_for_others(book: LabelStore) -> None:
    asked(book, count=12)
    expert, ann = somebody(book, "Vera", EXPERT), somebody(book, "Ann")
    known = {offer.query_id for offer in label(book, expert, 4)}
    offers = label(book, ann, 6, gold=1.0)
    gold = {offer.query_id for offer in offers if offer.purpose == GOLD}
    assert gold == known and len(offers) == 6
    assert len(book.collect(0, 99)) == 4 + 2
    assert {c.purpose for c in book.all_chosen() if c.labeller == expert} == {LABEL}


def test_a_token_is_of_one_run_and_not_in_the_book(opened: Open) -> None:
    book, other = opened(), opened(run=secrets.token_hex(16))
    asked(book)
    token, again = book.invite("Ann"), book.invite("Ann")
    assert book.labeller(token) == book.labeller(again) != book.labeller(book.invite("Bob"))
    assert book.labeller(token + "x") is None and other.labeller(token) is None
    (offer,) = book.offer(somebody(book), 1)
    assert book.clip(offer.left_clip) and other.clip(offer.left_clip) is None
    book.add_scene("0", {"geoms": []})
    assert book.scene("0") and other.scene("0") is None
    with pytest.raises(NotFoundError):
        other.choose(somebody(other), offer.query_id, LEFT, "key")
    assert set(book.runs()) >= {book.run, other.run}
    with book._read() as c:
        stored = [row.sha256 for row in c.execute(tables.tokens.select())]
    assert token not in stored and all(len(sha256) == 64 for sha256 in stored)
    for wrong in ("", " Ann", "A\nB", "a" * 101):
        with pytest.raises(ValueError, match="printable"):
            book.invite(wrong)


def test_training_and_people_meet_in_the_book_across_processes(opened: Open) -> None:
    clock = Clock()
    training, page = opened(clock), opened(clock)
    assert page.facts() == {} and page.status() is None
    training.begin({"env": "Steer-v0"})
    training.beat(Status(10, 100, 3, 20, True, 5, "waits"))
    assert page.facts() == {"env": "Steer-v0"}
    assert page.status() == Status(10, 100, 3, 20, True, 5, "waits", updated_at=clock.now)
    ann = somebody(page)
    assert page.progress(ann).needed == 5
    asked(training, count=4)
    training.beat(Status(10, 100, 3, 20, True, 3, "waits", spare=1))
    label(page, ann)
    assert page.progress(ann).needed == 2  # training has not counted this answer yet


def test_response_times_are_those_of_the_screen(opened: Open) -> None:
    clock = Clock()
    book = opened(clock)
    asked(book)
    ann = somebody(book)
    one, two = book.offer(ann, 2, repeats=0)
    book.shown(ann, one.query_id, 1003.0)
    book.shown(ann, one.query_id, 1005.0)
    clock.now = 1020.0
    book.choose(ann, one.query_id, LEFT, "1")
    book.choose(ann, two.query_id, LEFT, "2", shown_at=1011.0, answered_at=1012.5)
    assert [(c.shown_at, c.answered_at) for c in book.all_chosen()] == [(1003.0, 1020.0), (1011.0, 1012.5)]


def test_fifty_people_who_send_things_again_lose_nothing_and_double_nothing(opened: Open) -> None:
    book, people, each = opened(), 50, 4
    asked(book, 0, people * each)
    asked(book, 1, people)  # who stops has one more pair in front of them
    start = threading.Barrier(people)

    def work(number: int) -> list[tuple[str, str]]:
        me, rng, done = somebody(book, f"p{number}"), random.Random(number), []
        start.wait()
        for _ in range(each):
            offers = book.offer(me, 1 + rng.randrange(2), repeats=0.1)
            choice, key = honest(book, offers[0]), secrets.token_hex(8)
            sent = [book.choose(me, offers[0].query_id, choice, key) for _ in range(1 + (rng.random() < 0.3))]
            assert sent == [Outcome.ACCEPTED, Outcome.REPEATED][: len(sent)]
            done.append((offers[0].query_id, offers[0].purpose))
        return done

    with ThreadPoolExecutor(people) as pool:
        acknowledged = Counter(pair for done in pool.map(work, range(people)) for pair in done)
    assert set(acknowledged.values()) == {1} and acknowledged.total() == people * each
    assert Counter((c.query_id, c.purpose) for c in book.all_chosen()) == acknowledged
    taken = book.collect(0, 9999)
    assert len(taken) == sum(purpose == LABEL for _, purpose in acknowledged)
    assert {answer.label for answer in taken} == {1.0} and len({answer.first for answer in taken}) == len(taken)


def test_one_persons_windows_and_resent_requests_are_one_person(opened: Open) -> None:
    """The same request from many threads at once, as from a page that tries again while the first try is on its way."""
    book = opened()
    asked(book, 0, 3)
    ann = somebody(book)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            (offer,) = book.offer(ann, 1, repeats=0)
            told = list(pool.map(lambda _, o=offer: book.choose(ann, o.query_id, LEFT, o.query_id), range(8)))
            assert Counter(told) == {Outcome.ACCEPTED: 1, Outcome.REPEATED: 7}
    assert len(book.all_chosen()) == 3


def test_training_takes_while_people_undo_and_both_agree(opened: Open) -> None:
    """Whatever comes first: a label that is taken stays, one that was undone is not taken."""
    book, training = opened(), opened()
    ann = somebody(book)
    for session in range(15):
        asked(book, session, 1)
        (offer,) = label(book, ann)
        with ThreadPoolExecutor(2) as pool:
            taken, undone = pool.submit(training.collect, session, 9), pool.submit(book.undo, ann)
        assert len(taken.result()) == (undone.result() is None)
        if undone.result():
            book.choose(ann, offer.query_id, SKIP, secrets.token_hex(8))


def meanwhile(book: LabelStore, slow: Callable[[], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
    """What both give, where ``other`` begins when ``slow``, which is this book's, is about to be committed."""
    with ThreadPoolExecutor(1) as pool:
        futures: list[Future[Any]] = []

        def begin_the_other(_: Any) -> None:
            futures.append(pool.submit(other))
            time.sleep(0.2)

        event.listen(book._engine, "commit", begin_the_other, once=True)
        return slow(), futures[0].exception() or futures[0].result()


def test_who_undoes_what_training_is_taking_is_told_that_it_is_taken(opened: Open) -> None:
    book, training = opened(), opened()
    asked(book)
    ann = somebody(book)
    (offer,) = label(book, ann)
    taken, undone = meanwhile(training, lambda: training.collect(0, 9), lambda: book.undo(ann))
    assert len(taken) == 1 and undone is None and training.collect(0, 9) == taken
    (offer,) = label(book, ann)
    undone, taken = meanwhile(book, lambda: book.undo(ann), lambda: training.collect(1, 9))
    assert undone == offer.query_id and taken == []


def test_of_two_who_answer_at_once_where_one_is_wanted_one_is_told(opened: Open) -> None:
    clock = Clock()
    book, other = opened(clock), opened(clock)
    asked(book, count=1)
    ann, bob = somebody(book, "Ann"), somebody(book, "Bob")
    (offer,) = book.offer(ann, 1, 60)
    clock.now += 61
    book.offer(bob, 1, 60)
    first, second = meanwhile(
        book,
        lambda: book.choose(ann, offer.query_id, EQUAL, "ann"),
        lambda: other.choose(bob, offer.query_id, EQUAL, "bob"),
    )
    assert first == Outcome.ACCEPTED and isinstance(second, ConflictError)
    assert [c.labeller for c in book.all_chosen()] == [ann]


def test_what_was_acknowledged_before_a_kill_is_there_after_it(opened: Open) -> None:
    setup = opened()
    asked(setup, 0, 400)
    ann, rng = somebody(setup), random.Random(0)
    setup.close()
    for _ in range(3):
        reading, writing = os.pipe()

        def work(writing: int = writing) -> None:
            book = opened()
            for offer in iter(lambda: book.offer(ann, 1, repeats=0)[0], None):
                book.choose(ann, offer.query_id, LEFT, offer.query_id)
                os.write(writing, offer.query_id.encode())

        pid = os.fork()
        if pid == 0:
            work()
        os.close(writing)
        acknowledged = os.read(reading, 32).decode()  # it has begun
        time.sleep(rng.uniform(0.01, 0.2))
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        while more := os.read(reading, 2**16).decode():
            acknowledged += more
        os.close(reading)
        book = opened()
        stored = Counter(c.query_id for c in book.all_chosen())
        sent = [acknowledged[i : i + 32] for i in range(0, len(acknowledged), 32)]
        assert {stored[query] for query in sent} == {1} and set(stored.values()) == {1}
        assert book.choose(ann, sent[-1], LEFT, sent[-1]) == Outcome.REPEATED
    assert len(book.collect(0, 999)) == len(stored)


def test_the_tables_are_those_that_the_migrations_make(book: LabelStore) -> None:
    with book._engine.connect() as c:
        assert compare_metadata(MigrationContext.configure(c), tables.metadata) == []


def test_many_open_a_new_book_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one after the other turns it to WAL: two at once would now and then wait for each other, or fail."""
    prepare, inside, most = database._prepare_sqlite, [], []

    def slowly(*connection: Any) -> None:
        if opening.is_set():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
        prepare(*connection)
        if opening.is_set():
            inside.pop()

    def work(_: int) -> LabelStore:
        return LabelStore.open(tmp_path / "book.sqlite", "r" * 32)

    opening = threading.Event()
    opening.set()
    monkeypatch.setattr(database, "_prepare_sqlite", slowly)
    with ThreadPoolExecutor(8) as pool:
        books = list(pool.map(work, range(8)))
    assert len(most) >= 8 and max(most) == 1
    opening.clear()
    for book in books:
        book.invite("Ann")
        with book._engine.connect() as c:
            assert c.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL: on the disk when it is acknowledged
        book.close()


def test_a_book_of_a_later_version_is_refused_and_stays_as_it_is(where: Path | str, opened: Open) -> None:
    book = opened()
    with book._write() as c:
        before = c.scalar(text("SELECT version_num FROM alembic_version"))
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        with pytest.raises(UserError, match="later version, with tables of revision 9999"):
            opened()
    finally:
        with book._write() as c:
            c.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": before})
    opened()


def test_a_damaged_file_is_an_error_in_one_line(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "none.sqlite").write_text("labels, many labels " * 100)
    with pytest.raises(CorruptFileError, match=r"none\.sqlite is damaged"):
        LabelStore.open(tmp_path / "none.sqlite", "r" * 32)
    with pytest.raises(UserError, match="cannot be opened"):
        LabelStore.open(tmp_path / "nowhere" / "book.sqlite", "r" * 32)
    with LabelStore.open(tmp_path / "sound.sqlite", "r" * 32) as book:
        asked(book)
    data, rng, refused = (tmp_path / "sound.sqlite").read_bytes(), np.random.default_rng(0), 0
    for number in range(40):
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(corrupted(data, rng))
        try:
            LabelStore.open(path, "r" * 32).close()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


def test_a_database_is_named_without_a_password(tmp_path: Path) -> None:
    for url, told in (
        ("postgresql://ann:secret@host/db", "PGPASSWORD"),
        ("postgresql://ann@host/db?password=secret", "PGPASSWORD"),
        ("mysql://host/db", "mysql is no labels database"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            LabelStore.open(url, "r" * 32)
        assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="cannot be opened"):
        LabelStore.open(f"postgresql://ann@/db?host={tmp_path}", "r" * 32)


def test_a_run_is_named_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(lambda _: run_id(tmp_path), range(32)))
    assert len(names) == 1 and len(names.pop()) == 32 and [path.name for path in tmp_path.iterdir()] == ["run_id"]


def test_the_page_needs_no_torch() -> None:
    code = "import sys, rlhf_bilevel.human.store, rlhf_bilevel.human.agreement; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
