"""Hyper-parameter search: Optuna proposes settings, runs try them, and those that fall behind are stopped.

    report of a trial at k steps + t    (1 / (k + 1)) sum over its seeds 0..k of the true return at their step t
    value of a trial                    its last report: the mean over all its seeds at their last step

A trial's seeds train one after another, ``steps`` environment steps each. The true return at a step is the mean of the
last three evaluations until then, as wherever one number stands for a run (``compare.ending``). It is for evaluation
only: who tunes on it knows what an agent that learns from preferences does not. What is reported then has to come from
other seeds or other tasks than those that were tuned on, or is an oracle's.

Sampler: Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (2011). Pruners: the median rule of Golovin et
al., "Google Vizier" (2017), and Li et al., "Hyperband" (2018).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from rlhf_bilevel.data.run_folder import STEP, RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.compare import ending
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.scheduler import PATIENCE, TICK, Engine, Started, last_line
from rlhf_bilevel.studies.search_space import Choice, Range, Space, pasted
from rlhf_bilevel.studies.worker import ELSEWHERE
from rlhf_bilevel.utils.files import one_line

TRUE_RETURN = "eval/true_return"  # column of progress.csv


class Candidate(Protocol):
    """Settings that are being tried."""

    def poll(self) -> int | None:
        """0 when it has come to its end, another number when it failed; None until then."""

    def reports(self) -> Mapping[int, float]:
        """All that is known now, by environment steps of all seeds, in order; the last is the value."""

    def stop(self) -> None: ...

    def why(self) -> str:
        """Why it failed."""


class Training:
    """A trial's runs, one for each seed."""

    def __init__(self, runs: Sequence[RunSpec], engine: Engine) -> None:
        self._runs, self._engine = runs, engine
        self._started: Started | None = None
        self._at, self._not_before = 0, 0.0

    def poll(self) -> int | None:
        while self._at < len(self._runs):
            if self._started is None:
                if time.monotonic() < self._not_before:
                    return None
                self._started = self._engine.start(self._runs[self._at])
            code = self._started.poll()
            if code is None:
                return None
            self._started = None
            if code == ELSEWHERE:  # as after a kill of the search, which its runs survive
                self._not_before = time.monotonic() + PATIENCE
                return None
            if code:
                return code
            self._at += 1
        return 0

    def reports(self) -> dict[int, float]:
        found, seen = {}, []
        for number, run in enumerate(self._runs):
            seen.append(evaluations(run.folder))
            for step in seen[-1]:
                until = [[value for at, value in own.items() if at <= step] for own in seen]
                found[number * run.steps + step] = fmean(float(ending(values)) for values in until if values)
        return found

    def stop(self) -> None:
        if self._started:
            self._started.stop()

    def why(self) -> str:
        log = self._runs[self._at].folder.output
        return f"{last_line(log)} (all of it: {log})"


def evaluations(run: RunFolder) -> dict[int, float]:
    """A run's true return by step, as far as it is."""
    try:
        rows = run.read_progress()
    except UserError:  # it is not there yet
        return {}
    return {int(row[STEP]): float(row[TRUE_RETURN]) for row in rows if row.get(TRUE_RETURN)}


def open_study(file: Path, pruner: str, steps: int) -> optuna.Study:
    """The study in an SQLite file, which is made where it is missing. A trial takes ``steps`` steps in all.

    UserError where the file cannot be opened, or is none of Optuna's.
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
    begin: Callable[[int, dict[str, Any]], Candidate],
    jobs: int = 1,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> int:
    """Goes on until ``trials`` of the study were completed or pruned, ``jobs`` at the same time; how many failed.

    ``begin(number, settings)`` starts a trial, or goes on with it; a UserError of it fails the trial. Trials that a
    killed process has left are taken up first. A trial that fails takes up its place until the next call.
    """
    left = [Trial(study, trial._trial_id) for trial in study.get_trials(states=(TrialState.RUNNING,))]
    going: dict[int, tuple[Trial, Candidate]] = {}
    failed = 0

    def fail(trial: Trial, why: str) -> None:
        nonlocal failed
        failed += 1
        study.tell(trial, state=TrialState.FAIL)
        tell(f"trial {trial.number} failed: {why}")

    def more() -> bool:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return bool(left) or len(ended) + failed + len(going) < trials

    try:
        while going or more():
            while len(going) < jobs and more():
                trial = left.pop(0) if left else propose(study, seed)
                settings = {key: suggest(trial, key, among) for key, among in space.items()}
                tell(f"trial {trial.number}: {pasted(settings)}")
                try:
                    going[trial.number] = trial, begin(trial.number, settings)
                except UserError as error:
                    fail(trial, str(error))
            for trial, candidate in list(going.values()):
                code = candidate.poll()
                reports = candidate.reports()
                pruned = prunes(trial, reports, whole=code == 0)
                if pruned is None and code is None:
                    continue
                del going[trial.number]
                if pruned is not None:
                    candidate.stop()
                    study.tell(trial, state=TrialState.PRUNED)
                    tell(f"trial {trial.number} pruned after {pruned:,} steps: {reports[pruned]:.4g}")
                elif code:
                    fail(trial, candidate.why())
                elif not reports:
                    fail(trial, "it has come to its end without an evaluation")
                else:
                    value = reports[max(reports)]
                    study.tell(trial, value)
                    tell(f"trial {trial.number}: {value:.4g} (best: {study.best_value:.4g})")
            if going:
                time.sleep(TICK)
        return failed
    finally:
        for _, candidate in going.values():
            candidate.stop()


def propose(study: optuna.Study, seed: int) -> Trial:
    """A new trial, a function of ``seed``, its number and the trials before: a search that was cut off repeats none."""
    number = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    return study.ask()


def suggest(trial: Trial, key: str, among: Range | Choice) -> Any:
    if isinstance(among, Choice):
        return trial.suggest_categorical(key, among.values)
    if among.whole:
        return trial.suggest_int(key, int(among.low), int(among.high), log=among.log)
    return trial.suggest_float(key, among.low, among.high, log=among.log)


def prunes(trial: Trial, reports: Mapping[int, float], whole: bool) -> int | None:
    """Reports what is new; the step at which the pruner stops the trial, if it does.

    It is asked after each report but the last of a whole trial, in order: the answer is the same whenever one looks.
    """
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for step, value in reports.items():
        if step in known:
            continue
        trial.report(value, step)
        if not (whole and step == max(reports)) and trial.should_prune():
            return step
    return None


def best(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """UserError where no trial has come to its end."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise UserError("no trial has come to its end: the same command tries others")
    return study.best_trial
