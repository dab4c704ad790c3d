"""A fork goes on from another run's checkpoint: the same run where nothing is changed, another where something is."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import AlreadyExistsError, UserError
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries
from rlhf_bilevel.utils.files import sha256
from tests.cli.test_cli import fails
from tests.conftest import FEW, SMALL, SMALL_OPTIONS
from tests.runs.test_checkpoint import forge
from tests.runs.test_resume import QUICK, equal, state
from tests.support.faults import at_call, child, full_disk, kill

STEPS = 300


def run(method: str, out: Path | None, steps: int = STEPS, **settings: Any) -> Agent:
    given = QUICK | FEW.get(method, {}) | settings
    return Agent(method, "tests.conftest:Steer-v0", out=out, keep_every=100, **given).learn(steps)


def snapshot(folder: Path) -> dict[str, bytes]:
    """What is in its files, but for those that reading a SQLite file makes and leaves."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(("-shm", "-wal"))]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, state(run("penalty", out))


def test_the_last_checkpoint_stays_and_those_that_are_to_be_kept(whole: tuple[Path, str]) -> None:
    assert Checkpoints(whole[0] / "checkpoints", "").steps() == [100, 200, 300]


@pytest.mark.parametrize("at", [pytest.param(100, marks=pytest.mark.slow), 250])
def test_a_fork_without_a_change_is_the_same_run_bit_for_bit(tmp_path: Path, whole: tuple[Path, str], at: int) -> None:
    before = snapshot(whole[0])
    forked = Agent.fork(whole[0], at=at, out=tmp_path / "fork").learn(STEPS - at // 100 * 100)
    assert state(forked) == whole[1]
    assert snapshot(whole[0]) == before
    equal(tmp_path / "fork", whole[0])


@pytest.mark.slow
def test_a_fork_and_a_resume_take_another_number_of_threads(tmp_path: Path, whole: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match=r"^threads=0: must be a whole number from 1 to 1024$"):
        Agent.fork(whole[0], threads=0)
    with pytest.raises(UserError, match=r"^threads='2': must be"):
        Agent.resume(whole[0], threads="2")  # type: ignore[arg-type]
    out = tmp_path / "fork"
    main(["fork", str(whole[0]), "--at", "250", "--out", str(out), "--threads", "3", "--trust"])
    assert (RunFolder(out).read_config()["cores"], torch.get_num_threads()) == (3, 1)  # one each: two learners, and one
    equal(out, whole[0])


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("penalty", "rime", "prefppo", "sac")]


@pytest.mark.parametrize("method", ["pebble", *SLOW])
def test_so_is_one_without_a_folder_with_every_kind_of_method(tmp_path: Path, method: str) -> None:
    expected = state(run(method, tmp_path / "run", **FEW.get(method, {})))
    assert state(Agent.fork(tmp_path / "run", at=200).learn(100)) == expected


@pytest.mark.slow
def test_a_fork_that_is_killed_can_be_resumed(tmp_path: Path, whole: tuple[Path, str]) -> None:
    agent = Agent.fork(whole[0], at=100, out=tmp_path / "fork")
    with pytest.raises(ZeroDivisionError):
        agent.learn(200, callback=lambda *_: 1 / 0)
    assert state(Agent.resume(tmp_path / "fork")) == whole[1]


@pytest.mark.slow
def test_a_run_goes_on_after_its_end_with_more_steps_and_more_labels(tmp_path: Path, whole: tuple[Path, str]) -> None:
    again = Agent.load(whole[0], out=tmp_path / "more").learn(100)
    assert again.run and again.run.step == STEPS + 100 and len(again.run.prefs) == 40
    more = Agent.fork(whole[0], labels=60).learn(100)
    assert more.run and len(more.run.prefs) > 40
    assert (tmp_path / "more" / "SHA256SUMS").is_file()


@pytest.mark.slow
def test_another_seed_draws_everything_anew(whole: tuple[Path, str]) -> None:
    one, other = (Agent.fork(whole[0], at=200, seed=seed).learn(50) for seed in (8, 9))
    assert not torch.equal(one.run.store.act[200:250], other.run.store.act[200:250])
    assert torch.equal(one.run.store.obs[:200], other.run.store.obs[:200])


