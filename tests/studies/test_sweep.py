"""Many runs: each comes to its end once, whoever begins it and whatever ends its process."""

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from pyarrow import parquet
from rich.console import Console

from rlhf_bilevel.agent import Agent
from rlhf_bilevel.cli.sweep import without_options_of
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_table
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.runs.logger import CSVWriter, GrowingCSV
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies import scheduler
from rlhf_bilevel.studies.progress import ProgressBoard
from rlhf_bilevel.studies.results import collect, table
from rlhf_bilevel.studies.scheduler import Process, run_all
from rlhf_bilevel.studies.worker import ELSEWHERE, check_same_run, work
from tests.conftest import SMALL
from tests.support.faults import child, kill, same_run

ENV = "tests.conftest:Steer-v0"
SETTINGS: dict[str, Any] = SMALL | {"eval_freq": 90, "labels": 20}


def planned(out: Path, steps: int = 300) -> RunSpec:
    return RunSpec.of(
        "pebble", ENV, SETTINGS | {"total_timesteps": steps, "seed": 0}, threads=1, out=out, checkpoint_every="50"
    )


def uninterrupted(out: Path, steps: int = 300) -> Path:
    Agent("pebble", ENV, out=out, checkpoint_every="50", **SETTINGS).learn(steps)
    return out


class Scripted:
    """An engine whose runs end with the exit codes that are told, each time that they are started."""

    room = 1

    def __init__(self, **codes: Sequence[int]) -> None:
        self.codes = {name: iter(own) for name, own in codes.items()}
        self.started: list[str] = []
        self.stopped = 0

    def start(self, run: RunSpec) -> "Scripted":
        self.started.append(run.folder.path.name)
        return self

    def poll(self) -> int | None:
        return next(self.codes[self.started[-1]])

    def stop(self) -> None:
        self.stopped += 1


class Forked:
    """A real process, which does not import all anew."""

    room = 1

    def start(self, run: RunSpec) -> "Forked":
        self.pid = os.fork()
        if not self.pid:
            os._exit(work(run))
        return self

    def poll(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TICK", 0.01)
    monkeypatch.setattr(scheduler, "PATIENCE", 0.01)


def test_a_run_that_fails_is_told_with_its_last_line_and_the_others_go_on(tmp_path: Path) -> None:
    runs = [planned(tmp_path / name) for name in "abc"]
    runs[1].folder.output.write_text("traceback\nValueError: the reason\r 10 steps \n\n")
    told: list[str] = []
    engine = Scripted(a=[0], b=[1], c=[0])
    assert run_all(runs, engine, lambda _: None, told.append) == [runs[1]]
    assert engine.started == ["a", "b", "c"]
    assert any("b failed: 10 steps (all of it:" in line for line in told)
    again = Scripted(a=[0], b=[0], c=[0])
    assert run_all(runs[1:2], again, lambda _: None, told.append) == [] and again.started == ["b"]


def test_what_another_process_trains_is_no_failure_and_waits_behind_the_others(tmp_path: Path) -> None:
    engine, told = Scripted(a=[ELSEWHERE, ELSEWHERE, 0], b=[0]), []
    assert run_all([planned(tmp_path / name) for name in "ab"], engine, lambda _: None, told.append) == []
    assert engine.started[:2] == ["a", "b"] and engine.started.count("a") == 3 and engine.started.count("b") == 1
    assert sum("another process" in line for line in told) == 1


def test_no_run_outlives_the_sweep(tmp_path: Path) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    engine = Scripted(a=repeat(None))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run_all([planned(tmp_path / "a")], engine, interrupt)
    assert engine.stopped == 1


@pytest.mark.parametrize("heeds", [True, False])
def test_a_process_that_is_stopped_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heeds: bool) -> None:
    monkeypatch.setattr(scheduler, "GRACE", 0.5)
    deaf = "" if heeds else "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    code = f"{deaf}import time; print('here', flush=True); time.sleep(99)"
    process = Process([sys.executable, "-c", code], tmp_path / "log")
    while not (tmp_path / "log").read_text():
        time.sleep(0.02)
    process.stop()
    assert process.poll() == -(signal.SIGTERM if heeds else signal.SIGKILL)


def test_either_lock_leaves_a_run_to_the_process_that_has_it(tmp_path: Path) -> None:
    run = planned(tmp_path / "run")
    with run.folder.claim():
        assert work(run) == ELSEWHERE and not run.out.exists()
    run.out.mkdir()
    (run.out / "config.yaml").write_text("method: pebble\n")
    with FileLock(run.out / ".lock"):
        assert work(run) == ELSEWHERE


def test_the_locks_of_a_killed_process_are_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()

    def die() -> None:
        RunFolder(tmp_path / "run").claim().acquire()
        FileLock(tmp_path / "run" / ".lock").acquire()
        kill()

    assert child(die) == signal.SIGKILL
    with RunFolder(tmp_path / "run").claim(), FileLock(tmp_path / "run" / ".lock", timeout=0):
        pass


