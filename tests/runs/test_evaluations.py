"""A run on several cores finds what a run on one finds, bit for bit, and leaves no process behind."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.batched_sac import stackable
from rlhf_bilevel.runs import session, side_by_side, start
from rlhf_bilevel.runs.checkpoint_manager import CheckpointManager
from rlhf_bilevel.runs.evaluations import greedy
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.training import loop
from tests.conftest import SMALL, Steer, build
from tests.support.faults import child, kill, logged

SETTINGS: dict[str, Any] = {
    **SMALL,
    "eval_freq": 70,
    "train_freq": 4,
    "num_interact": 60,
    "total_timesteps": 220,
    "refresh_every": 40,
}


class Apart(Steer):
    """Fails as ``fault`` says, but only in a process of evaluations."""

    def __init__(self, fault: str) -> None:
        self._fault = fault if multiprocessing.parent_process() else ""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self._fault == "exit":
            os._exit(3)
        obs, *rest = super().step(action)
        return (np.zeros(3, np.float32) if self._fault == "shape" else obs), *rest  # type: ignore[return-value]


for fault in ("exit", "shape"):
    gymnasium.register(f"Apart-{fault}-v0", Apart, kwargs={"fault": fault})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def spec(out: Path, threads: int, method: str = "penalty", env: str = "Steer-v0", **settings: Any) -> RunSpec:
    asked = SETTINGS | settings
    return RunSpec.of(method, f"tests.conftest:{env}" if env == "Steer-v0" else env, asked, threads=threads, out=out,
                      checkpoint_every="50")  # fmt: skip


def found(folder: Path) -> list[Any]:
    """All that a run has written about what it has found and learnt, but for its speed."""
    policies = {step: path.read_bytes() for step, path in RunFolder(folder).kept_policies().items()}
    learnt = [(folder / name).read_bytes() for name in ("evaluations.csv", "policy.safetensors", "reward.safetensors")]
    return [logged(folder), policies, *learnt]


def waits(for_this: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Its first true value."""
    end = time.monotonic() + seconds
    while not (value := for_this()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


@pytest.mark.slow
def test_two_cores_find_what_one_finds_bit_for_bit(tmp_path: Path) -> None:
    start.train(spec(tmp_path / "one", 1))
    two = start.train(spec(tmp_path / "two", 2))
    assert found(tmp_path / "two") == found(tmp_path / "one")
    assert not multiprocessing.active_children() and torch.get_num_threads() == 1
    record = RunFolder(tmp_path / "two").read_config()
    assert (record["threads"], record["cores"]) == (1, 2)
    assert "cores" not in RunFolder(tmp_path / "one").read_config()
    assert two.run.learners[0].model.policy.actor.mu.weight.is_shared()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "threads"), [(120, None), (213, None), (120, 1), (120, 3)])
def test_a_run_on_two_cores_that_was_killed_goes_on_bit_for_bit_on_as_many_or_others(
    tmp_path: Path, step: int, threads: int | None
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    start.train(spec(whole, 1))
    begun = loop.train

    def killed() -> None:
        def doomed(run: Any) -> Any:
            for row in begun(run):
                yield row
                if run.step == step:
                    kill()

        loop.train = doomed
        start.train(spec(folder, 2))

    assert child(killed) == signal.SIGKILL
    resumed = start.resume(folder, threads=threads)
    assert resumed.spec.threads == (threads or 2)
    assert found(folder) == found(whole)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("net_arch", [[], [8], [256, 256], {"pi": [7, 5], "qf": [4]}])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_evaluation_acts_as_sb3_predicts_bit_for_bit(layer_norm: bool, net_arch: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    own = {"policy_kwargs": {"net_arch": net_arch}}
    model = build("sac", "Uneven-v0", own, critic_layer_norm=layer_norm).learners[0].model
    assert stackable(model)
    act = greedy(model)
    for obs in np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32):
        assert np.array_equal(act(obs), model.predict(obs, deterministic=True)[0])


def test_so_does_one_of_another_learner() -> None:
    own = {"policy_kwargs": {"net_arch": [8], "activation_fn": torch.nn.Tanh}}
    model = build("sac", own=own).learners[0].model
    assert not stackable(model)
    obs = np.ones(1, np.float32)
    assert np.array_equal(greedy(model)(obs), model.predict(obs, deterministic=True)[0])


class Uneven(Steer):
    """Five observations, and three actions with bounds of their own."""

    observation_space = Box(-np.inf, np.inf, (5,), np.float32)
    action_space = Box(np.float32([-1, -3, 0]), np.float32([1, 1e3, 0.1]))


gymnasium.register("Uneven-v0", Uneven)


class Counting(Steer):
    """Notes how many threads torch has while it is stepped, in training and in evaluations."""

    threads: ClassVar[list[int]] = []

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        Counting.threads.append(torch.get_num_threads())
        return super().step(action)


gymnasium.register("Counting-v0", Counting)


def test_torch_has_one_thread_while_a_run_evaluates_and_then_those_it_had(tmp_path: Path) -> None:
    Counting.threads.clear()
    start.train(spec(tmp_path / "run", 3, "pebble", "Counting-v0", total_timesteps=140))
    changes = [now for now, _ in groupby(Counting.threads)]
    assert changes == [3, 1, 3, 1]  # evaluations are after steps 70 and 140
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("method", "algorithm", "threads", "expected"),
    [
        ("penalty", "", 1, (1, 1)),
        ("penalty", "", 2, (2, 1)),
        ("penalty", "", 3, (2, 1)),
        ("penalty", "", 5, (2, 2)),
        ("pebble", "", 4, (1, 4)),
        ("penalty", "TD3", 4, (1, 4)),
    ],
)
def test_threads_go_to_learners_and_what_is_left_to_torch(
    method: str, algorithm: str, threads: int, expected: tuple[int, int]
) -> None:
    asked = RunSpec.of(method, "Steer-v0", {}, threads=threads, algorithm=algorithm)
    parts = Parts.of(method, algorithm)
    assert (side_by_side.learner_processes(asked, parts), side_by_side.torch_threads(asked, parts)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("exit", r"step 70: the evaluation's process ended with code 3: with --threads 1 the run evaluates by itself"),
        ("shape", r"an observation must have the shape \(1,\), not \(3,\)"),
    ],
)
def test_an_environment_that_fails_in_the_process_of_evaluations_is_told_in_one_line(
    tmp_path: Path, fault: str, told: str
) -> None:
    with pytest.raises(UserError, match=f"^{told}$"):
        start.train(spec(tmp_path / "run", 2, env=f"tests.runs.test_evaluations:Apart-{fault}-v0"))
    assert not multiprocessing.active_children()


