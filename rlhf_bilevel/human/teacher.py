"""People as a teacher: its queries go into the book, and training goes on with what has been answered.

Of W queries that were asked so far let P still wait for somebody. Training waits while P > share W: for all answers
where the setting ``teacher_pending_share`` is 0, never where it is 1. A later session takes those that come late.

A run that is cut off asks the same session again, and finds it in the book; what it had taken from there but not yet
written to labels.sqlite, it is given again. Training remains a function of its seed and that log.
"""

from __future__ import annotations

import math
import shlex
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from sqlalchemy.exc import InterfaceError, OperationalError
from torch import Tensor
from tqdm import tqdm

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.answers import no_answers
from rlhf_bilevel.data.label_log import count_sessions, decode_answers, encode_pairs
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.human.records import Question, Status
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries

Away = (OperationalError, InterfaceError)
"""The database does not answer: it is being restarted, say."""
INTERVAL = 1.0  # seconds between two looks at the book, and between two signs of life in it
T = TypeVar("T")


class Shown(Protocol):
    """What people see of the rows of a store; both are ready for JSON. ``human.film.Film`` is one."""

    def clip(self, rows: Tensor, /) -> dict[str, Any]:
        """Of rows (T,); names its scene, where it has one, under ``scene``."""

    def scene(self, name: str, /) -> dict[str, Any]: ...


class HumanTeacher:
    """People who answer through the book of the run in ``folder``. It is open while the teacher is entered."""

    def __init__(self, config: Config, store: ReplayBuffer, film: Shown, folder: Path) -> None:
        self.film = film
        self._config, self._store, self._folder = config, store, folder
        self._scenes, self._told = set[str](), False
        self._next, self._beaten, self._used = 0.0, (time.monotonic(), 0), 0

    def __enter__(self) -> HumanTeacher:
        """Raises as ``Book.of``."""
        self._book = LabelStore.of(self._folder, trust=True)  # the settings are this run's own, or were trusted
        told, c = RunFolder(self._folder).read_config(), self._config
        facts = {"env": told["env"], "method": told["method"], "seed": c.seed, "segment_length": c.segment_length}
        self._book.begin(facts | {"steps": c.total_timesteps, "labels": c.labels, "votes": c.teacher_votes})
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        doing = f"Training has stopped. rlhf-bilevel resume {self._folder} goes on with it."
        with suppress(*Away):
            self._beat(False, 0, None, doing if kind else "Training has come to its end.")
        self._book.close()

    def __call__(self, queries: Queries) -> Preferences:
        book, number = self._book, count_sessions(RunFolder(self._folder).labels)
        self._used = self._patiently(lambda: book.used(number))
        left = self._config.labels - self._used
        self._ask(number, queries, left)
        self._wait()
        answers = self._patiently(lambda: book.collect(number, left))
        return decode_answers(answers) if answers else no_answers(queries)

    def beat(self, run: Run) -> None:
        """To be called after each step of the run: now and then a sign of life goes into the book."""
        now, c = time.monotonic(), self._config
        if now < self._next:
            return
        (before, step), self._beaten = self._beaten, (now, run.step)
        self._next, self._used = now + INTERVAL, len(run.prefs)
        doing = (
            "The agent explores on its own" if not run.learnt else f"The agent tries what {self._used} labels tell it"
        )
        doing += f", {(run.step - step) / (now - before):.0f} steps a second."
        try:
            self._beat(False, *self._needed(min(c.queries_per_session, c.labels - self._used)), doing)
        except Away:  # training needs no book to go on
            self._next = now + 30 * INTERVAL

    def _ask(self, number: int, queries: Queries, left: int) -> None:
        if self._patiently(lambda: self._book.asked(number)) == 0:
            rows = torch.stack([self._store.rows_of(segments) for segments in queries], 1)  # (B, 2)
            clips = [[self._clip(int(first)) for first in pair] for pair in rows]
            questions = [Question(*pair, *both) for pair, both in zip(encode_pairs(queries), clips, strict=True)]
            self._patiently(lambda: self._book.ask(number, questions, self._config.teacher_votes, left))
        if not self._told:
            self._told = True
            database = self._config.teacher_labels_db
            more = f" --labels-db {shlex.quote(database)}" if database else ""
            tqdm.write(f"Pairs to compare are waiting: rlhf-bilevel label {self._folder}{more}")

    def _clip(self, first: int) -> dict[str, Any]:
        clip = self.film.clip(torch.arange(first, first + self._config.segment_length))
        name = clip.get("scene")
        if name is not None and name not in self._scenes:
            self._patiently(lambda: self._book.add_scene(str(name), self.film.scene(name)))
            self._scenes.add(name)
        return clip

    def _wait(self) -> None:
        step, c = self._store.size, self._config
        while (told := self._patiently(self._needed))[0]:
            needed = told[0]
            doing = f"Training waits at step {step:,} of {c.total_timesteps:,} for {needed} more "
            doing += f"answer{'s' * (needed > 1)}."
            self._patiently(partial(self._beat, True, *told, doing))
            time.sleep(INTERVAL)

    def _needed(self, more: int = 0) -> tuple[int, int]:
        """Answers that training waits for, or would if it asked so many ``more`` queries; and how many may be missing.

        Both are of the queries in the book: the second is below 0 where the new ones alone are too many.
        """
        asked, missing = self._book.pending()
        spare = math.floor(self._config.teacher_pending_share * (asked + more) + 1e-9) - more
        return max(0, missing - spare), spare

    def _beat(self, waiting: bool, needed: int, spare: int | None, doing: str) -> None:
        c = self._config
        status = Status(self._store.size, c.total_timesteps, self._used, c.labels, waiting, needed, doing, spare=spare)
        self._book.beat(status)

    def _patiently(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, which may be done again: where the database is away, training waits until it is back."""
        warned = False
        while True:
            try:
                return work()
            except Away as error:
                if not warned:
                    line = " ".join(str(error.orig).split())
                    warnings.warn(f"the book of labels is away, and training waits for it: {line}", stacklevel=2)
                warned = True
            time.sleep(INTERVAL)
