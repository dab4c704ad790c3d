"""People as a teacher: what they answer is what training learns from, whoever of the two is killed in between."""

import gzip
import json
import math
import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy.exc import OperationalError

from rlhf_bilevel import Agent
from rlhf_bilevel.data.label_log import LabelLog, RecordedTeacher, encode_pairs
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.pairs import joined
from rlhf_bilevel.human import dataset, teacher
from rlhf_bilevel.human.location import run_id
from rlhf_bilevel.human.records import Pending, Question
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import BOTH_BAD, CANT_TELL, EQUAL, LEFT, RIGHT, SKIP, SLIGHTLY_LEFT, SLIGHTLY_RIGHT
from rlhf_bilevel.human.teacher import HumanTeacher
from rlhf_bilevel.runs import build, environments, selection
from rlhf_bilevel.runs.asked_queries import load
from rlhf_bilevel.studies.batched_seeds import learn_together
from rlhf_bilevel.training.query_session import labels_due
from rlhf_bilevel.types import Preferences, Queries
from tests.conftest import FEW, small_config
from tests.data.test_label_log import queries
from tests.human.test_store import label, somebody
from tests.runs.test_resume import EVERY, QUICK, state
from tests.support.faults import child, kill, tables

STEPS = 300


class FakeRecorder:
    """A clip shows the true reward, so that who looks at it can tell."""

    def __init__(self, store: ReplayBuffer) -> None:
        self.store, self.flushed = store, 0

    def clip(self, rows: torch.Tensor) -> dict[str, Any]:
        return {"scene": "0", "reward": self.store.env_reward[rows].tolist()}

    def scene(self, name: str) -> dict[str, Any]:
        return {"name": name}

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_selection(spec: Any, config: Any, envs: list[Any], store: ReplayBuffer, stream: int) -> tuple[Any, Any]:
        assert stream == environments.SELECTION
        return envs, FakeRecorder(store)

    monkeypatch.setattr(build, "recorded_envs", lambda spec, config, training, store: (training, FakeRecorder(store)))
    monkeypatch.setattr(selection, "recorded_envs", of_selection)
    monkeypatch.setattr(teacher, "INTERVAL", 0.01)


def agent(out: Path | None, teacher: str | None = "human", share: float = 0.0, **settings: Any) -> Agent:
    own: dict[str, Any] = {}
    if teacher == "human":
        own, teacher = {"teacher_pending_share": share, "teacher_human": True}, None
    kind = {"teacher": teacher, "out": out, "checkpoint_every": EVERY}
    return Agent("penalty", "tests.conftest:Steer-v0", **kind, **(QUICK | FEW["penalty"] | own | settings))


def better(label_store: LabelStore, left: str, right: str) -> str:
    shown = []
    for clip in (left, right):
        data = label_store.clip(clip)
        assert data is not None
        shown.append(torch.tensor(json.loads(gzip.decompress(data))["reward"]).sum().item())
    return EQUAL if shown[0] == shown[1] else LEFT if shown[0] > shown[1] else RIGHT


