"""All queries that a run has asked so far, as a preference dataset.

They are read from the run's label log or, if people answer, from its label store.
"""

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
    """All queries of the run in ``folder``, in the order in which they were asked; None if it has asked none.

    A query that was skipped and then answered in a later session is one row, with the time of its first showing and the
    time of its answer. The sampler of all rows is the run's setting ``query``; a rule that needs the reward model draws
    uniformly until there is one. Nothing in the folder changes. ``trust`` allows the run to name a database elsewhere
    that holds people's answers. UserError if the folder is not a run's, or has no labels file; CorruptFileError if a
    file in it is not what was written.
    """
    run = RunFolder(folder)
    run_config = run.trusted_config(trust=True)  # nothing that it names is imported here
    config = settle(run_config["settings"])
    if config.teacher_human:
        from rlhf_bilevel.human.dataset import export_choices  # only people's labels need the database libraries

        return export_choices(folder, run_config, config, trust)
    if not run.labels.is_file():
        raise UserError(f"{folder} holds no {run.labels.name}: it has asked nothing yet")
    rows: list[tuple[Pair, float, float, float]] = []  # with label, t_shown and t_answered
    unanswered: dict[Pair, int] = {}  # the row of each skipped pair, which may still be answered
    with LabelLog.copy(run.labels) as log:
        for session in map(log.__getitem__, range(len(log))):
            asked_at = math.nan if session.asked_at is None else session.asked_at
            for label, *pair in session.answers:
                first, second = pair
                if (row := unanswered.pop((first, second), None)) is None:
                    rows.append(((first, second), label, asked_at, session.answered_at))
                else:
                    rows[row] = rows[row][0], label, rows[row][2], session.answered_at
            for skipped in session.skipped:
                unanswered.setdefault(skipped, len(rows))
                rows.append((skipped, math.nan, asked_at, math.nan))
    if not rows:
        return None
    pairs, labels, shown, answered = zip(*rows, strict=True)
    firsts, seconds = zip(*pairs, strict=True)
    return Dataset.of(
        Queries(stacked(firsts), stacked(seconds)),
        torch.tensor(labels),
        env_id=str(run_config["env"]),
        labeller=str(run_config["teacher"]),
        sampler=str(config.query),
        t_shown=shown,
        t_answered=answered,
        action_repeat=config.action_repeat,
        protocol=config.protocol,
    )


def load(data: Path, trust: bool = False) -> Dataset:
    """The dataset in ``data``: the folder of a run (see ``of_run``) or a Parquet file. UserError if it has no query."""
    if not data.is_dir():
        return Dataset.read(data)
    dataset = of_run(data, trust)
    if dataset is None:
        raise UserError(f"{data} has asked no query yet")
    return dataset
