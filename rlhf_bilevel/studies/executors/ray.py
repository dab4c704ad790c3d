"""Runs on a Ray cluster. Each run is a task; if its worker or its machine dies, Ray starts it again elsewhere.

The task itself trains the run, and does not watch another process, so that no run goes on after its task. It finds the
run's folder on a file system that all machines share, at the same path, and continues from the newest checkpoint.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import RayError

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.scheduler import GRACE
from rlhf_bilevel.studies.worker import main
from rlhf_bilevel.utils.files import check_plain_file

RETRIES = 100  # times that a run's worker may die: preemptible machines go often


class RayExecutor:
    """The cluster at RAY_ADDRESS, else that of ``ray start`` on this machine, else a new one on this machine alone.

    A run takes ``cpus`` CPUs. Tasks wait in Ray's queue, so that a cluster that can grow sees them.
    """

    room = sys.maxsize

    def __init__(self, cpus: int = 1) -> None:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        # A new process for each run, with nothing left from another run
        self._run = ray.remote(num_cpus=cpus, max_retries=RETRIES, max_calls=1)(work_remotely)

    def start(self, run: RunSpec) -> RayTask:
        """Starts a task for the run."""
        out = run.folder.path.resolve()
        return RayTask(self._run.remote(out, replace(run, out=out).to_json()), RunFolder(out).output)


class RayTask:
    """A run as a Ray task; Ray's errors are appended to ``log``."""

    def __init__(self, reference: ray.ObjectRef, log: Path) -> None:
        self._reference, self._log = reference, log

    def poll(self) -> int | None:
        """The worker's exit code; None before it has ended, 1 if Ray could not run it."""
        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return ray.get(self._reference)
        except RayError as error:
            with self._log.open("a") as stream:
                print(str(error).split("\n")[0], file=stream)
            return 1

    def stop(self) -> None:
        """Cancels the task."""
        ray.cancel(self._reference, force=True)
        ray.wait([self._reference], timeout=GRACE)


def work_remotely(out: Path, spec: str) -> int:
    """The task: trains ``spec`` (JSON), with output to OUT.log, and returns the exit code. Its process is used once."""
    log = RunFolder(out).output
    check_plain_file(log)
    sys.stdout = sys.stderr = stream = log.open("a", buffering=1)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    return main([spec])
