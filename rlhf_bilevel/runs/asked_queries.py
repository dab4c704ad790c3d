"""All queries that a run has asked so far, as a preference dataset: from its label log, or people's label store."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.data.label_log import LabelLog, Pair, decode_segments
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Queries


def read_run(folder: Path, trust: bool = False) -> Dataset | None:
    """All queries that the run in ``folder`` has asked so far, in order; None if it has asked none.

    A query that was answered in a later session is one row, with the time of the first question and of the answer. The
    sampler is the run's setting ``query``; rules that need the reward model draw uniformly before there is one. Nothing
    in the folder changes. ``trust`` allows it to name a database elsewhere, in which people's answers are.
    """
    run = RunFolder(folder)
    record = run.trusted_config(trust=True)  # no module is imported here
    config = validate(record["settings"])
    if config.teacher_human:
        from rlhf_bilevel.human.dataset import export_choices  # needs a database library

        return export_choices(folder, record, config, trust)
    if not run.labels.is_file():
        raise UserError(f"{folder} holds no {run.labels.name}: it has asked nothing yet")
    rows: list[tuple[Pair, float, float, float]] = []  # with label, t_shown and t_answered
    waiting: dict[Pair, int] = {}  # rows that may still be answered
    with LabelLog.copy(run.labels) as log:
        for session in map(log.__getitem__, range(len(log))):
            asked_at = math.nan if session.asked_at is None else session.asked_at
            for label, first, second in session.answers:
                if (waiting_row := waiting.pop((first, second), None)) is None:
                    rows.append(((first, second), label, asked_at, session.answered_at))
                else:
                    rows[waiting_row] = rows[waiting_row][0], label, rows[waiting_row][2], session.answered_at
            for skipped in session.skipped:
                waiting.setdefault(skipped, len(rows))
                rows.append((skipped, math.nan, asked_at, math.nan))
    if not rows:
        return None
    pairs, labels, shown, answered = zip(*rows, strict=True)
    firsts, seconds = zip(*pairs, strict=True)
    return Dataset.of(
        Queries(decode_segments(firsts), decode_segments(seconds)),
        torch.tensor(labels),
        env_id=str(record["env"]),
        labeller=str(record["teacher"]),
        sampler=str(config.query),
        t_shown=shown,
        t_answered=answered,
        action_repeat=config.action_repeat,
        protocol=config.protocol,
    )


def load(data: Path, trust: bool = False) -> Dataset:
    """The dataset of a run's folder, or of a Parquet file. UserError if the run has asked nothing."""
    if not data.is_dir():
        return Dataset.read(data)
    asked = read_run(data, trust)
    if asked is None:
        raise UserError(f"{data} has asked no query yet")
    return asked
