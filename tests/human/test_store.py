"""The store of labels, on SQLite and on PostgreSQL: what was acknowledged is stored once, and nobody is misled."""

import gzip
import json
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, event, text

from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.human import database, records, tables
from rlhf_bilevel.human.location import run_id
from rlhf_bilevel.human.records import Answered, Assignment, ConflictError, Labeller, NotFoundError, Outcome, Pending
from rlhf_bilevel.human.store import LabelStore
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
    """Opens the store of one run, which no other test has."""
    run, stores = secrets.token_hex(16), list[LabelStore]()

    def opened(clock: Callable[[], float] = time.time, seed: int = 0, run: str = run) -> LabelStore:
        stores.append(LabelStore.open(where, run, clock=clock, rng=random.Random(seed)))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(opened: Open, clock: Clock) -> LabelStore:
    return opened(clock)


def asked(store: LabelStore, session: int = 0, count: int = 4, wanted: int = 1, **more: Any) -> int:
    """Query i of session s is about segments ``s.i better`` and ``s.i worse``, which its clips show, too."""
    questions = []
    for i in range(count):
        better, worse = f"{session}.{i} better", f"{session}.{i} worse"
        questions.append(records.Question(better.encode(), worse.encode(), {"shows": better}, {"shows": worse}))
    return store.ask(session, questions, wanted, **more)


def somebody(store: LabelStore, name: str = "Ann", role: str = "labeller") -> Labeller:
    found = store.labeller(store.invite(name, role))
    assert found is not None
    return found


def sees(store: LabelStore, clip_id: str) -> str:
    data = store.clip(clip_id)
    assert data is not None
    return json.loads(gzip.decompress(data))["shows"]


def name(store: LabelStore, assignment: Assignment) -> str:
    return sees(store, assignment.left_clip).split()[0]


def honest(store: LabelStore, assignment: Assignment) -> str:
    """The better one, by what is seen."""
    return LEFT if sees(store, assignment.left_clip).endswith("better") else RIGHT


def label(
    store: LabelStore, who: Labeller, count: int = 1, choice: str | None = None, **shares: float
) -> list[Assignment]:
    """Answers so many pairs, one after another."""
    done = []
    for _ in range(count):
        (assignment,) = store.assign(who, 1, **{"repeats": 0, "gold": 0, **shares})
        store.choose(who, assignment.query_id, choice or honest(store, assignment), secrets.token_hex(8))
        done.append(assignment)
    return done


def test_what_is_chosen_by_eye_is_the_label_on_whatever_side_it_was(store: LabelStore) -> None:
    """A slightly better side is half as far from a tie, and both bad is a tie."""
    strong = {LEFT: 1.0, "slightly_left": 0.75, EQUAL: 0.5, "both_bad": 0.5, "slightly_right": 0.25, RIGHT: 0.0}
    asked(store, count=30)
    ann, expected, sides = somebody(store), list[Answered](), Counter[str]()
    for number in range(30):
        choice = [*strong][number % 6]
        (assignment,) = label(store, ann, choice=choice)
        sides[side := honest(store, assignment)] += 1
        value = strong[choice] if side == LEFT else 1 - strong[choice]
        expected.append(Answered(value, f"0.{number} better".encode(), f"0.{number} worse".encode()))
    assert store.collect(0, 99) == expected
    assert Counter(c.choice for c in store.all_chosen()) == dict.fromkeys(strong, 5)  # both bad is not equal
    assert min(sides[LEFT], sides[RIGHT]) > 5  # fewer with a probability of 10^-4, were the seed not fixed


