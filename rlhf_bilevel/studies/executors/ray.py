"""Runs on a Ray cluster: each is a task, and where its worker or its machine dies, Ray starts it again elsewhere.

A task is the run itself, not a process that the task watches, so that no run outlives its task; it finds the run's
folder on a file system that all machines share, at the same path, and goes on from its newest checkpoint.
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
from rlhf_bilevel.utils.files import plain

RETRIES = 100  # times that a run's worker may die; machines that are lent may go often, and each run goes on


class Cluster:
    """That of RAY_ADDRESS, else the one of ``ray start`` on this machine, else one of this machine alone.

    ``cpus`` is what a run takes. Tasks wait in Ray's queue, so that a cluster which grows by itself sees them.
    """

    room = sys.maxsize

    def __init__(self, cpus: int = 1) -> None:
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        # A process of its own for each run: nothing of another run is left in it
        self._run = ray.remote(num_cpus=cpus, max_retries=RETRIES, max_calls=1)(run)

    def start(self, run: RunSpec) -> Task:
        out = run.folder.path.resolve()
        return Task(self._run.remote(out, replace(run, out=out).to_json()), RunFolder(out).output)


class Task:
    def __init__(self, reference: ray.ObjectRef, log: Path) -> None:
        self._reference, self._log = reference, log

    def poll(self) -> int | None:
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
        ray.cancel(self._reference, force=True)
        ray.wait([self._reference], timeout=GRACE)


def run(out: Path, spec: str) -> int:
    """The task: a worker on the ``spec`` in JSON, and its exit code. What it says goes to OUT.log; its process is not
    used again."""
    log = RunFolder(out).output
    plain(log)
    sys.stdout = sys.stderr = stream = log.open("a", buffering=1)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    return main([spec])
