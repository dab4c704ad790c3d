"""A run that is killed at any moment goes on as if nothing had happened, bit for bit."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from stable_baselines3 import TD3
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise

from rlhf_bilevel import Agent
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.feedback.teachers import OracleTeacher
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.runs.checkpoint_manager import CheckpointManager
from rlhf_bilevel.training import loop
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.training.snapshot import capture
from rlhf_bilevel.types import Preferences, Queries, Segments
from rlhf_bilevel.utils.serialization import digest
from tests.conftest import FEW, SMALL, build
from tests.support.faults import child, events, kill, logged, same_run, tables

STEPS = 300
QUICK: dict[str, Any] = SMALL | {"eval_freq": 90}
EVERY = "50"  # steps: at the end of each episode


def state(agent: Agent) -> str:
    tree, tables = capture(agent.run)
    answers = agent.run.prefs[:] if len(agent.run.prefs) else None
    return digest([tree, {name: dict(columns) for name, columns in tables.items()}, answers])


def started(method: str, out: Path | None, steps: int = STEPS, **settings: Any) -> Agent:
    given = QUICK | FEW.get(method, {}) | settings
    agent = Agent(method, "tests.conftest:Steer-v0", out=out, checkpoint_every=EVERY, **given)
    return agent.learn(settings.get("total_timesteps", steps))


def killed(step: int, work: Callable[[], Any]) -> None:
    """Runs ``work`` in a process that is killed when it has done the environment step of that number."""

    def doomed(run: Any) -> Any:
        for row in train(run):
            if run.step == step:
                kill()
            yield row

    def stop() -> None:
        loop.train = doomed
        work()

    assert child(stop) == 9


def equal(one: Path, other: Path) -> None:
    """All that two finished runs have left."""
    same_run(one, other)
    assert logged(one) == logged(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing happened to, and the digest of its state at the end."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, state(started("penalty", out))


@pytest.mark.parametrize("step", [222, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 130, STEPS))])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, whole: tuple[Path, str], step: int) -> None:
    """Before the first checkpoint, between two, and after the last step but before the model is written."""
    killed(step, lambda: started("penalty", tmp_path / "run"))
    assert state(Agent.resume(tmp_path / "run", checkpoint_every=EVERY)) == whole[1]
    equal(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(tmp_path: Path, whole: tuple[Path, str]) -> None:
    killed(90, lambda: started("penalty", tmp_path / "run"))
    for step in (110, 160, 290):
        killed(step, lambda: Agent.resume(tmp_path / "run", checkpoint_every=EVERY))
    assert state(Agent.resume(tmp_path / "run", checkpoint_every=EVERY)) == whole[1]
    equal(tmp_path / "run", whole[0])


@pytest.mark.slow
def test_checkpoints_move_nothing(whole: tuple[Path, str]) -> None:
    assert state(started("penalty", None)) == whole[1]


ALIKE = ("penalty", "detached", "incumbent", "hypergradient", "mrn", "qpa", "random", "rune", "unlabelled")
"""One learner of SAC and no state of their own, as PEBBLE; and penalty, which the other tests are about."""


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else []) for name in METHODS]
)
def test_every_method_goes_on_bit_for_bit(tmp_path: Path, method: str) -> None:
    few: dict[str, Any] = {
        "total_timesteps": 190,
        "refresh_every": 15,
        "n_eval_episodes": 1,
        **({"penalty.sigma_spread": 0.5} if method == "penalty" else {}),
    }
    few |= FEW.get(method, {})
    expected = state(started(method, None, **few))
    killed(140, lambda: started(method, tmp_path / "run", **few))
    assert state(Agent.resume(tmp_path / "run", checkpoint_every=EVERY)) == expected


def test_a_resumed_run_keeps_checkpoints_as_before_unless_told_otherwise(tmp_path: Path) -> None:
    def begun(out: Path) -> None:
        Agent("sac", "tests.conftest:Steer-v0", out=out, checkpoint_every="50", keep_every=100, **QUICK).learn(STEPS)

    killed(160, lambda: begun(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    Agent.resume(tmp_path / "run")
    steps = Checkpoints(tmp_path / "run" / "checkpoints", "").steps()
    assert [step // 100 for step in steps] == [1, 2, 3] and steps[-1] == STEPS
    Agent.resume(tmp_path / "other", keep_every=0)
    assert Checkpoints(tmp_path / "other" / "checkpoints", "").steps() == [100, STEPS]  # what was kept stays


def test_so_does_another_algorithm_with_noise_of_its_own(tmp_path: Path) -> None:
    def noisy() -> dict[str, Any]:
        noise = OrnsteinUhlenbeckActionNoise(torch.zeros(1).numpy(), 0.1 * torch.ones(1).numpy())
        return {"algorithm": TD3, "algorithm_settings": {"action_noise": noise}}

    expected = state(started("pebble", None, **noisy()))
    killed(222, lambda: started("pebble", tmp_path / "run", **noisy()))
    with pytest.raises(UserError, match="algorithm_settings="):
        Agent.resume(tmp_path / "run")
    assert state(Agent.resume(tmp_path / "run", checkpoint_every=EVERY, **noisy())) == expected


@pytest.mark.slow
def test_random_kills(tmp_path: Path, whole: tuple[Path, str]) -> None:
    """At any instruction, between steps or within one, while a checkpoint is written or not."""
    rng, interrupted = random.Random(0), 0
    began = time.monotonic()
    assert child(lambda: started("penalty", None)) == 0
    took = time.monotonic() - began
    for number in range(4):
        out = tmp_path / str(number)
        pid = os.fork()
        if pid == 0:
            started("penalty", out)
            os._exit(0)
        time.sleep(took * rng.uniform(0.1, 0.9))
        os.kill(pid, 9)
        interrupted += os.waitpid(pid, 0)[1] == 9
        if not (out / "SHA256SUMS").exists():
            assert state(Agent.resume(out, checkpoint_every=EVERY)) == whole[1]
        equal(out, whole[0])
    assert interrupted


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_bilevel", *arguments]


def train_command(out: Path) -> list[str]:
    words = ["--env", "tests.conftest:Steer-v0", "--steps", "1500", "--checkpoint-every", "100", "--labels", "40"]
    settings = [f"--set={key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
                for key, value in QUICK.items() if key != "labels"]  # fmt: skip
    return command("train", "penalty", *words, *settings, "--out", str(out))


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(train_command(out), check=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_twenty_random_kills_of_the_command_line(tmp_path: Path, commanded: Path, number: int) -> None:
    """At a random instruction after a random episode, whatever the machine's speed."""
    out, rng = tmp_path / "run", random.Random(number)
    process = subprocess.Popen(train_command(out))
    episodes = rng.randint(0, 24)
    while not (out / "config.yaml").exists() or len(logged(out)) < episodes:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    process.kill()
    process.wait()
    assert not (out / "SHA256SUMS").exists(), "it had ended before the kill"
    subprocess.run(command("resume", str(out), "--trust"), check=True)
    equal(out, commanded)


