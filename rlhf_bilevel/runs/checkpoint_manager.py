"""What a killed run needs to continue: a lock, the labels that it used, and checkpoints."""

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

from rlhf_bilevel.config.reading import parse_checkpoint_every
from rlhf_bilevel.data.label_log import LabelLog, RecordedTeacher
from rlhf_bilevel.data.run_folder import CONFIG, EVALUATIONS, PROGRESS, RunFolder
from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.training.snapshot import capture, restore
from rlhf_bilevel.types import Teacher

THRIFT = 100  # checkpoints by time take at most 1 / THRIFT of a run's time
Marks = dict[str, Any]
"""How far the logs were written, for JSON; see ``logger.Log.marks``."""
Whole = Annotated[int, Field(ge=0)]


class LogMark(BaseModel):
    """How many rows of a log are written, and their hash."""

    rows: Whole
    sha256: str


class _Marks(BaseModel):
    events: dict[str, Whole] = {}
    progress: Annotated[LogMark, Field(alias=PROGRESS)]
    evaluations: Annotated[LogMark, Field(alias=EVALUATIONS)]


def _check_marks(marks: dict[str, Any]) -> dict[str, Any]:
    _Marks.model_validate(marks, strict=True)
    return marks


class CheckpointState(BaseModel):
    """What a checkpoint holds in addition to its tables. The answers themselves are in the label log."""

    model_config = ConfigDict(strict=True)

    run: dict[str, Any]
    sessions: list[Whole]  # number of used answers in each
    labels: str  # ``LabelLog.sha256`` of these sessions
    marks: Annotated[Marks, AfterValidator(_check_marks)]


@contextmanager
def restoring(checkpoints: Path, step: int) -> Iterator[None]:
    """Restores the state at ``step``: an error becomes a CorruptFileError in one line, as it is of another run."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else None
        problem = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault else str(error)
        problem = " ".join(problem.split())[:200]
        raise CorruptFileError(f"{checkpoints}: step {step} does not fit {CONFIG}: {problem}") from error


class CheckpointManager:
    """Lock, label log and checkpoints of the run in ``folder``, while this process trains it.

    ``lock`` is the run's lock if it is taken already; it is released at the end. Checkpoints are made as ``every`` says
    (see ``parse_checkpoint_every``). One about every ``keep_every`` steps is kept; 0: none. UserError if another
    process trains the run.
    """

    def __init__(self, folder: Path, every: str, lock: FileLock | None = None, keep_every: int = 0) -> None:
        self._folder, self._every, self._lock = RunFolder(folder), parse_checkpoint_every(every), lock
        self._keep_every = keep_every

    def __enter__(self) -> CheckpointManager:
        with ExitStack() as stack:
            stack.callback((self._lock or self._folder.lock()).release)
            self._checkpoints = Checkpoints(self._folder.checkpoints, self._folder.config_sha256())
            if self._checkpoints.steps() and not self._folder.labels.exists():
                raise CorruptFileError(f"{self._folder.labels}: no such file, and the run's checkpoints need it")
            self._labels = stack.enter_context(closing(LabelLog(self._folder.labels)))
            self._last_save, self._save_seconds, self._last_kept = (0, time.monotonic()), 0.0, 0
            self._open = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def restore(self, run: Run, origin: RunFolder | None = None) -> Marks:
        """Restores the newest checkpoint, if there is one, and records the teacher's answers from now on.

        Returns the marks of the logs at that checkpoint; none at the start. Errors name the checkpoints of ``origin``,
        if the run is a fork of it that begins.
        """
        folder = origin.checkpoints if origin else self._checkpoints.folder
        run.teacher = self._teacher = RecordedTeacher(run.teacher, self._labels)
        loaded = self._checkpoints.load()
        if loaded is None:
            return {}
        with restoring(folder, loaded.step):
            saved = CheckpointState(**loaded.tree)
        answers = self._labels.used(saved.sessions, saved.labels)
        with restoring(folder, loaded.step):
            restore(run, saved.run, loaded.tables, answers)
        self._teacher.session = len(answers)
        self._last_save, self._last_kept = (run.step, time.monotonic()), run.step
        return saved.marks

    def due(self, run: Run, patient: bool = False) -> bool:
        """Whether it is time for a checkpoint. To be asked after an episode.

        If ``patient``, one that only time asks for may come as much later again.
        """
        (steps, seconds), now = self._every, time.monotonic()
        least = max(seconds, THRIFT * self._save_seconds) * (2 if patient else 1)
        return run.step - self._last_save[0] >= steps or now - self._last_save[1] >= least or self._keeps(run)

    def save(self, run: Run, marks: Callable[[], Marks]) -> None:
        """Saves a checkpoint. If that fails, earlier ones stay."""
        self._save(run, marks, self._keeps(run))

    def _keeps(self, run: Run) -> bool:
        return bool(self._keep_every) and run.step // self._keep_every > self._last_kept // self._keep_every

    def recorded(self, teacher: Teacher) -> Teacher:
        """A teacher that is asked after the run's own; its answers are on the disk before they are used, too."""
        return RecordedTeacher(teacher, self._labels, self._teacher.session)

    def finish(self, run: Run, marks: Callable[[], Marks]) -> None:
        """To be called at the end of a run: its last state is kept, so that ``fork`` can continue from there."""
        if min(self._every) < math.inf and self._last_save[0] != run.step:
            self._save(run, marks, keep=False)
        self._checkpoints.keep_the_last()

    def _save(self, run: Run, marks: Callable[[], Marks], keep: bool) -> None:
        started = time.monotonic()
        state, tables = capture(run)
        sessions = run.prefs.sessions
        tree = {"run": state, "sessions": sessions, "labels": self._labels.sha256(len(sessions)), "marks": marks()}
        try:
            self._checkpoints.save(run.step, tree, tables, keep)
        except (OSError, CorruptFileError) as error:
            warnings.warn(f"no checkpoint at step {run.step}: {error}; those before are as they were", stacklevel=2)
        self._last_save = run.step, time.monotonic()
        self._save_seconds = self._last_save[1] - started
        self._last_kept = run.step if keep else self._last_kept
