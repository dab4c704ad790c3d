"""The commands that train many runs, ``sweep`` and ``tune``: first what a user can get wrong, then the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout

from rlhf_bilevel.cli import run_options
from rlhf_bilevel.cli.run_options import assigned
from rlhf_bilevel.config import MOVED
from rlhf_bilevel.data.run_folder import RunFolder, outside_runs
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.runs.spec import RunSpec, check_owners
from rlhf_bilevel.studies.scheduler import Executor, LocalExecutor, begin_together, run_all
from rlhf_bilevel.studies.search_space import as_options, parse, read_space
from rlhf_bilevel.studies.worker import all_settings, check_same_run
from rlhf_bilevel.utils.files import check_plain_file, check_writable, read_yaml, write

SEARCH, BEST = "tune.yaml", "best.yaml"  # what a search looks for, and what it has found


def sweep(args: argparse.Namespace) -> Callable[[], None]:
    on_cluster(args)
    writable_folder("--out", args.out)
    runs: dict[Path, RunSpec] = {}
    first = args.seed or 0
    for env in args.env:
        kind = one_teacher(run_options.spec(args, args.method[0], env))
        limit = None
        for number, (method, seed) in enumerate(product(args.method, range(first, first + args.seeds))):
            out = args.out / f"{method.replace(':', '.')}-{kind.env.split('/')[-1]}-{seed}"
            if out in runs:
                raise UserError(f"two runs of this sweep would share the folder {out}")
            runs[check_writable(out)] = run = replace(kind, method=method, out=out).having(seed=seed)
            if not number:
                limit = run.check_env()
            if seed == first or run.folder.begun:
                check_same_run(run, all_settings(run, limit))

    planned = list(runs.values())

    def work() -> None:
        from rlhf_bilevel.studies.progress import ProgressBoard
        from rlhf_bilevel.studies.results import collect, table

        args.out.mkdir(parents=True, exist_ok=True)
        if args.cohort:
            begin_together(planned)
        engine = engine_of(args)
        try:
            with ProgressBoard(planned) as board:
                failed = run_all(planned, engine, board.update)
        finally:
            rows = collect(args.out)
        print(f"{table(rows)}\nEvery evaluation: {args.out / 'results.csv'}, and the same as Parquet")
        if failed:
            raise UserError(f"{len(failed)} of {len(planned)} runs failed: the same command tries them again")

    return work


def one_teacher(spec: RunSpec) -> RunSpec:
    """UserError where people would have to answer many runs at once."""
    if spec.settings.get("teacher_human"):
        raise UserError("teacher 'human': people label one run at a time; rlhf-bilevel train starts one")
    return spec


def on_cluster(args: argparse.Namespace) -> None:
    """UserError where the options ask of a cluster what it does not do."""
    if args.engine == "local":
        return
    for option, used in (("--jobs", args.jobs), ("--cohort", args.cohort), ("--device", args.device != "cpu")):
        if used:
            raise UserError(f"{option} is for --engine local: on a cluster a run is a task on the CPU, as many as fit")
    if not find_spec("ray"):
        raise UserError("--engine ray: Ray is not installed; pip install 'rlhf-bilevel[ray]'")


def engine_of(args: argparse.Namespace) -> Executor:
    if args.engine == "local":
        return LocalExecutor(args.jobs or 2)
    from rlhf_bilevel.studies.executors.ray import RayExecutor

    return RayExecutor(args.threads)


def tune(args: argparse.Namespace) -> Callable[[], None]:
    if not find_spec("optuna"):
        raise UserError("tune: Optuna is not installed; pip install 'rlhf-bilevel[tune]'")
    kind = one_teacher(run_options.spec(args, args.method, args.env))
    kind.resolve()
    tuned = read_space(args.space, args.tune)
    check_owners(args.method, [*assigned(args.set), *tuned])
    for pair in args.set:
        if (key := pair.partition("=")[0]) in tuned:
            raise UserError(f"{key} is both set and to be tuned")
    limit = kind.check_env()

    def trial(chosen: Mapping[str, Any]) -> RunSpec:
        return kind.having(**assigned([f"{key}={value}" for key, value in chosen.items()]))

    def value_of(key: str, value: Any) -> Any:
        """As the run would have it."""
        found = all_settings(trial({key: value}), limit)
        return found["options"][key.partition(".")[2] or key] if "." in key or key in MOVED else found[key]

    space = {key: parse(key, among, value_of) for key, among in tuned.items()}
    seeds = list(range(args.seed, args.seed + args.seeds))
    out = args.out or Path("runs") / f"tune-{kind.method.replace(':', '.')}-{kind.env.split('/')[-1]}"
    storage = args.storage or out / "tune.db"
    writable_folder("--out", out)
    check_writable(storage)
    check_writable(storage.parent)  # SQLite keeps its journal beside the file
    asked = {"method": kind.method, "env": kind.env, "steps": kind.steps, "seeds": seeds, "pruner": args.pruner}
    asked |= {"algorithm": kind.algorithm or None, "preset": kind.preset}
    asked |= {"settings": dict(kind.having(seed=0).settings), "space": tuned}
    same_search(out, storage, asked)

    def runs(number: int, chosen: Mapping[str, Any]) -> list[RunSpec]:
        planned = [
            replace(trial(chosen), out=out / f"trial-{number:04}-seed-{seed}").having(seed=seed) for seed in seeds
        ]
        for run in planned:
            check_same_run(run, all_settings(run, limit))
        return planned

    def work() -> None:
        from rlhf_bilevel.evaluation.compare import LAST
        from rlhf_bilevel.studies.tuning import TrialRuns, best_trial, open_study, search

        out.mkdir(parents=True, exist_ok=True)
        try:
            with RunFolder(out).claim():
                same_search(out, storage, asked)  # another process may have begun another one meanwhile
                write(out / SEARCH, yaml.safe_dump(asked, sort_keys=False).encode())
                study, engine = open_study(storage, args.pruner, kind.steps * len(seeds)), LocalExecutor(args.jobs)

                def begin(number: int, chosen: Mapping[str, Any]) -> TrialRuns:
                    return TrialRuns(runs(number, chosen), engine)

                failed = search(study, space, args.trials, begin, args.jobs, args.seed)
                found = best_trial(study)
                chosen = {key: value for key, value in trial(found.params).settings.items() if key != "seed"}
                write(out / BEST, yaml.safe_dump(chosen, sort_keys=False).encode())
        except Timeout:
            raise UserError(f"{out} is being searched by another process") from None
        count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
        print(
            f"Best: trial {found.number}, true return {found.value:.4g} ({count}; mean of the last {LAST} evaluations)"
        )
        print(f"  {as_options(found.params)}")
        options = f"--preset {args.preset}" + (f" --algorithm {kind.algorithm}" if kind.algorithm else "")
        print(f"  rlhf-bilevel train {kind.method} --env {kind.env} {options} --config {out / BEST}")
        if failed:
            raise UserError(f"{failed} trials failed: the same command tries others in their place")

    return work


def writable_folder(option: str, path: Path) -> None:
    """UserError where it is none and cannot be made."""
    if check_writable(path).exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is not a folder")
    outside_runs(path)


def same_search(out: Path, storage: Path, asked: Mapping[str, Any]) -> None:
    """UserError where ``out`` or ``storage`` holds something else than the beginning of this search."""
    file = out / SEARCH
    check_plain_file(storage)
    if storage.parent != out and not storage.parent.is_dir():
        raise UserError(f"--storage {storage}: there is no folder {storage.parent}")
    if storage.exists() and not (storage.is_file() and beginning(storage) in (b"", b"SQLite format 3\0")):
        raise UserError(f"--storage {storage}: exists already, and is no SQLite file")
    if not file.is_file():
        for path in (out, storage):
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise UserError(f"{path} exists already and is not of this search: choose another")
        return
    there = read_yaml(file)
    for key, value in asked.items():
        if there.get(key) != value:
            raise UserError(f"{out} holds a search with {key} {there.get(key)}, not {value}: choose another --out")


def beginning(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(16)
