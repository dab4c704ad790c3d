"""Metrics of a run to CSV, TensorBoard and screen, its evaluations to CSV. A resumed run writes no step twice."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from stable_baselines3.common.logger import (
    Figure,
    FormatUnsupportedError,
    HParam,
    HumanOutputFormat,
    Image,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    Video,
    filter_excluded_keys,
)

from rlhf_bilevel.data.run_folder import EVALUATIONS, PROGRESS, STEP, RunFolder
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.evaluation.rollout import Evaluation
from rlhf_bilevel.runs.process import delayed_interrupts
from rlhf_bilevel.utils.files import append, naming_write_errors, open_to_read, sync, truncate, write

LONGEST = 2**17  # most bytes in a line
COLUMNS = ("step", "labels", "learner", "is_agent", "episode", "true_return", "success", "minutes")


class Log:
    """Collects metrics and writes the newest of each after every episode.

    Keys follow SB3; those of the second learner are under ``train_1/``. ``folder=None`` writes no file. ``extra`` are
    the user's own output formats: they get each row, and stay open. The log continues after ``step``, where an
    earlier log had these ``marks``: what its files hold beyond them is cut off. CorruptFileError, and nothing is
    cut, if they hold less or something else.
    """

    def __init__(
        self, folder: Path | None, screen: bool, step: int, marks: Mapping[str, Any], extra: Sequence[KVWriter] = ()
    ) -> None:
        writers: list[KVWriter] = [HumanOutputFormat(sys.stdout)] if screen and sys.stdout else []
        self._folder, self._tensorboard = RunFolder(folder) if folder else None, None
        if self._folder:
            logs = self._folder.progress, self._folder.evaluations
            progress, self._evaluations = (GrowingCSV(path, marks.get(path.name)) for path in logs)
            sizes = marks.get("events", {})
            for path in self._folder.events():
                if path.name in sizes:
                    truncate(path, min(int(sizes[path.name]), path.stat().st_size))
                else:
                    path.unlink()
            for rows in (progress, self._evaluations):
                rows.cut()
            with naming_write_errors(self._folder.path):
                self._tensorboard = TensorBoardOutputFormat(str(folder))
            self._rows = progress
            writers += [CSVWriter(progress), self._tensorboard]
        self.logger = StepLogger(writers, step, extra)
        self._started, self._resumed = time.monotonic(), step

    def marks(self) -> dict[str, Any]:
        """Puts everything on the disk, and returns what a log that continues from here needs."""
        if self._folder is None or self._tensorboard is None:
            return {}
        with delayed_interrupts(), naming_write_errors(self._folder.path):
            self._tensorboard.writer.flush()
        events = self._folder.events()
        for path in [*events, self._folder.progress, self._folder.evaluations]:
            if path.exists():
                sync(path)
        sizes = {path.name: path.stat().st_size for path in events}
        return {"events": sizes, PROGRESS: self._rows.mark(), EVALUATIONS: self._evaluations.mark()}

    def record(self, row: Mapping[str, float], step: int) -> None:
        """Collects the metrics of environment step ``step``."""
        self.logger.step = step
        for key, value in row.items():
            self.logger.record(key.replace("learner_0/", "").replace("learner_1/train", "train_1"), value)
        if self._is_shown(row):
            self.logger.record("time/fps", (step - self._resumed) / (time.monotonic() - self._started))

    def write(self, row: Mapping[str, float]) -> None:
        """Writes a row if the step ended an episode. To be called after ``record`` and after the step's callbacks."""
        if self._is_shown(row):
            self.flush()

    def evaluation(
        self, result: Evaluation, step: int, labels: int, learner: int, is_agent: bool, minutes: float | None = None
    ) -> None:
        """Writes one row for each episode: return, and success, which is 0, 1, or empty if the environment does not
        know it; labelling ``minutes`` until then are empty if the teacher does not tell.
        """
        if self._folder is None:
            return
        successes = [""] * len(result.returns) if result.successes is None else [int(s) for s in result.successes]
        spent = "" if minutes is None else round(minutes, 4)
        rows: list[Mapping[str, object]] = []
        for episode, (value, success) in enumerate(zip(result.returns, successes, strict=True)):
            cells = (step, labels, learner, int(is_agent), episode, round(float(value), 4), success, spent)
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
        with delayed_interrupts():
            self._evaluations.add(rows)

    def flush(self) -> None:
        """Writes what has been recorded since the last row, if anything."""
        if self.logger.name_to_value:
            self.logger.dump()

    def close(self) -> None:
        """Closes the files."""
        with delayed_interrupts():
            self.logger.close()

    def _is_shown(self, row: Mapping[str, float]) -> bool:
        evaluated = "eval/true_return" in row or self.logger.held == []  # its metrics come later
        return evaluated or "rollout/true_return" in row


class HeldRow(NamedTuple):
    """What SB3's ``KVWriter.write`` takes."""

    values: dict[str, Any]
    excluded: dict[str, tuple[str, ...]]
    step: int


