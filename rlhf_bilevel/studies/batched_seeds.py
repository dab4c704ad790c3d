"""Runs of one kind that learn side by side in one process: their environments in turn, their learners in one update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from rlhf_bilevel.agent import Agent
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.off_policy import stacked
from rlhf_bilevel.runs.process import training
from rlhf_bilevel.training.loop import interact
from rlhf_bilevel.training.query_session import why_no_label
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics


def learn_together(agents: Sequence[Agent], total_timesteps: int, progress_bar: bool = False) -> None:
    """Each agent learns what it would learn alone, but for rounding: ``Agent.learn`` for all of them at once.

    Their methods, environments and settings must be alike, but for the seed. A run that is cut off is resumed alone.
    UserError where SB3's own update is needed (see ``stack.stackable``), where this process trains already, and at the
    end where one was given no label.
    """
    if any(agent.asks_people for agent in agents):
        raise UserError("people label one run at a time, and no cohort")
    with ExitStack() as open_runs:
        open_runs.enter_context(training())
        runs = [agent.start(total_timesteps) for agent in agents]
        records = [
            open_runs.enter_context(agent.recording(run, progress_bar=progress_bar and not number))
            for number, (agent, run) in enumerate(zip(agents, runs, strict=True))
        ]
        for rows in train(runs):
            for record, row in zip(records, rows, strict=True):
                record(row)
    for fault in filter(None, map(why_no_label, runs)):
        raise UserError(fault)


def train(runs: Sequence[Run]) -> Iterator[list[Metrics]]:
    """``loop.train`` of all runs, in step."""
    stack = stacked([learner for run in runs for learner in run.learners])
    if stack is None:
        raise UserError("a cohort takes learners of plain SAC, alike in all settings but the seed")
    own, end = [], 0
    for run in runs:
        own.append(slice(end, end + len(run.learners)))
        end += len(run.learners)
    for told in zip(*map(interact, runs), strict=True):
        rows, due = [row for row, _ in told], [updates for _, updates in told]
        shared = min(due)
        measured = stack.improve(shared, runs[0].step) if shared else [Metrics() for _ in range(end)]
        for run, at, row, updates in zip(runs, own, rows, due, strict=True):
            if updates > shared:  # as after the first labels, which a teacher may not give to all runs at once
                measured[at] = stack.improve(updates - shared, run.step, at)
            for number, values in enumerate(measured[at]):
                row |= {f"learner_{number}/{key}": value for key, value in values.items()}
        yield rows
