"""Everything around a run: its lock, checkpoints, evaluations, log, callbacks, and its end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from filelock import FileLock
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.runs import asked_queries, fork, selection
from rlhf_bilevel.runs.callbacks import CallbackLike, Hooks, check_callback
from rlhf_bilevel.runs.checkpoint import Checkpoint
from rlhf_bilevel.runs.checkpoint_manager import CheckpointManager, Marks, restoring
from rlhf_bilevel.runs.environments import EVALUATION, make_env
from rlhf_bilevel.runs.evaluations import Evaluations
from rlhf_bilevel.runs.logger import Log, output_formats
from rlhf_bilevel.runs.output import write_learnt, write_selection
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.process import Interrupts, delayed_interrupts
from rlhf_bilevel.runs.side_by_side import learner_processes, spread_stack
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.training import loop
from rlhf_bilevel.training.query_session import why_no_label
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.training.snapshot import restore
from rlhf_bilevel.types import Metrics

LINE_EVERY = 60  # seconds between two lines of a progress bar in a file


@dataclass(frozen=True)
class Observers:
    """Who sees the metrics of a run in this process, besides its folder. UserError for what cannot be one."""

    callback: CallbackLike = None  # as SB3's ``learn`` takes them
    progress_bar: bool = False
    screen: bool = False  # whether the metrics are printed as a table
    logger: Logger | None = None  # SB3's; its output formats get each row

    def __post_init__(self) -> None:
        if self.callback is not None:
            check_callback(self.callback)
        output_formats(self.logger)


NOBODY = Observers()


class Session:
    """A run in this process, from the moment when its folder is taken to its end.

    ``lock`` is the lock on its folder. A fork that begins has the folder of the run that it continues as ``origin``;
    without a folder of its own it starts at ``begins``, a checkpoint of that run.
    """

    def __init__(
        self,
        spec: RunSpec,
        parts: Parts,
        run: Run,
        lock: FileLock | None = None,
        begins: Checkpoint | None = None,
        origin: Path | None = None,
    ) -> None:
        self.spec, self.parts, self.run = spec, parts, run
        self.agent = int(run.method.agent(run.options))  # number of the learner whose policy a user gets
        self.going = False  # while ``recording``
        self._lock, self._begins, self._origin = lock, begins, origin
        asks: Any = run.teacher if parts.teacher is None else None
        self._people = asks if run.config.teacher_human else None
        self._recorder = asks.recorder if asks and (run.config.teacher_human or run.config.teacher_url) else None

    @property
    def model(self) -> Any:
        """The agent's SB3 algorithm."""
        return self.run.learners[self.agent].model

    def follow(self, observers: Observers) -> None:
        """Trains to the end, or until a callback stops it. UserError if a reward was to be learnt and no label came."""
        try:
            stack = spread_stack(self.spec, self.parts, self.run)
            apart = bool(stack) and not self.spec.env.startswith(registration.OWN)
            beside = stack.side_by_side(learner_processes(self.spec, self.parts)) if stack else nullcontext()
            with beside, self.recording(observers, apart) as record:
                for row in loop.train(self.run):
                    if not record(row):
                        break
        finally:
            if self._lock:
                self._lock.release()
        if fault := why_no_label(self.run):
            raise UserError(fault)

    def _restore(self, keeper: CheckpointManager) -> Marks:
        """See ``CheckpointManager.restore``. A fork that cannot begin leaves its folder free."""
        origin, self._origin = self._origin, None
        try:
            return keeper.restore(self.run, RunFolder(origin) if origin else None)
        except CorruptFileError:
            if origin:
                fork.undo(self.spec.folder.path)
            raise

    def _keep_policy(self) -> None:
        """Keeps the agent's policy in the run's folder. If that fails, the run goes on without it."""
        try:
            self.spec.folder.keep_policy(self.run.step, self.model.policy)
        except OSError as error:
            warnings.warn(f"the policy of step {self.run.step} is not kept: {error}", stacklevel=2)

    def _select(self, keeper: CheckpointManager) -> None:
        """Spends the labels that were held back: the agent's model acts by the policy that is preferred."""
        run, folder = self.run, self.spec.folder
        try:
            labels = run.config.select_labels
            config = selection.selection_config(run.config, labels)
            chosen = selection.choose(
                self.spec, self.parts, config, self.model, folder, labels, recorded=keeper.recorded
            )
        except selection.NoChoiceError as problem:
            warnings.warn(f"the last policy stays: {problem}", stacklevel=2)
            return
        write_selection(folder.path, chosen)

    @contextmanager
    def recording(self, observers: Observers, apart: bool = False) -> Iterator[Callable[[Metrics], bool]]:
        """Gives a function that takes the metrics of each step and returns whether to go on.

        With ``apart``, evaluations are in a process of their own; not if there are callbacks, which are told at once.

        If there is a checkpoint, the run continues from it. What was learnt is written at the end, unless there was an
        error or no label (see ``query_session.why_no_label``).
        """
        callback = None if observers.callback is None else check_callback(observers.callback)
        extra = output_formats(observers.logger)
        spec, run, config, people = self.spec, self.run, self.run.config, self._people
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            keeper = None
            if spec.out:
                manager = CheckpointManager(spec.out, spec.checkpoint_every, self._lock, spec.keep_every)
                keeper = stack.enter_context(manager)
            events = self._restore(keeper) if keeper else {}
            if self._begins:
                assert self._origin is not None
                answers = fork.used_answers(self._origin, self._begins)
                with restoring(RunFolder(self._origin).checkpoints, self._begins.step):
                    restore(run, self._begins.tree["run"], self._begins.tables, answers)
                self._begins = None
            self.going = True
            stack.callback(setattr, self, "going", False)
            if self._recorder:
                stack.enter_context(closing(self._recorder))
            if people:
                stack.enter_context(people)
            log = stack.enter_context(closing(Log(spec.out, observers.screen, run.step, events, extra)))
            bar = stack.enter_context(closing(make_progress_bar(run, observers.progress_bar)))
            evaluated = partial(make_env, spec.env, config, EVALUATION), self.agent, log
            there = spec.env if apart and callback is None else ""
            evaluations = stack.enter_context(closing(Evaluations(run, *evaluated, there)))
            policy_steps = frozenset(config.policy_steps)
            hooks = None if callback is None else Hooks(run, self.agent, callback, log.logger)

            def settle(wait: bool = True) -> None:
                """Writes the evaluation that is going on elsewhere, and the rows that wait for it."""
                if metrics := evaluations.end(wait):
                    log.logger.release(metrics)
                    show(metrics)

            def show(metrics: Metrics) -> None:
                return_text = f"{metrics['eval/true_return']:.0f}"
                bar.set_postfix(true_return=return_text, labels=len(run.prefs), refresh=False)

            def record(row: Metrics) -> bool:
                interrupts.check()
                bar.update()
                due = run.step % config.eval_freq == 0 or run.step == config.total_timesteps
                settle(wait=due)
                if due:
                    if metrics := evaluations.begin():
                        row |= metrics
                        show(metrics)
                    else:
                        log.logger.hold()
                log.record(row, run.step)
                if people:
                    people.beat(run)
                self.model.num_timesteps = run.step
                go_on = hooks is None or hooks.step(row)
                log.write(row)
                if spec.out and run.step in policy_steps:
                    self._keep_policy()
                if go_on and keeper and "rollout/true_return" in row and keeper.due(run, patient=evaluations.pending):
                    settle()
                    with delayed_interrupts():
                        keeper.save(run, marks)  # between two episodes
                return go_on

            def marks() -> dict[str, Any]:
                if self._recorder:
                    self._recorder.flush()
                return log.marks()

            yield record
            settle()
            interrupts.check()
            if hooks:
                hooks.end()
                log.flush()
            if keeper and spec.out and not why_no_label(run):
                with delayed_interrupts():
                    self._keep_policy()
                    keeper.finish(run, marks)
                if config.select_labels:
                    self._select(keeper)
                with delayed_interrupts():
                    if questions := asked_queries.read_run(spec.out, trust=True):
                        questions.write(spec.folder.preferences)
                    write_learnt(spec.out, spec.env, config, self.model, run.reward)


def make_progress_bar(run: Run, shown: bool) -> Any:
    """A bar on standard error: on a terminal it changes each second, in a log file each minute."""
    stream = sys.stderr  # None if it was closed
    on_screen = stream is not None and (stream.isatty() or "ipykernel" in sys.modules)
    every = 1 if on_screen else LINE_EVERY
    # Some terminals say that they have no columns and no lines, and tqdm would show nothing there
    columns, lines = get_terminal_size() if on_screen else (None, None)
    return tqdm(
        total=run.config.total_timesteps,
        initial=run.step,
        unit="step",
        mininterval=every,
        maxinterval=10 * every,
        file=stream,
        ncols=columns,
        nrows=lines,
        disable=not shown or stream is None,
    )
