"""Which of a run's policies the teacher prefers: on fresh episodes, for labels that count, and without a trace."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.label_log import read_sessions
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.feedback.teachers import OracleTeacher
from rlhf_bilevel.human.page_text import page_text
from rlhf_bilevel.runs import selection
from rlhf_bilevel.types import Preferences, Queries
from tests.cli.test_cli import fails
from tests.conftest import FEW
from tests.runs.test_fork import snapshot
from tests.runs.test_resume import QUICK, equal
from tests.support.faults import child, kill

STEPS = 300
GOOD = 180  # step of the policy that steers to the target


def run(out: Path | None, method: str = "pebble", **settings: Any) -> Agent:
    return Agent(method, "tests.conftest:Steer-v0", out=out, **(QUICK | settings)).learn(STEPS)


def steer(policy: Any, gain: float) -> None:
    """Makes a policy of two hidden layers push towards the target with this gain: negative gains push away."""
    layers = [layer for layer in (*policy.actor.latent_pi, policy.actor.mu) if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        layers[0].weight[0, 0], layers[0].bias[0] = 1.0, -0.5
        layers[0].weight[1, 0], layers[0].bias[1] = -1.0, 0.5
        for middle in layers[1:-1]:
            middle.weight[0, 0] = middle.weight[1, 1] = 1.0
        layers[-1].weight[0, 0], layers[-1].weight[0, 1] = -gain, gain


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "plain"
    run(out)
    return out


@pytest.fixture(scope="module")
def collapsed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose kept policies push away from the target, except for one."""
    out = tmp_path_factory.mktemp("runs") / "collapsed"
    shutil.copytree(plain, out)
    folder, model = RunFolder(out), Agent.load(plain).model
    for step in folder.kept_policies():
        steer(model.policy, 5.0 if step == GOOD else -0.2)
        folder.keep_policy(step, model.policy)
    folder.write_models(model, folder.read_reward())
    return out


@pytest.mark.parametrize("method", [pytest.param("penalty", marks=pytest.mark.slow), "prefppo"])
def test_a_run_keeps_its_policy_at_each_tenth_and_at_its_end(tmp_path: Path, method: str) -> None:
    agent = run(tmp_path / "run", method, **FEW.get(method, {}))
    folder = RunFolder(tmp_path / "run")
    assert list(folder.kept_policies()) == [60, 90, 120, 150, 180, 210, 240, 270, 300]
    last, first = (load_file(file) for file in list(folder.kept_policies().values())[::-8])
    assert last and all(torch.equal(agent.model.policy.state_dict()[name], value) for name, value in last.items())
    assert not any(name.startswith("critic") for name in last)
    assert not all(torch.equal(value, last[name]) for name, value in first.items())


def test_a_run_that_is_stopped_keeps_its_last_policy(tmp_path: Path) -> None:
    agent = Agent("pebble", "Steer-v0", out=tmp_path / "run", **QUICK)
    agent.learn(STEPS, callback=lambda local, _: agent.run is None or agent.run.step < 100)  # type: ignore[arg-type]
    assert list(RunFolder(tmp_path / "run").kept_policies()) == [60, 90, 100]


def test_a_collapsed_run_is_rolled_back_and_stays_as_it_is(tmp_path: Path, collapsed: Path) -> None:
    RunFolder(collapsed).label_page.write_text('{"question": "Which one is nearer?"}')
    before = snapshot(collapsed)
    agent = Agent.load(collapsed)
    last = agent.evaluate(5).returns.mean()
    chosen = agent.select(27, out=tmp_path / "new")
    assert chosen.chosen == GOOD and chosen.labels <= 27
    assert agent.evaluate(5).returns.mean() > last + 10
    agent.save(tmp_path / "saved")
    for folder in ("new", "saved"):
        assert (Agent.load(tmp_path / folder).evaluate(5).returns == agent.evaluate(5).returns).all()
    assert labels_of(tmp_path / "new") == chosen.labels
    assert page_text(RunFolder(tmp_path / "new")).question == "Which one is nearer?"  # people are asked the same
    told = json.loads((tmp_path / "new" / "selection.json").read_text())
    assert told == chosen.record() and told["chosen"] == GOOD
    assert sum(match["wins"] + match["losses"] + match["ties"] for match in told["matches"]) == told["labels"]
    assert snapshot(collapsed) == before


