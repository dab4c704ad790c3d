"""What a program that trains prints: warnings and errors in one line each, and what a run has learnt."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.files import one_line
from rlhf_bilevel.utils.json_yaml import read_json


def prepare_streams() -> None:
    """Makes output safe: a closed stream becomes os.devnull, and letters that a terminal cannot show become numbers.

    Each warning is one line.
    """
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


def user_message(error: BaseException) -> str | None:
    """One line about an error that is not a fault of this program; None if it is one and needs its traceback."""
    if isinstance(error, UserError | OSError | FloatingPointError):  # FloatingPointError: a learner diverged
        return one_line(error)
    memory = "you tried to allocate" in str(error) or "out of memory" in str(error)  # torch's messages
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and memory):
        return f"there is not enough memory: {one_line(error)}"
    return None


def print_error(line: str) -> None:
    """Prints an error on standard error, in one line."""
    print(f"rlhf-bilevel: {' '.join(line.split())}", file=sys.stderr)


def print_selection(out: Path) -> None:
    """Prints which policy was chosen with labels that were held back, if any were."""
    if RunFolder(out).selection.is_file():
        told = read_json(RunFolder(out).selection)
        last = told["steps"][-1]
        which = "the last one" if told["chosen"] == last else f"that of step {told['chosen']:,}, not the last"
        print(f"The policy that was chosen is {which}: {told['labels']} labels more ({RunFolder(out).selection}).")


def print_result(out: Path, reference: Path | None) -> None:
    """Prints what the run in ``out`` has learnt, and draws its learning curve there.

    ``reference`` is a table of earlier runs: it also prints what SAC on the true reward reaches at the same steps.
    """
    from rlhf_bilevel.evaluation.plot import draw
    from rlhf_bilevel.evaluation.records import own_names, read_records, read_table, renamed
    from rlhf_bilevel.evaluation.tasks import LAST, early_sentence, final_score, final_score_text

    config = RunFolder(out).read_config()
    names = own_names([config])
    records = renamed(read_records(out), names) if RunFolder(out).evaluated else []
    agent = [point for point in records if point.is_agent]
    if not agent:
        print(f"The agent was not evaluated: there is no learning curve.\nRun: {out}")
        return
    last, last_records = agent[-1], agent[-LAST:]
    if config.get("settings", {}).get("teacher_human"):
        print(f"{last.method} has learnt from {last.labels} answers of people. Look at it: rlhf-bilevel watch {out}")
        if len(RunFolder(out).kept_policies()) > 1 and not RunFolder(out).selection.is_file():
            print(f"Or choose which of its policies you prefer: rlhf-bilevel select {out} --teacher human --out NEW")
        print("What the environment's own reward says, which may be about something else than the question:")
    text = f"{last.method} reached a true return of {final_score([point.true_return for point in last_records]):.0f}"
    successes = [point.success for point in last_records if point.success is not None]
    text += f" and a success of {final_score(successes):.2f}" if len(successes) == len(last_records) else ""
    episodes = sum(point.episodes for point in last_records)
    text += f" ({final_score_text(len(agent), (episodes, episodes))}) on {last.env} after {last.step:,} steps"
    text += f" with {last.labels} labels"
    text += f" in {last.minutes:.1f} labelling minutes" if last.minutes else ""
    if reference:
        steps = [point.step for point in last_records]
        seeds: dict[int, dict[int, float]] = {}
        for point in read_table(reference):
            if point.is_agent and (point.method, point.env) == ("sac", last.env):
                seeds.setdefault(point.seed, {})[point.step] = point.true_return
        sac_returns = [
            float(final_score([run[step] for step in steps])) for run in seeds.values() if run.keys() >= set(steps)
        ]
        step_list = ", ".join(f"{step:,}" for step in steps)
        if sac_returns:
            text += f"; SAC on the true reward reaches {sum(sac_returns) / len(sac_returns):.0f} at the same steps"
            text += f" (mean of {len(sac_returns)} seeds)" if len(sac_returns) > 1 else " (one seed)"
        else:
            text += f"; {reference} has no run of sac on {last.env} that was evaluated at the same steps ({step_list})"
    print(f"{text}.")
    for sentence in early_sentence([point.step for point in agent]):
        print(f"Note: {sentence}.")
    print_selection(out)
    print(f"Learning curve: {draw(records, RunFolder(out).learning_curve)}\nRun: {out}")
