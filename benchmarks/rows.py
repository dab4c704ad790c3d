"""Rows of a CSV file as named tuples of numbers and text."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar, get_type_hints

Row = TypeVar("Row", bound=NamedTuple)


def write(results: Iterable[NamedTuple], file: Path, number_format: str = ".6g") -> None:
    """At least one row."""
    rows = list(results)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        writer.writerows([format(x, number_format) if isinstance(x, float) else x for x in row] for row in rows)


def read(file: Path, kind: type[Row]) -> list[Row]:
    kinds = get_type_hints(kind)
    with file.open(newline="") as stream:
        return [kind._make(kinds[name](row[name]) for name in kinds) for row in csv.DictReader(stream)]
