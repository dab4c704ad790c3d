"""Search for settings with Optuna."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout

from rlhf_bilevel.cli import run_options
from rlhf_bilevel.cli.arguments import JOBS, SEEDS, TRIALS, Work, add_checkpoint_option, add_choice, integer, up_to
from rlhf_bilevel.cli.checks import one_teacher, writable_folder
from rlhf_bilevel.cli.run_options import add_method, add_run_options, assigned
from rlhf_bilevel.config.names import MOVED, current_names
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.runs.spec import RunSpec, check_owners
from rlhf_bilevel.studies.scheduler import LocalExecutor
from rlhf_bilevel.studies.search_space import as_options, parse, read_space
from rlhf_bilevel.studies.worker import all_settings, check_same_run
from rlhf_bilevel.utils.files import check_plain_file, check_writable, write
from rlhf_bilevel.utils.json_yaml import read_yaml

SEARCH, BEST = "tune.yaml", "best.yaml"  # what a search looks for, and what it has found
PRUNERS = ("median", "hyperband", "none")
HELP = "search for good settings with Optuna; the same command goes on"
EXAMPLES = (
    "rlhf-bilevel tune pebble --env Pendulum-v1 --steps 20000 --tune batch_size=64..512",
    "rlhf-bilevel tune surf --env Pendulum-v1 --steps 20000 --tune surf.threshold=0.9..0.999 --trials 40",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    add_method(sub)
    sub.add_argument("--env", required=True, help="as for train")
    sub.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="KEY=LOW..HIGH[,log]",
        help="a setting and the values to try; or KEY=VALUE|VALUE; repeatable",
    )
    sub.add_argument("--space", type=Path, metavar="FILE.yaml", help="the same from a file, KEY: LOW..HIGH")
    sub.add_argument("--trials", type=up_to(TRIALS), default=20, help="number of trials, earlier ones included")
    sub.add_argument("--seed", type=integer, default=1000, help="the first seed; report results of other seeds")
    sub.add_argument("--seeds", type=up_to(SEEDS), default=1, help="runs in a trial, one after another")
    add_choice(sub, "--pruner", PRUNERS, "median", f"stops bad trials early: {', '.join(PRUNERS)}")
    sub.add_argument(
        "--storage", type=Path, metavar="FILE.db", help="the database of trials, on a local disk (default: OUT/tune.db)"
    )
    sub.add_argument(
        "--out", type=Path, help="a folder, with a folder in it for each run (default: runs/tune-METHOD-ENV)"
    )
    sub.add_argument("--jobs", type=up_to(JOBS), default=2, help="trials at the same time, a process each")
    add_run_options(sub)
    add_checkpoint_option(sub)


def run(args: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    if not find_spec("optuna"):
        raise UserError("tune: Optuna is not installed; pip install 'rlhf-bilevel[tune]'")
    kind = one_teacher(run_options.spec(args, args.method, args.env))
    kind.resolve()
    tuned = read_space(args.space, args.tune)
    if "initial_alpha" in tuned:
        raise UserError("initial_alpha is called ent_coef now: its values are auto_NUMBER|auto_NUMBER")
    tuned = current_names(tuned, [args.method])
    check_owners(args.method, [*assigned(args.set), *tuned])
    with warnings.catch_warnings(action="ignore"):  # about old names, which were told already
        fixed = current_names(assigned(args.set), [args.method])
    for key in fixed:
        if key in tuned:
            raise UserError(f"{key} is both set and to be tuned")
    limit = kind.check_env()

    def trial(chosen: Mapping[str, Any]) -> RunSpec:
        return kind.having(**assigned([f"{key}={value}" for key, value in chosen.items()]))

    def value_of(key: str, value: Any) -> Any:
        """The value that a run would use."""
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
        named = out / f"trial-{number:04}"
        planned = [replace(trial(chosen), out=Path(f"{named}-seed-{seed}")).having(seed=seed) for seed in seeds]
        for run in planned:
            check_same_run(run, all_settings(run, limit))
        return planned

    def work() -> None:
        from rlhf_bilevel.evaluation.tasks import LAST
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
        evaluations = min(LAST, kind.steps // kind.resolve().eval_freq or 1)
        of_what = f"{count}; " + (
            f"mean of the last {evaluations} evaluations" if evaluations > 1 else "one evaluation"
        )
        print(f"Best: trial {found.number}, true return {found.value:.4g} ({of_what})")
        print(f"  {as_options(found.params)}")
        options = f"--preset {args.preset}" + (f" --algorithm {kind.algorithm}" if kind.algorithm else "")
        print(f"  rlhf-bilevel train {kind.method} --env {kind.env} {options} --config {out / BEST}")
        if failed:
            raise UserError(f"{failed} trials failed: the same command tries others in their place")

    return work


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
    """The first bytes of a file."""
    with file.open("rb") as stream:
        return stream.read(16)
