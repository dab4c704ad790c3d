"""People as the teacher: queries go into the label store, and training uses what has been answered.

Of W queries that were asked so far, let P still wait for a person. Training waits while P > share W, where share is the
setting ``teacher_pending_share``: with 0 it waits for all answers, with 1 it never waits. A later session takes answers
that come late.

A run that is killed asks the same session again, and finds its queries in the label store. Answers that it took from
the store but did not write to labels.sqlite are given to it again. So training stays a function of its seed and
labels.sqlite.
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
from typing import Any, TypeVar

import torch
from sqlalchemy.exc import InterfaceError, OperationalError
from tqdm import tqdm

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.answers import no_answers
from rlhf_bilevel.data.label_log import decode_answers, encode_pairs, read_seconds
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.human.clips.recorder import ClipRecorder
from rlhf_bilevel.human.overview import labelling_seconds
from rlhf_bilevel.human.records import Question, Status
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.training.query_session import labels_due, steps_to_session
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries

DATABASE_ERRORS = (OperationalError, InterfaceError)
"""The errors of a database that does not answer, for example because it is restarting."""
INTERVAL = 1.0  # seconds between two looks at the label store, and between two reports to it
FRESH_LABELS = 50  # the newest labels, for which the accuracy of the reward model is reported
RETRY_INTERVAL = 30.0  # seconds until the next report, after the label store did not take one
T = TypeVar("T")


class HumanTeacher:
    """A teacher that asks people through the label store of the run in ``folder``.

    Use it in a ``with`` statement: the label store is open inside. ``recorder`` makes the clips, from rows of
    ``buffer``. ``resume`` is the command that goes on if this process is stopped. ``policies`` is among how many people
    choose, if this is a selection.
    """

    def __init__(self, config: Config, buffer: ReplayBuffer, recorder: ClipRecorder, folder: Path) -> None:
        self.recorder, self.resume = recorder, f"rlhf-bilevel resume {shlex.quote(str(folder))}"
        self._config, self._buffer, self._folder = config, buffer, folder
        self.policies = 0
        self._stored_scenes, self._announced = set[str](), False
        self._next_report, self._last_report = 0.0, (0.0, 0)  # the last: its time and step
        self._labels_used = self._recorded = self._again = 0  # see Status; recorded: labels of earlier sessions
        self._accuracy: tuple[float | None, int] = None, 0  # see fresh_accuracy
        self.seconds = 0.0

    def __enter__(self) -> HumanTeacher:
        """Errors as ``LabelStore.of``."""
        self._label_store = LabelStore.of(self._folder, trust=True)  # the settings are this run's own, or were trusted
        run_config, c = RunFolder(self._folder).read_config(), self._config
        info = {"env": run_config["env"], "method": run_config["method"], "seed": c.seed, "labels": c.labels}
        info |= {"segment_length": c.segment_length, "total_timesteps": c.total_timesteps, "votes": c.teacher_votes}
        self._label_store.set_run_info(info)
        self._recorded = self._label_store.labels_used(len(read_seconds(RunFolder(self._folder).labels)))
        self._last_report = time.monotonic(), self._buffer.size
        if self.policies:
            self._labels_used = self._recorded
            self._report_selection()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        stopped = f"Training has stopped. {self.resume} continues it."
        with suppress(*DATABASE_ERRORS):
            doing = stopped if kind else "Training has come to its end."
            self._report(doing, stopped=True, ended=self.policies > 0 and kind is None)
        self._label_store.close()

    def __call__(self, queries: Queries) -> Preferences:
        """Asks people ``queries`` (B), waits as long as it must, and returns all labels that are there to be used.

        ``seconds`` is then what all people have spent on pairs since the session before, whatever they decided.
        """
        store, session = self._label_store, len(read_seconds(RunFolder(self._folder).labels))
        self._labels_used, self._again = self._retry(lambda: store.labels_used(session)), 0
        labels_left = self._config.labels - self._labels_used
        self._ask(session, queries, labels_left)
        self._wait()
        self._last_report = time.monotonic(), self._buffer.size  # what training waited is not its speed
        self._next_report = self._last_report[0] + INTERVAL
        answers = self._retry(lambda: store.collect(session, labels_left))
        self._labels_used += len(answers)
        if self.policies:
            self._report_selection()
        before = sum(seconds or 0.0 for seconds in read_seconds(RunFolder(self._folder).labels))
        self.seconds = max(0.0, labelling_seconds(self._retry(store.all_chosen)) - before)
        return decode_answers(answers) if answers else no_answers(queries)

    def beat(self, run: Run) -> None:
        """Reports to the label store what training does, about once a second. Call it after each step of the run."""
        now, c = time.monotonic(), self._config
        if now < self._next_report:
            return
        (before, step), self._last_report = self._last_report, (now, run.step)
        self._next_report, self._labels_used = now + INTERVAL, len(run.prefs)
        self._again = max(0, self._recorded - self._labels_used)
        tries = f"The agent tries what {self._labels_used} labels tell it"
        speed = (run.step - step) / (now - before)
        doing = f"{tries if run.learnt else 'The agent explores on its own'}, {speed:.0f} steps a second."
        self._accuracy = fresh_accuracy(run.prefs)
        try:
            steps = steps_to_session(run)
            comes = self._labels_used < c.labels and run.step + steps <= c.total_timesteps
            if self._again:  # the next session has its answers
                self._report(doing)
            else:
                needed, spare = self._needed(labels_due(run, run.step + steps) if comes else 0)
                seconds = steps / speed if comes and speed > 0 else None
                self._report(doing, needed, spare=spare, next_session=seconds)
        except DATABASE_ERRORS:  # training needs the label store only when it asks
            self._next_report = now + RETRY_INTERVAL

    def _ask(self, session: int, queries: Queries, labels_left: int) -> None:
        store = self._label_store
        if self._retry(lambda: store.asked(session)) == 0:
            rows = torch.stack([self._buffer.rows_of(segments) for segments in queries], 1)  # (B, 2)
            clips = [[self._clip(int(first_row)) for first_row in pair] for pair in rows]
            questions = [Question(*pair, *both) for pair, both in zip(encode_pairs(queries), clips, strict=True)]
            self._retry(lambda: store.ask(session, questions, self._config.teacher_votes, labels_left))
        if not self._announced:
            self._announced = True
            database = self._config.teacher_labels_db
            option = f" --labels-db {shlex.quote(database)}" if database else ""
            tqdm.write(f"Pairs to compare are waiting: rlhf-bilevel label {shlex.quote(str(self._folder))}{option}")

    def _clip(self, first_row: int) -> dict[str, Any]:
        """The clip of the segment that begins at ``first_row``; its scene is in the label store when this returns."""
        clip = self.recorder.clip(torch.arange(first_row, first_row + self._config.segment_length))
        name = clip.get("scene")
        if name is not None and name not in self._stored_scenes:
            self._retry(lambda: self._label_store.add_scene(str(name), self.recorder.scene(name)))
            self._stored_scenes.add(name)
        return clip

    def _wait(self) -> None:
        step, c = self._buffer.size, self._config
        while (counts := self._retry(self._needed))[0]:
            needed, spare = counts
            doing = f"Training waits at step {step:,} of {c.total_timesteps:,} for {needed} more "
            doing += f"answer{'s' * (needed > 1)}."
            self._retry(partial(self._report, doing, needed, waiting=True, spare=spare))
            time.sleep(INTERVAL)

    def _report_selection(self) -> None:
        """Reports that the next pair is being made. A run that trains reports in ``beat``."""
        self._retry(partial(self._report, "The next pair is being made."))

    def _needed(self, new_queries: int = 0) -> tuple[int, int]:
        """How many answers training waits for, and how many of its queries may stay unanswered while it continues.

        Both as if it had asked ``new_queries`` more. The second is negative if the new ones alone are too many.
        """
        asked, missing = self._label_store.pending()
        spare = math.floor(self._config.teacher_pending_share * (asked + new_queries) + 1e-9) - new_queries
        return max(0, missing - spare), spare

    def _report(self, doing: str, needed: int = 0, waiting: bool = False, **more: Any) -> None:
        """Stores a ``Status`` with these fields; ``more`` are those that have defaults."""
        c, (accuracy, count) = self._config, self._accuracy
        self._label_store.set_status(
            Status(
                step=self._buffer.size,
                steps=c.total_timesteps,
                labels=self._labels_used,
                wanted=c.labels,
                waiting=waiting,
                needed=needed,
                doing=doing,
                fresh_accuracy=accuracy,
                fresh_labels=count,
                again=self._again,
                policies=self.policies,
                **more,
            )
        )

    def _retry(self, work: Callable[[], T]) -> T:
        """The result of ``work``. While the database does not answer, it is tried again, and a warning says so once."""
        warned = False
        while True:
            try:
                return work()
            except DATABASE_ERRORS as error:
                if not warned:
                    line = " ".join(str(error.orig).split())
                    warnings.warn(f"training waits for the label store, which does not answer: {line}", stacklevel=2)
                warned = True
            time.sleep(INTERVAL)


def fresh_accuracy(prefs: PreferenceBuffer) -> tuple[float | None, int]:
    """The share of the newest labels that the reward model predicted before it was trained on them, and their number.

    It is a share of those among the last FRESH_LABELS labels that are 1 or 0. Labels that came before there was a
    reward model do not count. None if none are left.
    """
    newest = slice(max(0, len(prefs) - FRESH_LABELS), len(prefs))
    if not len(prefs):
        return None, 0
    loss, label = prefs.fresh_loss[newest], prefs[newest].label
    even_odds = torch.full_like(loss, math.log(2))
    compared = ((label == 0) | (label == 1)) & ~torch.isclose(loss, even_odds)
    count = int(compared.sum())
    return (float((loss < even_odds)[compared].float().mean()) if count else None), count