@pytest.mark.slow
def test_logs_show_each_step_once(tmp_path: Path, whole: tuple[Path, str]) -> None:
    killed(222, lambda: started("penalty", tmp_path / "run"))
    Agent.resume(tmp_path / "run", checkpoint_every=EVERY)
    for key in ("rollout/true_return", "eval/true_return", "train_1/critic_loss"):
        assert events(tmp_path / "run", key) == events(whole[0], key)
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 2


@pytest.mark.slow
def test_consumed_labels_are_replayed_and_the_teacher_is_not_asked_again(
    tmp_path: Path, whole: tuple[Path, str]
) -> None:
    class Counts(OracleTeacher):
        asked = 0

        def __call__(self, queries: Queries) -> Preferences:
            self.asked += 1
            return super().__call__(queries)

    out = tmp_path / "run"
    killed(130, lambda: started("penalty", out, teacher=Counts()))
    answered = len(tables(out / "labels.sqlite")[0])
    with pytest.raises(UserError, match="give it as teacher="):
        Agent.resume(out)
    teacher = Counts()
    assert state(Agent.resume(out, teacher=teacher, checkpoint_every=EVERY)) == whole[1]
    total = len(tables(out / "labels.sqlite")[0])
    assert answered > 2 and teacher.asked == total - answered > 0


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    killed(130, lambda: started("pebble", tmp_path / "run"))
    before = sorted(path.name for path in (tmp_path / "run").glob("**/*"))
    with FileLock(tmp_path / "run" / ".lock"):
        status = child(lambda: Agent.resume(tmp_path / "run"))
    assert os.waitstatus_to_exitcode(status) == 1
    assert sorted(path.name for path in (tmp_path / "run").glob("**/*")) == before
    Agent.resume(tmp_path / "run")


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on(
    tmp_path: Path, whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failing = Checkpoints.save, [100, 150]

    def sometimes(self: Checkpoints, step: int, *rest: Any) -> Path:
        if step in failing:
            raise OSError(28, "No space left on device")
        return save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", sometimes)
    killed(170, lambda: started("penalty", tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000000050"]
    with pytest.warns(UserWarning, match="no checkpoint at step 100: .*No space left"):
        assert state(Agent.resume(tmp_path / "run", checkpoint_every=EVERY)) == whole[1]


def test_a_checkpoint_holds_no_answer_and_goes_on_with_those_of_the_log_alone(tmp_path: Path) -> None:
    """Also where a teacher gives more than may be used: the log has them, and training does not."""

    def eager(queries: Queries) -> Preferences:
        first, second = (Segments(*(torch.cat([column] * 2) for column in segments)) for segments in queries)
        return OracleTeacher()(Queries(first, second))

    few: dict[str, Any] = {"total_timesteps": 150, "labels": 11, "queries_per_session": 8, "teacher": eager}
    expected = state(started("pebble", None, **few))
    killed(140, lambda: started("pebble", tmp_path / "run", **few))
    assert len(tables(tmp_path / "run" / "labels.sqlite")[1]) == 16
    assert {path.name.split("-")[0] for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"rows", "step"}
    with closing(sqlite3.connect(tmp_path / "run" / "labels.sqlite")) as log:
        (sha256,) = log.execute("SELECT sha256 FROM sessions").fetchone()
        log.execute("UPDATE sessions SET sha256 = ?", (bytes(32),))
        log.commit()
        with pytest.raises(CorruptFileError, match="are not those that the checkpoint knew"):
            Agent.resume(tmp_path / "run", teacher=eager, checkpoint_every=EVERY)
        log.execute("UPDATE sessions SET sha256 = ?", (sha256,))
        log.commit()
    assert state(Agent.resume(tmp_path / "run", teacher=eager, checkpoint_every=EVERY)) == expected


def test_what_cannot_be_resumed_is_told_in_one_line_and_left_alone(tmp_path: Path, whole: tuple[Path, str]) -> None:
    with pytest.raises(UserError, match="come to its end"):
        Agent.resume(whole[0])
    killed(130, lambda: started("pebble", tmp_path / "run"))
    config = tmp_path / "run" / "config.yaml"
    told = config.read_text()
    config.write_text(told.replace("gamma: 0.99", "gamma: 0.9"))
    with (
        pytest.warns(UserWarning, match="config.yaml is not the one"),
        pytest.raises(CorruptFileError, match="nothing was"),
    ):
        Agent.resume(tmp_path / "run")
    config.write_text(told)
    (tmp_path / "run" / "labels.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptFileError, match=r"labels\.sqlite is damaged"):
        Agent.resume(tmp_path / "run")
    (tmp_path / "run" / "labels.sqlite").unlink()
    with pytest.raises(CorruptFileError, match=r"labels\.sqlite: no such file"):
        Agent.resume(tmp_path / "run")
    assert not (tmp_path / "run" / "labels.sqlite").exists()


def test_a_run_that_has_ended_keeps_its_labels_and_its_last_checkpoint(whole: tuple[Path, str]) -> None:
    assert Checkpoints(whole[0] / "checkpoints", "").steps() == [STEPS]
    labels = [row[2] for row in tables(whole[0] / "labels.sqlite")[1]]
    assert len(labels) == 40 and set(labels) <= {0.0, 0.5, 1.0}


def test_checkpoints_that_take_long_are_made_more_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saved = [0.0], list[float]()

    def slow(*_: Any) -> None:
        saved.append(clock[0])
        clock[0] += 3.0

    monkeypatch.setattr("rlhf_bilevel.runs.checkpoint_manager.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Checkpoints, "save", slow)
    (tmp_path / "config.yaml").write_text("")
    run = build("pebble", total_timesteps=10)
    with CheckpointManager(tmp_path, "1m") as keeper:
        keeper.restore(run)
        while clock[0] < 1000:
            clock[0] += 1.0
            if keeper.due(run):
                keeper.save(run, dict)
    assert saved == [60, 363, 666, 969]  # after a minute, and then a hundred times what the last one took
