"""Which runs the paths of ``compare`` and ``plot`` stand for, and what has to be said before they are put together.

A path is a run's folder, a folder of runs such as a sweep's, or a table of evaluations; ``NAME=PATH`` calls its runs'
method NAME, so that one method can be compared with itself at other settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_bilevel.config import Config, nearest, spread
from rlhf_bilevel.data.run_folder import CONFIG, RunFolder, runs_in
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord, points, read_table

TABLE = "results.csv"  # a sweep's
SHOWN = 4  # differences in a line
ORDER = tuple(Config.model_fields)
TASK = {
    "action_repeat": "equal steps are not equal simulator steps",
    "env_kwargs": "they do not learn on the same environment",
    "protocol": "they do not see the same environment",
}
"""Settings that make an environment another one, and what it means where runs on it differ in them."""
TEACHER = "they learnt from other answers"
TEACHERS = ("teacher", *(key for key in ORDER if key.startswith("teacher_") and key != "teacher_labels_db"))
"""The same of the answers, for runs that had any."""


class Given(NamedTuple):
    source: Path  # a run's folder, or a table
    rows: list[EvaluationRecord]
    settings: Mapping[str, Any]  # of a run, but for its seed; a table tells none


def gather(paths: Sequence[Path]) -> tuple[list[EvaluationRecord], list[str]]:
    """Evaluations of the runs that the paths stand for, and lines to warn with. UserError if a run is given twice."""
    given, told = [], []
    for path in paths:
        name, place = named(path)
        found, left_out = opened(place)
        given += renamed(found, name, path) if name else found
        told += left_out
    once(given)
    return [row for one in given for row in one.rows], told + differing(given)


def named(path: Path) -> tuple[str, Path]:
    """NAME and PATH of ``NAME=PATH``, or no name and the path."""
    name, equals, place = str(path).partition("=")
    return (name, Path(place)) if equals and name and not path.exists() else ("", path)


def renamed(given: Iterable[Given], name: str, path: Path) -> list[Given]:
    methods = list(dict.fromkeys(row.method for one in given for row in one.rows))
    if len(methods) > 1:
        raise UserError(f"{path}: one name is for runs of one method, and these are of {', '.join(methods)}")
    return [one._replace(rows=[row._replace(method=name) for row in one.rows]) for one in given]


def opened(path: Path) -> tuple[list[Given], list[str]]:
    """What is there, and a line for each kind of run in a folder that is left out."""
    if path.suffix == ".csv":
        return [Given(path, read_table(path), {})], []
    run = RunFolder(path)
    if run.begun:
        if not run.evaluated:
            raise UserError(f"{path} has no {run.evaluations.name} yet: the run was not evaluated")
        return [read(run)], [] if run.ended else [f"{path} has not ended: it counts as far as it is"]
    runs = runs_in(path, depth=2)
    if not runs:
        tables = sorted({*path.glob(TABLE), *path.glob(f"*/{TABLE}")})
        if not tables:
            near = [str(other) for other in runs_in(path.parent)]
            hint = f"; {nearest(str(path), near)}" if near else ""
            raise UserError(f"{path} is neither a run's folder nor one that holds runs: it has no {CONFIG}{hint}")
        return [Given(table, read_table(table), {}) for table in tables], []
    going = [run for run in runs if not run.ended]
    silent = [run for run in runs if run.ended and not run.evaluated]
    counted = [read(run) for run in runs if run.ended and run.evaluated]
    if not counted:
        raise UserError(f"{path} holds no run that has ended and was evaluated (of {len(runs)})")
    told = []
    for some, why in ((going, "not ended"), (silent, "never evaluated")):
        if some:
            told.append(f"{path}: left out {len(some)} of {len(runs)} runs, {why}: {listed(some)}")
    return counted, told


def read(run: RunFolder) -> Given:
    rows, told = points(run.path), run.read_config()
    own = spread(told.get("settings", {}), str(told.get("method")))
    own.pop("seed", None)
    return Given(run.path, rows, own | {key: told.get(key) for key in ("teacher", "algorithm", "algorithm_settings")})


def once(given: Sequence[Given]) -> None:
    """UserError where two sources have the same method, environment and seed."""
    seen: dict[tuple[str, str, int], Given] = {}
    for one in given:
        for key in dict.fromkeys((row.method, row.env, row.seed) for row in one.rows):
            if key in seen:
                method, env, seed = key
                keys = different([seen[key], one])
                how = f", which differ in {values(keys, [seen[key], one])}: NAME=DIR tells them apart" if keys else ""
                twice = f"{method} with seed {seed} on {env} was given twice"
                raise UserError(f"{twice}: {seen[key].source} and {one.source}{how}")
            seen[key] = one


def differing(given: Sequence[Given]) -> list[str]:
    """A line for each method whose runs on an environment are no seeds of one kind, and for each environment that is
    not the same to all."""
    groups: dict[tuple[str, str], list[Given]] = {}
    for one in given:
        if one.settings and one.rows:
            groups.setdefault((one.rows[0].env, one.rows[0].method), []).append(one)
    told = []
    for (env, method), runs in groups.items():
        if keys := different(runs):
            told.append(f"{method} on {env}: runs count as seeds of one method, but differ in {values(keys, runs)}")
    for env in dict.fromkeys(env for env, _ in groups):
        here = {method: runs for (other, method), runs in groups.items() if other == env}
        taught = {method: runs for method, runs in here.items() if any(one.rows[-1].labels for one in runs)}
        for key in (*TASK, *TEACHERS):
            among = here if key in TASK else taught
            by_method = {method: values_of(key, runs) for method, runs in among.items()}
            if len({value for every in by_method.values() for value in every}) > 1:
                shown = ", ".join(f"{method} {' and '.join(every)}" for method, every in by_method.items())
                told.append(f"runs on {env} differ in {key}, {shown}: {TASK.get(key, TEACHER)}")
    return told


def different(runs: Sequence[Given]) -> list[str]:
    """Settings in which runs differ, in the order of ``Config``; none where a table is among them."""
    if not all(one.settings for one in runs):
        return []
    known = {key for one in runs for key in one.settings}
    keys = [key for key in ORDER if key in known] + sorted(known.difference(ORDER))
    return [key for key in keys if len(values_of(key, runs)) > 1]


def values(keys: Sequence[str], runs: Sequence[Given]) -> str:
    shown = [f"{key} ({', '.join(values_of(key, runs))})" for key in keys[:SHOWN]]
    return ", ".join(shown) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def values_of(key: str, runs: Sequence[Given]) -> list[str]:
    return list(dict.fromkeys(str(one.settings.get(key, "not told")) for one in runs))


def listed(runs: Sequence[RunFolder]) -> str:
    names = [run.path.name for run in runs[:SHOWN]]
    return ", ".join(names) + (f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else "")
