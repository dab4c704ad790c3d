"""What keeps a run that is killed: a lock, the labels that it used, and checkpoints from which it goes on."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from filelock import FileLock

from rlhf_bilevel.algorithm import Run
from rlhf_bilevel.checkpoint import Checkpoints
from rlhf_bilevel.config import checkpoint_interval
from rlhf_bilevel.files import CONFIG, YAML_LIMIT, Damaged, read, sha256, taken
from rlhf_bilevel.labels import LABELS, LabelLog, Recorded
from rlhf_bilevel.state import capture, restore

THRIFT = 100  # a run takes at least so many times as long as its checkpoints, unless it is told the steps between them
CHECKPOINTS = "checkpoints"
Marks = dict[str, Any]
"""Of the logs, ready for JSON."""


class Keeper:
    """Of the run in ``folder``, while this process trains it: of ``lock``, which is let go at the end, or of its own.

    Refused where another process trains it. Checkpoints are made as ``every`` says (see ``checkpoint_interval``); one
    about every ``keep_every`` steps stays, none where that is 0.
    """

    def __init__(self, folder: Path, every: str, lock: FileLock | None = None, keep_every: int = 0) -> None:
        self._folder, self._every, self._lock = folder, checkpoint_interval(every), lock
        self._keep_every = keep_every

    def __enter__(self) -> Keeper:
        with ExitStack() as stack:
            stack.callback((self._lock or taken(self._folder)).release)
            self._labels = stack.enter_context(closing(LabelLog(self._folder / LABELS)))
            self._checkpoints = Checkpoints(self._folder / CHECKPOINTS, sha256(read(self._folder / CONFIG, YAML_LIMIT)))
            self._saved, self._took, self._kept = (0, time.monotonic()), 0.0, 0
            self._open = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def restore(self, run: Run) -> Marks:
        """Records the answers of the run's teacher from now on, and goes to the newest checkpoint, if there is one.

        What the log's marks were then; none at the start.
        """
        run.teacher = self._teacher = Recorded(run.teacher, self._labels)
        loaded = self._checkpoints.load()
        if loaded is None:
            return {}
        try:
            restore(run, loaded.tree["run"], loaded.tables)
            self._teacher.session, known = int(loaded.tree["sessions"]), len(self._labels)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise Damaged(f"{self._checkpoints.folder}: step {loaded.step} does not fit {CONFIG}: {told}") from error
        if self._teacher.session > known:
            raise Damaged(f"{self._labels.path} holds {known} sessions and {self._teacher.session} were used")
        self._saved, self._kept = (run.step, time.monotonic()), run.step
        return loaded.tree["marks"]

    def offer(self, run: Run, marks: Callable[[], Marks]) -> None:
        """To be called after an episode: saves if it is time. Where that fails, the checkpoints before stay."""
        (steps, seconds), now = self._every, time.monotonic()
        keep = bool(self._keep_every) and run.step // self._keep_every > self._kept // self._keep_every
        if run.step - self._saved[0] < steps and now - self._saved[1] < max(seconds, THRIFT * self._took) and not keep:
            return
        self._save(run, marks, keep)

    def finish(self, run: Run, marks: Callable[[], dict[str, int]]) -> None:
        """At the end of a run: its last state stays, so that ``fork`` can go on from there."""
        if min(self._every) < math.inf:
            self._save(run, marks, keep=False)
        self._checkpoints.keep_the_last()

    def _save(self, run: Run, marks: Callable[[], dict[str, int]], keep: bool) -> None:
        before = time.monotonic()
        state, tables = capture(run)
        tree = {"run": state, "sessions": self._teacher.session, "marks": marks()}
        try:
            self._checkpoints.save(run.step, tree, tables, keep)
        except (OSError, Damaged) as error:
            warnings.warn(f"no checkpoint at step {run.step}: {error}; those before are as they were", stacklevel=2)
        self._saved = run.step, time.monotonic()
        self._took = self._saved[1] - before
        self._kept = run.step if keep else self._kept
