"""A run in a program that does other things: Ctrl-C at any place, other threads, PyTorch set otherwise, no stderr."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.summary.writer.event_file_writer import _AsyncWriter

from rlhf_bilevel import Agent
from rlhf_bilevel.data.label_log import LabelLog
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teachers import SimulatedTeacher
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.runs.logger import CSVWriter, Log
from rlhf_bilevel.runs.process import Interrupts, delayed_interrupts
from rlhf_bilevel.runs.session import make_progress_bar
from rlhf_bilevel.studies.batched_seeds import learn_together
from tests.conftest import SMALL, Steer, build
from tests.support.faults import child, same_run

STEPS = 120
FEW: dict[str, Any] = SMALL | {"eval_freq": 60, "n_eval_episodes": 1, "reset_updates": 1, "labels": 10}


def agent(out: Path | None = None, **settings: Any) -> Agent:
    return Agent("pebble", "tests.conftest:Steer-v0", out=out, checkpoint_every="50", **(FEW | settings))


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    agent(out).learn(STEPS)
    return out


def before(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Ctrl-C strikes at the second call of a function."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        function, calls = getattr(owner, name), list[None]()

        def struck(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == 2:
                ctrl_c()
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, struck)

    return patch


def in_a_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what is raised there. The first steps are those that an environment is looked at with."""
    calls = list[None]()

    class Strikes:
        def __del__(self) -> None:
            ctrl_c()

    step = Steer.step

    def renewed(self: Steer, action: np.ndarray) -> Any:
        calls.append(None)
        if len(calls) == 5:
            Strikes()
            gc.collect()
        return step(self, action)

    monkeypatch.setattr(Steer, "step", renewed)