def test_the_same_seed_asks_the_same_and_another_one_does_not(collapsed: Path) -> None:
    class Seen(OracleTeacher):
        def __init__(self) -> None:
            self.queries: list[Queries] = []

        def __call__(self, queries: Queries) -> Preferences:
            self.queries.append(queries)
            return super().__call__(queries)

    teachers = [Seen(), Seen(), Seen()]
    for teacher, seed in zip(teachers, (0, 0, 1), strict=True):
        Agent.load(collapsed).select(9, teacher=teacher, seed=seed)
    one, same, other = (torch.cat([query.first.obs for query in teacher.queries]) for teacher in teachers)
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_a_teacher_sees_each_policy_first_about_as_often_and_both_from_one_start(collapsed: Path) -> None:
    """Otherwise one that likes what it sees first would choose by that."""

    def first(queries: Queries) -> Preferences:
        assert len(queries.first.obs) == 1
        return Preferences(*queries, torch.ones(1))

    chosen = Agent.load(collapsed).select(48, margin=0.1, teacher=first)
    wins, losses = (sum(getattr(match, name) for match in chosen.matches) for name in ("wins", "losses"))
    assert abs(wins - losses) < 4 * (wins + losses) ** 0.5


def test_a_pair_without_an_answer_costs_no_label(collapsed: Path) -> None:
    asked = list[Queries]()

    def silent(queries: Queries) -> Preferences:
        asked.append(queries)
        return select(OracleTeacher()(queries), slice(len(asked) % 2))

    chosen = Agent.load(collapsed).select(27, teacher=silent)
    assert chosen.chosen == GOOD
    assert chosen.labels <= 27 < 2 * chosen.labels <= len(asked) + 1


def test_the_command_writes_the_chosen_policy_as_a_run(
    tmp_path: Path, collapsed: Path, capsys: pytest.CaptureFixture
) -> None:
    new = tmp_path / "new"
    main(["select", str(collapsed), "--labels", "27", "--evaluate", "2", "--out", str(new)])
    told = capsys.readouterr().out
    assert f"chosen: the policy of step {GOOD} of 300" in told and "true return over 2 fresh episodes" in told
    main(["evaluate", str(new), "--episodes", "2"])
    capsys.readouterr()
    main(["select", str(collapsed), "--labels", "27", "--json"])
    assert json.loads(capsys.readouterr().out)["chosen"] == GOOD


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--labels 2", "--labels 2: one policy must be 3 labels ahead"),
        ("--labels many", "'many' is not a whole number"),
        ("--margin 0.5", "margin=0.5: must lie between 0 and 0.5"),
        ("--margin wide", "'wide' is not a number"),
        ("--error 0", "error=0.0: must lie between 0 and 0.5"),
        ("--error nan", "'nan' is not a number"),
        ("--segment-length 0", "not a whole number of at least 1"),
        ("--segment-length 51", "segment_length=51: the last 10 episodes were shorter (the last: 50 steps)"),
        ("--teacher orcale", "unknown teacher 'orcale'; did you mean 'oracle'?"),
        ("--teacher replay=nowhere", "replay=nowhere: no such file"),
        ("--teacher mistake=2", "teacher_mistake=2"),
        ("--seed -1", "not a whole number of at least 0"),
        ("--evaluate 0", "not a whole number of at least 1"),
        ("--out {run}", "exists already and is not overwritten"),
        ("--label 3", "did you mean '--labels'?"),
    ],
)
def test_each_option_s_mistake_is_one_line(collapsed: Path, capsys: Any, words: str, told: str) -> None:
    assert told in fails(capsys, "select", str(collapsed), *words.format(run=collapsed).split())