@pytest.mark.slow
def test_a_second_learner_begins_as_the_agent_with_random_numbers_of_its_own(tmp_path: Path) -> None:
    agent = run("pebble", tmp_path / "run")
    forked = Agent.fork(tmp_path / "run", method="twin")
    learners: list[Any] = []

    def first(local: Any, _: Any) -> bool:
        learners.extend(
            ({name: value.clone() for name, value in each.model.policy.state_dict().items()}, each._rng.get_state())
            for each in forked.run.learners  # type: ignore[attr-defined]
        )
        return False

    # before the first update: the callback is called after the first step, whose update comes first
    forked.learn(2, callback=first)  # type: ignore[arg-type]
    (one, rng), (other, other_rng) = learners
    assert not torch.equal(rng, other_rng)
    assert forked.run and len(forked.run.learners) == 2
    final = agent.run.learners[0].model.policy.state_dict()  # type: ignore[attr-defined]
    for name, weight in final.items():
        assert torch.allclose(other[name], weight, atol=0.05), name
        assert torch.allclose(one[name], weight, atol=0.05), name


@pytest.mark.slow
def test_two_learners_become_one_and_rows_keep_their_writers(tmp_path: Path) -> None:
    run("twin", tmp_path / "run")
    forked = Agent.fork(tmp_path / "run", method="pebble").learn(50)
    writers = [len(forked.run.store.episodes(number)) for number in (0, 1)]
    assert writers[1] > 0 and sum(writers) == len(forked.run.store.episodes())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--at 50", "no checkpoint at step 50 or before"),
        ("--steps 200", "a fork must end after it"),
        ("--labels 10", "has used 40 labels already"),
        ("--set segment_length=5", "segment_length=5: a fork keeps the segment_length of its run, 10"),
        ("--set net_arch=8,8", "a fork keeps the net_arch of its run"),
        ("--set critic_layer_norm=false", "a fork keeps the critic_layer_norm of its run"),
        ("--set reward_use_action=false", "a fork keeps the reward_use_action of its run"),
        ("--set reward_units=raw", "a fork keeps the reward_units of its run"),
        ("--set termination=absorb", "a fork of a run with termination=as_is cannot have it"),
        ("--set ent_coef=0.2", "ent_coef=0.2: a fork of a run with ent_coef=auto_0.1 cannot have it"),
        ("--set sigm=3", "did you mean 'penalty.sigma'?"),
        ("--set surf.threshold=.9", "surf alone has it"),
        ("--teacher human", "a fork is not labelled by people"),
        ("--method prefppo", "a fork keeps the algorithm"),
    ],
)
def test_what_cannot_be_forked_is_told_in_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, whole: tuple[Path, str], words: str, told: str
) -> None:
    out = tmp_path / "fork"
    assert told in fails(capsys, "fork", str(whole[0]), "--trust", "--out", str(out), *words.split())
    assert not out.exists()


def test_a_fork_pays_all_rows_by_its_own_reward(tmp_path: Path) -> None:
    run("pebble", tmp_path / "run")
    agent = Agent.fork(tmp_path / "run", method="sac").learn(60)
    learner: Any = agent.run.learners[0]
    kept = learner._view._cached[: agent.run.store.size].nonzero()[:, 0]
    assert len(kept) and torch.equal(learner._view._reward[kept], agent.run.store.env_reward[kept])


def test_a_fork_takes_another_teacher_and_tells_what_is_no_part_of_a_run(whole: tuple[Path, str]) -> None:
    asked = list[int]()

    def teacher(queries: Queries) -> Preferences:
        asked.append(len(queries.first.env_reward))
        return Preferences(*queries, label=torch.ones(asked[-1]))

    for given in (teacher, "mistake"):
        Agent.fork(whole[0], at=100, teacher=given).learn(100)
    assert asked
    for name in ("algorithm", "env", "env_id", "device", "preset"):
        with pytest.raises(UserError, match=f"{name}='other': a fork keeps the {name} of its run"):
            Agent.fork(whole[0], **{name: "other"})
    for use in (Agent.load, Agent.resume):
        with pytest.raises(UserError, match=r"tacher= is no part of a run; did you mean 'teacher'\?"):
            use(whole[0], tacher=teacher)
    with pytest.raises(UserError, match="at='100': must be a step of training"):
        Agent.fork(whole[0], at="100")  # type: ignore[arg-type]


