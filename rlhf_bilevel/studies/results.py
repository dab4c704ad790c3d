"""The results of a study: one table with a row for each evaluation of a learner, as CSV and as Parquet.

The rows are the ``EvaluationRecord``s of the runs that have ended; ``records.read_table`` reads the CSV. Both files are
written anew each time, whole and atomically: a reader sees the old table or the new one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
import pyarrow
from pyarrow import parquet

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord, own_names, read_records, renamed, to_csv
from rlhf_bilevel.evaluation.statistics import iqm
from rlhf_bilevel.evaluation.tasks import LAST, final_score, measure_of, min_max, run_sentence
from rlhf_bilevel.utils.files import lock, write

CSV, PARQUET = "results.csv", "results.parquet"
ARROW = {str: pyarrow.string(), int: pyarrow.int64(), bool: pyarrow.bool_(), float: pyarrow.float64()}
SCHEMA = pyarrow.schema(
    [
        pyarrow.field(name, ARROW[(get_args(kind) or (kind,))[0]], nullable=NoneType in get_args(kind))
        for name, kind in get_type_hints(EvaluationRecord).items()
    ]
)


def collect(folder: Path) -> list[EvaluationRecord]:
    """Writes the tables of all runs in ``folder`` that have ended, including earlier studies, and returns their rows.

    A run that cannot be read is left out with a warning. The rows that are returned have the methods' ``own_names``.
    """
    with lock(folder / ".results.lock", timeout=-1):  # of two studies, the later one has more runs
        rows, configs = list[EvaluationRecord](), list[Mapping[str, Any]]()
        for out in sorted(folder.iterdir()):
            if not RunFolder(out).ended:
                continue
            try:
                rows += read_records(out)
                configs.append(RunFolder(out).read_config())
            except (UserError, OSError) as error:
                warnings.warn(f"{out} is left out of {CSV}: {' '.join(str(error).split())}", stacklevel=2)
        write(folder / CSV, to_csv(rows))
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist([row._asdict() for row in rows], SCHEMA), sink)
        write(folder / PARQUET, sink.getvalue().to_pybytes())
    return renamed(rows, own_names(configs))


def table(rows: Sequence[EvaluationRecord]) -> str:
    """The values of runs as text, as in ``compare``: a line for each method and environment."""
    agents = [row for row in rows if row.is_agent]
    if not agents:
        return "No run has ended."
    head = f"{'method':10} {'environment':32} {'measure':11} {'IQM':>10} {'worst seed':>10} {'best seed':>10}  seeds"
    lines, ends = [head], list[tuple[int, int]]()
    for method, env in dict.fromkeys((row.method, row.env) for row in agents):
        measure = measure_of([row for row in agents if row.env == env])
        runs: dict[int, list[EvaluationRecord]] = {}
        for row in agents:
            if (row.method, row.env) == (method, env):
                runs.setdefault(row.seed, []).append(row)
        values = np.array([final_score([getattr(row, measure) for row in run]) for run in runs.values()])
        form = "10.2f" if measure == "success" else "10.1f"
        shown = " ".join(format(float(value), form) for value in (iqm(values[None]), values.min(), values.max()))
        lines.append(f"{method:10} {env:32} {measure:11} {shown} {len(values):6}")
        ends += [(len(run), sum(row.episodes for row in run[-LAST:])) for run in runs.values()]
    fewest, episodes = min(count for count, _ in ends), min_max([count for _, count in ends])
    return "\n".join([*lines, run_sentence(fewest, episodes)])
