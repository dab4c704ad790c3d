"""The label store as a preference dataset, and answers from a dataset into the label store.

A row of the dataset is a query with one choice that counts as a label: a query that several people answered has several
rows. A choice of a side has the label 1 or 0, and 0.75 or 0.25 if it is only slightly better; *equally good* and *both
bad* are 0.5. Queries that were skipped, or that a person could not tell, are ``skipped``; queries without any choice
are ``open``. Repetitions and gold pairs are left out: they measure people, and are not labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.label_log import decode_segments, encode_pairs
from rlhf_bilevel.data.preference_dataset import OPEN, Dataset
from rlhf_bilevel.human.records import Asked, ConflictError, ConsumedError, NotFoundError, Outcome, first_better
from rlhf_bilevel.human.store import LabelStore, check_labeller
from rlhf_bilevel.human.tables import DECIDED, LEFT_BETTER
from rlhf_bilevel.types import Queries
from rlhf_bilevel.utils.files import sha256


def export_choices(folder: Path, run_config: Mapping[str, Any], config: Config, trust: bool) -> Dataset | None:
    """All that the run in ``folder`` has asked people; None if it has asked nothing.

    ``run_config`` is the content of its config.yaml, and ``config`` the settings in it. ``trust`` allows a database
    elsewhere. Nothing in the folder changes. Errors as ``LabelStore.reading``.
    """
    with LabelStore.reading(folder, trust) as store:
        rows = store.all_asked()
    if not rows:
        return None
    dataset = Dataset.of(
        Queries(decode_segments(row.first for row in rows), decode_segments(row.second for row in rows)),
        torch.tensor([_label(row) for row in rows]),
        env_id=str(run_config["env"]),
        labeller="",
        sampler=str(config.query),
        t_shown=[math.nan if row.shown_at is None else row.shown_at for row in rows],
        t_answered=[math.nan if row.answered_at is None else row.answered_at for row in rows],
        action_repeat=config.action_repeat,
        protocol=config.protocol,
    )
    kinds = [OPEN if row.choice is None else kind for row, kind in zip(rows, dataset.label_kind, strict=True)]
    return replace(dataset, labeller=tuple(row.labeller or "" for row in rows), label_kind=tuple(kinds))


def _label(row: Asked) -> float:
    if row.choice not in DECIDED:
        return math.nan
    return first_better(row.choice, bool(row.left_is_first))


class Imported(NamedTuple):
    """How many rows of a dataset ``import_choices`` added, and why it did not add the others."""

    added: int
    repeated: int  # rows that an earlier import had added
    left_out: int  # rows of other queries, without such a label, answered by the same person, or not needed any more


def import_choices(store: LabelStore, dataset: Dataset) -> Imported:
    """Stores the labels 1, 0.75, 0.5, 0.25 and 0 of ``dataset`` as answers of the people that it names.

    A row belongs to the query of this run that has the same two segments. Importing the same dataset again changes
    nothing.
    """
    query_ids = {(row.first, row.second): row.query_id for row in store.all_asked()}
    rows = [row for row in dataset.labelled.tolist() if float(dataset.label[row]) in LEFT_BETTER.values()]
    answers = dataset.preferences(torch.tensor(rows, dtype=torch.int64))
    for name in {dataset.labeller[row] for row in rows}:  # before any is stored
        check_labeller(name)
    outcomes = list[Outcome]()
    for row, pair in zip(rows, encode_pairs(answers), strict=True):
        query_id, name = query_ids.get(pair), dataset.labeller[row]
        if query_id is None:
            continue
        key = "import-" + sha256(f"{query_id} {name}".encode())
        shown_at, answered_at = (
            None if math.isnan(seconds) else seconds
            for seconds in (float(times[row]) for times in (dataset.t_shown, dataset.t_answered))
        )
        try:
            outcomes.append(store.import_answer(name, query_id, float(dataset.label[row]), key, shown_at, answered_at))
        except (ConflictError, ConsumedError, NotFoundError):
            continue
    added = outcomes.count(Outcome.ACCEPTED)
    return Imported(added, len(outcomes) - added, len(dataset) - len(outcomes))
