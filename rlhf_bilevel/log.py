"""Metrics of a run to CSV, TensorBoard and screen, and its evaluations to CSV; each step once, also after a resume."""

from __future__ import annotations

import csv
import io
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

from rlhf_bilevel.evaluate import Evaluation
from rlhf_bilevel.files import EVALUATIONS, PROGRESS, STEP, sync, write
from rlhf_bilevel.process import held

COLUMNS = ("step", "labels", "learner", "is_agent", "episode", "true_return", "success")


class Log:
    """Collects metrics and writes the newest of each once an episode. Keys follow SB3; the second learner's are under
    ``train_1/``. ``folder=None`` writes no file.

    It goes on after ``step``, where TensorBoard's files had the sizes ``events``: what they hold beyond is cut off.
    """

    def __init__(self, folder: Path | None, screen: bool, step: int, events: Mapping[str, int]) -> None:
        writers: list[KVWriter] = [HumanOutputFormat(sys.stdout)] if screen and sys.stdout else []
        self._folder, self._tensorboard = folder, None
        if folder:
            for path in folder.glob("events.out.tfevents.*"):
                if path.name in events:
                    os.truncate(path, min(events[path.name], path.stat().st_size))
                else:
                    path.unlink()
            _cut(folder / EVALUATIONS, "step", step)
            self._tensorboard = TensorBoardOutputFormat(str(folder))
            writers += [Progress(folder / PROGRESS, step), self._tensorboard]
        self.logger = Rows(writers, step)
        self._started, self._resumed = time.monotonic(), step

    def marks(self) -> dict[str, int]:
        """Puts everything on the disk; ``events`` of a log that goes on from here."""
        if self._folder is None or self._tensorboard is None:
            return {}
        with held():
            self._tensorboard.writer.flush()
        paths = [*self._folder.glob("events.out.tfevents.*"), self._folder / PROGRESS, self._folder / EVALUATIONS]
        for path in paths:
            if path.exists():
                sync(path)
        return {path.name: path.stat().st_size for path in paths[:-2]}

    def record(self, row: Mapping[str, float], step: int) -> None:
        self.logger.step = step
        for key, value in row.items():
            self.logger.record(key.replace("learner_0/", "").replace("learner_1/train", "train_1"), value)
        if _told(row):
            self.logger.record("time/fps", (step - self._resumed) / (time.monotonic() - self._started))

    def write(self, row: Mapping[str, float]) -> None:
        """To be called after ``record`` of the same ``row``, and after what callbacks record of that step."""
        if _told(row):
            self.flush()

    def evaluation(self, result: Evaluation, step: int, labels: int, learner: int, is_agent: bool) -> None:
        """One row an episode: return, and success as 0, 1 or empty where the environment knows none."""
        if self._folder is None:
            return
        successes = [""] * len(result.returns) if result.successes is None else [int(s) for s in result.successes]
        file = self._folder / EVALUATIONS
        rows: list[Sequence[object]] = [] if file.exists() else [COLUMNS]
        for episode, (value, success) in enumerate(zip(result.returns, successes, strict=True)):
            rows.append((step, labels, learner, int(is_agent), episode, round(float(value), 4), success))
        with held(), file.open("ab") as stream:
            stream.write(_lines(rows))

    def flush(self) -> None:
        """What has been recorded since the last row makes one more."""
        if self.logger.name_to_value:
            self.logger.dump()

    def close(self) -> None:
        with held():
            self.logger.close()


def _told(row: Mapping[str, float]) -> bool:
    return "rollout/true_return" in row or "eval/true_return" in row


class Rows(Logger):
    """SB3's logger, as the run and its callbacks use it: every row tells its ``step``, and is written whole."""

    def __init__(self, writers: list[KVWriter], step: int) -> None:
        super().__init__(folder=None, output_formats=writers)
        self.step = step

    def dump(self, step: int = 0) -> None:
        with held():
            super().dump(step or self.step)


class Progress(KVWriter):
    """A CSV with a row a dump, and a column for each key that has ever been given."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._columns = _cut(path, STEP, step)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        key_values = {**filter_excluded_keys(key_values, key_excluded, "csv"), STEP: step}
        for value in key_values.values():
            if isinstance(value, (Video, Figure, Image, HParam)):
                raise FormatUnsupportedError(["csv"], type(value).__name__.lower())
        new = sorted(set(key_values) - set(self._columns))
        if new:
            self._columns += new
            rows = _read(self._path)
            write(self._path, _lines([self._columns, *([row.get(key, "") for key in self._columns] for row in rows)]))
        with self._path.open("ab") as stream:
            stream.write(_lines([[key_values.get(key, "") for key in self._columns]]))

    def close(self) -> None:
        pass


def _cut(path: Path, column: str, step: int) -> list[str]:
    """Drops what was written after ``step``; the columns that stay."""
    kept = [row for row in _read(path) if int(row[column]) <= step]
    if not kept:
        path.unlink(missing_ok=True)
        return []
    write(path, _lines([list(kept[0]), *(list(row.values()) for row in kept)]))
    return list(kept[0])


def _read(path: Path) -> list[dict[str, str]]:
    """The rows; one that a fault cut short is none."""
    if not path.exists():
        return []
    whole, newline, _ = path.read_text().rpartition("\n")
    return list(csv.DictReader(io.StringIO(whole + newline)))


def _lines(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