@pytest.mark.slow
def test_a_run_waits_for_its_process_and_goes_on_when_that_is_killed_bit_for_bit(tmp_path: Path) -> None:
    """Another sweep's worker has a run, is halted, then killed: the run is taken over where its checkpoint is."""
    run, told = planned(tmp_path / "run"), []
    other = Forked().start(run)
    while not list((run.out / "checkpoints").glob("step-*")):
        assert other.poll() is None
        time.sleep(0.02)
    os.kill(other.pid, signal.SIGSTOP)
    assert not run.folder.ended

    def tell(line: str) -> None:
        told.append(line)
        if "another process" in line:
            other.stop()

    assert run_all([run], Forked(), lambda _: None, tell) == []
    assert [line.split(":")[0].replace(str(run.out), "run") for line in told] == [
        "going on with run",
        "run is being trained by another process, and is looked at again later",
        "run ended",
    ]
    same_run(run.out, uninterrupted(tmp_path / "whole"))


def test_a_sweep_takes_no_other_run_for_its_own(tmp_path: Path) -> None:
    run = planned(tmp_path)
    check_same_run(run, {"total_timesteps": 300})  # it has not begun
    (tmp_path / "config.yaml").write_text(
        f"method: pebble\nenv: {ENV}\nsettings: {{total_timesteps: 300, batch_size: 2}}\n"
    )
    check_same_run(run, {"total_timesteps": 300, "later_setting": 1})
    with pytest.raises(ValueError, match=r"with batch_size=2, not 3: choose another --out"):
        check_same_run(run, {"total_timesteps": 300, "batch_size": 3})
    with pytest.raises(ValueError, match="method=pebble, not sac"):
        check_same_run(replace(run, method="sac"), {})