class StepLogger(Logger):
    """SB3's logger for the run and its callbacks: every row has its ``step``, and is written whole."""

    def __init__(self, writers: list[KVWriter], step: int, extra: Sequence[KVWriter] = ()) -> None:
        super().__init__(folder=None, output_formats=[*writers, *extra])
        self.step, self._own = step, writers
        self.held: list[HeldRow] | None = None  # rows that wait for an evaluation, that of its step first; None: no row

    def dump(self, step: int = 0) -> None:
        """Writes a row; its step is ``self.step`` unless it is given."""
        step = step or self.step
        self.record(STEP, step, exclude="tensorboard")  # which has it as the step of each value
        if self.held is not None:
            self.held.append(HeldRow(dict(self.name_to_value), dict(self.name_to_excluded), step))
            for collected in (self.name_to_value, self.name_to_count, self.name_to_excluded):
                collected.clear()
            return
        with delayed_interrupts():
            super().dump(step)

    def hold(self) -> None:
        """Begins to hold rows back, from that of this step on, until ``release`` gives this row's evaluation."""
        self.held = []

    def release(self, metrics: Mapping[str, float]) -> None:
        """Writes the rows that were held back, the first of them with these ``metrics`` too."""
        held, self.held = self.held or [], None
        with delayed_interrupts():
            for number, row in enumerate(held):
                if not number:
                    row.values.update(metrics)
                    row.excluded.update(dict.fromkeys(metrics, ()))
                for writer in self.output_formats:
                    writer.write(row.values, row.excluded, row.step)

    def close(self) -> None:
        """Closes all but the user's own output formats. Rows that still wait are written as they are."""
        self.release({})
        for writer in self._own:
            writer.close()


def output_formats(logger: Logger | None) -> list[KVWriter]:
    """Those of an SB3 logger. UserError if it is none."""
    if logger is None:
        return []
    if not isinstance(logger, Logger):
        raise UserError(
            f"logger={logger!r:.60}: must be SB3's, such as stable_baselines3.common.logger.configure(folder, ['json'])"
        )
    return logger.output_formats


class CSVWriter(KVWriter):
    """SB3's writer of a CSV file with one row for each dump."""

    def __init__(self, rows: GrowingCSV) -> None:
        self._rows = rows

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Adds a row. FormatUnsupportedError for a value that is no number or text."""
        key_values = {**filter_excluded_keys(key_values, key_excluded, "csv"), STEP: step}
        for value in key_values.values():
            if isinstance(value, (Video, Figure, Image, HParam)):
                raise FormatUnsupportedError(["csv"], type(value).__name__.lower())
        self._rows.add([dict(sorted(key_values.items()))])

    def close(self) -> None:
        """Does nothing: the file is not kept open."""


class GrowingCSV:
    """A CSV file that grows at its end, with a column for each key that has ever been given.

    ``mark`` says how many rows there are and has a hash of their content, which does not depend on columns that come
    later. The file continues from such a mark, or from the beginning without one. CorruptFileError if its rows are not
    those that were marked.
    """

    def __init__(self, path: Path, mark: Mapping[str, Any] | None = None) -> None:
        self._path, self._columns = path, list[str]()
        self._count, self._sum = 0, hashlib.sha256()
        self._end = 0  # bytes until the end of the marked rows
        expected = int(mark["rows"]) if mark else 0
        if expected:
            with open_to_read(path, math.inf) as file:
                lines = _parse_lines(file, path)
                self._columns = next(lines, ([], 0))[0]
                for cells, self._end in islice(lines, expected):
                    self._note(dict(zip(self._columns, cells, strict=False)))
            if mark != self.mark():
                raise CorruptFileError(
                    f"{path} is damaged: its first {expected} rows are not those that the checkpoint knew; put it "
                    "back, or remove the folder of checkpoints: resume then begins anew and comes to the same end"
                )

    def cut(self) -> None:
        """Removes the rows after the mark."""
        if not self._count:
            self._path.unlink(missing_ok=True)
        elif self._end < self._path.stat().st_size:
            truncate(self._path, self._end)

    def mark(self) -> dict[str, Any]:
        """The number of rows and their hash."""
        return {"rows": self._count, "sha256": self._sum.hexdigest()}

    def add(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Adds rows, and columns for keys that are new."""
        texts = [{key: str(value) for key, value in row.items()} for row in rows]
        if new := [key for key in dict.fromkeys(key for row in texts for key in row) if key not in self._columns]:
            self._widen(new)
        append(self._path, _to_csv([[row.get(key, "") for key in self._columns] for row in texts]))
        for row in texts:
            self._note(row)

    def _widen(self, new: Sequence[str]) -> None:
        rows: list[list[str]] = []
        if self._path.exists():
            with open_to_read(self._path, math.inf) as file:
                rows = [cells for cells, _ in islice(_parse_lines(file, self._path), 1, None)]
        self._columns += new
        write(self._path, _to_csv([self._columns, *(cells + [""] * len(new) for cells in rows)]))

    def _note(self, row: Mapping[str, str]) -> None:
        self._count += 1
        self._sum.update(json.dumps(sorted((key, value) for key, value in row.items() if value)).encode() + b"\n")


def _parse_lines(file: BinaryIO, path: Path) -> Iterator[tuple[list[str], int]]:
    """The cells of each whole line, and the position of its end in bytes; an unfinished last line is left out."""
    end = 0
    while (line := file.readline(LONGEST)).endswith(b"\n"):
        end += len(line)
        try:
            yield next(csv.reader([line.decode()])), end
        except (UnicodeDecodeError, csv.Error) as error:
            raise CorruptFileError(f"{path} is damaged: {error}") from None


def _to_csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
