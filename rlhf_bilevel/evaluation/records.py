"""Evaluations as rows: of runs' folders, and of the tables that ``benchmarks/results`` holds.

An ``EvaluationRecord`` is one learner of one run at one evaluation.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_bilevel.data.run_folder import CONFIG, RunFolder
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.utils.files import CSV_LIMIT, read, write


class EvaluationRecord(NamedTuple):
    """One evaluation of one learner of one run."""

    method: str
    env: str
    seed: int
    step: int  # environment steps of all learners
    labels: int
    learner: int
    is_agent: bool  # whether a user gets this learner's policy
    true_return: float  # mean over the episodes
    success: float | None  # share of the episodes; None if the environment does not know success
    episodes: int
    commit: str
    minutes: float | None = None  # of labelling until then; None if the teacher did not tell, or in an older table

    @property
    def run(self) -> str:
        """The run, in words."""
        return f"{self.method} with seed {self.seed} on {self.env}"


def read_records(folder: Path) -> list[EvaluationRecord]:
    """All evaluations in a run's folder, in order; an unfinished last row is left out.

    CorruptFileError if a file does not hold what was written; if the run has ended, every byte is checked.
    """
    run = RunFolder(folder).examine()
    record, records = run.read_config(), []
    try:
        identity = str(record["method"]), str(record["env"]), int(record["settings"]["seed"])
        for (step, labels, learner, is_agent, minutes), group in groupby(
            run.read_evaluations(),
            key=lambda row: (row["step"], row["labels"], row["learner"], row["is_agent"], row.get("minutes")),
        ):
            returns, successes = list[float](), list[float]()
            for row in group:
                returns.append(float(row["true_return"]))
                successes += [float(row["success"])] if row["success"] else []
            records.append(
                EvaluationRecord(
                    *identity, int(step), int(labels), int(learner), is_agent == "1", float(np.mean(returns)),
                    float(np.mean(successes)) if successes else None, len(returns), str(record.get("commit") or ""),
                    float(minutes) if minutes else None,
                )
            )  # fmt: skip
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, csv.Error) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise CorruptFileError(f"{run.evaluations} is damaged, or {CONFIG} is: {reason}") from None
    return records


def own_names(configs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """By ``module:NAME``, the own names of the methods of users' modules in these runs. ``configs`` are the runs'.

    A name that another method has, too, is left out.
    """
    called = dict.fromkeys((str(own["method"]), str(own.get("method_name") or own["method"])) for own in configs)
    methods, names = Counter(method for method, _ in called), Counter(name for _, name in called)
    return {
        method: name
        for method, name in called
        if name != method and methods[method] == names[name] == 1 and name not in METHODS
    }


def renamed(rows: Iterable[EvaluationRecord], names: Mapping[str, str]) -> list[EvaluationRecord]:
    """The rows with the methods in ``names`` called so."""
    return [row._replace(method=names.get(row.method, row.method)) for row in rows]


def write_table(rows: Iterable[EvaluationRecord], file: Path) -> None:
    """Writes a CSV file, with returns rounded to hundredths: for a table that is kept in git."""
    write(file, to_csv([row._replace(true_return=round(row.true_return, 2)) for row in rows]))


def to_csv(rows: Iterable[EvaluationRecord]) -> bytes:
    """The rows as CSV, as ``read_table`` reads it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EvaluationRecord._fields)
    for row in rows:
        writer.writerow(["" if x is None else int(x) if isinstance(x, bool) else x for x in row])
    return text.getvalue().encode()


def read_table(file: Path) -> list[EvaluationRecord]:
    """The rows that ``write_table`` wrote; additional columns are ignored. UserError if it is no such table.

    ``minutes`` are missing in tables of earlier versions.
    """
    if not file.exists():
        raise UserError(f"{file}: no such file")
    try:
        rows = csv.DictReader(io.StringIO(read(file, CSV_LIMIT).decode("utf-8-sig")))
        needed = [name for name in EvaluationRecord._fields if name not in EvaluationRecord._field_defaults]
        if missing := [name for name in needed if name not in (rows.fieldnames or ())]:
            raise UserError(f"{file} is no table of evaluations: it has no column {missing[0]!r}")
        return [
            EvaluationRecord(
                row["method"], row["env"], int(row["seed"]), int(row["step"]), int(row["labels"]), int(row["learner"]),
                row["is_agent"] == "1", float(row["true_return"]), float(row["success"]) if row["success"] else None,
                int(row["episodes"]), row["commit"], float(row["minutes"]) if row.get("minutes") else None,
            )
            for row in rows
        ]  # fmt: skip
    except UserError:
        raise
    except TypeError:  # a cell is missing
        raise CorruptFileError(f"{file} is no table of evaluations: one of its rows is too short") from None
    except (ValueError, csv.Error) as error:
        raise CorruptFileError(f"{file} is no table of evaluations: {' '.join(str(error).split())[:100]}") from None