def where_all_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = SimulatedTeacher.__call__

    def careless(self: Any, queries: Any) -> Any:
        with suppress(BaseException):
            ctrl_c()
        return ask(self, queries)

    monkeypatch.setattr(SimulatedTeacher, "__call__", careless)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("strike", [
    in_a_finalizer, where_all_is_caught, before(Steer, "step"), before(Steer, "reset"), before(LabelLog, "append"),
    before(CSVWriter, "write"), before(Log, "evaluation"), before(Checkpoints, "save"), before(Checkpoints, "_check"),
    before(torch.optim.Adam, "step"),
])  # fmt: skip
def test_one_ctrl_c_stops_a_run_wherever_it_strikes_and_it_goes_on_bit_for_bit(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, strike: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as patch:
        strike(patch)
        with pytest.raises(KeyboardInterrupt):
            agent(tmp_path / "run").learn(STEPS)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    Agent.resume(tmp_path / "run")
    same_run(tmp_path / "run", whole)


def test_a_ctrl_c_that_is_dropped_while_an_environment_is_looked_at_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reset = Steer.reset

    def careless(self: Steer, **given: Any) -> Any:
        with suppress(BaseException):
            ctrl_c()
        return reset(self, **given)

    monkeypatch.setattr(Steer, "reset", careless)
    with pytest.raises(KeyboardInterrupt):
        agent(tmp_path / "run").learn(STEPS)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_within_a_row_of_tensorboards_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for what a lock in its writer guards."""
    made = _AsyncWriter.__init__

    def struck(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        put, calls = self._byte_queue.put, list[None]()

        def strikes(*args: Any, **kwargs: Any) -> None:
            calls.append(None)
            if len(calls) == 3:
                try:
                    ctrl_c()
                except KeyboardInterrupt:
                    self._lock = threading.Lock()
                    self._lock.acquire()  # as where it strikes as the lock is taken
                    raise
            put(*args, **kwargs)

        self._byte_queue.put = strikes

    monkeypatch.setattr(_AsyncWriter, "__init__", struck)

    def learn() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # ends this process where it hangs
        with pytest.raises(KeyboardInterrupt):
            agent(tmp_path / "run").learn(STEPS)

    assert child(learn) == 0


def test_a_programs_own_handler_of_ctrl_c_is_called_and_kept(tmp_path: Path, whole: Path) -> None:
    came = list[int]()

    def strikes(told: dict[str, Any], _: Any) -> bool:
        if told["self"].num_timesteps in (20, 40):
            ctrl_c()
        return True

    previous = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        agent(tmp_path / "run").learn(STEPS, callback=strikes)
        with delayed_interrupts():
            ctrl_c()
            assert len(came) == 2
        assert len(came) == 3
    finally:
        signal.signal(signal.SIGINT, previous)
    same_run(tmp_path / "run", whole)


def test_ctrl_c_that_was_swallowed_last_of_all_is_raised_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts(), suppress(BaseException):
        ctrl_c()


SETTINGS: dict[str, Callable[[], Any]] = {
    "no gradients": lambda: torch.set_grad_enabled(False),
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "another device": lambda: torch.set_default_device("meta"),
    "inference": lambda: torch.inference_mode().__enter__(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_is_the_same_however_the_program_has_set_pytorch(tmp_path: Path, whole: Path, name: str) -> None:
    def learn() -> None:
        SETTINGS[name]()
        told = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
        agent(tmp_path / "run").learn(STEPS)
        same_run(tmp_path / "run", whole)
        loaded = Agent.load(tmp_path / "run")
        assert loaded.predict(np.zeros(1, np.float32))[0].shape == (1,) and loaded.evaluate(1)
        if name == "float64":
            learn_together([agent(seed=1), agent(seed=2)], STEPS)
        assert told == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())

    assert child(learn) == 0


def test_a_second_run_in_this_process_is_refused_and_the_first_is_as_alone(tmp_path: Path, whole: Path) -> None:
    refused = list[str]()

    def another(use: Callable[[], Any]) -> None:
        with pytest.raises(UserError, match="trains already") as caught:
            use()
        refused.append(str(caught.value))

    def meddles(told: dict[str, Any], _: Any) -> bool:
        ways = [
            lambda: agent(tmp_path / "other", seed=3).learn(STEPS),
            lambda: Agent.resume(tmp_path / "begun"),
            lambda: learn_together([agent(seed=4)], STEPS),
        ]
        for way in ways if told["self"].num_timesteps == 70 else ():
            another(way)  # within a callback
            thread = threading.Thread(target=another, args=(way,))
            thread.start()
            thread.join()
        return True

    agent(tmp_path / "begun", seed=5).start(STEPS)
    agent(tmp_path / "run").learn(STEPS, callback=meddles)
    assert len(refused) == 6 and not (tmp_path / "other").exists()
    same_run(tmp_path / "run", whole)
    agent().learn(STEPS)  # one after another


def test_loading_an_agent_moves_no_generator(whole: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    Agent.load(whole)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_a_run_in_a_thread_is_the_same(tmp_path: Path, whole: Path) -> None:
    thread = threading.Thread(target=lambda: agent(tmp_path / "run").learn(STEPS, progress_bar=True))
    thread.start()
    thread.join()
    same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_run_without_standard_error_and_output_goes_on(tmp_path: Path) -> None:
    program = "from tests.runs.test_process import *\nimport sys\nassert sys.stderr is None is sys.stdout\n"
    program += "agent(Path(sys.argv[1])).learn(STEPS, progress_bar=True, screen=True)"
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(shell, check=False, env=os.environ | {"PYTHONPATH": os.getcwd()}).returncode == 0
    assert (tmp_path / "run" / "SHA256SUMS").exists()


def test_a_progress_bar_writes_a_line_a_minute_where_nobody_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def slow(*_: Any) -> bool:
        clock[0] += 2.0
        return True

    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        agent().learn(STEPS, callback=slow, progress_bar=True)
    told = [line for line in (tmp_path / "log").read_text().replace("\r", "\n").split("\n") if line.strip()]
    assert 3 <= len(told) <= 7 and f"{STEPS}/{STEPS}" in told[-1]  # of 240 seconds; one at each end


def test_a_progress_bar_is_seen_on_a_terminal_that_does_not_tell_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    other, terminal = os.openpty()  # of no columns and no lines
    with os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with closing(make_progress_bar(build("pebble"), shown=True)) as bar:
            bar.update(300)
        shown = os.read(other, 10_000).decode()
    os.close(other)
    assert "0/300 " in shown


PROGRAM = """
from rlhf_bilevel import Agent

Agent("pebble", "Pendulum-v1", env_timeout=5.0).learn(100)
"""


@pytest.mark.slow
def test_isolated_environments_in_a_program_without_a_main_guard_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1
    assert lines[-1].startswith("rlhf_bilevel.errors.UserError: ") and 'if __name__ == "__main__":' in lines[-1]