def test_a_worker_asks_under_the_locks_whose_run_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Another process may have begun a run there since the sweep looked."""
    run = planned(tmp_path / "run")
    run.out.mkdir()
    (run.out / "config.yaml").write_text(
        f"method: pebble\nenv: {ENV}\nsettings: {{total_timesteps: 300, gamma: 0.5}}\n"
    )
    before = (run.out / "config.yaml").read_text()
    assert work(run) == 2
    assert "is a run with gamma=0.5, not 0.99: choose another --out" in capsys.readouterr().err
    assert (run.out / "config.yaml").read_text() == before


def test_a_run_that_another_process_takes_or_ends_meanwhile_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = planned(tmp_path / "run"), FileLock(tmp_path / "run" / ".lock")

    def late(*_: Any, **__: Any) -> None:
        run.out.mkdir(exist_ok=True)
        (run.out / "config.yaml").touch()
        other.acquire()
        raise UserError("it is not to be")

    monkeypatch.setattr("rlhf_bilevel.runs.start.train", late)
    assert work(run) == ELSEWHERE
    (run.out / "config.yaml").unlink()

    def ends(*_: Any, **__: Any) -> None:
        other.release()
        (run.out / "SHA256SUMS").touch()
        raise UserError("it is not to be")

    monkeypatch.setattr("rlhf_bilevel.runs.start.train", ends)
    assert work(run) == 0


def test_results_are_one_row_an_evaluation_in_both_files(tmp_path: Path) -> None:
    for seed in (0, 1):
        out = tmp_path / f"run-{seed}"
        out.mkdir()
        told = f"method: pebble\nenv: Steer-v0\nsettings: {{seed: {seed}}}\ncommit: abc\n"
        (out / "config.yaml").write_text(told)
        rows = [f"{step},20,0,1,{episode},{step / 3 + episode},{'' if seed else 1}"
                for step in (100, 200) for episode in (0, 1)]  # fmt: skip
        (out / "evaluations.csv").write_text(
            "step,labels,learner,is_agent,episode,true_return,success\n" + "\n".join(rows) + "\n"
        )
    (tmp_path / "run-0/SHA256SUMS").touch()
    assert {row.seed for row in collect(tmp_path)} == {0}  # the other has not ended
    (tmp_path / "run-1/SHA256SUMS").touch()
    expected = [
        EvaluationRecord("pebble", "Steer-v0", seed, step, 20, 0, True, step / 3 + 0.5, None if seed else 1.0, 2, "abc")
        for seed in (0, 1)
        for step in (100, 200)
    ]
    assert collect(tmp_path) == expected == read_table(tmp_path / "results.csv")
    assert [EvaluationRecord(**row) for row in parquet.read_table(tmp_path / "results.parquet").to_pylist()] == expected
    told = table(expected).splitlines()
    assert told[1].split() == ["pebble", "Steer-v0", "true_return", "50.5", "50.5", "50.5", "2"]
    assert told[2] == "Each run counts with the mean of its agent's last 2 evaluations (4 episodes)."


def test_the_step_is_that_of_the_last_whole_row(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).last_step() == 0
    progress = CSVWriter(GrowingCSV(tmp_path / "progress.csv"))
    progress.write({"rollout/true_return": 1.5}, {}, 40)
    assert RunFolder(tmp_path).last_step() == 40
    for step in range(41, 5000):
        progress.write({"a": 1.25, "rollout/true_return": 1e-9}, {}, step)
    assert RunFolder(tmp_path).last_step() == 4999
    with (tmp_path / "progress.csv").open("a") as file:
        file.write("1,50")
    assert RunFolder(tmp_path).last_step() == 4999
    (tmp_path / "progress.csv").write_text("a,b,time/total_timesteps\n1\n")  # it is being written anew
    assert RunFolder(tmp_path).last_step() == 0


def test_the_board_knows_speed_and_time_left(tmp_path: Path) -> None:
    """Two of three runs at 10 and 30 steps a second with 900 and 700 of 1000 steps to go, and one that waits."""
    runs = [planned(tmp_path / name, 1000) for name in "abc"]
    now = [0.0]
    screen = Console(file=StringIO(), force_terminal=True, width=120, height=40)
    board = ProgressBoard(runs, screen, clock=lambda: now[0])
    states: dict = {runs[0]: "running", runs[1]: "running", runs[2]: "queued"}
    with board:
        for now[0] in (5.0, 10.0):
            for run, speed in zip(runs, (10, 30), strict=False):
                run.out.mkdir(exist_ok=True)
                (run.out / "progress.csv").write_text(f"time/total_timesteps\n{int(now[0]) * speed}\n")
            board.update(states)
        board.update(dict.fromkeys(runs, "ended"))  # too soon for another table, but the last
    assert "3 ended" in screen.file.getvalue()
    screen = Console(file=StringIO(), width=120)
    screen.print(board.table(states))
    lines = [re.split(r"\s*[│┃]\s*", line.strip(" │┃")) for line in screen.file.getvalue().splitlines()]
    assert ["a", "running", "100 / 1,000", "10.0", "0:01:30"] in lines
    assert ["b", "running", "300 / 1,000", "30.0", "0:00:23"] in lines
    assert ["c", "queued", "0 / 1,000", "", "?"] in lines
    # 2600 steps at 40 a second are 65 s, and the slowest run still takes 90
    assert ["all", "2 running, 1 queued", "400 / 3,000", "40.0", "0:01:30"] in lines


def test_without_a_terminal_the_board_is_a_line_a_minute(tmp_path: Path) -> None:
    now, out = [0.0], StringIO()
    board = ProgressBoard([planned(tmp_path / "a", 1000)], Console(file=out, width=40), clock=lambda: now[0])
    with board:
        for second in range(130):
            now[0] = float(second)
            (tmp_path / "a").mkdir(exist_ok=True)
            (tmp_path / "a/progress.csv").write_text(f"time/total_timesteps\n{2 * second}\n")
            board.update({planned(tmp_path / "a", 1000): "running"})
    assert out.getvalue().splitlines() == [
        "1 running; 120 / 1,000 steps; 2.0 steps/s; 0:07:20 left",
        "1 running; 240 / 1,000 steps; 2.0 steps/s; 0:06:20 left",
    ]


def test_many_runs_have_a_line_a_method_and_environment(tmp_path: Path) -> None:
    runs = [planned(tmp_path / str(number)) for number in range(40)]
    board = ProgressBoard(runs, Console(file=StringIO(), width=120, height=30))
    assert board.table(dict.fromkeys(runs, "queued")).row_count == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not find_spec("ray"), reason="needs Ray: make test-slow installs it")
def test_a_run_whose_machine_dies_goes_on_elsewhere_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray cluster of two machines with a CPU each; the one that has the run is killed between two checkpoints."""
    import ray
    from ray.cluster_utils import Cluster as Machines

    from rlhf_bilevel.studies.executors.ray import RayExecutor, RayTask

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    steps, run = 1500, planned(tmp_path / "run", 1500)
    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0})
    first = machines.add_node(num_cpus=1)
    ray.init(address=machines.address, log_to_driver=False)
    killed: list[str] = []
    polled = RayTask.poll

    def poll(task: RayTask) -> int | None:
        if not killed and list((run.out / "checkpoints").glob("step-*")):
            killed.extend(path.name for path in (run.out / "checkpoints").glob("step-*"))
            machines.remove_node(first, allow_graceful=False)
            machines.add_node(num_cpus=1)
        return polled(task)

    monkeypatch.setattr(RayTask, "poll", poll)
    try:
        failed = run_all([run, planned(tmp_path / "other")], RayExecutor(), lambda _: None)
    finally:
        ray.shutdown()
        machines.shutdown()
    assert killed and not failed
    # The steps that its bars begin with
    begins = re.findall(r"(\d+)/1500 \[00:00<\?", run.folder.output.read_text())
    assert begins[0] == "0" and int(begins[-1]) > 0
    same_run(run.out, uninterrupted(tmp_path / "apart/whole", steps))
    assert len(collect(tmp_path)) == len(set(collect(tmp_path)))


OWN = replace(METHODS["pebble"], name="own")


def test_an_option_of_a_users_own_method_is_for_its_runs_alone() -> None:
    own = "tests.studies.test_sweep:OWN"
    settings = {"own.strength": 2, "labels": 8, "surf.threshold": 0.9}
    assert without_options_of({own}, settings) == {"labels": 8, "surf.threshold": 0.9}
    assert without_options_of(set(), settings) == settings