def test_a_run_without_policies_says_so(tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(plain, tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "policies")
    told = fails(capsys, "select", tmp_path / "old")
    assert "there is no policy to choose, it kept none: a run keeps 10" in told
    assert "is not a run's folder" in fails(capsys, "select", str(tmp_path))
    with pytest.raises(UserError, match="give out= to the agent"):
        Agent("pebble", "Steer-v0", **QUICK).learn(60).select()


def test_a_selection_that_cannot_begin_leaves_no_folder(collapsed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="segment_length=9999"):
        Agent.load(collapsed).select(segment_length=9999, out=tmp_path / "chosen")
    assert not (tmp_path / "chosen").exists()


def test_a_policy_that_was_changed_is_refused(tmp_path: Path, plain: Path) -> None:
    shutil.copytree(plain, tmp_path / "run")
    file = next(iter(RunFolder(tmp_path / "run").kept_policies().values()))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    agent = Agent.load(tmp_path / "run")
    before = {name: value.clone() for name, value in agent.model.policy.state_dict().items()}
    with pytest.raises(CorruptFileError, match="its SHA-256 is not the one"):
        agent.select()
    assert all(torch.equal(before[name], value) for name, value in agent.model.policy.state_dict().items())


def test_recorded_answers_and_a_teacher_of_one_s_own_are_refused(tmp_path: Path, collapsed: Path) -> None:
    with pytest.raises(UserError, match="recorded answers cannot tell of new pairs"):
        Agent.load(collapsed).select(teacher=f"replay={collapsed / 'labels.sqlite'}")

    class Own(OracleTeacher):
        pass

    Agent("pebble", "Steer-v0", teacher=Own(), out=tmp_path / "own", **QUICK).learn(90)
    with pytest.raises(UserError, match="taught by a teacher of your own, Own"):
        Agent.load(tmp_path / "own").select()
    assert Agent.load(tmp_path / "own").select(3, teacher="oracle").labels <= 3


HELD: dict[str, Any] = {"select_labels": 12}


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "selected"
    run(out, **HELD)
    return out


def labels_of(out: Path) -> int:
    return sum(len(answers.label) for answers in read_sessions(out / "labels.sqlite") if answers is not None)


def test_labels_that_are_held_back_choose_the_policy_at_the_end(selected: Path, plain: Path) -> None:
    told = json.loads((selected / "selection.json").read_text())
    assert 3 <= told["labels"] <= 12 and told["steps"][-1] == STEPS
    trained = [len(answers.label) for answers in read_sessions(selected / "labels.sqlite") if answers is not None]
    assert sum(trained[: -told["labels"]]) == 40 - 12
    assert labels_of(selected) == 28 + told["labels"] <= 40
    assert labels_of(plain) == 40 and not (plain / "selection.json").exists()
    chosen = load_file(RunFolder(selected).kept_policies()[told["chosen"]])
    policy = Agent.load(selected).model.policy.state_dict()
    assert all(torch.equal(policy[name], value) for name, value in chosen.items())


@pytest.mark.parametrize("asked", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_run_that_is_killed_while_it_chooses_goes_on_and_chooses_the_same(
    tmp_path: Path, selected: Path, asked: int
) -> None:
    def stop() -> None:
        ask, calls = selection._Pairs.ask, iter(range(1, 100))

        def doomed(self: Any, *both: Any) -> Any:
            if next(calls) > asked:
                kill()
            return ask(self, *both)

        selection._Pairs.ask = doomed  # type: ignore[method-assign]
        run(tmp_path / "run", **HELD)

    assert child(stop) == 9
    assert labels_of(tmp_path / "run") == 28 + asked

    Agent.resume(tmp_path / "run")
    equal(tmp_path / "run", selected)
    assert (tmp_path / "run" / "selection.json").read_bytes() == (selected / "selection.json").read_bytes()


def test_a_collapsed_run_ends_with_the_policy_that_was_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = RunFolder.keep_policy

    def worse(self: RunFolder, step: int, policy: Any) -> None:
        steer(policy, 5.0 if step == GOOD else -0.2)
        keep(self, step, policy)

    monkeypatch.setattr(RunFolder, "keep_policy", worse)
    agent = run(tmp_path / "run", select_labels=30)
    assert json.loads((tmp_path / "run" / "selection.json").read_text())["chosen"] == GOOD
    assert agent.evaluate(3).returns.mean() > 40
    assert Agent.load(tmp_path / "run").evaluate(3).returns.mean() > 40


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"select_labels": 40}, "select_labels=40 is a part of labels=40: it must be less"),
        ({"select_labels": 2}, "no test can be decided with fewer than 3"),
        ({"select_labels": -1}, "greater than or equal to 0"),
        ({"select_labels": 5, "teacher_human": True}, "rlhf-bilevel select RUN --teacher human"),
        ({"select_labels": 5, "learning_starts": 10, "pretrain_steps": 285}, "keeps only one policy"),
        ({"select_labels": 5, "labels": 0}, "it must be less"),
    ],
)
def test_what_cannot_be_held_back_is_refused_at_once(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_folder_holds_no_labels_back() -> None:
    with pytest.raises(UserError, match="policies are kept in the run's folder, give it as out="):
        run(None, **HELD)


def test_a_fork_cannot_hold_back_labels_that_are_used(plain: Path) -> None:
    with pytest.raises(UserError, match=r"used 40 labels already \(select_labels=5 are held back"):
        Agent.fork(plain, select_labels=5, total_timesteps=400)
