"""What the commands do, one run at a time (``many`` has those that train many): first the checks, then the work.

Each command first checks, before torch is loaded and before anything is written, and returns the work to be done.
"""

from __future__ import annotations

import argparse
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from rlhf_bilevel.cli import run_options
from rlhf_bilevel.cli.run_options import assigned
from rlhf_bilevel.config import parse_checkpoint_every, validate
from rlhf_bilevel.data.run_folder import RunFolder, outside_runs
from rlhf_bilevel.envs import registry
from rlhf_bilevel.errors import AlreadyExistsError, LockedError, UserError
from rlhf_bilevel.feedback.teacher_spec import teacher_settings
from rlhf_bilevel.runs.report import print_result
from rlhf_bilevel.runs.spec import check_owners
from rlhf_bilevel.utils.files import check_writable, reserve_new_file, to_json, write

Work = Callable[[], None]


def train(args: argparse.Namespace) -> Work:
    people = {"teacher_pending_share": args.max_pending_share, "teacher_labels_db": args.labels_db}
    spec = run_options.spec(args, args.method, args.env, people, keep_every=args.keep_every)
    labelled_by_people(args, spec.settings)
    args.dir = default = Path("runs") / f"{spec.method.replace(':', '.')}-{spec.env.split('/')[-1]}-{spec.seed}"
    check_writable(default)
    if args.out:
        args.dir = new_folder(args.out)
    table_of(args.reference)
    spec.resolve()
    check_owners(args.method, assigned(args.set))
    spec.check_env()

    def work() -> None:
        from rlhf_bilevel.runs.session import train

        for out in [args.out] if args.out else numbered(default):
            args.dir = out  # told where training is interrupted
            try:
                train(replace(spec, out=out), progress_bar=not args.verbose, screen=args.verbose)
                break
            except (AlreadyExistsError, LockedError):  # by another process, just now
                if args.out:
                    raise
        print_result(args.dir, args.reference)

    return work


def resume(args: argparse.Namespace) -> Work:
    run_folder(args.dir)
    parse_checkpoint_every(args.checkpoint_every)
    table_of(args.reference)
    if RunFolder(args.dir).ended:  # torch need not be loaded to say so; asked again under the run's lock
        raise UserError(f"{args.dir} has come to its end: there is nothing to resume")

    def work() -> None:
        from rlhf_bilevel.runs.session import resume

        resume(
            args.dir,
            progress_bar=not args.verbose,
            screen=args.verbose,
            trust=args.trust,
            checkpoint_every=args.checkpoint_every,
            keep_every=args.keep_every,
        )
        print_result(args.dir, args.reference)

    return work


def fork(args: argparse.Namespace) -> Work:
    from rlhf_bilevel.agent import Agent  # what can be forked is known when the checkpoint has been read

    run_folder(args.dir)
    asked = {"total_timesteps": args.steps, "labels": args.labels, "seed": args.seed, **assigned(args.set)}
    changes = {key: value for key, value in asked.items() if value is not None}
    changes |= teacher_settings(args.teacher) if args.teacher is not None else {}
    parse_checkpoint_every(args.checkpoint_every)
    table_of(args.reference)
    out = new_folder(args.out)
    agent = Agent.fork(
        args.dir,
        at=args.at,
        out=out,
        method=args.method,
        trust=args.trust,
        checkpoint_every=args.checkpoint_every,
        keep_every=args.keep_every,
        **changes,
    )
    check_owners(agent.method.name, assigned(args.set))
    steps = args.steps or RunFolder(args.dir).trusted_config(args.trust)["settings"]["total_timesteps"]
    if steps <= agent.forked_at:
        raise UserError(f"{args.dir} is at step {agent.forked_at} of {steps}: --steps says how many there are to be")

    def work() -> None:
        import torch

        torch.set_num_threads(RunFolder(args.dir).read_config()["threads"])
        print(f"{out} goes on from step {agent.forked_at:,} of {args.dir}", flush=True)
        agent.learn(steps - agent.forked_at, progress_bar=not args.verbose, screen=args.verbose)
        print_result(out, args.reference)

    return work