def test_a_fork_learns_at_its_own_rates(whole: tuple[Path, str]) -> None:
    """At rates of nearly nothing, nothing has moved after 100 steps."""
    options = SMALL_OPTIONS | {"cost_learning_rate": 1e-9}
    settings: dict[str, Any] = {"learning_rate": 1e-9, "reward_lr": 1e-9, "options": options}
    early, late, usual = (
        Agent.fork(whole[0], at=200, **own).learn(steps).run
        for own, steps in ((settings, 1), (settings, 100), ({}, 100))
    )

    def moved(run: Run) -> list[float]:
        parts = [
            (of.reward, of.learners[0].model.actor, of.learners[1].model.critic, of.state.cost) for of in (early, run)
        ]
        pairs = (zip(old.parameters(), new.parameters(), strict=True) for old, new in zip(*parts, strict=True))
        return [max((a - b).abs().max().item() for a, b in pair) for pair in pairs]

    assert max(moved(late)) < 1e-5 and min(moved(usual)) > 1e-4


def test_a_run_without_a_checkpoint_cannot_be_forked(tmp_path: Path) -> None:
    Agent("pebble", "tests.conftest:Steer-v0", out=tmp_path / "run", checkpoint_every="0", **SMALL).learn(100)
    with pytest.raises(UserError, match="has no checkpoint: one is written at the end of an episode"):
        Agent.fork(tmp_path / "run").learn(10)


@pytest.mark.slow
def test_the_settings_hash_is_the_forks_own(tmp_path: Path, whole: tuple[Path, str]) -> None:
    Agent.fork(whole[0], at=200, out=tmp_path / "fork", gamma=0.9).learn(50)
    told = sha256((tmp_path / "fork" / "config.yaml").read_bytes())
    assert Checkpoints(tmp_path / "fork" / "checkpoints", told).load() is not None


def retold(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Every checkpoint's state.json, changed."""
    for path in (run / "checkpoints").glob("step-*"):
        told = json.loads((path / "state.json").read_bytes())
        change(told)
        forge(path, json.dumps(told))


FORK = ("--trust", "--steps", "310")


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_names_no_file_outside_the_two_folders(tmp_path: Path, whole: tuple[Path, str]) -> None:
    """From where the source lies the name leads to a file; from where the fork lies, to a place that is free."""
    run = shutil.copytree(whole[0], tmp_path / "here" / "run")
    (tmp_path / "here" / "payload").write_text("of the stranger")
    retold(run, lambda told: told["marks"]["events"].update({"../payload": 5, "config.yaml": 5}))
    (tmp_path / "there").mkdir()
    Agent.fork(run, out=tmp_path / "there" / "fork", trust=True).learn(10)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["fork"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda told: told.pop("run"), "does not fit config.yaml"),
        (lambda told: told.pop("marks"), "does not fit config.yaml"),
        (lambda told: told["marks"].update(events=[1]), "does not fit config.yaml"),
        (lambda told: told.update(sessions="x"), "does not fit config.yaml"),
        (lambda told: told.update(sessions=[0] * 99), "99 were used"),
        (lambda told: told["run"].update(learners="x"), "does not fit config.yaml"),
        (lambda told: told["run"].update(generator="x"), "does not fit config.yaml"),
    ],
)
def test_a_state_that_is_none_is_told_in_one_line_before_a_folder_is_begun(
    capsys: pytest.CaptureFixture, tmp_path: Path, whole: tuple[Path, str], change: Any, told: str
) -> None:
    run, out = shutil.copytree(whole[0], tmp_path / "run"), tmp_path / "fork"
    retold(run, change)
    said = asked(capsys, "fork", str(run), "--out", str(out), *FORK)
    assert told in said and str(run) in said
    assert not out.exists() or [path.name for path in out.iterdir()] == [".lock"]
    (run / "SHA256SUMS").unlink()
    if told != "99 were used":
        assert "does not fit config.yaml" in asked(capsys, "resume", str(run), "--trust")


