"""What a run has asked by now, as a preference dataset: by its log of labels, or by the book where people answer."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from rlhf_bilevel.config import settle
from rlhf_bilevel.data.label_log import LabelLog, Pair, stacked
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Queries


def of_run(folder: Path, trust: bool = False) -> Dataset | None:
    """All that the run in ``folder`` has asked by now, in order; None where it has asked nothing.

    A query that was answered in a later session than its own is one row, shown at first and answered at last. The
    sampler is the run's setting ``query``; rules that look at the reward draw uniformly before there is one. Nothing in
    the folder changes. ``trust`` lets it name a database elsewhere, in which people's answers are.
    """
    run = RunFolder(folder)
    told = run.trusted_config(trust=True)  # nothing that it names is imported here
    config = settle(told["settings"])
    if config.teacher_human:
        from rlhf_bilevel.human.dataset import of_book  # a database's libraries, which only people's labels need

        return of_book(folder, told, config, trust)
    if not run.labels.is_file():
        raise UserError(f"{folder} holds no {run.labels.name}: it has asked nothing yet")
    rows: list[tuple[Pair, float, float, float]] = []  # with label, t_shown and t_answered
    waiting: dict[Pair, int] = {}  # rows that may still be answered
    with LabelLog.copy(run.labels) as log:
        for session in map(log.__getitem__, range(len(log))):
            asked_at = math.nan if session.asked_at is None else session.asked_at
            for label, *pair in session.answers:
                first, second = pair
                if (late := waiting.pop((first, second), None)) is None:
                    rows.append(((first, second), label, asked_at, session.answered_at))
                else:
                    rows[late] = rows[late][0], label, rows[late][2], session.answered_at
            for skipped in session.skipped:
                waiting.setdefault(skipped, len(rows))
                rows.append((skipped, math.nan, asked_at, math.nan))
    if not rows:
        return None
    pairs, labels, shown, answered = zip(*rows, strict=True)
    firsts, seconds = zip(*pairs, strict=True)
    return Dataset.of(
        Queries(stacked(firsts), stacked(seconds)),
        torch.tensor(labels),
        env_id=str(told["env"]),
        labeller=str(told["teacher"]),
        sampler=str(config.query),
        t_shown=shown,
        t_answered=answered,
        action_repeat=config.action_repeat,
        protocol=config.protocol,
    )


def load(data: Path, trust: bool = False) -> Dataset:
    """Of a run's folder, or of a Parquet file."""
    if not data.is_dir():
        return Dataset.read(data)
    found = of_run(data, trust)
    if found is None:
        raise UserError(f"{data} has asked no query yet")
    return found