def test_a_choice_is_stored_once_however_often_it_is_sent(store: LabelStore) -> None:
    asked(store)
    ann = somebody(store)
    first, second = store.assign(ann, 2, repeats=0)
    assert store.choose(ann, first.query_id, LEFT, "key") == Outcome.ACCEPTED
    assert [store.choose(ann, first.query_id, LEFT, "key") for _ in range(3)] == [Outcome.REPEATED] * 3
    for query, choice, key, error, told in (
        (first.query_id, RIGHT, "key", ConflictError, "belongs to another answer"),
        (second.query_id, LEFT, "key", ConflictError, "belongs to another answer"),
        (first.query_id, LEFT, "other", ConflictError, "answered already"),
        ("f" * 32, LEFT, "other", NotFoundError, "was not put before"),
    ):
        with pytest.raises(error, match=told):
            store.choose(ann, query, choice, key)
    for choice, key, told in (("up", "key", "unknown choice 'up'"), (LEFT, "", "1 to 100"), (LEFT, "k" * 101, "101")):
        with pytest.raises(ValueError, match=told):
            store.choose(ann, second.query_id, choice, key)
    assert [(c.query_id, c.choice) for c in store.all_chosen()] == [(first.query_id, LEFT)]
    with pytest.raises(NotFoundError):  # it was put before Ann alone
        store.choose(somebody(store, "Bob"), second.query_id, LEFT, "key")


def test_undo_brings_the_pair_back_as_it_was_until_training_has_taken_it(store: LabelStore, clock: Clock) -> None:
    asked(store, count=6)
    ann, bob = somebody(store, "Ann"), somebody(store, "Bob")
    assert store.undo(ann) is None
    one, two = label(store, ann, 2)
    store.assign(ann, 1, 10, 0)  # the next one is on the screen already
    clock.now += 1
    assert store.undo(ann) == (two.query_id, "")
    clock.now += 1
    assert store.undo(ann) == (one.query_id, "") and store.undo(ann) is None
    assert store.collect(0, 99) == [] and store.progress(ann).total == 0
    assert not {one, two} & set(store.assign(bob, 2, 10, 0))  # they are still in front of Ann
    assert store.assign(ann, 3, 10, 0)[:2] == [one, two]
    store.choose(ann, one.query_id, EQUAL, "again")
    assert [answer.label for answer in store.collect(0, 99)] == [0.5]
    with pytest.raises(ConflictError):
        store.choose(ann, one.query_id, LEFT, "once more")
    assert store.undo(ann) is None
    label(store, ann, 1, SKIP)
    skipped = store.undo(ann)  # a skip is a choice, too
    assert skipped and skipped.query_id == two.query_id == store.assign(ann, 1)[0].query_id


def test_a_query_wants_its_answers_and_no_more(store: LabelStore, clock: Clock) -> None:
    asked(store, count=1, wanted=2)
    ann, bob, eve = (somebody(store, name) for name in ("Ann", "Bob", "Eve"))
    (before_ann,), (before_bob,) = store.assign(ann, 2, 60), store.assign(bob, 2, 60)
    assert store.assign(eve, 2, 60) == []
    clock.now += 61
    (before_eve,) = store.assign(eve, 2, 60)  # Ann and Bob have gone away
    assert store.assign(bob, 2, 60) == [before_bob] and store.assign(ann, 2, 60) == []
    store.choose(bob, before_bob.query_id, honest(store, before_bob), "bob")
    assert store.collect(0, 99) == [] and store.pending() == Pending(1, 1)
    store.choose(ann, before_ann.query_id, EQUAL, "ann")  # late, but as yet it is wanted
    with pytest.raises(ConflictError, match="all the answers"):
        store.choose(eve, before_eve.query_id, LEFT, "eve")
    assert store.pending() == Pending(1, 0)
    assert [answer.label for answer in store.collect(0, 99)] == [0.75]


def test_a_skip_is_for_others_and_cant_tell_is_an_answer_without_a_label(store: LabelStore) -> None:
    asked(store, count=3)
    ann, bob = somebody(store, "Ann"), somebody(store, "Bob")
    skipped = label(store, ann, 2, SKIP)
    label(store, ann, 1, CANT_TELL)
    assert store.assign(ann, 3) == []
    assert store.pending() == Pending(3, 0)  # nobody is there to be waited for
    assert store.collect(0, 99) == [] and (lambda p: (p.mine, p.total, p.open))(store.progress(ann)) == (1, 1, 2)
    assert {o.query_id for o in label(store, bob, 2)} == {o.query_id for o in skipped}
    assert [answer.label for answer in store.collect(1, 99)] == [1.0, 1.0]


