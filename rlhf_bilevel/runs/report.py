"""What a program that trains says of it: warnings and mistakes in one line each, and what a run has learnt."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.files import one_line


def prepare() -> None:
    """Output that is closed goes nowhere, a letter that a terminal does not know is shown by its number, and a warning
    has a line of its own."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: _warn(message)


def _warn(message: object) -> None:
    bars = sys.modules.get("tqdm")  # a progress bar may be on the last line
    (bars.tqdm.write if bars else print)(f"warning: {message}", file=sys.stderr)


def mistake(error: BaseException) -> str | None:
    """One line for what is no fault of this program; None for what is, which needs its traceback."""
    if isinstance(error, UserError | OSError | FloatingPointError):  # the last: a learner diverged
        return one_line(error)
    memory = "you tried to allocate" in str(error) or "out of memory" in str(error)  # as torch says it
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and memory):
        return f"there is not enough memory: {one_line(error)}"
    return None


def say(line: str) -> None:
    """A mistake, on standard error."""
    print(f"rlhf-bilevel: {' '.join(line.split())}", file=sys.stderr)


def tell(out: Path, reference: Path | None) -> None:
    """Prints what the run in ``out`` has learnt, and draws its learning curve there.

    ``reference`` is a table of earlier runs: what SAC on the true reward reaches at the same steps is told beside it.
    """
    from rlhf_bilevel.evaluation.compare import LAST, ended_with, ending
    from rlhf_bilevel.evaluation.plot import draw
    from rlhf_bilevel.evaluation.records import points, read_table

    found = points(out) if RunFolder(out).evaluated else []
    agent = [point for point in found if point.is_agent]
    if not agent:
        print(f"The agent was not evaluated: there is no learning curve.\nRun: {out}")
        return
    last, ends = agent[-1], agent[-LAST:]
    told = f"{last.method} reached a true return of {ending([point.true_return for point in ends]):.0f}"
    successes = [point.success for point in ends if point.success is not None]
    told += f" and a success of {ending(successes):.2f}" if len(successes) == len(ends) else ""
    episodes = sum(point.episodes for point in ends)
    told += f" ({ended_with(len(agent), (episodes, episodes))}) on {last.env} after {last.step:,} steps"
    told += f" with {last.labels} labels"
    if reference:
        steps = [point.step for point in ends]
        seeds: dict[int, dict[int, float]] = {}
        for point in read_table(reference):
            if point.is_agent and (point.method, point.env) == ("sac", last.env):
                seeds.setdefault(point.seed, {})[point.step] = point.true_return
        same = [float(ending([run[step] for step in steps])) for run in seeds.values() if run.keys() >= set(steps)]
        shown = ", ".join(f"{step:,}" for step in steps)
        if same:
            told += f"; SAC on the true reward reaches {sum(same) / len(same):.0f} at the same steps"
            told += f" (mean of {len(same)} seeds)" if len(same) > 1 else " (one seed)"
        else:
            told += f"; {reference} has no run of sac on {last.env} that was evaluated at the same steps ({shown})"
    print(f"{told}.\nLearning curve: {draw(found, RunFolder(out).learning_curve)}\nRun: {out}")
