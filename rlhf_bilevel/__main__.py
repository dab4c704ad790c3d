"""The command line. What a user can get wrong is checked before torch is loaded and before anything is written.

Each command first checks, and returns the work to be done: only what the checks raise is a user's mistake.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_bilevel import envs
from rlhf_bilevel.config import PRESETS, checkpoint_interval, nearest, preset, settle
from rlhf_bilevel.files import SUMS, Refused, read_yaml
from rlhf_bilevel.options import Parser, fail, one_of, positive
from rlhf_bilevel.plot import KINDS
from rlhf_bilevel.traits import BY_SETTINGS, OURS, traits

Work = Callable[[], None]

METHODS = tuple(sorted(path.stem for path in (Path(__file__).parent / "baselines").glob("[!_]*.py")))
"""A method's file bears its name (a test holds this), so that names are known without importing torch."""
COMMANDS = (
    "train", "resume", "label", "sweep", "tune", "evaluate", "export", "fit-reward", "import-minari", "plot", "compare",
    "doctor",
)  # fmt: skip
PRUNERS = ("median", "hyperband", "none")
PRESET_NAMES = tuple(name for name in PRESETS if "/" not in name)


def main(argv: Sequence[str] | None = None) -> None:
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    args = parser().parse_args(argv)
    try:
        work = args.function(args)
    except ValueError as error:
        fail(str(error))
    try:
        work()
    except KeyboardInterrupt:
        going_on = f"; rlhf-bilevel resume {args.dir} goes on" if args.function in (train, resume) else ""
        going_on = "; the same command goes on" if args.function in (sweep, tune) else going_on
        print(f"rlhf-bilevel: interrupted{going_on}", file=sys.stderr)
        raise SystemExit(130) from None
    except Refused as error:
        fail(str(error))


def train(args: argparse.Namespace) -> Work:
    args.env = envs.resolve(args.env)
    settings = configure(args)
    checkpoint_interval(args.checkpoint_every)
    args.dir = out = new_path(args.out or Path("runs") / f"{args.method}-{args.env.split('/')[-1]}-{settings['seed']}")
    existing(args.reference)
    envs.make(args.env, settings["seed"]).close()  # refuses spaces that cannot be learnt on

    def work() -> None:
        import torch

        from rlhf_bilevel.agent import Agent

        torch.set_num_threads(args.threads)
        agent = Agent(
            args.method,
            args.env,
            preset=args.preset,
            device=args.device,
            out=out,
            checkpoint_every=args.checkpoint_every,
            **settings,
        )
        agent.learn(settings["steps"], progress_bar=not args.verbose, screen=args.verbose)
        tell(out, args.reference)

    return work


def resume(args: argparse.Namespace) -> Work:
    if (run_folder(args.dir) / SUMS).is_file():
        raise ValueError(f"{args.dir} has come to its end: there is nothing to resume")
    checkpoint_interval(args.checkpoint_every)
    existing(args.reference)

    def work() -> None:
        from rlhf_bilevel.agent import Agent

        Agent.resume(
            args.dir,
            progress_bar=not args.verbose,
            screen=args.verbose,
            trust=args.trust,
            checkpoint_every=args.checkpoint_every,
        )
        tell(args.dir, args.reference)

    return work


def label(args: argparse.Namespace) -> Work:
    from rlhf_bilevel.human import command

    return command.label(args)


def tell(out: Path, reference: Path | None) -> None:
    """What was learnt, against what the true reward allows; and the learning curve."""
    from rlhf_bilevel.plot import draw, points, read_table

    found = points(out)
    last = [point for point in found if point.is_agent][-1]
    told = f"{last.method} reached a true return of {last.true_return:.0f} (mean of {last.episodes} episodes) on "
    told += f"{last.env} after {last.step:,} steps with {last.labels} labels"
    earlier = [
        point.true_return
        for point in (read_table(reference) if reference else [])
        if (point.method, point.env, point.step) == ("sac", last.env, last.step)
    ]
    if earlier:
        mean = sum(earlier) / len(earlier)
        told += f"; SAC on the true reward reaches {mean:.0f} in as many (mean of {len(earlier)} seeds)"
    print(f"{told}.\nLearning curve: {draw(found, out / 'learning_curve.png')}\nRun: {out}")


