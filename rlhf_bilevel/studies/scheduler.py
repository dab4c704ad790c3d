"""Many runs: those that have ended are left alone, those that were cut off continue, and missing ones begin.

A run is a ``worker`` in its own process; an executor says where. Two studies on one folder share its runs: a run that
another process trains goes to the end of the queue, and usually has ended when it comes up again.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from filelock import Timeout

from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.worker import ELSEWHERE
from rlhf_bilevel.utils.files import open_in_place

State = Literal["queued", "running", "ended", "failed"]
TICK = 0.2  # seconds between two checks of the running processes
PATIENCE = 5.0  # seconds until a run that another process has is tried again
TAIL = 2**16  # bytes at the end of a log in which its last line is searched
GRACE = 10.0  # seconds until a process that should end is killed


class StartedRun(Protocol):
    """A run that an executor has started."""

    def poll(self) -> int | None:
        """The worker's exit code; None before it has ended."""

    def stop(self) -> None:
        """Stops it; the run can continue later."""


class Executor(Protocol):
    """Where runs are trained."""

    room: int  # runs at the same time

    def start(self, run: RunSpec) -> StartedRun:
        """Starts the run."""


class Process:
    """A process whose output is appended to ``log``."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open_in_place(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def poll(self) -> int | None:
        """Its exit code; None before it has ended."""
        return self._process.poll()

    def stop(self) -> None:
        """Ends it; kills it if it has not ended after GRACE seconds."""
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class LocalExecutor:
    """Processes on this machine, ``room`` at the same time; their output goes to OUT.log."""

    def __init__(self, room: int) -> None:
        self.room = room

    def start(self, run: RunSpec) -> Process:
        """Starts a worker for the run."""
        return Process([sys.executable, "-m", "rlhf_bilevel.studies.worker", run.to_json()], run.folder.output)


def run_all(
    runs: Sequence[RunSpec],
    executor: Executor,
    on_progress: Callable[[Mapping[RunSpec, State]], None],
    report: Callable[[str], None] = print,
) -> list[RunSpec]:
    """Brings all runs to their ends and returns those that failed. ``on_progress`` gets the states again and again.

    However this is left, no run that it started goes on afterwards.
    """
    states: dict[RunSpec, State] = {run: "ended" if run.folder.ended else "queued" for run in runs}
    queue = {run: 0.0 for run in runs if states[run] == "queued"}  # earliest time of the start
    elsewhere: set[RunSpec] = set()
    running: dict[RunSpec, StartedRun] = {}
    try:
        while queue or running:
            time_now = time.monotonic()
            due = [run for run, not_before in queue.items() if not_before <= time_now]
            for run in due[: executor.room - len(running)]:
                del queue[run]
                if run not in elsewhere:
                    report(f"{'going on with' if run.folder.begun else 'starting'} {run.folder}: {run}")
                running[run] = executor.start(run)
            for run, started in list(running.items()):
                code = started.poll()
                states[run] = "running" if run.folder.begun else "queued"  # it may wait on a cluster
                if code is None:
                    continue
                del running[run]
                if code == ELSEWHERE:
                    if run not in elsewhere:
                        report(f"{run.folder} is being trained by another process, and is looked at again later")
                    elsewhere.add(run)
                    queue[run] = time_now + PATIENCE
                elif code:
                    states[run] = "failed"
                    log = run.folder.output
                    report(f"{run.folder} failed: {last_line(log)} (all of it: {log})")
                else:
                    states[run] = "ended"
                    report(f"{run.folder} ended")
            on_progress(states)
            time.sleep(TICK)
    finally:
        for started in running.values():
            started.stop()
    return [run for run, state in states.items() if state == "failed"]


def begin_together(runs: Sequence[RunSpec]) -> None:
    """Trains the runs that have not begun in this process; those that differ only in the seed share one update.

    Runs that another process has taken are left to it.
    """
    import torch

    from rlhf_bilevel.agent import Agent
    from rlhf_bilevel.studies.batched_seeds import learn_together

    alike: defaultdict[RunSpec, list[RunSpec]] = defaultdict(list)
    for run in runs:
        alike[replace(run, out=None).having(seed=0)].append(run)
    for kind, group in alike.items():
        with ExitStack() as claims:
            agents = []
            for run in group:
                with suppress(Timeout):
                    claims.enter_context(run.folder.claim())
                    if not run.folder.begun:
                        agents.append(Agent.of(run))
            if agents:
                torch.set_num_threads(kind.threads or torch.get_num_threads())
                learn_together(agents, kind.steps, progress_bar=True)


def last_line(log: Path) -> str:
    """The last line of a program's output. A progress bar returns to the start of its line."""
    with log.open("rb") if log.is_file() else io.BytesIO() as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