PROGRAM = """
import sys
from pathlib import Path
from rlhf_bilevel.runs import start
from tests.runs.test_evaluations import spec
if __name__ == "__main__":
    start.train(spec(Path(sys.argv[1]), 2, total_timesteps=100_000, eval_freq=1000, n_eval_episodes=2000))
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_no_process_behind(tmp_path: Path, by: signal.Signals) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "run")]
    place = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.Popen(command, env=place, start_new_session=True, stderr=subprocess.PIPE, text=True)

    def theirs() -> list[int]:
        """The processes of the run, without those that have ended."""
        states = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == run.pid and fields[0] != "Z":  # its session
                states[int(path.parent.name)] = fields[0]
        return sorted(states)

    progress = tmp_path / "run" / "progress.csv"
    try:
        waits(lambda: len(theirs()) > 2 and list((tmp_path / "run").glob("checkpoints/step-*")), 120)
        assert not progress.is_file() or "eval/" not in progress.read_text()
        if by == signal.SIGINT:  # as a terminal does it: to all of them
            os.killpg(run.pid, by)
        else:
            run.kill()
        said = run.communicate(timeout=60)[1]
        waits(lambda: not theirs(), 120)
        assert by == signal.SIGKILL or said.count("Traceback") == 1, said  # that of the program itself
    finally:
        for pid in theirs():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_program_without_a_main_guard_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.replace('if __name__ == "__main__":', "if True:"))
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "run")]
    place = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    said = subprocess.run(command, env=place, capture_output=True, text=True, timeout=200).stderr.splitlines()
    told = '--threads: a new process imports the program anew: train under if __name__ == "__main__":'
    assert said[-1] == f"rlhf_bilevel.errors.UserError: {told}"


def test_too_little_shared_memory_is_told_before_the_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**20, 2**20, 10))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"/dev/shm, and 0 are free"):
        start.train(spec(tmp_path / "run", 2))
    assert not (tmp_path / "run").exists()


def test_callbacks_see_an_evaluation_at_its_step(tmp_path: Path) -> None:
    seen = {}

    def callback(given: dict[str, Any], _: Any) -> bool:
        seen[given["self"].num_timesteps] = "eval/true_return" in given["self"].logger.name_to_value
        return True

    start.train(spec(tmp_path / "run", 2, total_timesteps=140), session.Observers(callback))
    assert seen[70] and seen[140] and not seen[71] and not multiprocessing.active_children()


def test_a_checkpoint_by_time_waits_as_long_again_for_an_evaluation_and_one_by_steps_does_not(tmp_path: Path) -> None:
    run = build("pebble")
    by_time, by_steps = CheckpointManager(tmp_path, "1m"), CheckpointManager(tmp_path, "10")
    for keeper in (by_time, by_steps):
        keeper._last_save, keeper._save_seconds, keeper._last_kept = (0, time.monotonic() - 70), 0.0, 0
    run.step = 15
    assert by_time.due(run) and not by_time.due(run, patient=True)
    assert by_steps.due(run) and by_steps.due(run, patient=True)
    by_time._last_save = 0, time.monotonic() - 130
    assert by_time.due(run, patient=True)