def asked(capsys: pytest.CaptureFixture, *command: str) -> str:
    """What a command that has begun to work says where it is refused; its one line."""
    with pytest.raises(SystemExit) as stop:
        main(list(command))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlhf-bilevel: ")]
    assert stop.value.code == 2 and len(said) == 1
    return said[0]


def after(statement: str) -> Callable[[Path], None]:
    """Changes a run's labels by SQL."""

    def changes(run: Path) -> None:
        with closing(sqlite3.connect(run / "labels.sqlite")) as connection:
            connection.execute(statement)
            connection.commit()

    return changes


TRIGGER = (
    "CREATE TRIGGER runs BEFORE DELETE ON answers BEGIN INSERT INTO skipped SELECT NULL, 0, x'00', x'00' "
    "FROM (WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT x FROM c); END"
)


def with_an_evaluation_changed(run: Path) -> None:
    file = run / "evaluations.csv"
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "labels.sqlite").unlink(), "labels.sqlite: no such file"),
        (after(TRIGGER), "'runs' in it is none of its tables"),
        (after("UPDATE answers SET label = 1 - label"), "answers of session 0 are not as they were written"),
        (with_an_evaluation_changed, "evaluations.csv is damaged"),
    ],
)
def test_damage_in_the_other_run_is_told_with_its_name_and_leaves_the_place_free(
    capsys: pytest.CaptureFixture, tmp_path: Path, whole: tuple[Path, str], damage: Any, told: str
) -> None:
    run, out = shutil.copytree(whole[0], tmp_path / "run"), tmp_path / "fork"
    damage(run)
    for _ in range(2):  # the same command again says the same, and not that the place is taken
        said = asked(capsys, "fork", str(run), "--out", str(out), "--at", "100", *FORK)
        assert told in said and str(run) in said
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_full_disk_leaves_the_place_of_a_fork_free(tmp_path: Path, whole: tuple[Path, str]) -> None:
    for number in (1, 5, 12):
        with at_call(number, full_disk), pytest.raises(OSError, match="No space left"):
            Agent.fork(whole[0], out=tmp_path / "fork").learn(10)
    assert [path.name for path in (tmp_path / "fork").iterdir()] == [".lock"]
    Agent.fork(whole[0], out=tmp_path / "fork").learn(10)


@pytest.mark.slow
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 11])
def test_a_fork_that_is_killed_as_it_begins_leaves_a_run_or_a_place_that_is_cleared(
    tmp_path: Path, whole: tuple[Path, str], every: int
) -> None:
    """Killed before every so many-th call that changes a file."""
    out = tmp_path / "fork"
    with at_call(10**6, kill) as calls:
        Agent.fork(whole[0], out=tmp_path / "other").start(10)
    assert len(calls) > 20
    for number in range(3, len(calls) + 1, every):

        def begin(number: int = number) -> None:
            with at_call(number, kill):
                Agent.fork(whole[0], out=out).start(10)

        assert child(begin) == 9
        if (out / "config.yaml").is_file():
            Agent.resume(out, trust=True)
            shutil.rmtree(out)
            continue
        with pytest.raises(SystemExit):
            main(["resume", str(out)])
        if number % 3:
            Agent.fork(whole[0], out=out).learn(10)
        else:
            Agent("pebble", "tests.conftest:Steer-v0", out=out, **SMALL).learn(60)
            assert {path.name for path in out.iterdir()}.isdisjoint({"fork.unfinished"})
        assert (out / "SHA256SUMS").is_file() and not (out / "fork.unfinished").exists()
        shutil.rmtree(out)


