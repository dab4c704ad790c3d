"""What keeps a run that is killed: a lock, the labels that it used, and checkpoints from which it goes on."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rlhf_bilevel.config import checkpoint_interval
from rlhf_bilevel.data.label_log import LabelLog, Recorded
from rlhf_bilevel.data.run_folder import CONFIG, EVALUATIONS, PROGRESS, RunFolder
from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.training.snapshot import capture, restore

THRIFT = 100  # a run takes at least so many times as long as its checkpoints, unless it is told the steps between them
Marks = dict[str, Any]
"""Of the logs, ready for JSON: see ``log.Log.marks``."""
Whole = Annotated[int, Field(ge=0)]


class Mark(BaseModel):
    rows: Whole
    sha256: str


class _Marks(BaseModel):
    events: dict[str, Whole] = {}
    progress: Annotated[Mark, Field(alias=PROGRESS)]
    evaluations: Annotated[Mark, Field(alias=EVALUATIONS)]


def _sound(marks: dict[str, Any]) -> dict[str, Any]:
    _Marks.model_validate(marks, strict=True)
    return marks


class Told(BaseModel):
    """What a checkpoint holds beside its tables. The answers themselves are in the log of labels."""

    model_config = ConfigDict(strict=True)

    run: dict[str, Any]
    sessions: list[Whole]  # answers that were used of each
    labels: str  # ``LabelLog.sha256`` of these sessions
    marks: Annotated[Marks, AfterValidator(_sound)]


@contextmanager
def compatible(checkpoints: Path, step: int) -> Iterator[None]:
    """What goes to the state at ``step``: CorruptFileError, in one line, where that is not of such a run."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else None
        told = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault else str(error)
        told = " ".join(told.split())[:200]
        raise CorruptFileError(f"{checkpoints}: step {step} does not fit {CONFIG}: {told}") from error


class CheckpointManager:
    """Of the run in ``folder``, while this process trains it: of ``lock``, which is let go at the end, or of its own.

    UserError where another process trains it. Checkpoints are made as ``every`` says (see ``checkpoint_interval``); one
    about every ``keep_every`` steps stays, none where that is 0.
    """

    def __init__(self, folder: Path, every: str, lock: FileLock | None = None, keep_every: int = 0) -> None:
        self._folder, self._every, self._lock = RunFolder(folder), checkpoint_interval(every), lock
        self._keep_every = keep_every

    def __enter__(self) -> CheckpointManager:
        with ExitStack() as stack:
            stack.callback((self._lock or self._folder.lock()).release)
            self._labels = stack.enter_context(closing(LabelLog(self._folder.labels)))
            self._checkpoints = Checkpoints(self._folder.checkpoints, self._folder.config_sha256())
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
        with compatible(self._checkpoints.folder, loaded.step):
            told = Told(**loaded.tree)
        answers = self._labels.used(told.sessions, told.labels)
        with compatible(self._checkpoints.folder, loaded.step):
            restore(run, told.run, loaded.tables, answers)
        self._teacher.session = len(answers)
        self._saved, self._kept = (run.step, time.monotonic()), run.step
        return told.marks

    def offer(self, run: Run, marks: Callable[[], Marks]) -> None:
        """To be called after an episode: saves if it is time. Where that fails, the checkpoints before stay."""
        (steps, seconds), now = self._every, time.monotonic()
        keep = bool(self._keep_every) and run.step // self._keep_every > self._kept // self._keep_every
        if run.step - self._saved[0] < steps and now - self._saved[1] < max(seconds, THRIFT * self._took) and not keep:
            return
        self._save(run, marks, keep)

    def finish(self, run: Run, marks: Callable[[], Marks]) -> None:
        """At the end of a run: its last state stays, so that ``fork`` can go on from there."""
        if min(self._every) < math.inf and self._saved[0] != run.step:
            self._save(run, marks, keep=False)
        self._checkpoints.keep_the_last()

    def _save(self, run: Run, marks: Callable[[], Marks], keep: bool) -> None:
        before = time.monotonic()
        state, tables = capture(run)
        sessions = run.prefs.sessions
        tree = {"run": state, "sessions": sessions, "labels": self._labels.sha256(len(sessions)), "marks": marks()}
        try:
            self._checkpoints.save(run.step, tree, tables, keep)
        except (OSError, CorruptFileError) as error:
            warnings.warn(f"no checkpoint at step {run.step}: {error}; those before are as they were", stacklevel=2)
        self._saved = run.step, time.monotonic()
        self._took = self._saved[1] - before
        self._kept = run.step if keep else self._kept
