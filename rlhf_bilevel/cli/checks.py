"""What commands check of paths before they do anything."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_bilevel.data.run_folder import RunFolder, outside_runs
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.utils.files import check_writable

if TYPE_CHECKING:
    from rlhf_bilevel.evaluation.sources import Gathered

PATHS = "a run's folder, a folder of runs, or a table (.csv); NAME=PATH calls these runs NAME"


def run_folder(path: Path) -> RunFolder:
    """UserError where there is no run, or anything that no run writes, such as a link."""
    return RunFolder(path).examine()


def finished(path: Path) -> None:
    """UserError if there is no run, or one that has not ended."""
    if not run_folder(path).ended:
        raise UserError(f"{path} has not come to its end: rlhf-bilevel resume {shlex.quote(str(path))} goes on with it")


def new_folder(path: Path) -> Path:
    """UserError where a new run cannot begin: something is there, or it is a part of another run."""
    if check_writable(path).is_symlink() or not RunFolder(path).vacant:
        raise UserError(f"{path} exists already and is not overwritten: choose another path")
    return outside_runs(path)


def new_file(option: str, path: Path, *endings: str) -> Path:
    """``path``. UserError if it has another ending or exists already."""
    if path.suffix not in endings:
        raise UserError(f"{option} {path}: must end in {' or '.join(endings)}")
    if check_writable(path).is_symlink() or path.exists():
        raise UserError(f"{path} exists already and is not overwritten: choose another path")
    return path


def table_of(reference: Path | None) -> None:
    """UserError where it is no table of evaluations."""
    if reference:
        from rlhf_bilevel.evaluation.records import read_table

        try:
            read_table(reference)
        except UserError as error:
            raise UserError(f"--reference {error}") from None


def gathered(paths: Sequence[Path]) -> Gathered:
    """Evaluations of the runs that the paths stand for; warns about what is odd."""
    from rlhf_bilevel.evaluation.sources import gather_records

    found = gather_records(paths)
    for line in found.warnings:
        warnings.warn(line, stacklevel=1)
    return found


def writable_folder(option: str, path: Path) -> None:
    """UserError where it is none and cannot be made."""
    if check_writable(path).exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is not a folder")
    outside_runs(path)


def one_teacher(spec: RunSpec) -> RunSpec:
    """UserError where people would have to answer many runs at once."""
    if spec.settings.get("teacher_human"):
        raise UserError("teacher 'human': people label one run at a time; rlhf-bilevel train starts one")
    return spec