def test_the_labelling_time_of_a_session_is_what_people_spent_since_the_one_before(tmp_path: Path) -> None:
    """Also on pairs that they skipped; a look at a pair counts five minutes at most."""
    store = ReplayBuffer(2, 1, 60)
    store.begin(0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        store.add(rng.normal(size=2), rng.normal(size=1), rng.normal(size=2), rng.normal(), False)
    config = small_config(labels=4, segment_length=5, teacher_human=True, teacher_pending_share=1.0)
    record: dict[str, Any] = {"method": "pebble", "env": "Steer-v0", "teacher": "settings", "algorithm": "SAC"}
    record |= {"algorithm_settings": {}, "device": "cpu", "threads": 1, "settings": config.model_dump(mode="json")}
    RunFolder(tmp_path).write_config(record)
    asked, log = [], LabelLog(tmp_path / "labels.sqlite")
    for _ in range(2):
        asked.append(Queries(*(store.sample_segments([(0, 60)], 2, 5, rng) for _ in range(2))))
    now = [time.time()]

    def look(label_store: LabelStore, choice: str, seconds: float) -> None:
        me = somebody(label_store)
        (assignment,) = label_store.assign(me, 1, repeats=0, gold=0)
        shown_at, now[0] = now[0], now[0] + seconds
        label_store.choose(me, assignment.query_id, choice, f"{choice} after {seconds}", shown_at)

    with HumanTeacher(config, store, FakeRecorder(store), tmp_path) as human:
        recorded = RecordedTeacher(human, log)
        assert not len(recorded(asked[0]).label) and recorded.seconds == 0
        with LabelStore.open(tmp_path / "book.sqlite", run_id(tmp_path), clock=lambda: now[0]) as label_store:
            look(label_store, LEFT, 20.0)
            look(label_store, SKIP, 7.0)
            recorded(asked[1])
            assert recorded.seconds == pytest.approx(27, abs=0.1)
            look(label_store, RIGHT, 0.0)
            look(label_store, EQUAL, 9999.0)
        recorded(asked[1])
        assert recorded.seconds == pytest.approx(300, abs=0.1)
    assert sum(seconds or 0 for seconds in log.seconds()) == pytest.approx(327, abs=0.2)


def learnt(agent: Agent) -> str:
    """The state of a run but for the time that labelling took, which an oracle does not tell."""
    assert agent.run
    agent.run.labelling_seconds = None
    return state(agent)


@contextmanager
def person(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Somebody in a process of their own, who takes so long for an answer, and is killed at the end."""
    pid = os.fork()
    if pid == 0:
        while not (folder / "config.yaml").exists():
            time.sleep(0.01)
        with LabelStore.of(folder) as label_store:
            me = somebody(label_store)
            while True:
                time.sleep(seconds or 0.002)
                for assignment in label_store.assign(me, 2):
                    choice = better(label_store, assignment.left_clip, assignment.right_clip)
                    label_store.choose(me, assignment.query_id, choice, f"{time.monotonic()}")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of who answers at once and knows the true reward."""
    out = tmp_path_factory.mktemp("oracle") / "run"
    return out, learnt(agent(out, "oracle").learn(STEPS))


@pytest.mark.slow
def test_people_who_know_better_teach_as_the_oracle_does(tmp_path: Path, oracle: tuple[Path, str]) -> None:
    """Training waits for all of them, in a process of its own: the two runs are equal bit for bit."""
    out = tmp_path / "run"
    with person(out):
        run = agent(out).learn(STEPS)
    assert learnt(run) == oracle[1] and tables(out / "labels.sqlite") == tables(oracle[0] / "labels.sqlite")
    assert run._session and run._session._people.recorder.flushed  # before each checkpoint
    with LabelStore.of(out) as label_store:
        status, facts = label_store.status(), label_store.run_info()
        assert label_store.scene("0") and status is not None
    assert (status.step, status.labels, status.waiting) == (STEPS, 40, False) and "come to its end" in status.doing
    assert (facts["env"], facts["method"], facts["votes"]) == ("tests.conftest:Steer-v0", "penalty", 1)
    answered, truth = load(out), load(oracle[0])
    assert torch.equal(answered.label[answered.labelled], truth.label[truth.labelled])
    assert set(answered.labeller) == {"Ann"} and (out / "preferences.parquet").exists()
    assert Agent.load(out).predict(torch.zeros(1).numpy())[0].shape == (1,)


@pytest.mark.slow
def test_a_kill_between_the_store_and_the_log_loses_and_doubles_nothing(
    tmp_path: Path, oracle: tuple[Path, str]
) -> None:
    """Training is killed after it takes answers from the label store and before it writes them to its log; twice."""
    out, append = tmp_path / "run", LabelLog.append

    def doomed(work: Callable[[], Any], session: int) -> Callable[[], None]:
        def stop() -> None:
            def dies(log: LabelLog, *args: Any) -> None:
                if len(log) == session:
                    kill()
                append(log, *args)

            LabelLog.append = dies  # type: ignore[method-assign]
            work()

        return stop

    with person(out):
        assert child(doomed(lambda: agent(out).learn(STEPS), 0)) == 9
    with person(out):  # the page was started again, too
        assert child(doomed(lambda: Agent.resume(out, checkpoint_every=EVERY), 3)) == 9
        assert learnt(Agent.resume(out, checkpoint_every=EVERY)) == oracle[1]
    assert tables(out / "labels.sqlite") == tables(oracle[0] / "labels.sqlite")


@pytest.mark.slow
def test_training_goes_on_while_people_label_and_can_be_run_once_more(tmp_path: Path) -> None:
    """Answers come whenever they come; the same log gives the same run, bit for bit."""
    out = tmp_path / "run"
    with person(out, seconds=0.05):
        run = learnt(agent(out, share=1.0).learn(STEPS))
    with closing(LabelLog(out / "labels.sqlite")) as log:
        taken = [len(log[number].answers) for number in range(len(log))]
        every = Counter((first, second) for number in range(len(log)) for _, first, second in log[number].answers)
    assert 0 < sum(taken) <= 40 and every <= Counter(encode_pairs(load(out).preferences()))  # a pair may be drawn twice
    if sum(taken):
        again = tmp_path / "again"
        assert learnt(agent(again, f"rerun={out / 'labels.sqlite'}").learn(STEPS)) == run
        assert tables(again / "labels.sqlite")[1] == tables(out / "labels.sqlite")[1]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run that has not asked anything yet."""
    agent(tmp_path / "run").start(STEPS)
    return tmp_path / "run"


def entered(begun: Path, share: float = 0.0) -> teacher.HumanTeacher:
    """The teacher of that run, with a store in which the test's queries are."""
    asked = queries(6)
    store = ReplayBuffer(2, 1, 1000)
    for segments in asked:
        for obs, act, truth in zip(*segments, strict=True):
            store.begin(0)
            for step in range(5):
                store.add(obs[step].numpy(), act[step].numpy(), obs[step].numpy(), float(truth[step]), False)
    LabelLog(begun / "labels.sqlite").close()
    config = small_config(teacher_human=True, teacher_pending_share=share, segment_length=5)
    return teacher.HumanTeacher(config, store, FakeRecorder(store), begun)


def test_so_much_may_wait_and_no_more(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for share, asked, missing, more, needed in (
        (0.0, 10, 10, 0, 10), (0.0, 10, 0, 0, 0), (1.0, 10, 10, 0, 0), (0.5, 10, 10, 0, 5), (0.5, 20, 10, 0, 0),
        (0.5, 5, 5, 0, 3), (0.3, 10, 4, 0, 1), (0.5, 10, 5, 4, 2), (0.0, 10, 0, 4, 4),
    ):  # fmt: skip
        people, counted = entered(begun, share), Pending(asked, missing)
        monkeypatch.setattr(LabelStore, "pending", lambda _, counted=counted: counted)
        with people:
            assert people._needed(more)[0] == needed, (share, asked, missing, more)


def test_training_waits_for_a_database_that_is_away(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [OperationalError("", {}, Exception("server is restarting"))] * 3

    def away(*_: object) -> Pending:
        if faults:
            raise faults.pop()
        return Pending(6, 0)

    monkeypatch.setattr(LabelStore, "pending", away)
    with entered(begun) as people, pytest.warns(UserWarning, match="server is restarting") as told:
        assert len(people(queries(6)).label) == 0
    assert len(told) == 1 and not faults


def test_what_everybody_skips_is_not_waited_for(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with entered(begun) as people:
        with LabelStore.of(begun) as label_store:
            ann = somebody(label_store)
            people._ask(0, queries(6), 40)
            for choice in (SKIP, CANT_TELL, LEFT, SKIP, RIGHT, EQUAL):
                label(label_store, ann, choice=choice)
        answers = people(queries(6))
    assert len(answers.label) == 3 and answers.label.tolist().count(0.5) == 1
    assert f"rlhf-bilevel label {begun}" in capsys.readouterr().out


def questions(asked: Queries) -> list[Question]:
    return [Question(*pair, {}, {}) for pair in encode_pairs(asked)]


def test_a_dataset_tells_who_chose_what_and_when(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = queries(5)
    with LabelStore.of(begun) as label_store:
        assert LabelStore.of(begun).run == label_store.run
        label_store.ask(0, questions(asked), wanted=2)
        clock = [0.0]
        monkeypatch.setattr(label_store, "_clock", lambda: clock[0])
        ann, bob = somebody(label_store), somebody(label_store, "Bob")
        both = [label_store.assign(who, 4, repeats=0) for who in (ann, bob)]
        clock[0] = 100.0
        for number, choice in enumerate((LEFT, EQUAL, SKIP, CANT_TELL)):
            label_store.choose(ann, both[0][number].query_id, choice, str(number), 10.0 + number, 11.0 + number)
        assignment = both[1][0]
        label_store.choose(bob, assignment.query_id, LEFT, "0", 20.0, 21.5)
        chosen = [c for c in label_store.all_chosen() if c.choice == LEFT]
        lefts = {(c.labeller.name, c.query_id): float(c.left_is_first) for c in chosen}
        first = label_store.all_asked()[0].query_id
    data = load(begun)
    assert data.labeller == ("Ann", "Bob", "Ann", "Ann", "Ann", "")
    assert data.label_kind == ("choice", "choice", "tie", "skipped", "skipped", "open")
    assert data.label[:3].tolist() == [lefts["Ann", first], lefts["Bob", first], 0.5] and data.label[3:].isnan().all()
    assert data.t_shown[:3].tolist() == [10.0, 20.0, 11.0] and data.t_answered[:3].tolist() == [11.0, 21.5, 12.0]
    assert torch.equal(data.segments.obs[data.first[[0, 2, 3, 4, 5]]], asked.first.obs)


def test_slight_preferences_and_bad_pairs_go_into_a_dataset_and_come_back(begun: Path, tmp_path: Path) -> None:
    asked, words = queries(4), (SLIGHTLY_LEFT, SLIGHTLY_RIGHT, BOTH_BAD, LEFT)
    with LabelStore.of(begun) as label_store:
        label_store.ask(0, questions(asked))
        ann = somebody(label_store)
        for word in words:
            label(label_store, ann, choice=word)
        sides = [c.left_is_first for c in label_store.all_chosen()]
    data, expected = load(begun), [0.75, 0.25, 0.5, 1.0]
    assert data.label.tolist() == [x if first else 1 - x for x, first in zip(expected, sides, strict=True)]
    assert data.label_kind == ("probability", "probability", "tie", "choice")
    data.write(tmp_path / "labels.parquet")
    again = tmp_path / "again"
    agent(again).start(STEPS)
    with LabelStore.of(again) as label_store:
        label_store.ask(0, questions(asked))
        assert dataset.import_choices(label_store, Dataset.read(tmp_path / "labels.parquet")) == (4, 0, 0)
        assert [answer.label for answer in label_store.collect(0, 9)] == data.label.tolist()


def test_a_name_that_nobody_can_have_is_told_before_an_answer_is_stored(begun: Path, tmp_path: Path) -> None:
    asked, data = queries(3), tmp_path / "elsewhere.parquet"
    made = Dataset.of(asked, torch.ones(3), env_id="e", labeller="ada", sampler="uniform")
    replace(made, labeller=("ada", "", "eve")).write(data)
    with LabelStore.of(begun) as label_store:
        label_store.ask(0, questions(asked))
        with pytest.raises(UserError, match="printable letters, not ''"):
            dataset.import_choices(label_store, Dataset.read(data))
        assert not label_store.all_chosen()


def test_answers_that_were_given_elsewhere_are_entered_once(begun: Path, tmp_path: Path) -> None:
    asked, data = queries(4), tmp_path / "elsewhere.parquet"
    made = {"env_id": "e", "labeller": "Eve", "sampler": "uniform", "t_shown": [1.0] * 5, "t_answered": [2.0] * 5}
    both = joined([asked, queries(1, 7)])
    Dataset.of(both, torch.tensor([1.0, 0.5, 0.0, torch.nan, 1.0]), **made).write(data)  # type: ignore[arg-type]
    with LabelStore.of(begun) as label_store:
        label_store.ask(0, questions(asked))
        ann = somebody(label_store)
        label_store.assign(ann, 1)  # what is in front of somebody may be answered elsewhere
        assert dataset.import_choices(label_store, Dataset.read(data)) == (3, 0, 2)
        assert dataset.import_choices(label_store, Dataset.read(data)) == (0, 3, 2)
        assert [c.labeller.name for c in label_store.all_chosen()] == ["Eve"] * 3
        assert [answer.label for answer in label_store.collect(0, 9)] == [1.0, 0.5, 0.0]
        assert dataset.import_choices(label_store, Dataset.read(data)) == (0, 3, 2)
    mine = load(begun)
    assert mine.t_answered[mine.labelled].tolist() == [2.0] * 3 and mine.label_kind[3] == "open"


@pytest.mark.slow
def test_a_dataset_is_replayed(tmp_path: Path, oracle: tuple[Path, str]) -> None:
    replayed = agent(tmp_path / "run", f"replay={oracle[0] / 'preferences.parquet'}").learn(STEPS)
    assert replayed.run is not None and len(replayed.run.prefs) == 40
    assert tables(tmp_path / "run" / "labels.sqlite")[1] == tables(oracle[0] / "labels.sqlite")[1]


def test_people_are_asked_by_one_run_with_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ValueError, match="give its folder as out="):
        agent(None).start(STEPS)
    with pytest.raises(UserError, match="no cohort"):
        learn_together([agent(tmp_path / "a"), agent(tmp_path / "b", seed=1)], STEPS)
    assert not (tmp_path / "a").exists()
    agent(tmp_path / "c", "oracle").start(STEPS)
    for folder, told in ((tmp_path / "c", "--teacher human"), (tmp_path / "none", "no config.yaml")):
        with pytest.raises(UserError, match=told):
            LabelStore.of(folder)


def test_the_keyboard_ends_the_wait_and_the_page_says_so(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = entered(begun)
    with LabelStore.of(begun) as label_store:
        ann = somebody(label_store)

        def interrupted(_: float) -> None:
            waiting = label_store.status()
            assert waiting and waiting.waiting and waiting.needed == 6 and "for 6 more answers" in waiting.doing
            told = label_store.progress(ann)
            assert (told.mine, told.total, told.open, told.needed) == (0, 0, 6, 6)
            label(label_store, ann, choice=LEFT)
            assert label_store.progress(ann).needed == 5  # before training counts again
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt), people:
            people(queries(6))
        stopped = label_store.status()
        assert stopped and stopped.stopped and not stopped.waiting and f"rlhf-bilevel resume {begun}" in stopped.doing


def test_the_accuracy_on_fresh_labels_counts_what_a_reward_model_predicted() -> None:
    prefs, even = PreferenceBuffer(), math.log(2)
    assert teacher.fresh_accuracy(prefs) == (None, 0)
    first, later = queries(4), queries(6)
    prefs.add(Preferences(*first, torch.tensor([1.0, 0.0, 1.0, 0.0])), torch.full((4,), even))
    assert teacher.fresh_accuracy(prefs) == (None, 0)  # there was no reward model
    labels, losses = [1.0, 0.0, 0.5, 0.75, 1.0, 0.0], [0.1, 2.0, 0.1, 0.1, 0.3, 0.2]
    prefs.add(Preferences(*later, torch.tensor(labels)), torch.tensor(losses))
    assert teacher.fresh_accuracy(prefs) == (0.75, 4)


def test_training_tells_when_it_asks_again_and_how_much(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with entered(begun) as people, LabelStore.of(begun) as label_store:
        c, now = people._config, [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        run: Any = SimpleNamespace(config=c, prefs=PreferenceBuffer(), learnt=True, asked=[])
        last = c.total_timesteps - c.total_timesteps % c.num_interact
        for step, since, ahead in ((3, 0, c.num_interact - 3), (3, 10, 7), (last - 1, 0, 1), (last, 0, None)):
            run.step, run.on_policy_since = step, since
            now[0] += 100
            people._last_report = now[0] - 2.0, step - 4  # two steps a second
            people.beat(run)
            told = label_store.status()
            assert told and told.next_session == (None if ahead is None else ahead / 2)
            run.step += ahead or 0
            due = 0 if ahead is None else labels_due(run)  # more than usual, as earlier sessions got none
            assert told.spare == math.floor(c.teacher_pending_share * due + 1e-9) - due
        run.step = 3
        now[0] += 100
        people._last_report = now[0] - 2.0, 3  # it does not move
        people.beat(run)
        told = label_store.status()
        assert told and told.next_session is None


def test_a_resumed_run_tells_of_the_answers_that_it_will_use_again(begun: Path) -> None:
    """Those of sessions after its checkpoint; until then it needs no other ones."""
    with closing(LabelLog(begun / "labels.sqlite")) as log:
        with entered(begun, share=1.0) as people, LabelStore.of(begun) as label_store:
            recorded = RecordedTeacher(people, log)
            recorded(queries(6))
            label(label_store, somebody(label_store), 3, LEFT)
            answers = recorded(queries(6))
        run: Any = SimpleNamespace(step=3, prefs=PreferenceBuffer(), learnt=False, on_policy_since=10)
        with entered(begun, share=0.0) as people, LabelStore.of(begun) as label_store:
            seen, run.config, run.asked = [], people._config, []
            for _ in range(2):
                people._next_report, people._last_report = 0.0, (0.0, 0)
                people.beat(run)
                status = label_store.status()
                assert status
                seen.append((status.labels, status.again, status.needed > 0, status.next_session is not None))
                run.prefs.add(answers, torch.zeros(3))
            assert seen == [(0, 3, False, False), (3, 0, True, True)]


def test_training_that_goes_on_does_not_count_earlier_steps_into_its_speed(begun: Path) -> None:
    run: Any = SimpleNamespace(step=60, prefs=PreferenceBuffer(), learnt=False, on_policy_since=1000)
    with entered(begun) as people, LabelStore.of(begun) as label_store:
        assert people._buffer.size == run.step
        run.config, run.asked = people._config, []
        people.beat(run)
        status = label_store.status()
        assert status and status.next_session is None and "0 steps a second" in status.doing


def test_the_time_that_training_waits_is_not_counted_into_its_speed(begun: Path) -> None:
    with entered(begun, share=1.0) as people:
        people._next_report, people._last_report = 0.0, (0.0, 0)
        before = time.monotonic()
        people(queries(6))
        assert people._last_report[0] >= before and people._last_report[1] == people._buffer.size
        assert people._next_report > before


def test_healthy_people_are_no_reason_to_warn(begun: Path) -> None:
    with entered(begun, share=1.0) as people, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(people(queries(6)).label) == 0


def choose(run: Path, new: Path | None, teacher: str) -> selection.Selection:
    return Agent.load(run).select(12, teacher=teacher, out=new)


@pytest.mark.slow
def test_people_choose_the_policy_that_the_oracle_chooses(tmp_path: Path, oracle: tuple[Path, str]) -> None:
    new = tmp_path / "new"
    with person(new):
        chosen = choose(oracle[0], new, "human")
    assert chosen == choose(oracle[0], None, "oracle")
    assert Agent.load(new).predict(torch.zeros(1).numpy())[0].shape == (1,)
    assert len(load(new)) == chosen.labels and set(load(new).labeller) == {"Ann"}
    with LabelStore.of(new) as label_store:
        status = label_store.status()
    compared = {policy for match in chosen.matches for policy in (match.challenger, match.incumbent)}
    assert status and (status.labels, status.stopped, status.ended) == (chosen.labels, True, True)
    assert status.policies == len(chosen.matches) + 1 >= len(compared)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 3])
def test_people_s_answers_are_not_lost_if_a_selection_is_killed(
    tmp_path: Path, oracle: tuple[Path, str], asked: int
) -> None:
    new = tmp_path / "new"

    def stop() -> None:
        ask, left = selection._Pairs.ask, iter(range(100))

        def doomed(self: Any, *both: Any) -> Any:
            if next(left) == asked:
                kill()
            return ask(self, *both)

        selection._Pairs.ask = doomed  # type: ignore[method-assign]
        choose(oracle[0], new, "human")

    with person(new):
        assert child(stop) == 9
        with pytest.raises(UserError, match="the same rlhf-bilevel select command goes on"):
            Agent.resume(new)
        with pytest.raises(UserError, match="exists already"):
            Agent.load(oracle[0]).select(13, teacher="human", out=new)
        chosen = choose(oracle[0], new, "human")
    assert chosen == choose(oracle[0], None, "oracle")
    with LabelStore.of(new) as label_store:
        assert len({choice.query_id for choice in label_store.all_chosen()}) == chosen.labels  # some are shown twice


def test_people_are_asked_through_a_folder(oracle: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match=r"give a new folder as out= .--out"):
        choose(oracle[0], None, "human")