def test_each_open_pair_that_is_not_offered_to_somebody_has_its_reason(store: LabelStore, clock: Clock) -> None:
    asked(store, 0, 4, wanted=1)
    asked(store, 1, 1, wanted=2)
    ann, bob = somebody(store, "Ann"), somebody(store, "Bob")
    assert len(store.assign(bob, 1, 60, 0, 0)) == 1  # of session 1, which wants two: Ann may have it, too
    label(store, ann, 1)
    label(store, ann, 2, SKIP)
    store.assign(bob, 4, 60, 0, 0)  # and what Ann skipped, and one of the two that are left
    told = store.progress(ann)
    assert (told.open, told.skipped, told.judged, told.taken) == (5, 2, 1, 1)
    assert len(store.assign(ann, 9, repeats=0, gold=0)) == told.open - told.skipped - told.judged - told.taken == 1
    clock.now += 61
    assert store.progress(ann).taken == 0 and len(store.assign(ann, 9, repeats=0, gold=0)) == 2


def test_skipped_pairs_are_offered_again_where_they_still_want_an_answer(store: LabelStore) -> None:
    asked(store, count=3)
    ann, bob = somebody(store, "Ann"), somebody(store, "Bob")
    skipped = {assignment.query_id for assignment in label(store, ann, 3, SKIP)}
    (taken,) = label(store, bob, 1)
    assert store.assign(ann, 3) == [] and store.unskip(bob) == 0 and store.pending().missing == 0
    assert store.unskip(ann) == 2 and store.unskip(ann) == 0
    assert {assignment.query_id for assignment in store.assign(ann, 3)} == skipped - {taken.query_id}
    assert store.pending().missing == 2 and store.progress(ann).skipped == 0


def test_it_says_whether_there_is_something_to_undo(store: LabelStore) -> None:
    asked(store, count=3)
    ann = somebody(store)
    assert not store.progress(ann).can_undo
    label(store, ann, 2)
    for undone in (2, 1, 0):
        assert store.progress(ann).can_undo == (undone > 0) == (store.undo(ann) is not None)
    label(store, ann, 1)
    store.collect(0, 9)
    assert not store.progress(ann).can_undo and store.undo(ann) is None


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
    store: LabelStore, clock: Clock, told: tuple[float, float], stored: tuple[float | None, float]
) -> None:
    """The pair is offered at 1000, and the answer comes at 1010."""
    asked(store)
    ann = somebody(store)
    (assignment,) = store.assign(ann, 1)
    clock.now = 1010.0
    store.choose(ann, assignment.query_id, LEFT, "key", *told)
    assert [(c.shown_at, c.answered_at) for c in store.all_chosen()] == [stored]


def test_newest_queries_come_first_and_take_the_place_of_those_that_nobody_has_looked_at(
    store: LabelStore, clock: Clock
) -> None:
    ann = somebody(store)
    asked(store, 0, 4)
    (kept,) = store.assign(ann, 1, 60)
    clock.now += 1
    assert asked(store, 1, 4, max_open=5) == 4
    assert asked(store, 1, 4, max_open=5) == 0  # asked again, it is the same session
    assert store.asked(1) == 4 and store.pending() == Pending(5, 5)
    for _ in range(2):  # a page that is loaded again shows what it showed
        shown = [name(store, assignment) for assignment in store.assign(ann, 9, 60, 0)]
        assert shown == ["0.0", "1.0", "1.1", "1.2", "1.3"]
    assert name(store, kept) == "0.0"


