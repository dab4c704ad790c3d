"""Labels are on the disk before they are used, and are used again as they were."""

import sqlite3
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_bilevel.data.answers import ask_teacher, check_answers, seconds_of, select
from rlhf_bilevel.data.label_log import COLUMNS, LabelLog, RecordedTeacher, read_seconds
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.feedback.teachers import OracleTeacher
from rlhf_bilevel.types import Preferences, Queries, Segments
from tests.support.faults import child, corrupted, full_disk, kill


def queries(count: int = 3, seed: int = 0) -> Queries:
    rng = torch.Generator().manual_seed(seed)
    first, second = (
        Segments(*(torch.randn(count, 5, *size, generator=rng) for size in ((2,), (1,), ()))) for _ in range(2)
    )
    return Queries(first, second)


def answers(count: int = 3, seed: int = 0) -> Preferences:
    return OracleTeacher()(queries(count, seed))


def equal(one: Preferences, other: Preferences) -> bool:
    pairs = zip([*one.first, *one.second, one.label], [*other.first, *other.second, other.label], strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


class Never:
    def __call__(self, queries: Queries) -> Preferences:
        raise AssertionError("the teacher was asked again")


class Scripted:
    """A teacher that gives one return after another, whatever it is asked."""

    def __init__(self, *returns: Preferences) -> None:
        self.returns = list(returns)

    def __call__(self, queries: Queries) -> Preferences:
        return self.returns.pop(0)


def test_what_was_answered_is_answered_again_bit_for_bit_without_the_teacher(tmp_path: Path) -> None:
    given = [answers(3), answers(0), answers(2, seed=1)._replace(label=torch.tensor([0.5, 1 / 3]))]
    first = RecordedTeacher(Scripted(*given), LabelLog(tmp_path / "labels.sqlite"))
    for session in given:
        assert equal(first(queries()), session)
    again = RecordedTeacher(Never(), LabelLog(tmp_path / "labels.sqlite"))
    for session in given:
        assert equal(again(queries()), session)
    with pytest.raises(AssertionError, match="asked again"):
        again(queries())


def test_any_tool_can_read_the_log(tmp_path: Path) -> None:
    RecordedTeacher(Scripted(answers(3)), LabelLog(tmp_path / "labels.sqlite"))(queries())
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        rows = connection.execute("SELECT session, label FROM answers ORDER BY number").fetchall()
        mode = connection.execute("PRAGMA journal_mode").fetchone()
    assert rows == [(0, label) for label in answers(3).label.tolist()] and mode == ("wal",)


class Faulty:
    """A connection with a fault before, or after, its ``number``-th statement."""

    def __init__(self, connection: sqlite3.Connection, number: int, fault, after: bool) -> None:
        self.connection, self.number, self.fault, self.after, self.seen = connection, number, fault, after, 0

    def execute(self, *args):
        self.seen += 1
        if self.seen == self.number and not self.after:
            self.fault()
        done = self.connection.execute(*args)
        if self.seen == self.number and self.after:
            self.fault()
        return done

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction


STATEMENTS = 7  # of a session with three answers: its number, BEGIN, the session, three answers, COMMIT


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_statement_leaves_all_of_a_session_or_none(tmp_path: Path, after: bool) -> None:
    kept = []
    for number in range(1, STATEMENTS + 1):
        path = tmp_path / f"{number}.sqlite"
        log = LabelLog(path)
        log.append(3, answers(3))
        log.close()

        def work(path: Path = path, number: int = number) -> None:
            log = LabelLog(path)
            log._connection = Faulty(log._connection, number, kill, after)  # type: ignore[assignment]
            log.append(3, answers(3, seed=1))

        assert child(work) == 9
        log = LabelLog(path)
        kept.append(len(log))
        assert [len(log[i].answers) for i in range(len(log))] == [3] * len(log)
        log.append(2, answers(2))  # nothing is in the way of the next one
        assert len(log) == kept[-1] + 1
    assert kept == [1] * (STATEMENTS - 1) + [2 if after else 1]


def test_a_full_disk_is_an_error_and_the_session_can_be_stored_later(tmp_path: Path) -> None:
    for number in range(2, STATEMENTS + 1):
        log = LabelLog(tmp_path / f"{number}.sqlite")
        real = log._connection
        log._connection = Faulty(real, number, full_disk, after=False)  # type: ignore[assignment]
        with pytest.raises(OSError, match="No space left"):
            log.append(3, answers(3))
        log._connection = real
        assert len(log) == 0
        log.append(3, answers(3))
        assert len(log) == 1


def test_the_answers_that_were_used_come_back_from_the_log_and_from_no_other(tmp_path: Path) -> None:
    log, other = LabelLog(tmp_path / "labels.sqlite"), LabelLog(tmp_path / "other.sqlite")
    for seed, count in enumerate((3, 0, 3)):
        log.append(3, answers(count, seed))
        other.append(3, answers(count, seed + 1))
    first, none, last = log.used([3, 0, 2], log.sha256(3))  # of the last, one was beyond the budget
    assert first is not None and none is None and last is not None
    assert equal(first, answers(3, 0)) and equal(last, select(answers(3, 2), slice(2)))
    with pytest.raises(CorruptFileError, match="its first 3 sessions are not those that the checkpoint knew"):
        other.used([3, 0, 2], log.sha256(3))
    with pytest.raises(CorruptFileError, match="holds 3 sessions and 4 were used"):
        log.used([3, 0, 2, 1], log.sha256(4))


def test_a_damaged_log_is_an_error_or_gives_what_was_stored(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "sound.sqlite"
    log = LabelLog(path)
    for seed in range(4):
        log.append(3, answers(3, seed))
    log.close()
    data, refused = path.read_bytes(), 0
    for i in range(200):
        damaged = tmp_path / f"{i}.sqlite"
        damaged.write_bytes(corrupted(data, rng))
        try:
            again = RecordedTeacher(Never(), LabelLog(damaged))
            assert all(equal(again(queries()), answers(3, seed)) for seed in range(4))
        except (CorruptFileError, AssertionError) as error:  # a session that is missing altogether is asked again
            assert isinstance(error, CorruptFileError) or "asked again" in str(error)
            refused += 1
    assert refused > 100  # the others hit bytes that hold nothing


class Timed(Scripted):
    """A teacher that tells how long each of its answers took."""

    def __init__(self, *seconds: object) -> None:
        super().__init__(*(answers(3) for _ in seconds))
        self._all: list[Any] = [*seconds]

    def __call__(self, queries: Queries) -> Preferences:
        self.seconds = self._all.pop(0)
        return super().__call__(queries)


def test_labelling_time_is_logged_and_comes_back_with_the_answers(tmp_path: Path) -> None:
    path, told = tmp_path / "labels.sqlite", (2, np.float32(0.5), None, 0)
    first = RecordedTeacher(Timed(*told), LabelLog(path))
    again = RecordedTeacher(Never(), LabelLog(path))
    for teacher in (first, again):
        seen = []
        for _ in told:
            teacher(queries())
            seen.append(teacher.seconds)
        assert seen == [2.0, 0.5, None, 0.0]
    assert read_seconds(path) == [2.0, 0.5, None, 0.0] and read_seconds(tmp_path / "none.sqlite") == []
    untimed = RecordedTeacher(Scripted(answers(3)), LabelLog(tmp_path / "other.sqlite"))
    untimed(queries())
    assert untimed.seconds is None


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "3", [3.0]])
def test_a_labelling_time_that_is_none_is_refused_and_nothing_is_logged(tmp_path: Path, seconds: object) -> None:
    log = LabelLog(tmp_path / "labels.sqlite")
    with pytest.raises(UserError, match="a teacher's seconds must be None or a number of seconds, not ") as caught:
        RecordedTeacher(Timed(seconds), log)(queries())
    assert "\n" not in str(caught.value) and not len(log)
    assert seconds_of(Scripted()) is None


