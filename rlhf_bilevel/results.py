"""What the runs of a folder came to: one tidy table, a row an evaluation of a learner, as CSV and as Parquet.

The rows are ``points.Point``s of the runs that have ended; ``points.read_table`` reads the CSV. Both are written anew
each time, whole and atomically, so that a reader meets what there was or what there is now.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pyarrow
from pyarrow import parquet

from rlhf_bilevel.files import lock, write
from rlhf_bilevel.points import Point, points, to_csv
from rlhf_bilevel.worker import ended

CSV, PARQUET = "results.csv", "results.parquet"
SCHEMA = pyarrow.schema(
    [
        pyarrow.field("method", pyarrow.string(), nullable=False),
        pyarrow.field("env", pyarrow.string(), nullable=False),
        pyarrow.field("seed", pyarrow.int64(), nullable=False),
        pyarrow.field("step", pyarrow.int64(), nullable=False),
        pyarrow.field("labels", pyarrow.int64(), nullable=False),
        pyarrow.field("learner", pyarrow.int64(), nullable=False),
        pyarrow.field("is_agent", pyarrow.bool_(), nullable=False),
        pyarrow.field("true_return", pyarrow.float64(), nullable=False),
        pyarrow.field("success", pyarrow.float64()),  # null where the environment knows no success
        pyarrow.field("episodes", pyarrow.int64(), nullable=False),
        pyarrow.field("commit", pyarrow.string(), nullable=False),
    ]
)


def collect(folder: Path) -> list[Point]:
    """Writes the tables of all runs in ``folder`` that have ended, also of earlier sweeps; their rows."""
    with lock(folder / ".results.lock", timeout=-1):  # of two sweeps, the later one knows more
        rows = [row for out in sorted(folder.iterdir()) if ended(out) for row in points(out)]
        write(folder / CSV, to_csv(rows))
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist([row._asdict() for row in rows], SCHEMA), sink)
        write(folder / PARQUET, sink.getvalue().to_pybytes())
    return rows


def table(rows: Sequence[Point]) -> str:
    """True return at the end, a line a method and environment."""
    last = {(row.method, row.env, row.seed): row.true_return for row in rows if row.is_agent}  # rows are in order
    groups: dict[tuple[str, str], list[float]] = {}
    for (method, env, _), value in last.items():
        groups.setdefault((method, env), []).append(value)
    lines = [
        f"{method:10} {env:32} {fmean(values):10.1f} {min(values):10.1f} {max(values):10.1f} {len(values):6}"
        for (method, env), values in groups.items()
    ]
    return "\n".join([f"{'method':10} {'environment':32} {'mean':>10} {'least':>10} {'most':>10} {'seeds':>6}", *lines])