def sweep(args: argparse.Namespace) -> Work:
    from rlhf_bilevel import many

    return many.sweep(args, configure)


def tune(args: argparse.Namespace) -> Work:
    from rlhf_bilevel import many

    return many.tune(args, configure)


def evaluate(args: argparse.Namespace) -> Work:
    finished(args.dir)

    def work() -> None:
        from rlhf_bilevel.agent import Agent

        summary = Agent.load(args.dir, trust=args.trust).evaluate(args.episodes).summary()
        if args.json:
            print(json.dumps(summary))
            return
        for name in ("true_return", "success"):
            if summary[name]:
                form = "{0}: {mean:.4g} (95 % interval {low:.4g} to {high:.4g})"
                form = form if args.episodes > 1 else "{0}: {mean:.4g} (one episode, no interval)"
                print(form.format(name, **summary[name]))
        print(f"episodes: {summary['episodes']}")

    return work


def export(args: argparse.Namespace) -> Work:
    if args.sb3 is None and args.preferences is None:
        raise ValueError(
            "export what? --sb3 FILE.zip the agent, --preferences FILE.parquet what was asked and answered"
        )
    if args.sb3:
        finished(args.dir)
    run_folder(args.dir)
    sb3, preferences = (path and new_path(path) for path in (args.sb3, args.preferences))

    def work() -> None:
        from rlhf_bilevel.agent import Agent
        from rlhf_bilevel.dataset import load

        for target in filter(None, (sb3, preferences)):
            target.parent.mkdir(parents=True, exist_ok=True)
        if preferences:
            asked = load(args.dir)
            asked.write(preferences)
            print(f"{preferences}: {len(asked)} queries, {len(asked.labelled)} of them with a label")
        if sb3:
            model = Agent.load(args.dir, trust=args.trust).model
            if not type(model).__module__.startswith("stable_baselines3"):
                raise Refused(f"{args.dir} acts as {type(model).__name__}, which Stable-Baselines3 has not")
            model.save(sb3, exclude=["replay_buffer", "_last_obs"])
            print(f"stable_baselines3.{type(model).__name__}.load({str(sb3)!r}) acts as this run's agent")

    return work


def fit_reward(args: argparse.Namespace) -> Work:
    args.env = envs.resolve(args.env)
    if not args.data.exists():
        raise ValueError(f"{args.data}: no such file or folder")
    if args.data.is_dir():
        run_folder(args.data)
    settings = assigned(args.set)
    settle({"steps": 1000, "seed": args.seed} | settings)
    out = args.out and new_path(args.out)

    def work() -> None:
        import torch

        from rlhf_bilevel import fit

        torch.set_num_threads(args.threads)
        found = fit.fit_reward(args.data, args.env, seed=args.seed, **settings)
        if out:
            found.write(out)
        print(json.dumps(found.report) if args.json else fit.table(found.report))

    return work


def import_minari(args: argparse.Namespace) -> Work:
    settle({"steps": 1000, "seed": args.seed})
    out = new_path(args.out)

    def work() -> None:
        from rlhf_bilevel.offline import import_minari
        from rlhf_bilevel.teacher import OracleTeacher

        teacher = OracleTeacher() if args.teacher == "oracle" else None
        data = import_minari(args.dataset, args.pairs, args.segment_length, teacher, args.seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        data.write(out)
        print(f"{out}: {len(data)} queries, {len(data.labelled)} of them with a label")

    return work


def plot(args: argparse.Namespace) -> Work:
    rows = gathered(args.paths)
    if args.out.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"--out {args.out}: must end in .svg, .png or .pdf")
    if args.baseline and args.kind != "improvement":
        raise ValueError(f"--baseline {args.baseline}: only --kind improvement has one, not {args.kind}")
    out = new_path(args.out)

    def work() -> None:
        from rlhf_bilevel.plot import draw

        print(draw(rows, out, args.kind, args.baseline))

    return work