def test_a_damaged_labelling_time_and_a_log_without_any(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    log = LabelLog(path)
    log.append(3, answers(3), seconds=5.0)
    log.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sessions SET seconds = -5")
    with pytest.raises(CorruptFileError, match="session 0 are not as they were written"):
        LabelLog(path)[0]
    with sqlite3.connect(path) as connection:  # what the second form knew
        for column in COLUMNS[COLUMNS.index("seconds") :]:
            connection.execute(f"ALTER TABLE sessions DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 2")
    log = LabelLog(path)
    assert log[0].seconds is None and len(log[0].answers) == 3
    log.append(3, answers(3), seconds=5.0)
    assert log.seconds() == [None, 5.0]


def test_answers_that_cannot_be_learnt_from_are_left_out_and_named() -> None:
    given = answers(4)._replace(label=torch.tensor([1.0, 2.0, float("nan"), 0.0]))
    given.first.obs[3, 0, 0] = float("inf")
    with pytest.warns(UserWarning) as told:
        kept = check_answers(given, queries(4))
    assert equal(kept, select(given, slice(1)))
    assert [str(one.message) for one in told] == [
        "3 of 4 answers are left out (label=2, label=nan, label=0): a label must lie in [0, 1], and segments be finite"
    ]
    with pytest.warns(UserWarning, match=r"all 3 answers are left out \(label=2, label=2, label=2\)"):
        assert not len(check_answers(answers(3)._replace(label=torch.full((3,), 2.0)), queries(3)).label)


def test_what_is_no_answer_at_all_is_refused_in_a_line_that_names_it() -> None:
    good = answers(3)
    for wrong, told in (
        (None, "must return Preferences, not None"),
        (good.label, "Tensor"),
        (tuple(good), "tuple"),
        (good._replace(first=tuple(good.first)), "first must be Segments"),
        (good._replace(label=None), r"label must be numbers, not None \(NoneType\)"),
        (good._replace(label=["first", "second", "tie"]), "label must be numbers, not .*first.*list"),
        (good._replace(label=torch.tensor([1j, 0, 1])), "label must be numbers"),
        (good._replace(label=good.label[:, None]), r"\(3, 1\)"),
        (good._replace(label=1.0), r"one axis, not the shape \(\)"),
        (
            good._replace(label=good.label[:2]),
            r"first.obs must have the shape \(2, 5, 2\) for 2 labels, not \(3, 5, 2\)",
        ),
        (
            good._replace(first=good.first._replace(act=good.first.act[:, :4])),
            r"first.act must have the shape \(3, 5, 1\)",
        ),
        (
            good._replace(second=good.second._replace(env_reward=np.array(["a", "b"]))),
            "second.env_reward must be numbers",
        ),
    ):
        with pytest.raises(UserError, match=told) as caught:
            check_answers(wrong, queries(3))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["numpy", "list", "bool", "integer", "float64", "half", "grad", "reused"])
