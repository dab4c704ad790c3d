"""Many runs: what has ended is left alone, what was cut off goes on, what is missing begins.

A run is a ``worker`` in a process of its own; an engine says where. The runs of two sweeps on one folder are shared
between them: what another process trains waits at the end of the queue, and is ended when it comes up again.
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
from rlhf_bilevel.utils.files import opened

State = Literal["queued", "running", "ended", "failed"]
TICK = 0.2  # seconds between two looks at what is running
PATIENCE = 5.0  # seconds before a run that another process has is tried again
TAIL = 2**16  # bytes of a log in which its last line is looked for
GRACE = 10.0  # seconds that a process has to end when it is told to


class Started(Protocol):
    """A run that an engine has started."""

    def poll(self) -> int | None:
        """The worker's exit code; None until then."""

    def stop(self) -> None:
        """Ends it before its end; the run can go on later."""


class Engine(Protocol):
    room: int  # runs at the same time

    def start(self, run: RunSpec) -> Started: ...


class Process:
    """Its output goes to the end of ``log``."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with opened(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Local:
    """Processes of this machine, ``room`` side by side, their output in OUT.log."""

    def __init__(self, room: int) -> None:
        self.room = room

    def start(self, run: RunSpec) -> Process:
        return Process([sys.executable, "-m", "rlhf_bilevel.studies.worker", run.to_json()], run.folder.output)


def complete(
    runs: Sequence[RunSpec],
    engine: Engine,
    see: Callable[[Mapping[RunSpec, State]], None],
    tell: Callable[[str], None] = print,
) -> list[RunSpec]:
    """Brings the runs to their ends, all that can be; those that failed. ``see`` is called again and again meanwhile.

    Whatever happens here, no run that was started goes on when this is left.
    """
    states: dict[RunSpec, State] = {run: "ended" if run.folder.ended else "queued" for run in runs}
    queue = {run: 0.0 for run in runs if states[run] == "queued"}  # when it may be started
    elsewhere: set[RunSpec] = set()
    going: dict[RunSpec, Started] = {}
    try:
        while queue or going:
            now = time.monotonic()
            due = [run for run, start in queue.items() if start <= now]
            for run in due[: engine.room - len(going)]:
                del queue[run]
                if run not in elsewhere:
                    tell(f"{'going on with' if run.folder.begun else 'starting'} {run.folder}: {run}")
                going[run] = engine.start(run)
            for run, started in list(going.items()):
                code = started.poll()
                states[run] = "running" if run.folder.begun else "queued"  # it may wait for its turn on a cluster
                if code is None:
                    continue
                del going[run]
                if code == ELSEWHERE:
                    if run not in elsewhere:
                        tell(f"{run.folder} is being trained by another process, and is looked at again later")
                    elsewhere.add(run)
                    queue[run] = now + PATIENCE
                elif code:
                    states[run] = "failed"
                    log = run.folder.output
                    tell(f"{run.folder} failed: {last_line(log)} (all of it: {log})")
                else:
                    states[run] = "ended"
                    tell(f"{run.folder} ended")
            see(states)
            time.sleep(TICK)
    finally:
        for started in going.values():
            started.stop()
    return [run for run, state in states.items() if state == "failed"]


def begin_together(runs: Sequence[RunSpec]) -> None:
    """Trains the runs that have not begun in this process, those alike but for the seed in one update.

    Runs that another process has are left to it.
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
    """What a program said last. A progress bar goes back to the start of its line."""
    with log.open("rb") if log.is_file() else io.BytesIO() as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
