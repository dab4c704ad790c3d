"""Runs that differ only in their seed, in one process: environments take turns, and all learners share one update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from rlhf_bilevel.agent import Agent
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.together import stacked
from rlhf_bilevel.runs.process import exclusive_training
from rlhf_bilevel.runs.session import Observers
from rlhf_bilevel.training.loop import interact
from rlhf_bilevel.training.query_session import why_no_label
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics


def learn_together(agents: Sequence[Agent], total_timesteps: int, progress_bar: bool = False) -> None:
    """Trains all agents for ``total_timesteps``. Each learns what it would learn alone, up to rounding.

    Their methods, environments and settings must be equal except for the seed. A run that is cut off is resumed alone.
    UserError if SB3's own update is needed (see ``batched_sac.stackable``), if this process is training already, and at
    the end if one of them got no label.
    """
    if any(agent.asks_people for agent in agents):
        raise UserError("people label one run at a time, and no cohort")
    with ExitStack() as open_runs:
        open_runs.enter_context(exclusive_training())
        runs = [agent.start(total_timesteps) for agent in agents]
        records = [
            open_runs.enter_context(agent.recording(run, Observers(progress_bar=progress_bar and not number)))
            for number, (agent, run) in enumerate(zip(agents, runs, strict=True))
        ]
        for rows in train(runs):
            for record, row in zip(records, rows, strict=True):
                record(row)
    for fault in filter(None, map(why_no_label, runs)):
        raise UserError(fault)


def train(runs: Sequence[Run]) -> Iterator[list[Metrics]]:
    """``loop.train`` for all runs, step by step: the metrics of each run after each step."""
    stack = stacked([learner for run in runs for learner in run.learners])
    if stack is None:
        raise UserError("a cohort takes learners of plain SAC, alike in all settings but the seed")
    learner_slices, end = [], 0
    for run in runs:
        learner_slices.append(slice(end, end + len(run.learners)))
        end += len(run.learners)
    for interactions in zip(*map(interact, runs), strict=True):
        rows, updates_due = [row for row, _ in interactions], [updates for _, updates in interactions]
        shared = min(updates_due)
        measured = stack.improve(shared, runs[0].step) if shared else [Metrics() for _ in range(end)]
        for run, at, row, updates in zip(runs, learner_slices, rows, updates_due, strict=True):
            if updates > shared:  # after the first labels, for example, which some runs may get later
                measured[at] = stack.improve(updates - shared, run.step, at)
            for number, values in enumerate(measured[at]):
                row |= {f"learner_{number}/{key}": value for key, value in values.items()}
        yield rows