def compare(args: argparse.Namespace) -> Work:
    rows = gathered(args.paths)

    def work() -> None:
        from rlhf_bilevel.compare import budgets, chosen, compared, grouped, overall, table

        tasks = grouped(rows, together=True)
        for line in budgets(tasks):
            warnings.warn(line, stacklevel=1)
        baseline = chosen(args.baseline, tasks)
        lines = compared(tasks, baseline)
        if len(tasks) > 1:
            try:
                lines += overall(tasks, baseline)
            except Refused as error:
                warnings.warn(f"no lines over all environments: {error}", stacklevel=1)
        print(json.dumps([line._asdict() for line in lines]) if args.json else table(lines))

    return work


def gathered(paths: Sequence[Path]) -> list[Any]:
    """Evaluations (``plot.Point``) of runs' folders and tables."""
    from rlhf_bilevel.plot import points, read_table

    rows = []
    for path in paths:
        if path.suffix == ".csv":
            rows += read_table(path)
        elif (run_folder(path) / "evaluations.csv").is_file():
            rows += points(path)
        else:
            raise ValueError(f"{path} has no evaluations.csv yet")
    return rows


def doctor(args: argparse.Namespace) -> Work:
    from rlhf_bilevel.doctor import report

    return lambda: print(report())


def configure(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the user gave, in the order --config, options, --set; checked as they are, on the preset."""
    if args.device == "cuda" and not shutil.which("nvidia-smi"):
        raise ValueError("--device cuda: no NVIDIA GPU was found; choose cpu or auto")
    given: dict[str, Any] = {"steps": args.steps, "labels": args.labels, "seed": args.seed}
    given |= traits(args.teacher) if args.teacher is not None else {}
    given |= assigned(args.set)
    told = read_yaml(args.config) if args.config else {}
    filed = told["settings"] if isinstance(told.get("settings"), dict) else told  # a run's config.yaml has more
    if args.teacher is None and filed is not told and told.get("teacher", BY_SETTINGS) not in OURS:
        raise ValueError(f"{args.config} had a teacher of its own, {told['teacher']}: choose another with --teacher")
    chosen = {"seed": 0} | filed | {key: value for key, value in given.items() if value is not None}
    if "steps" not in chosen:
        raise ValueError("--steps is missing, and no --config gives it")
    settle(preset(args.preset, args.env) | {key: value for key, value in chosen.items() if "." not in key})
    if any("." in key or key == "options" for key in chosen):  # methods' files import torch: not for nothing
        from rlhf_bilevel.agent import check_options

        check_options(chosen, [args.method] if isinstance(args.method, str) else args.method)
    return chosen


def assigned(pairs: Sequence[str]) -> dict[str, Any]:
    """What --set gives."""
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, not {pair!r}")
        if key in ("steps", "labels", "seed"):
            raise ValueError(f"{key} has an option of its own: --{key}")
        given[key] = value.split(",") if key.endswith("hidden") else yaml.safe_load(value)
    return given


def existing(reference: Path | None) -> None:
    if reference and not reference.is_file():
        raise ValueError(f"--reference {reference}: no such file")


def new_path(path: Path) -> Path:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists already and is not overwritten: choose another path")
    return path


def run_folder(path: Path) -> Path:
    if not (path / "config.yaml").is_file():
        runs = [str(file.parent) for file in path.parent.glob("*/config.yaml")]
        raise ValueError(
            f"{path} is not a run's folder: it has no config.yaml" + (f"; {nearest(str(path), runs)}" if runs else "")
        )
    return path


def finished(path: Path) -> Path:
    if not (run_folder(path) / SUMS).is_file():
        raise ValueError(f"{path} has not come to its end: rlhf-bilevel resume {path} goes on with it")
    return path


def parser() -> Parser:
    top = Parser(prog="rlhf-bilevel", description="Preference-based RL with a proven bilevel penalty.")
    top.commands = COMMANDS
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], Work], does: str) -> argparse.ArgumentParser:
        name = function.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=does, description=does, allow_abbrev=False)
        sub.set_defaults(function=function, commands=commands.choices)
        return sub

    sub = command(train, "train an agent from preference labels")
    method = one_of("method", METHODS)
    sub.add_argument("method", metavar="METHOD", type=method, help=", ".join(METHODS))
    sub.add_argument("--env", required=True, help="a Gymnasium id, dm_control/walker-walk-v0, Meta-World/door-open-v3")
    sub.add_argument("--seed", type=int, help="(0)")
    sub.add_argument("--out", type=Path, help="the run's folder, made anew (runs/METHOD-ENV-SEED)")
    configuring(sub)
    while_training(sub)

    sub = command(sweep, "train many: methods x environments x seeds; again, it goes on with what is missing")
    sub.add_argument("method", nargs="+", metavar="METHOD", type=method, help=", ".join(METHODS))
    sub.add_argument("--env", required=True, action="append", help="may be given more than once")
    sub.add_argument("--seed", type=int, help="the first one (0)")
    sub.add_argument("--seeds", type=positive, default=5, help="how many (5)")
    sub.add_argument("--out", type=Path, default=Path("runs/sweep"), help="holds a folder a run (runs/sweep)")
    sub.add_argument("--jobs", type=positive, help="processes side by side on this machine (2)")
    sub.add_argument("--engine", default="local", type=one_of("engine", ("local", "ray")), help="local or ray")
    sub.add_argument("--cohort", action="store_true", help="all seeds of a method in one process, in one update")
    configuring(sub)
    checkpointing(sub)

    sub = command(tune, "search for settings with Optuna; again, it goes on")
    sub.add_argument("method", metavar="METHOD", type=method, help=", ".join(METHODS))
    sub.add_argument("--env", required=True)
    sub.add_argument("--tune", action="append", default=[], metavar="KEY=LOW..HIGH[,log]", help="or KEY=VALUE|VALUE")
    sub.add_argument("--space", type=Path, metavar="FILE.yaml", help="the same in a file, KEY: LOW..HIGH")
    sub.add_argument("--trials", type=positive, default=20, help="how many, those before included (20)")
    sub.add_argument("--seed", type=int, default=1000, help="the first one; not one that is reported later (1000)")
    sub.add_argument("--seeds", type=positive, default=1, help="runs a trial, one after another (1)")
    sub.add_argument("--pruner", default="median", type=one_of("pruner", PRUNERS), help=", ".join(PRUNERS))
    sub.add_argument("--storage", type=Path, metavar="FILE.db", help="SQLite, on this machine's disk (OUT/tune.db)")
    sub.add_argument("--out", type=Path, help="holds a folder a run (runs/tune-METHOD-ENV)")
    sub.add_argument("--jobs", type=positive, default=2, help="trials side by side, a process each (2)")
    configuring(sub)
    checkpointing(sub)

    sub = command(resume, "go on with a run that was cut off, as if it had not been")
    sub.add_argument("dir", type=Path, metavar="DIR")
    trusting(sub)
    while_training(sub)

    labelling(command(label, "serve the page on which people label a run's pairs"))

    sub = command(evaluate, "true return and success of a run's agent on fresh episodes")
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("--episodes", type=positive, default=10)
    sub.add_argument("--json", action="store_true")
    trusting(sub)

    sub = command(export, "write a run's agent as a plain Stable-Baselines3 file, or its labels as a dataset")
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("--sb3", type=Path, metavar="FILE.zip")
    sub.add_argument("--preferences", type=Path, metavar="FILE.parquet", help="also of a run that was cut off")
    trusting(sub)

    sub = command(fit_reward, "fit a reward to a preference dataset alone, and say how good it is")
    sub.add_argument("data", type=Path, metavar="DATA", help="a Parquet file, or a run's folder")
    sub.add_argument("--env", required=True, help="whose true reward it is compared with")
    sub.add_argument("--out", type=Path, help="a folder, made anew, for reward.safetensors and report.json")
    sub.add_argument("--seed", type=int, default=0, help="(0)")
    sub.add_argument("--threads", type=positive, default=1, help="CPU threads that torch may use")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, see config.py")
    sub.add_argument("--json", action="store_true")

    sub = command(import_minari, "make a preference dataset of a local Minari dataset")
    sub.add_argument("dataset", metavar="DATASET", help="its id, as minari list local shows it")
    sub.add_argument("--pairs", type=positive, required=True, help="how many queries")
    sub.add_argument("--segment-length", type=positive, default=50, help="steps (50)")
    teachers = ("oracle", "none")
    sub.add_argument(
        "--teacher", default="oracle", type=one_of("teacher", teachers), help="oracle, or none: open labels"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    sub.add_argument("--seed", type=int, default=0, help="(0)")

    sub = command(plot, "figures of runs: IQM over seeds, profiles, improvement, with 95 % bootstrap intervals")
    sub.add_argument("paths", type=Path, nargs="+", metavar="DIR|FILE.csv", help="runs' folders, tables of evaluations")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help=".svg, .png or .pdf")
    sub.add_argument("--kind", default="curves", type=one_of("kind", KINDS), help=f"{', '.join(KINDS)} (curves)")
    sub.add_argument("--baseline", metavar="METHOD", help="of --kind improvement (pebble)")

    sub = command(compare, "a table of runs: IQM a method and environment, and probability of improvement")
    sub.add_argument("paths", type=Path, nargs="+", metavar="DIR|FILE.csv", help="runs' folders, tables of evaluations")
    sub.add_argument("--baseline", metavar="METHOD", help="what others are compared with (pebble, where it was run)")
    sub.add_argument("--json", action="store_true")

    command(doctor, "what works on this machine, and what to install")
    return top


def configuring(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--steps", type=positive, help="environment steps, all learners together")
    sub.add_argument("--labels", type=int, help="answers that may be asked of the teacher (100)")
    sub.add_argument(
        "--teacher",
        help="oracle, or some of boltzmann, mistake, skip, equal, myopic, with values where not B-Pref's: "
        "mistake=0.1,skip=0.1,beta=10; or replay=FILE, another run's labels.sqlite (oracle)",
    )
    sub.add_argument("--preset", default="cpu", type=one_of("preset", PRESET_NAMES), help=", ".join(PRESET_NAMES))
    sub.add_argument(
        "--device", default="cpu", type=one_of("device", ("cpu", "cuda", "auto")), help="cpu, cuda or auto"
    )
    sub.add_argument("--threads", type=positive, default=1, help="CPU threads that torch may use")
    sub.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="settings from a file, such as a run's config.yaml"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, see config.py; METHOD.NAME"
    )


def checkpointing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--checkpoint-every", default="1m", metavar="1m|STEPS", help="minutes or steps; 0 for never")


def while_training(sub: argparse.ArgumentParser) -> None:
    checkpointing(sub)
    sub.add_argument("--reference", type=Path, help="CSV of earlier runs to compare the result with")
    sub.add_argument("--verbose", action="store_true", help="print the metrics in place of the progress bar")


def labelling(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", type=Path, metavar="DIR", help="of a run with --teacher human")
    sub.add_argument(
        "--question", default="Which one is better?", help='what people are asked ("Which one is better?")'
    )
    sub.add_argument(
        "--labeller", action="append", default=[], metavar="NAME", help="gets a link; more than once (human)"
    )
    sub.add_argument(
        "--expert", action="append", default=[], metavar="NAME", help="whose answers check those of others"
    )
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    sub.add_argument("--port", type=positive, help="(8007, or the next that is free)")
    sub.add_argument("--url", help="how people reach it, where a proxy stands before it")
    sub.add_argument(
        "--repeats", type=float, default=0.05, help="share of pairs that are shown again, as a check (0.05)"
    )
    sub.add_argument("--gold", type=float, default=0.05, help="share of pairs that an expert has answered (0.05)")
    sub.add_argument(
        "--import", dest="import_file", type=Path, metavar="FILE.parquet", help="add answers given elsewhere, and end"
    )


def trusting(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--trust", action="store_true", help="import the module that the run names for its environment")


if __name__ == "__main__":
    main()