def test_numbers_of_any_kind_are_logged_and_learnt_from_as_float32(tmp_path: Path, kind: str) -> None:
    good, own = answers(3)._replace(label=torch.tensor([1.0, 0.0, 1.0])), answers(3)
    label, obs = good.label, good.first.obs
    given = {
        "numpy": (label.numpy(), obs.double().numpy()),
        "list": (label.tolist(), obs.tolist()),
        "bool": (label > 0.5, obs),
        "integer": (label.long(), obs),
        "float64": (label.double(), obs.double()),
        "half": (label.half(), obs),
        "grad": (label.clone().requires_grad_(), obs.clone().requires_grad_()),
        "reused": (own.label, own.first.obs),
    }[kind]
    own.label.copy_(label)
    recorded = RecordedTeacher(
        Scripted(good._replace(label=given[0], first=good.first._replace(obs=given[1]))),
        LabelLog(tmp_path / "l.sqlite"),
    )
    kept = recorded(queries())
    own.label.zero_()  # a teacher may use its memory again
    own.first.obs.zero_()
    assert equal(kept, good)
    assert equal(RecordedTeacher(Never(), LabelLog(tmp_path / "l.sqlite"))(queries()), good)


def test_an_answer_that_is_refused_leaves_no_trace_in_the_log(tmp_path: Path) -> None:
    good = answers(3)
    log = LabelLog(tmp_path / "labels.sqlite")
    with pytest.raises(UserError, match="label must be numbers"):
        RecordedTeacher(Scripted(good._replace(label="nothing")), log)(queries())  # type: ignore[arg-type]
    assert len(log) == 0
    assert equal(RecordedTeacher(Scripted(good), log)(queries()), good)  # a mended teacher goes on


def test_what_float32_cannot_hold_is_left_out_with_its_pair() -> None:
    far = answers(3)
    far = far._replace(
        first=far.first._replace(env_reward=far.first.env_reward.double() * torch.tensor([1, 1e300, 1])[:, None])
    )
    with pytest.warns(UserWarning, match="left out"):
        assert len(check_answers(far, queries(3)).label) == 2


def test_a_teacher_that_changes_the_segments_in_place_is_refused_and_changes_nothing_of_ours() -> None:
    asked, before = queries(3), queries(3)

    def scaling(own: Queries) -> Preferences:
        own.second.act.mul_(2)
        return OracleTeacher()(own)

    with pytest.raises(UserError, match=r"must not change the segments .* changed their act"):
        ask_teacher(scaling, asked)
    assert all(
        torch.equal(a, b) for one, other in zip(asked, before, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert equal(ask_teacher(OracleTeacher(), asked), answers(3))


def test_healthy_answers_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal(check_answers(answers(3), queries(3)), answers(3))
