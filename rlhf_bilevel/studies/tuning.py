"""Hyper-parameter search: Optuna proposes settings, runs try them, and bad ones are stopped early.

    report of a trial at k steps + t    (1 / (k + 1)) sum over its seeds 0..k of the true return at their step t
    value of a trial                    its last report: the mean over all its seeds at their last step

The seeds of a trial train one after another, ``steps`` environment steps each. The true return at a step is the mean of
the last three evaluations until then, see ``tasks.final_score``. It is for evaluation only: tuning uses knowledge
that an agent which learns from preferences does not have. Report results from other seeds or tasks than those used for
tuning.

Sampler: Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011). Pruners: the median rule of Golovin et
al., "Google Vizier" (2017), and Li et al., "Hyperband" (2018).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from rlhf_bilevel.data.run_folder import STEP, RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.tasks import final_score
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.scheduler import PATIENCE, TICK, Executor, StartedRun, last_line
from rlhf_bilevel.studies.search_space import Choice, Range, Space, as_options
from rlhf_bilevel.studies.worker import ELSEWHERE
from rlhf_bilevel.utils.files import one_line

TRUE_RETURN = "eval/true_return"  # column of progress.csv


class TrialRuns:
    """The runs of a trial, one for each seed."""

    def __init__(self, runs: Sequence[RunSpec], executor: Executor) -> None:
        self._runs, self._executor = runs, executor
        self._started: StartedRun | None = None
        self._position, self._not_before = 0, 0.0

    def poll(self) -> int | None:
        """0 when all runs have ended, the exit code of one that failed; None before. Starts the next run after each."""
        while self._position < len(self._runs):
            if self._started is None:
                if time.monotonic() < self._not_before:
                    return None
                self._started = self._executor.start(self._runs[self._position])
            code = self._started.poll()
            if code is None:
                return None
            self._started = None
            if code == ELSEWHERE:  # for example, after the search was killed and its runs were not
                self._not_before = time.monotonic() + PATIENCE
                return None
            if code:
                return code
            self._position += 1
        return 0

    def reports(self) -> dict[int, float]:
        """All values known now, by environment steps of all seeds, in order; the last is the trial's value."""
        values_by_step, seed_values = {}, []
        for number, run in enumerate(self._runs):
            seed_values.append(true_returns(run.folder))
            for step in seed_values[-1]:
                until = [[value for at, value in one_seed.items() if at <= step] for one_seed in seed_values]
                values_by_step[number * run.steps + step] = fmean(
                    float(final_score(values)) for values in until if values
                )
        return values_by_step

    def stop(self) -> None:
        """Stops the current run."""
        if self._started:
            self._started.stop()

    def why(self) -> str:
        """The last line of the failed run's output."""
        log = self._runs[self._position].folder.output
        return f"{last_line(log)} (all of it: {log})"


def true_returns(run: RunFolder) -> dict[int, float]:
    """A run's true return by environment step, as far as it is."""
    try:
        rows = run.read_progress()
    except UserError:  # it does not exist yet
        return {}
    return {int(row[STEP]): float(row[TRUE_RETURN]) for row in rows if row.get(TRUE_RETURN)}


def open_study(file: Path, pruner: str, steps: int) -> optuna.Study:
    """The study in an SQLite file, which is created if missing. A trial takes ``steps`` environment steps in all.

    UserError if the file cannot be opened, or is not one of Optuna's.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(n_warmup_steps=steps // 4),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(max(1, steps // 9), steps),
        "none": optuna.pruners.NopPruner,
    }
    try:
        return optuna.create_study(
            storage=f"sqlite:///{file.resolve()}",
            pruner=pruners[pruner](),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        why = getattr(error, "orig", None) or error.__cause__ or error
        raise UserError(f"{file} cannot be used as --storage: {one_line(why)}") from None


def search(
    study: optuna.Study,
    space: Space,
    trials: int,
    begin: Callable[[int, dict[str, Any]], TrialRuns],
    jobs: int = 1,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> int:
    """Runs trials until ``trials`` of the study are complete or pruned, ``jobs`` at a time. Returns how many failed.

    ``begin(number, settings)`` starts a trial or continues it; its UserError fails the trial. Trials that a killed
    process left unfinished come first. A failed trial is not repeated until the next call.
    """
    unfinished = [Trial(study, trial._trial_id) for trial in study.get_trials(states=(TrialState.RUNNING,))]
    running: dict[int, tuple[Trial, TrialRuns]] = {}
    failed = 0

    def fail(trial: Trial, why: str) -> None:
        nonlocal failed
        failed += 1
        study.tell(trial, state=TrialState.FAIL)
        report(f"trial {trial.number} failed: {why}")

    def trials_left() -> bool:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return bool(unfinished) or len(ended) + failed + len(running) < trials

    try:
        while running or trials_left():
            while len(running) < jobs and trials_left():
                trial = unfinished.pop(0) if unfinished else ask(study, seed)
                settings = {key: suggest(trial, key, among) for key, among in space.items()}
                report(f"trial {trial.number}: {as_options(settings)}")
                try:
                    running[trial.number] = trial, begin(trial.number, settings)
                except UserError as error:
                    fail(trial, str(error))
            for trial, candidate in list(running.values()):
                code = candidate.poll()
                reports = candidate.reports()
                pruned = report_new(trial, reports, whole=code == 0)
                if pruned is None and code is None:
                    continue
                del running[trial.number]
                if pruned is not None:
                    candidate.stop()
                    study.tell(trial, state=TrialState.PRUNED)
                    report(f"trial {trial.number} pruned after {pruned:,} steps: {reports[pruned]:.4g}")
                elif code:
                    fail(trial, candidate.why())
                elif not reports:
                    fail(trial, "it has come to its end without an evaluation")
                else:
                    value = reports[max(reports)]
                    study.tell(trial, value)
                    report(f"trial {trial.number}: {value:.4g} (best: {study.best_value:.4g})")
            if running:
                time.sleep(TICK)
        return failed
    finally:
        for _, candidate in running.values():
            candidate.stop()


def ask(study: optuna.Study, seed: int) -> Trial:
    """A new trial, by ``seed``, its number and earlier trials alone: a search that was cut off repeats none."""
    number = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    return study.ask()


def suggest(trial: Trial, key: str, among: Range | Choice) -> Any:
    """A value for setting ``key`` from a range or a choice."""
    if isinstance(among, Choice):
        return trial.suggest_categorical(key, among.values)
    if among.integer:
        return trial.suggest_int(key, int(among.low), int(among.high), log=among.log)
    return trial.suggest_float(key, among.low, among.high, log=among.log)


def report_new(trial: Trial, reports: Mapping[int, float], whole: bool) -> int | None:
    """Reports the values that are new. Returns the step at which the pruner stops the trial; None if it does not.

    The pruner is asked after each report, in order, except for the last one of a whole trial: so the answer does not
    depend on when it is asked.
    """
    reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for step, value in reports.items():
        if step in reported:
            continue
        trial.report(value, step)
        if not (whole and step == max(reports)) and trial.should_prune():
            return step
    return None


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """The best trial. UserError if none is complete."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise UserError("no trial has come to its end: the same command tries others")
    return study.best_trial