def test_nothing_else_than_an_unfinished_fork_is_cleared(tmp_path: Path, whole: tuple[Path, str]) -> None:
    for name in ("notes.txt", "config.yaml"):
        out = tmp_path / name
        out.mkdir()
        (out / "fork.unfinished").touch()
        (out / "labels.sqlite").write_bytes(b"mine")
        (out / name).write_bytes(b"mine")
        before = snapshot(out)
        with pytest.raises(AlreadyExistsError):
            Agent.fork(whole[0], out=out).learn(10)
        with pytest.raises(AlreadyExistsError):
            Agent("pebble", "tests.conftest:Steer-v0", out=out, **SMALL).learn(60)
        assert snapshot(out) == before
    out = tmp_path / "links"
    out.mkdir()
    (out / "fork.unfinished").touch()
    (out / "checkpoints").symlink_to(whole[0] / "checkpoints")
    (out / "label_page.lock").touch()  # a label page may wait there
    before = snapshot(whole[0])
    Agent.fork(whole[0], out=out).learn(10)
    assert snapshot(whole[0]) == before and not (out / "checkpoints").is_symlink()
    assert (out / "label_page.lock").is_file()


def test_a_fork_that_no_memory_holds_makes_no_folder(tmp_path: Path, whole: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match="GiB of memory"):
        Agent.fork(whole[0], out=tmp_path / "fork", batch_size=10**9).learn(10)
    assert not (tmp_path / "fork").exists()


def test_a_fork_does_not_go_into_the_run_that_it_comes_from(
    capsys: pytest.CaptureFixture, tmp_path: Path, whole: tuple[Path, str]
) -> None:
    """Among its checkpoints it would be taken for an old one, and removed."""
    (tmp_path / "link").symlink_to(whole[0])
    for out in (whole[0] / "checkpoints" / "step-000000999", tmp_path / "link" / "fork"):
        assert "and holds no other run" in fails(capsys, "fork", str(whole[0]), "--out", str(out), *FORK)
        with pytest.raises(UserError, match="which stays as it is"):
            Agent.load(whole[0], out=out)
        assert not out.exists()


def test_a_program_may_go_to_another_folder_before_a_fork_learns(
    tmp_path: Path, whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole[0].parent)
    agents = Agent.fork("whole"), Agent.load("whole")
    monkeypatch.chdir(tmp_path)
    for agent in agents:
        agent.learn(10)


@pytest.mark.slow
def test_a_fork_of_a_rerun_goes_on_with_the_session_after_those_it_used(
    tmp_path: Path, whole: tuple[Path, str]
) -> None:
    settings: dict[str, Any] = {"teacher_rerun": str(whole[0] / "labels.sqlite")}
    expected = state(run("penalty", tmp_path / "again", **settings))
    assert state(Agent.fork(tmp_path / "again", at=100).learn(200)) == expected


def test_a_run_may_go_on_while_its_checkpoints_are_read(
    tmp_path: Path, whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The run removes what was listed before it is read, as a newer one has come."""
    source = shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    config = sha256((whole[0] / "config.yaml").read_bytes())
    check, kept = Checkpoints._check, list[Path]()

    (newest, *_) = sorted(source.glob("step-*"), reverse=True)
    anew = newest.name.removesuffix("-kept") if newest.name.endswith("-kept") else f"{newest.name}-kept"
    shutil.copytree(newest, tmp_path / "newer")

    def removed(self: Checkpoints, path: Path) -> Any:
        if not kept:
            kept.extend(source.glob("step-*"))
            for old in kept:
                shutil.rmtree(old)
            (tmp_path / "newer").rename(source / anew)
        return check(self, path)

    monkeypatch.setattr(Checkpoints, "_check", removed)
    loaded = Checkpoints(source, config).load()
    assert loaded is not None and loaded.step == STEPS and not recwarn.list


def test_a_kept_checkpoint_that_is_damaged_lets_the_others_be_removed(tmp_path: Path) -> None:
    folder, rows = Checkpoints(tmp_path / "checkpoints", "hash"), torch.arange(100.0)
    for step in range(10, 60, 10):
        target = folder.save(step, {"step": step}, {"rows": {"x": rows[:step]}}, keep=step == 10)
        if step == 10:
            (target / "manifest.json").write_bytes(b"{}")
    assert folder.steps() == [10, 40, 50]