def test_a_session_takes_each_label_once_and_the_same_ones_again(store: LabelStore) -> None:
    ann = somebody(store)
    asked(store, 0, 5)
    label(store, ann, 3)
    taken = store.collect(0, 2)
    assert len(taken) == 2 and store.collect(0, 2) == taken and (store.labels_used(0), store.labels_used(1)) == (0, 2)
    assert store.collect(0, 9)[:2] == taken and len(store.collect(0, 9)) == 3
    (assignment,) = store.assign(ann, 1, repeats=0)
    asked(store, 1, 1)
    label(store, somebody(store, "Bob"))
    assert [answer.first for answer in store.collect(1, 9)] == [b"1.0 better"]
    store.choose(ann, assignment.query_id, LEFT, "late")
    late = store.collect(2, 9)
    assert len(late) == 1 and late[0].first.startswith(b"0.") and store.collect(0, 9)[:2] == taken


def test_who_is_late_learns_that_training_has_used_the_answer(store: LabelStore, clock: Clock) -> None:
    asked(store, 0, 1)
    ann, bob = somebody(store, "Ann"), somebody(store, "Bob")
    (assignment,) = store.assign(ann, 1, 60)
    clock.now += 61
    label(store, bob)
    store.collect(0, 9)
    with pytest.raises(records.ConsumedError, match="has used"):
        store.choose(ann, assignment.query_id, LEFT, "key")


def test_pairs_are_asked_again_with_their_sides_swapped_and_count_for_nothing(store: LabelStore) -> None:
    asked(store, count=30)
    ann = somebody(store)
    assigned = label(store, ann, 40, repeats=0.4)
    before = {o.query_id: (number, o) for number, o in enumerate(assigned) if o.purpose == LABEL}
    again = [(number, o) for number, o in enumerate(assigned) if o.purpose == REPEAT]
    assert len(again) == len({o.query_id for _, o in again}) > 5
    for number, o in again:
        first, known = before[o.query_id]
        assert (o.left_clip, o.right_clip) == (known.right_clip, known.left_clip) and number - first > 5
    taken = store.collect(0, 99)
    assert len(taken) == len(before) and {answer.label for answer in taken} == {1.0}
    assert store.progress(ann)[:2] == (40, 40)  # all are answers: a smaller number would tell which ones are checks
    label(store, ann, 30 - len(before))
    assert store.assign(ann, 2, repeats=1.0) == []  # while there is nothing to label, nobody is kept busy


def test_an_experts_answers_are_gold_for_others(store: LabelStore) -> None:
    asked(store, count=12)
    expert, ann = somebody(store, "Vera", EXPERT), somebody(store, "Ann")
    known = {assignment.query_id for assignment in label(store, expert, 4)}
    assigned = label(store, ann, 6, gold=1.0)
    gold = {assignment.query_id for assignment in assigned if assignment.purpose == GOLD}
    assert gold == known and len(assigned) == 6
    assert len(store.collect(0, 99)) == 4 + 2
    assert {c.purpose for c in store.all_chosen() if c.labeller == expert} == {LABEL}


def test_a_token_is_of_one_run_and_not_in_the_store(opened: Open) -> None:
    store, other = opened(), opened(run=secrets.token_hex(16))
    asked(store)
    token, again = store.invite("Ann"), store.invite("Ann")
    assert store.labeller(token) == store.labeller(again) != store.labeller(store.invite("Bob"))
    assert store.labeller(token + "x") is None and other.labeller(token) is None
    (assignment,) = store.assign(somebody(store), 1)
    assert store.clip(assignment.left_clip) and other.clip(assignment.left_clip) is None
    store.add_scene("0", {"geoms": []})
    assert store.scene("0") and other.scene("0") is None
    with pytest.raises(NotFoundError):
        other.choose(somebody(other), assignment.query_id, LEFT, "key")
    with store._read() as c:
        stored = [row.sha256 for row in c.execute(tables.tokens.select())]
    assert token not in stored and all(len(sha256) == 64 for sha256 in stored)
    for wrong in ("", " Ann", "A\nB", "a" * 101):
        with pytest.raises(ValueError, match="printable"):
            store.invite(wrong)


