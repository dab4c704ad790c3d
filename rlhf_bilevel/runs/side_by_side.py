"""How a run uses the cores that it was given: in how many processes, with how many threads in each."""

from __future__ import annotations

from dataclasses import replace

from stable_baselines3 import SAC

from rlhf_bilevel.config.fields import MOST_THREADS
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.batched_sac import BatchedSAC
from rlhf_bilevel.learners.together import Together
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.training.run import Run


def with_threads(spec: RunSpec, threads: object) -> RunSpec:
    """The spec with another number of CPU threads. UserError if it is none."""
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise UserError(f"threads={threads!r:.60}: must be a whole number from 1 to {MOST_THREADS}")
    return replace(spec, threads=threads)


def learner_processes(spec: RunSpec, parts: Parts) -> int:
    """In how many processes the learners of a run are updated."""
    side_by_side = parts.algorithm is SAC and spec.device == "cpu"
    return min(spec.threads or 1, parts.method.learners) if side_by_side else 1


def spread_stack(spec: RunSpec, parts: Parts, run: Run) -> BatchedSAC | None:
    """What updates the learners in several processes; None if it is this one alone."""
    improve = run.improve
    return improve.stack if learner_processes(spec, parts) > 1 and isinstance(improve, Together) else None


def torch_threads(spec: RunSpec, parts: Parts) -> int:
    """The threads that torch has in each process of a run which was given a number of threads.

    With learners side by side, one is left to evaluations: threads of torch wait for each other, so that a process
    that stops one of them stops all.
    """
    assert spec.threads
    processes = learner_processes(spec, parts)
    return spec.threads if processes == 1 else max(1, (spec.threads - 1) // processes)
