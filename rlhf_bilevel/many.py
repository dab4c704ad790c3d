"""The commands that train many runs, ``sweep`` and ``tune``: first what a user can get wrong, then the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from filelock import Timeout

from rlhf_bilevel import envs
from rlhf_bilevel.config import checkpoint_interval
from rlhf_bilevel.files import Refused, outside_runs, plain, read_yaml, writable, write
from rlhf_bilevel.given import assigned, configure, its_own
from rlhf_bilevel.space import parse, pasted, read_space, words
from rlhf_bilevel.sweep import Engine, Local, Planned, agree, begin_together, complete
from rlhf_bilevel.worker import begun, claim

SEARCH, BEST = "tune.yaml", "best.yaml"  # what a search looks for, and what it has found


def sweep(args: argparse.Namespace) -> Callable[[], None]:
    on_cluster(args)
    checkpoint_interval(args.checkpoint_every)
    writable_folder("--out", args.out)
    runs: dict[Path, Planned] = {}
    first = args.seed or 0
    for env in map(envs.resolve, args.env):
        own = one_teacher(configure(changed(args, env=env)))
        limit = envs.check(env, own)
        for method, seed in product(args.method, range(first, first + args.seeds)):
            out = args.out / f"{method}-{env.split('/')[-1]}-{seed}"
            if out in runs:
                raise ValueError(f"two runs of this sweep would share the folder {out}")
            runs[writable(out)] = run = Planned(out, method, env, seed, own["steps"], told(args), args.checkpoint_every)
            if seed == first or begun(out):
                agree(run, whole(method, env, args.preset, own | {"seed": seed}, limit))

    planned = list(runs.values())

    def work() -> None:
        from rlhf_bilevel.board import Board
        from rlhf_bilevel.results import collect, table

        args.out.mkdir(parents=True, exist_ok=True)
        if args.cohort:
            begin_together(planned)
        engine = engine_of(args)
        try:
            with Board(planned) as board:
                failed = complete(planned, engine, board.see)
        finally:
            rows = collect(args.out)
        print(f"{table(rows)}\nEvery evaluation: {args.out / 'results.csv'}, and the same as Parquet")
        if failed:
            raise Refused(f"{len(failed)} of {len(planned)} runs failed: the same command tries them again")

    return work


def one_teacher(settings: dict[str, Any]) -> dict[str, Any]:
    """ValueError where people would have to answer many runs at once."""
    if settings.get("teacher_human"):
        raise ValueError("teacher 'human': people label one run at a time; rlhf-bilevel train starts one")
    return settings


def on_cluster(args: argparse.Namespace) -> None:
    """ValueError where the options ask of a cluster what it does not do."""
    if args.engine == "local":
        return
    for option, given in (("--jobs", args.jobs), ("--cohort", args.cohort), ("--device", args.device != "cpu")):
        if given:
            raise ValueError(f"{option} is for --engine local: on a cluster a run is a task on the CPU, as many as fit")
    if not find_spec("ray"):
        raise ValueError("--engine ray: Ray is not installed; pip install 'rlhf-bilevel[ray]'")


def engine_of(args: argparse.Namespace) -> Engine:
    if args.engine == "local":
        return Local(args.jobs or 2)
    from rlhf_bilevel.cluster import Cluster

    return Cluster(args.threads)


def tune(args: argparse.Namespace) -> Callable[[], None]:
    if not find_spec("optuna"):
        raise ValueError("tune: Optuna is not installed; pip install 'rlhf-bilevel[tune]'")
    checkpoint_interval(args.checkpoint_every)
    env = envs.resolve(args.env)

    def settings(chosen: Mapping[str, Any]) -> dict[str, Any]:
        pairs = [f"{key}={value}" for key, value in chosen.items()]
        return one_teacher(configure(changed(args, env=env, set=[*args.set, *pairs])))

    plain = settings({})
    steps, limit = plain["steps"], envs.check(env, plain)
    tuned = read_space(args.space, args.tune)
    its_own(args.method, [*assigned(args.set), *tuned])
    for pair in args.set:
        if (key := pair.partition("=")[0]) in tuned:
            raise ValueError(f"{key} is both set and to be tuned")

    def value_of(key: str, value: Any) -> Any:
        """As the run would have it."""
        found = whole(args.method, env, args.preset, settings({key: value}), limit)
        return (found | found["options"])[key.partition(".")[2] or key]

    space = {key: parse(key, among, value_of) for key, among in tuned.items()}
    seeds = list(range(args.seed, args.seed + args.seeds))
    out = args.out or Path("runs") / f"tune-{args.method}-{env.split('/')[-1]}"
    storage = args.storage or out / "tune.db"
    writable_folder("--out", out)
    writable(storage)
    writable(storage.parent)  # SQLite keeps its journal beside the file
    asked = {"method": args.method, "env": env, "steps": steps, "seeds": seeds, "pruner": args.pruner}
    asked |= {"settings": [*told(args)], "space": tuned}
    same_search(out, storage, asked)

    def runs(number: int, chosen: Mapping[str, Any]) -> list[Planned]:
        own = told(args) + tuple(words(chosen))
        folders = {seed: out / f"trial-{number:04}-seed-{seed}" for seed in seeds}
        planned = [
            Planned(folder, args.method, env, seed, steps, own, args.checkpoint_every)
            for seed, folder in folders.items()
        ]
        for run in planned:
            agree(run, whole(args.method, env, args.preset, settings(chosen) | {"seed": run.seed}, limit))
        return planned

    def work() -> None:
        from rlhf_bilevel.compare import LAST
        from rlhf_bilevel.tune import Training, best, open_study, search

        out.mkdir(parents=True, exist_ok=True)
        try:
            with claim(out):
                same_search(out, storage, asked)  # another process may have begun another one meanwhile
                write(out / SEARCH, yaml.safe_dump(asked, sort_keys=False).encode())
                study, engine = open_study(storage, args.pruner, steps * len(seeds)), Local(args.jobs)

                def begin(number: int, chosen: Mapping[str, Any]) -> Training:
                    return Training(runs(number, chosen), engine)

                failed = search(study, space, args.trials, begin, args.jobs, args.seed)
                found = best(study)
                chosen = {key: value for key, value in settings(found.params).items() if key != "seed"}
                write(out / BEST, yaml.safe_dump(chosen, sort_keys=False).encode())
        except Timeout:
            raise Refused(f"{out} is being searched by another process") from None
        count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
        print(
            f"Best: trial {found.number}, true return {found.value:.4g} ({count}; mean of the last {LAST} evaluations)"
        )
        print(f"  {pasted(found.params)}")
        print(f"  rlhf-bilevel train {args.method} --env {env} --preset {args.preset} --config {out / BEST}")
        if failed:
            raise Refused(f"{failed} trials failed: the same command tries others in their place")

    return work


def writable_folder(option: str, path: Path) -> None:
    """ValueError where it is none and cannot be made."""
    if writable(path).exists() and not path.is_dir():
        raise ValueError(f"{option} {path}: is not a folder")
    outside_runs(path)


def same_search(out: Path, storage: Path, asked: Mapping[str, Any]) -> None:
    """Refused where ``out`` or ``storage`` holds something else than the beginning of this search."""
    file = out / SEARCH
    plain(storage)
    if storage.parent != out and not storage.parent.is_dir():
        raise ValueError(f"--storage {storage}: there is no folder {storage.parent}")
    if storage.exists() and not (storage.is_file() and beginning(storage) in (b"", b"SQLite format 3\0")):
        raise ValueError(f"--storage {storage}: exists already, and is no SQLite file")
    if not file.is_file():
        for path in (out, storage):
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise Refused(f"{path} exists already and is not of this search: choose another")
        return
    there = read_yaml(file)
    for key, value in asked.items():
        if there.get(key) != value:
            raise Refused(f"{out} holds a search with {key} {there.get(key)}, not {value}: choose another --out")


def beginning(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(16)


def whole(method: str, env: str, preset: str, given: Mapping[str, Any], limit: int | None = None) -> dict[str, Any]:
    """All settings of a run, as its file holds them; ``limit`` is the environment's, where it is known."""
    from rlhf_bilevel.agent import fitted, settled
    from rlhf_bilevel.methods.registry import METHODS

    own = METHODS[method]
    config, _ = fitted(own, settled(own, env, preset, given), limit, given)
    return config.model_dump(mode="json")


def changed(args: argparse.Namespace, **others: Any) -> argparse.Namespace:
    return argparse.Namespace(**vars(args) | others)


def told(args: argparse.Namespace) -> tuple[str, ...]:
    """The settings of many runs, but for the steps, as ``train`` takes them."""
    words = [
        f"--{name}={getattr(args, name)}"
        for name in ("labels", "teacher", "preset", "device", "threads")
        if getattr(args, name) is not None
    ]
    words += [f"--config={args.config.resolve()}"] if args.config else []
    return (*words, *(f"--set={pair}" for pair in args.set))
