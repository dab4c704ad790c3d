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

Work = Callable[[], None]

METHODS = tuple(sorted(path.stem for path in (Path(__file__).parent / "baselines").glob("[!_]*.py")))
"""A method's file bears its name (a test holds this), so that names are known without importing torch."""
COMMANDS = ("train", "resume", "sweep", "evaluate", "export", "plot", "doctor")
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
    args.env = [envs.resolve(env) for env in args.env]
    settings = {}
    for env in args.env:
        settings[env] = configure(argparse.Namespace(**vars(args) | {"env": env}))
        envs.make(env, 0).close()
    seeds = range(args.seed or 0, (args.seed or 0) + args.seeds)
    groups = {
        (method, env): {seed: args.out / f"{method}-{env.split('/')[-1]}-{seed}" for seed in seeds}
        for env in args.env
        for method in args.method
    }

    def work() -> None:
        from rlhf_bilevel.sweep import Planned, begun, ended, side_by_side, table

        if args.cohort:
            import torch

            from rlhf_bilevel.agent import Agent
            from rlhf_bilevel.cohort import learn_together

            torch.set_num_threads(args.threads)
            for (method, env), outs in groups.items():
                own = settings[env]
                new = [
                    Agent(method, env, preset=args.preset, device=args.device, out=out, **own | {"seed": seed})
                    for seed, out in outs.items()
                    if not begun(out)
                ]
                if new:
                    learn_together(new, own["steps"], progress_bar=True)
        runs = [
            Planned(out, [method, "--env", env, "--seed", str(seed), *told(args)])
            for (method, env), outs in groups.items()
            for seed, out in outs.items()
        ]
        complete = side_by_side(runs, args.jobs)
        print(table(runs))
        if not complete:
            lost = sum(not ended(run.out) for run in runs)
            raise Refused(f"{lost} of {len(runs)} runs did not come to their ends: the same command goes on with them")

    return work


def told(args: argparse.Namespace) -> list[str]:
    """The settings of a sweep, as ``train`` takes them."""
    words = [
        f"--{name}={getattr(args, name)}"
        for name in ("steps", "labels", "config", "preset", "device", "threads")
        if getattr(args, name) is not None
    ]
    return words + [f"--set={pair}" for pair in args.set]


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
                print("{0}: {mean:.4g} (95 % interval {low:.4g} to {high:.4g})".format(name, **summary[name]))
        print(f"episodes: {summary['episodes']}")

    return work


def export(args: argparse.Namespace) -> Work:
    finished(args.dir)
    target = new_path(args.sb3)

    def work() -> None:
        from rlhf_bilevel.agent import Agent

        model = Agent.load(args.dir, trust=args.trust).model
        if not type(model).__module__.startswith("stable_baselines3"):
            raise Refused(f"{args.dir} acts as {type(model).__name__}, which Stable-Baselines3 has not")
        target.parent.mkdir(parents=True, exist_ok=True)
        model.save(target, exclude=["replay_buffer", "_last_obs"])
        print(f"stable_baselines3.{type(model).__name__}.load({str(target)!r}) acts as this run's agent")

    return work


def plot(args: argparse.Namespace) -> Work:
    for path in args.dirs:
        if not (run_folder(path) / "evaluations.csv").is_file():
            raise ValueError(f"{path} has no evaluations.csv yet")
    if args.out.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"--out {args.out}: must end in .svg, .png or .pdf")
    out = new_path(args.out)

    def work() -> None:
        from rlhf_bilevel.plot import draw, points

        print(draw([point for path in args.dirs for point in points(path)], out))

    return work


def doctor(args: argparse.Namespace) -> Work:
    from rlhf_bilevel.doctor import report

    return lambda: print(report())


