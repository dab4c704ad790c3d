"""The command line: every option, and what becomes of a mistake. ``commands`` and ``many`` have the work."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_bilevel.commands import (
    Work,
    compare,
    doctor,
    evaluate,
    explain,
    export,
    fit_reward,
    import_minari,
    plot,
    resume,
    train,
)
from rlhf_bilevel.config import PRESETS
from rlhf_bilevel.files import Refused
from rlhf_bilevel.human.command import label
from rlhf_bilevel.many import sweep, tune
from rlhf_bilevel.options import Parser, fail, one_of, positive
from rlhf_bilevel.plot import KINDS

METHODS = tuple(sorted(path.stem for path in (Path(__file__).parent / "baselines").glob("[!_]*.py")))
"""A method's file bears its name (a test holds this), so that names are known without importing torch."""
COMMANDS = (
    "train", "resume", "label", "sweep", "tune", "evaluate", "explain", "export", "fit-reward", "import-minari", "plot",
    "compare", "doctor",
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


def parser() -> Parser:
    top = Parser(prog="rlhf-bilevel", description="Preference-based RL with a proven bilevel penalty.")
    top.commands = COMMANDS
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], Work], does: str) -> argparse.ArgumentParser:
        name = function.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=does, description=does, allow_abbrev=False)
        sub.set_defaults(function=function, options=sub._option_string_actions)
        return sub

    sub = command(train, "train an agent from preference labels")
    method = one_of("method", METHODS)
    sub.add_argument("method", metavar="METHOD", type=method, help=", ".join(METHODS))
    sub.add_argument("--env", required=True, help="a Gymnasium id, dm_control/walker-walk-v0, Meta-World/door-open-v3")
    sub.add_argument("--seed", type=int, help="(0)")
    sub.add_argument("--out", type=Path, help="the run's folder, made anew (runs/METHOD-ENV-SEED, then -2, -3 ...)")
    sub.add_argument(
        "--max-pending-share",
        type=float,
        metavar="0..1",
        help="--teacher human: train on while at most this share of all queries is unanswered; 0 waits for all (0.5)",
    )
    sub.add_argument(
        "--labels-db", metavar="postgresql://...", help="--teacher human: where labels are kept (a file in the folder)"
    )
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

    sub = command(label, "serve the page on which people label a run's pairs")
    labelling(sub)
    sub.add_argument("--labels-db", metavar="postgresql://...", help="where the run keeps its labels, if not in DIR")
    trusting(sub)

    sub = command(evaluate, "true return and success of a run's agent on fresh episodes")
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("--episodes", type=positive, default=10)
    sub.add_argument("--json", action="store_true")
    trusting(sub)

    sub = command(explain, "the weights of a run's linear or quadratic reward, those that matter most first")
    sub.add_argument("dir", type=Path, metavar="DIR")
    sub.add_argument("--top", type=positive, default=20, help="features that are shown (20)")
    sub.add_argument("--json", action="store_true", help="all of them, one JSON list on standard output")
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
    trusting(sub)

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
        "mistake=0.1,skip=0.1,beta=10; or human; or replay=FILE, another run's labels.sqlite or a .parquet dataset, or "
        "rerun=FILE, a labels.sqlite session by session (oracle)",
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
    trusts = "import the module that the run names for its environment, go to the labels database that it names"
    sub.add_argument("--trust", action="store_true", help=trusts)


if __name__ == "__main__":
    main()