def test_training_and_people_meet_in_the_store_across_processes(opened: Open) -> None:
    clock = Clock()
    training, page = opened(clock), opened(clock)
    assert page.run_info() == {} and page.status() is None
    training.set_run_info({"env": "Steer-v0"})
    training.set_status(records.Status(10, 100, 3, 20, True, 5, "waits"))
    assert page.run_info() == {"env": "Steer-v0"}
    assert page.status() == records.Status(10, 100, 3, 20, True, 5, "waits", updated_at=clock.now)
    ann = somebody(page)
    assert page.progress(ann).needed == 5
    asked(training, count=4)
    training.set_status(records.Status(10, 100, 3, 20, True, 3, "waits", spare=1))
    label(page, ann)
    assert page.progress(ann).needed == 2  # training has not counted this answer yet


@pytest.mark.slow
def test_fifty_people_who_send_things_again_lose_nothing_and_double_nothing(opened: Open) -> None:
    store, people, each = opened(), 50, 4
    asked(store, 0, people * each)
    asked(store, 1, people)  # who stops has one more pair in front of them
    start = threading.Barrier(people)

    def work(number: int) -> list[tuple[str, str]]:
        me, rng, done = somebody(store, f"p{number}"), random.Random(number), []
        start.wait()
        for _ in range(each):
            assigned = store.assign(me, 1 + rng.randrange(2), repeats=0.1)
            choice, key = honest(store, assigned[0]), secrets.token_hex(8)
            sent = [store.choose(me, assigned[0].query_id, choice, key) for _ in range(1 + (rng.random() < 0.3))]
            assert sent == [Outcome.ACCEPTED, Outcome.REPEATED][: len(sent)]
            done.append((assigned[0].query_id, assigned[0].purpose))
        return done

    with ThreadPoolExecutor(people) as pool:
        acknowledged = Counter(pair for done in pool.map(work, range(people)) for pair in done)
    assert set(acknowledged.values()) == {1} and acknowledged.total() == people * each
    assert Counter((c.query_id, c.purpose) for c in store.all_chosen()) == acknowledged
    taken = store.collect(0, 9999)
    assert len(taken) == sum(purpose == LABEL for _, purpose in acknowledged)
    assert {answer.label for answer in taken} == {1.0} and len({answer.first for answer in taken}) == len(taken)


def test_one_persons_windows_and_resent_requests_are_one_person(opened: Open) -> None:
    """The same request from many threads at once, as from a page that tries again while the first try is on its way."""
    store = opened()
    asked(store, 0, 3)
    ann = somebody(store)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            (assignment,) = store.assign(ann, 1, repeats=0)
            told = list(pool.map(lambda _, o=assignment: store.choose(ann, o.query_id, LEFT, o.query_id), range(8)))
            assert Counter(told) == {Outcome.ACCEPTED: 1, Outcome.REPEATED: 7}
    assert len(store.all_chosen()) == 3


def test_training_takes_while_people_undo_and_both_agree(opened: Open) -> None:
    """Whatever comes first: a label that is taken stays, one that was undone is not taken."""
    store, training = opened(), opened()
    ann = somebody(store)
    for session in range(15):
        asked(store, session, 1)
        (assignment,) = label(store, ann)
        with ThreadPoolExecutor(2) as pool:
            taken, undone = pool.submit(training.collect, session, 9), pool.submit(store.undo, ann)
        assert len(taken.result()) == (undone.result() is None)
        if undone.result():
            store.choose(ann, assignment.query_id, SKIP, secrets.token_hex(8))