def configure(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the user gave, in the order --config, options, --set; checked as they are, on the preset."""
    if args.device == "cuda" and not shutil.which("nvidia-smi"):
        raise ValueError("--device cuda: no NVIDIA GPU was found; choose cpu or auto")
    given: dict[str, Any] = {"steps": args.steps, "labels": args.labels, "seed": args.seed}
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, not {pair!r}")
        if key in ("steps", "labels", "seed"):
            raise ValueError(f"{key} has an option of its own: --{key}")
        given[key] = value.split(",") if key.endswith("hidden") else yaml.safe_load(value)
    told = read_yaml(args.config) if args.config else {}
    filed = told["settings"] if isinstance(told.get("settings"), dict) else told  # a run's config.yaml has more
    chosen = {"seed": 0} | filed | {key: value for key, value in given.items() if value is not None}
    if "steps" not in chosen:
        raise ValueError("--steps is missing, and no --config gives it")
    settle(preset(args.preset, args.env) | {key: value for key, value in chosen.items() if "." not in key})
    if any("." in key or key == "options" for key in chosen):  # methods' files import torch: not for nothing
        from rlhf_bilevel.agent import check_options

        check_options(chosen, [args.method] if isinstance(args.method, str) else args.method)
    return chosen


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
        sub = commands.add_parser(function.__name__, help=does, description=does, allow_abbrev=False)
        sub.set_defaults(function=function, commands=commands.choices)
        return sub

    sub = command(train, "train an agent from preference labels")
    method = one_of("method", METHODS)
    sub.add_argument("method", metavar="METHOD", type=method, help=", ".join(METHODS))
    sub.add_argument("--env", required=True, help="a Gymnasium id, dm_control/walker-walk-v0, Meta-World/door-open-v3")
    sub.add_argument("--seed", type=int, help="(0)")
    sub.add_argument("--out", type=Path, help="the run's folder, made anew (runs/METHOD-ENV-SEED)")
    sub.add_argument("--teacher", default="oracle", type=one_of("teacher", ("oracle",)), help="oracle: the true reward")
    configuring(sub)
    while_training(sub)

    sub = command(sweep, "train many: methods x environments x seeds; again, it goes on with what is missing")
    sub.add_argument("method", nargs="+", metavar="METHOD", type=method, help=", ".join(METHODS))
    sub.add_argument("--env", required=True, action="append", help="may be given more than once")
    sub.add_argument("--seed", type=int, help="the first one (0)")
    sub.add_argument("--seeds", type=positive, default=5, help="how many (5)")
    sub.add_argument("--out", type=Path, default=Path("runs/sweep"), help="holds a folder a run (runs/sweep)")
    sub.add_argument("--jobs", type=positive, default=2, help="processes side by side (2)")
    sub.add_argument("--cohort", action="store_true", help="all seeds of a method in one process, in one update")
    configuring(sub)

    sub = command(resume, "go on with a run that was cut off, as if it had not been")
    sub.add_argument("dir", type=Path, metavar="DIR")
    trusting(sub)
    while_training(sub)

    sub = command(evaluate, "true return and success of a run's agent on fresh episodes")
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("--episodes", type=positive, default=10)
    sub.add_argument("--json", action="store_true")
    trusting(sub)

    sub = command(export, "write a run's agent as a plain Stable-Baselines3 file")
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("--sb3", type=Path, required=True, metavar="FILE.zip")
    trusting(sub)

    sub = command(plot, "learning curves: interquartile mean and 95 % bootstrap interval over seeds")
    sub.add_argument("dirs", type=Path, nargs="+", metavar="DIR")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help=".svg, .png or .pdf")

    command(doctor, "what works on this machine, and what to install")
    return top


def configuring(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--steps", type=positive, help="environment steps, all learners together")
    sub.add_argument("--labels", type=int, help="answers that may be asked of the teacher (100)")
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


def while_training(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--checkpoint-every", default="1m", metavar="1m|STEPS", help="minutes or steps; 0 for never")
    sub.add_argument("--reference", type=Path, help="CSV of earlier runs to compare the result with")
    sub.add_argument("--verbose", action="store_true", help="print the metrics in place of the progress bar")


def trusting(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--trust", action="store_true", help="import the module that the run names for its environment")


if __name__ == "__main__":
    main()