def labelled_by_people(args: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """UserError where people cannot be asked as the options say; their database is brought up to date."""
    if not settings.get("teacher_human"):
        for option, given in (("--max-pending-share", args.max_pending_share), ("--labels-db", args.labels_db)):
            if given is not None:
                raise UserError(f"{option} {given}: only --teacher human has it")
    elif settings.get("teacher_labels_db"):
        from rlhf_bilevel.human.database import connect

        connect(settings["teacher_labels_db"]).dispose()


def evaluate(args: argparse.Namespace) -> Work:
    finished(args.dir)

    def work() -> None:
        from rlhf_bilevel.agent import Agent
        from rlhf_bilevel.evaluation.compare import UNBOUNDED, bounds
        from rlhf_bilevel.evaluation.rollout import interval_text

        agent = Agent.load(args.dir, trust=args.trust)
        within = bounds(agent.env_id, "true_return")
        summary = agent.evaluate(args.episodes).summary(within)
        if args.json:
            print(to_json(summary))
            return
        for name in ("true_return", "success"):
            if summary[name]:
                print(f"{name}: {interval_text(summary[name])}")
        print(f"episodes: {summary['episodes']}, fresh ones; train and compare count with the run's own evaluations")
        if args.episodes > 1 and not all(map(isfinite, within)):
            print(f"true_return: {UNBOUNDED}")

    return work


def explain(args: argparse.Namespace) -> Work:
    finished(args.dir)

    def work() -> None:
        from rlhf_bilevel.agent import Agent
        from rlhf_bilevel.rewards.explain import weights_of
        from rlhf_bilevel.runs.asked_queries import load

        agent = Agent.load(args.dir, trust=args.trust)
        assert agent.reward is not None
        names, asked = registry.entry_names(agent.make_env()), load(args.dir, args.trust).segments
        weights = weights_of(agent.reward, names, asked.obs, asked.act)
        if args.json:
            print(to_json([weight._asdict() for weight in weights]))
            return
        width = max(len(weight.feature) for weight in weights[: args.top])
        print(f"{'feature':{width}}  {'weight':>9}  {'spread':>9}  {'effect':>9}")
        for weight in weights[: args.top]:
            print(f"{weight.feature:{width}}  {weight.weight:9.3f}  {weight.spread:9.3f}  {weight.effect:9.3f}")

    return work


def export(args: argparse.Namespace) -> Work:
    if args.sb3 is None and args.preferences is None:
        raise UserError("export what? --sb3 FILE.zip the agent, --preferences FILE.parquet what was asked and answered")
    if args.sb3:
        finished(args.dir)
    run_folder(args.dir)
    sb3 = args.sb3 and new_file("--sb3", args.sb3, ".zip")
    preferences = args.preferences and new_file("--preferences", args.preferences, ".parquet")

    def work() -> None:
        from rlhf_bilevel.agent import Agent
        from rlhf_bilevel.runs.asked_queries import load

        if preferences:
            asked = load(args.dir, args.trust)
            with reserve_new_file(preferences):
                asked.write(preferences)
            print(f"{preferences}: {len(asked)} queries, {len(asked.labelled)} of them with a label")
        if sb3:
            agent = Agent.load(args.dir, trust=args.trust)
            model = agent.model
            if not type(model).__module__.startswith("stable_baselines3"):
                raise UserError(f"{args.dir} acts as {type(model).__name__}, which Stable-Baselines3 has not")
            file = io.BytesIO()
            model.save(file, exclude=["replay_buffer", "_last_obs"])
            with reserve_new_file(sb3):
                write(sb3, file.getvalue())
            c = agent.config
            assert c is not None
            told: dict[str, Any] = {"protocol": c.protocol} if agent.env_id.startswith("Meta-World/") else {}
            told |= {"action_repeat": c.action_repeat} if c.action_repeat > 1 else {}
            told |= {key: value for key, value in (("kwargs", c.env_kwargs), ("flatten", c.flatten)) if value}
            arguments = "".join(f", {key}={value!r}" for key, value in told.items())
            print(f"stable_baselines3.{type(model).__name__}.load({str(sb3)!r}) acts as this run's agent, in")
            print(f"    envs.registry.make({agent.env_id!r}, seed=0{arguments})")
            print(f"of rlhf_bilevel: observations flat float32 {model.observation_space.shape}, an action for "
                  f"{c.action_repeat} step{'s' * (c.action_repeat > 1)} of the simulator. "
                  "SB3 can train it on: its optimizers and temperature begin anew.")  # fmt: skip

    return work


def fit_reward(args: argparse.Namespace) -> Work:
    args.env = registry.resolve(args.env)
    if not args.data.exists():
        raise UserError(f"{args.data}: no such file or folder")
    if args.data.is_dir():
        run_folder(args.data)
    settings = assigned(args.set, unused=("total_timesteps", "steps", "labels"))
    config = validate({"total_timesteps": 1000, "seed": args.seed} | settings)
    out = args.out and new_folder(args.out)
    registry.make(args.env, args.seed, kwargs=config.env_kwargs, flatten=config.flatten).close()

    def work() -> None:
        import torch

        from rlhf_bilevel.studies import offline_fit

        torch.set_num_threads(args.threads)
        found = offline_fit.fit_reward(args.data, args.env, seed=args.seed, trust=args.trust, **settings)
        if out:
            found.write(out)
        print(to_json(found.report) if args.json else offline_fit.table(found.report))

    return work


def import_minari(args: argparse.Namespace) -> Work:
    if not find_spec("minari"):
        raise UserError("import-minari: Minari is not installed; pip install 'rlhf-bilevel[minari]'")
    validate({"total_timesteps": 1000, "seed": args.seed})
    out = new_file("--out", args.out, ".parquet")

    def work() -> None:
        from rlhf_bilevel.data.minari import import_minari
        from rlhf_bilevel.feedback.teachers import OracleTeacher

        teacher = OracleTeacher() if args.teacher == "oracle" else None
        data = import_minari(args.dataset, args.pairs, args.segment_length, teacher, args.seed)
        with reserve_new_file(out):
            data.write(out)
        print(f"{out}: {len(data)} queries, {len(data.labelled)} of them with a label")

    return work


def plot(args: argparse.Namespace) -> Work:
    if args.baseline and args.kind != "improvement":
        raise UserError(f"--baseline {args.baseline}: only --kind improvement has one, not {args.kind}")
    out, rows = new_file("--out", args.out, ".svg", ".png", ".pdf"), gathered(args.paths)

    def work() -> None:
        from rlhf_bilevel.evaluation.compare import budget_warnings, group_by_task
        from rlhf_bilevel.evaluation.plot import draw

        with reserve_new_file(out):
            print(draw(rows, out, args.kind, args.baseline))
        for line in budget_warnings(group_by_task(rows, together=True)) if args.kind != "curves" else ():
            warnings.warn(line, stacklevel=1)

    return work


def compare(args: argparse.Namespace) -> Work:
    rows = gathered(args.paths)

    def work() -> None:
        from rlhf_bilevel.evaluation.compare import (
            budget_warnings,
            choose_baseline,
            group_by_task,
            rows_by_task,
            rows_over_all,
            table,
        )

        tasks = group_by_task(rows, together=True)
        baseline = choose_baseline(args.baseline, tasks)
        for line in budget_warnings(tasks):
            warnings.warn(line, stacklevel=1)
        lines = rows_by_task(tasks, baseline)
        if len(tasks) > 1:
            try:
                lines += rows_over_all(tasks, baseline)
            except UserError as error:
                warnings.warn(f"no lines over all environments: {error}", stacklevel=1)
        print(to_json([line._asdict() for line in lines]) if args.json else table(lines))

    return work


def gathered(paths: Sequence[Path]) -> list[Any]:
    """Evaluations (``EvaluationRecord``) of the runs that the paths stand for; what is odd about them is told."""
    from rlhf_bilevel.evaluation.sources import gather_records

    rows, told = gather_records(paths)
    for line in told:
        warnings.warn(line, stacklevel=1)
    return rows


def doctor(args: argparse.Namespace) -> Work:
    from rlhf_bilevel.cli.doctor import report

    return lambda: print(report())


def table_of(reference: Path | None) -> None:
    """UserError where it is no table of evaluations."""
    if reference:
        from rlhf_bilevel.evaluation.records import read_table

        try:
            read_table(reference)
        except UserError as error:
            raise UserError(f"--reference {error}") from None


def new_folder(path: Path) -> Path:
    """UserError where a new run cannot begin: something is there, or it is a part of another run."""
    if check_writable(path).is_symlink() or not RunFolder(path).vacant:
        raise UserError(f"{path} exists already and is not overwritten: choose another path")
    return outside_runs(path)


def new_file(option: str, path: Path, *endings: str) -> Path:
    if path.suffix not in endings:
        raise UserError(f"{option} {path}: must end in {' or '.join(endings)}")
    if check_writable(path).is_symlink() or path.exists():
        raise UserError(f"{path} exists already and is not overwritten: choose another path")
    return path


def numbered(path: Path) -> Iterator[Path]:
    """``path``, path-2, path-3 ...: those that are not there. Says which one it is where it is not the first."""
    for number in count(1):
        out = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not os.path.lexists(out):
            if number > 1:
                print(f"{path} is there already: this run goes to {out}", flush=True)
            yield out


def run_folder(path: Path) -> RunFolder:
    """UserError where there is no run, or anything that no run writes, such as a link."""
    return RunFolder(path).examine()


def finished(path: Path) -> None:
    if not run_folder(path).ended:
        raise UserError(f"{path} has not come to its end: rlhf-bilevel resume {path} goes on with it")