def meanwhile(store: LabelStore, slow: Callable[[], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
    """What both give, where ``other`` begins when ``slow``, which is this store's, is about to be committed."""
    with ThreadPoolExecutor(1) as pool:
        futures: list[Future[Any]] = []

        def begin_the_other(_: Any) -> None:
            futures.append(pool.submit(other))
            time.sleep(0.2)

        event.listen(store._engine, "commit", begin_the_other, once=True)
        return slow(), futures[0].exception() or futures[0].result()


def test_who_undoes_what_training_is_taking_is_told_that_it_is_taken(opened: Open) -> None:
    store, training = opened(), opened()
    asked(store)
    ann = somebody(store)
    (assignment,) = label(store, ann)
    key = store.history(ann, 1)[0].key
    taken, undone = meanwhile(training, lambda: training.collect(0, 9), lambda: store.undo(ann, key))
    assert len(taken) == 1 and undone is None and training.collect(0, 9) == taken
    (assignment,) = label(store, ann)
    undone, taken = meanwhile(store, lambda: store.undo(ann), lambda: training.collect(1, 9))
    assert undone.query_id == assignment.query_id and taken == []


def test_of_two_who_answer_at_once_where_one_is_wanted_one_is_told(opened: Open) -> None:
    clock = Clock()
    store, other = opened(clock), opened(clock)
    asked(store, count=1)
    ann, bob = somebody(store, "Ann"), somebody(store, "Bob")
    (assignment,) = store.assign(ann, 1, 60)
    clock.now += 61
    store.assign(bob, 1, 60)
    first, second = meanwhile(
        store,
        lambda: store.choose(ann, assignment.query_id, EQUAL, "ann"),
        lambda: other.choose(bob, assignment.query_id, EQUAL, "bob"),
    )
    assert first == Outcome.ACCEPTED and isinstance(second, ConflictError)
    assert [c.labeller for c in store.all_chosen()] == [ann]


def test_what_was_acknowledged_before_a_kill_is_there_after_it(opened: Open) -> None:
    setup = opened()
    asked(setup, 0, 400)
    ann, rng = somebody(setup), random.Random(0)
    setup.close()
    for _ in range(3):
        reading, writing = os.pipe()

        def work(writing: int = writing) -> None:
            store = opened()
            for assignment in iter(lambda: store.assign(ann, 1, repeats=0)[0], None):
                store.choose(ann, assignment.query_id, LEFT, assignment.query_id)
                os.write(writing, assignment.query_id.encode())

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
        store = opened()
        stored = Counter(c.query_id for c in store.all_chosen())
        sent = [acknowledged[i : i + 32] for i in range(0, len(acknowledged), 32)]
        assert {stored[query] for query in sent} == {1} and set(stored.values()) == {1}
        assert store.choose(ann, sent[-1], LEFT, sent[-1]) == Outcome.REPEATED
    assert len(store.collect(0, 999)) == len(stored)


def test_the_tables_are_those_that_the_migrations_make(store: LabelStore) -> None:
    with store._engine.connect() as c:
        assert compare_metadata(MigrationContext.configure(c), tables.metadata) == []


def test_many_open_a_new_store_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        stores = list(pool.map(work, range(8)))
    assert len(most) >= 8 and max(most) == 1
    opening.clear()
    for store in stores:
        store.invite("Ann")
        with store._engine.connect() as c:
            assert c.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL: on the disk when it is acknowledged
        store.close()


def test_a_store_of_a_later_version_is_refused_and_stays_as_it_is(where: Path | str, opened: Open) -> None:
    store = opened()
    with store._write() as c:
        before = c.scalar(text("SELECT version_num FROM alembic_version"))
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        with pytest.raises(UserError, match="later version, with tables of revision 9999"):
            opened()
    finally:
        with store._write() as c:
            c.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": before})
    opened()


def test_a_damaged_file_is_an_error_in_one_line(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "none.sqlite").write_text("labels, many labels " * 100)
    with pytest.raises(CorruptFileError, match=r"none\.sqlite is damaged"):
        LabelStore.open(tmp_path / "none.sqlite", "r" * 32)
    with pytest.raises(UserError, match="cannot be opened"):
        LabelStore.open(tmp_path / "nowhere" / "book.sqlite", "r" * 32)
    with LabelStore.open(tmp_path / "sound.sqlite", "r" * 32) as store:
        asked(store)
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


def test_a_note_stays_with_its_answer(store: LabelStore) -> None:
    asked(store)
    ann = somebody(store)
    first, second = store.assign(ann, 2, repeats=0)
    store.choose(ann, first.query_id, LEFT, "1", note="falls \N{SNOWMAN}")
    store.choose(ann, second.query_id, LEFT, "2")
    assert [c.note for c in store.all_chosen()] == ["falls \N{SNOWMAN}", ""]
    with pytest.raises(UserError, match="at most 500 letters, not 501"):
        store.choose(ann, first.query_id, LEFT, "3", note="x" * 501)


def test_an_answer_of_the_history_may_be_changed_until_training_has_used_it(store: LabelStore, clock: Clock) -> None:
    asked(store, count=4)
    ann, bob = somebody(store, "Ann"), somebody(store, "Bob")
    pairs = store.assign(ann, 3, repeats=0)
    for number, pair in enumerate(pairs):
        clock.now += 1
        store.choose(ann, pair.query_id, LEFT, str(number), note=f"note {number}")
    shown = [(pair.left_clip, pair.right_clip) for pair in pairs]
    assert [past[:6] for past in store.history(ann, 2)] == [
        (str(number), pairs[number].query_id, LEFT, *shown[number], f"note {number}") for number in (2, 1)
    ]
    assert all(past.can_change for past in store.history(ann, 9)) and store.history(bob, 9) == []
    assert store.undo(bob, "0") is None and store.undo(ann, "9") is None  # somebody else's, and none
    assert store.undo(ann, "0") == (pairs[0].query_id, "note 0") and store.undo(ann, "0") is None
    assert store.assign(ann, 9, repeats=0)[0] == pairs[0] and store.pending().missing == 2
    store.choose(ann, pairs[0].query_id, EQUAL, "changed")
    assert [past.choice for past in store.history(ann, 9)] == [EQUAL, LEFT, LEFT]
    assert 0.5 in {answer.label for answer in store.collect(0, 9)}
    assert not any(past.can_change for past in store.history(ann, 9)) and store.undo(ann, "1") is None


def test_a_check_is_final_when_the_answers_around_it_are(store: LabelStore, clock: Clock) -> None:
    """Else the history and undo would tell which pairs come twice."""
    asked(store, count=9)
    ann = somebody(store)

    def answers(number: int, repeats: float) -> str:
        clock.now += 1
        (assignment,) = store.assign(ann, 1, repeats=repeats, gold=0)
        store.choose(ann, assignment.query_id, LEFT, str(number))
        return assignment.purpose

    def finals() -> list[bool]:
        found = [not past.can_change for past in store.history(ann, 20)[::-1]]
        assert found == [chosen.final for chosen in store.all_chosen()]
        return found

    assert [answers(number, 0) for number in range(6)] == [LABEL] * 6
    clock.now += 1
    store.collect(0, 9)
    assert answers(6, 1) == REPEAT and finals() == [True] * 6 + [False]  # its first answer is used, and it is new
    assert store.progress(ann).can_undo and answers(7, 0) == LABEL
    assert finals() == [True] * 6 + [False] * 2
    clock.now += 1
    store.collect(1, 9)
    assert finals() == [True] * 8 and store.undo(ann) is None and store.undo(ann, "6") is None
    clock.now += 1
    store.collect(1, 9)  # as a resumed run does: it takes the same again
    answers(8, 1)
    store.collect(1, 9)
    assert finals() == [True] * 8 + [False] and store.undo(ann) is not None


def test_a_store_of_the_first_revision_is_updated_and_keeps_its_answers(tmp_path: Path) -> None:
    path, migrations = tmp_path / "old.sqlite", database._scripts()
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as c:
        migrations.attributes["connection"] = c
        command.upgrade(migrations, "0001")
        c.execute(text("INSERT INTO runs (id, facts, begun_at) VALUES ('r', '{}', 0), ('other', '{}', 0)"))
    engine.dispose()
    for _ in range(2):
        with LabelStore.open(path, "r") as store:
            with store._read() as c:
                assert c.scalars(tables.runs.select()).all() == ["r", "other"]
            assert store.all_chosen() == []
