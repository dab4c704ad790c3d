"""Which runs the paths of ``compare`` and ``plot`` mean, and warnings about runs that do not belong together.

A path is a run's folder, a folder of runs such as a study's, or a table of evaluations. ``NAME=PATH`` gives its runs
the method NAME, so that one method can be compared with itself at other settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.names import flatten_options
from rlhf_bilevel.data.run_folder import CONFIG, RunFolder, runs_in
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord, own_names, read_records, read_table, renamed
from rlhf_bilevel.utils.suggest import did_you_mean

TABLE = "results.csv"  # table of a study
SHOWN = 4  # most names in a line
ORDER = tuple(Config.model_fields)
TASK = {
    "action_repeat": "equal steps are not equal simulator steps",
    "env_kwargs": "they do not learn on the same environment",
    "protocol": "they do not see the same environment",
}
"""Settings that change the environment, and what follows if runs differ in them."""
TEACHER = "they learnt from other answers"
TEACHERS = ("teacher", *(key for key in ORDER if key.startswith("teacher_") and key != "teacher_labels_db"))
"""Settings that change the answers; for runs with labels."""


class Source(NamedTuple):
    """The records of one run, or of one table."""

    source: Path  # a run's folder, or a table
    rows: list[EvaluationRecord]
    settings: Mapping[str, Any]  # of a run, except its seed; empty for a table
    method_name: str = ""  # the own name of a method that is called module:NAME


class Gathered(NamedTuple):
    """The records of all runs that some paths mean. Methods have their own names where those are unambiguous."""

    rows: list[EvaluationRecord]
    warnings: list[str]
    names: dict[str, str]  # own names by module:NAME

    def method(self, name: str | None) -> str | None:
        """How the method is called in the rows; ``name`` may be module:NAME."""
        return self.names.get(name or "", name)


def gather_records(paths: Sequence[Path]) -> Gathered:
    """Records of all runs that the paths mean, and lines to warn with. UserError if a run occurs twice."""
    sources, warnings = [], []
    for path in paths:
        name, place = split_name(path)
        path_sources, left_out = open_sources(place)
        sources += rename_method(path_sources, name, path) if name else path_sources
        warnings += left_out
    names = own_names(
        {"method": row.method, "method_name": source.method_name} for source in sources for row in source.rows
    )
    sources = [source._replace(rows=renamed(source.rows, names)) for source in sources]
    check_duplicates(sources)
    return Gathered([row for source in sources for row in source.rows], warnings + difference_warnings(sources), names)


def split_name(path: Path) -> tuple[str, Path]:
    """NAME and PATH of ``NAME=PATH``; an empty name if there is none."""
    name, equals, place = str(path).partition("=")
    return (name, Path(place)) if equals and name and not path.exists() else ("", path)


def rename_method(sources: Iterable[Source], name: str, path: Path) -> list[Source]:
    """The sources with method ``name``. UserError if they have more than one method."""
    methods = list(dict.fromkeys(row.method for source in sources for row in source.rows))
    if len(methods) > 1:
        raise UserError(f"{path}: one name is for runs of one method, and these are of {', '.join(methods)}")
    return [
        source._replace(rows=renamed(source.rows, dict.fromkeys(methods, name)), method_name="") for source in sources
    ]


def open_sources(path: Path) -> tuple[list[Source], list[str]]:
    """The sources at ``path``, and a line for each kind of run that is left out. UserError if there is none."""
    if path.suffix == ".csv":
        return [Source(path, read_table(path), {})], []
    run = RunFolder(path)
    if run.begun:
        if not run.evaluated:
            raise UserError(
                f"{path} has no {run.evaluations.name}: the run was not evaluated yet, or only its agent was saved"
            )
        return [read_run(run)], [] if run.ended else [f"{path} has not ended: it counts as far as it is"]
    runs = runs_in(path, depth=2)
    if not runs:
        tables = sorted({*path.glob(TABLE), *path.glob(f"*/{TABLE}")})
        if not tables:
            neighbours = [str(other) for other in runs_in(path.parent)]
            hint = f"; {did_you_mean(str(path), neighbours)}" if neighbours else ""
            raise UserError(f"{path} is neither a run's folder nor one that holds runs: it has no {CONFIG}{hint}")
        return [Source(table, read_table(table), {}) for table in tables], []
    unfinished = [run for run in runs if not run.ended]
    unevaluated = [run for run in runs if run.ended and not run.evaluated]
    usable = [read_run(run) for run in runs if run.ended and run.evaluated]
    if not usable:
        raise UserError(f"{path} holds no run that has ended and was evaluated (of {len(runs)})")
    warnings = []
    for some, why in ((unfinished, "not ended"), (unevaluated, "never evaluated")):
        if some:
            names = first_of([run.path.name for run in some])
            warnings.append(f"{path}: left out {len(some)} of {len(runs)} runs, {why}: {names}")
    return usable, warnings


def read_run(run: RunFolder) -> Source:
    """The records and the settings of a run."""
    rows, record = read_records(run.path), run.read_config()
    settings = flatten_options(record.get("settings", {}), str(record.get("method")))
    settings.pop("seed", None)
    settings |= {key: record.get(key) for key in ("teacher", "algorithm", "algorithm_settings")}
    return Source(run.path, rows, settings, str(record.get("method_name") or ""))


def check_duplicates(sources: Sequence[Source]) -> None:
    """UserError if two sources have the same method, environment and seed."""
    seen: dict[tuple[str, str, int], Source] = {}
    for source in sources:
        for key in dict.fromkeys((row.method, row.env, row.seed) for row in source.rows):
            if key in seen:
                method, env, seed = key
                keys, difference = differing_settings([seen[key], source]), ""
                if keys:
                    how = settings_text(keys, [seen[key], source])
                    difference = f", which differ in {how}: NAME=DIR tells them apart"
                problem = f"{method} with seed {seed} on {env} was given twice"
                raise UserError(f"{problem}: {seen[key].source} and {source.source}{difference}")
            seen[key] = source


def difference_warnings(sources: Sequence[Source]) -> list[str]:
    """A line for each method whose runs on an environment differ in more than the seed, and for each environment that
    is not the same for all runs.
    """
    groups: dict[tuple[str, str], list[Source]] = {}
    for source in sources:
        if source.settings and source.rows:
            groups.setdefault((source.rows[0].env, source.rows[0].method), []).append(source)
    lines = []
    for (env, method), runs in groups.items():
        if keys := differing_settings(runs):
            how = settings_text(keys, runs)
            lines.append(f"{method} on {env}: runs count as seeds of one method, but differ in {how}")
    for env in dict.fromkeys(env for env, _ in groups):
        here = {method: runs for (other, method), runs in groups.items() if other == env}
        taught = {method: runs for method, runs in here.items() if any(source.rows[-1].labels for source in runs)}
        for key in (*TASK, *TEACHERS):
            among = here if key in TASK else taught
            by_method = {method: distinct_values(key, runs) for method, runs in among.items()}
            if len({value for distinct in by_method.values() for value in distinct}) > 1:
                shown = ", ".join(f"{method} {' and '.join(distinct)}" for method, distinct in by_method.items())
                lines.append(f"runs on {env} differ in {key}, {shown}: {TASK.get(key, TEACHER)}")
    return lines


def differing_settings(runs: Sequence[Source]) -> list[str]:
    """Settings in which the runs differ, in the order of ``Config``; none if one of them is a table."""
    if not all(source.settings for source in runs):
        return []
    keys_in_use = {key for source in runs for key in source.settings}
    keys = [key for key in ORDER if key in keys_in_use] + sorted(keys_in_use.difference(ORDER))
    return [key for key in keys if len(distinct_values(key, runs)) > 1]


def settings_text(keys: Sequence[str], runs: Sequence[Source]) -> str:
    """The settings ``keys`` with the values that runs have, as text."""
    return first_of([f"{key} ({', '.join(distinct_values(key, runs))})" for key in keys])


def distinct_values(key: str, runs: Sequence[Source]) -> list[str]:
    """The different values of a setting, as text."""
    return list(dict.fromkeys(str(source.settings.get(key, "not told")) for source in runs))


def first_of(texts: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")
