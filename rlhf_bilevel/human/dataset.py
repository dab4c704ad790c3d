"""The book as a preference dataset, and answers from a dataset into the book.

A row is a query with one choice that counts as a label: of several people who answered a query each has a row. Pairs
that were skipped, or that nobody could tell, are ``skipped``; those without any choice ``open``. Repetitions and gold
are not in it: they judge people, not segments.
"""

from __future__ import annotations

import hashlib
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
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import DECIDED
from rlhf_bilevel.types import Queries


def of_book(folder: Path, told: Mapping[str, Any], config: Config, trust: bool) -> Dataset | None:
    """All that the run in ``folder``, which told that of itself, has asked people; None where it has asked nothing."""
    with LabelStore.reading(folder, trust) as book:
        rows = book.all_asked()
    if not rows:
        return None
    dataset = Dataset.of(
        Queries(decode_segments(row.first for row in rows), decode_segments(row.second for row in rows)),
        torch.tensor([_label(row) for row in rows]),
        env_id=str(told["env"]),
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
    added: int
    known: int  # had been imported before
    left_out: int  # not this run's, without a label, answered by the same person, or not wanted any more


def import_choices(book: LabelStore, dataset: Dataset) -> Imported:
    """Enters the dataset's choices and ties as answers of whom it names to the queries of the run with those segments.

    Doing it again changes nothing.
    """
    ids = {(row.first, row.second): row.query_id for row in book.all_asked()}
    rows = [row for row in dataset.labelled.tolist() if dataset.label_kind[row] != "probability"]
    answers = dataset.preferences(torch.tensor(rows, dtype=torch.int64))
    told = list[Outcome]()
    for row, pair in zip(rows, encode_pairs(answers), strict=True):
        query, name = ids.get(pair), dataset.labeller[row]
        if query is None:
            continue
        key = "import-" + hashlib.sha256(f"{query} {name}".encode()).hexdigest()
        shown, answered = (float(times[row]) for times in (dataset.t_shown, dataset.t_answered))
        times = None if math.isnan(shown) else shown, None if math.isnan(answered) else answered
        try:
            told.append(book.enter(name, query, float(dataset.label[row]), key, *times))
        except (ConflictError, ConsumedError, NotFoundError):
            continue
    added = told.count(Outcome.ACCEPTED)
    return Imported(added, len(told) - added, len(dataset) - len(told))
