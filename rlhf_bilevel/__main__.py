"""The command line: every option, and what becomes of a mistake. The modules of ``cli`` have the work."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loading() -> Iterator[None]:
    """Ctrl-C ends the process at once: nothing has begun, and a library that it cuts may tell of another error."""
    in_main = threading.current_thread() is threading.main_thread()
    usual = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


with loading():
    from rlhf_bilevel.cli.arguments import (
        EPISODES,
        JOBS,
        SEEDS,
        THREADS,
        TRIALS,
        WATCHED,
        Parser,
        fail,
        integer,
        natural,
        one_of,
        positive,
        up_to,
    )
    from rlhf_bilevel.cli.commands import (
        Work,
        compare,
        doctor,
        evaluate,
        explain,
        export,
        fit_reward,
        fork,
        import_minari,
        plot,
        resume,
        train,
    )
    from rlhf_bilevel.cli.label import label
    from rlhf_bilevel.cli.studies import sweep, tune
    from rlhf_bilevel.cli.watch import moment, watch
    from rlhf_bilevel.config import PRESETS
    from rlhf_bilevel.data.run_folder import RunFolder
    from rlhf_bilevel.evaluation.plot import KINDS
    from rlhf_bilevel.registries import LEARNERS, METHODS
    from rlhf_bilevel.runs.report import prepare_streams, user_message
    from rlhf_bilevel.utils.versions import installed_versions

COMMANDS = (
    "train", "resume", "fork", "label", "watch", "sweep", "tune", "evaluate", "explain", "export", "fit-reward",
    "import-minari", "plot", "compare", "doctor",
)  # fmt: skip
PATHS = "runs' folders, folders of runs, tables (.csv); NAME=PATH has NAME in place of the method's"
PRUNERS = ("median", "hyperband", "none")
PRESET_NAMES = tuple(name for name in PRESETS if "/" not in name)


def main(argv: Sequence[str] | None = None) -> None:
    """A ``UserError`` or an error of the system is one line on stderr and exit code 2; our own keep their traceback."""
    prepare_streams()
    args = argparse.Namespace(function=None)
    try:
        try:
            args = asked(sys.argv[1:] if argv is None else argv)
            args.function(args)()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        going_on = "; the same command goes on" if args.function in (sweep, tune) else ""
        if args.function in (train, resume) and args.dir and RunFolder(args.dir).begun:
            going_on = f"; rlhf-bilevel resume {args.dir} goes on"
        print(f"rlhf-bilevel: interrupted{going_on}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nor does Python's own end try to write
        raise SystemExit(141) from None
    except Exception as error:
        line = user_message(error)
        if line is None:
            raise
        fail(line)


def asked(words: Sequence[str]) -> argparse.Namespace:
    if not words:
        parser().print_help(sys.stderr)
        raise SystemExit(2)
    return parser().parse_args(words)


def parser() -> Parser:
    top = Parser(prog="rlhf-bilevel", description="Preference-based RL with a proven bilevel penalty.")
    top.commands = COMMANDS
    top.add_argument("--version", action="version", version=f"rlhf-bilevel {installed_versions()['rlhf-bilevel']}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], Work], does: str) -> argparse.ArgumentParser:
        name = function.__name__.replace("_", "-")
        sub = commands.add_parser(name, help=does.replace("%", "%%"), description=does)
        sub.set_defaults(function=function, options=sub._option_string_actions, dir=None)
        return sub

    sub = command(train, "train an agent from preference labels")
    method = one_of("method", METHODS, or_place=True)
    sub.add_argument("method", metavar="METHOD", type=method, help=f"{', '.join(METHODS)} or module:NAME")
    sub.add_argument("--env", required=True, help="a Gymnasium id, module:Id, dm_control/..., Meta-World/...")
    sub.add_argument("--seed", type=integer, help="of all random numbers (default: 0)")
    sub.add_argument(
        "--out", type=Path, help="the run's folder, made anew (default: runs/METHOD-ENV-SEED, then -2, -3 ...)"
    )
    sub.add_argument(
        "--max-pending-share",
        type=float,
        metavar="0..1",
        help="--teacher human: train on while at most this share of queries is unanswered (default: 0.5)",
    )
    sub.add_argument(
        "--labels-db",
        metavar="postgresql://...",
        help="--teacher human: where labels are kept (default: in the folder)",
    )
    configuring(sub, people="human; or ")
    while_training(sub)

    sub = command(sweep, "train many: methods x environments x seeds; again, it goes on with what is missing")
    sub.add_argument("method", nargs="+", metavar="METHOD", type=method, help=f"{', '.join(METHODS)} or module:NAME")
    sub.add_argument("--env", required=True, action="append", help="as for train; repeatable")
    sub.add_argument("--seed", type=integer, help="the first one (default: 0)")
    sub.add_argument("--seeds", type=up_to(SEEDS), default=5, help="how many")
    sub.add_argument("--out", type=Path, default=Path("runs/sweep"), help="holds a folder a run")
    sub.add_argument("--jobs", type=up_to(JOBS), help="processes side by side on this machine (default: 2)")
    sub.add_argument("--engine", default="local", type=one_of("engine", ("local", "ray")), help="local or ray")
    sub.add_argument("--cohort", action="store_true", help="all seeds of a method in one process, in one update")
    configuring(sub)
    checkpointing(sub)

    sub = command(tune, "search for settings with Optuna; again, it goes on")
    sub.add_argument("method", metavar="METHOD", type=method, help=f"{', '.join(METHODS)} or module:NAME")
    sub.add_argument("--env", required=True, help="as for train")
    sub.add_argument("--tune", action="append", default=[], metavar="KEY=LOW..HIGH[,log]", help="or KEY=VALUE|VALUE")
    sub.add_argument("--space", type=Path, metavar="FILE.yaml", help="the same in a file, KEY: LOW..HIGH")
    sub.add_argument("--trials", type=up_to(TRIALS), default=20, help="how many, those before included")
    sub.add_argument("--seed", type=integer, default=1000, help="the first one; not one that is reported later")
    sub.add_argument("--seeds", type=up_to(SEEDS), default=1, help="runs a trial, one after another")
    sub.add_argument("--pruner", default="median", type=one_of("pruner", PRUNERS), help=", ".join(PRUNERS))
    sub.add_argument("--storage", type=Path, metavar="FILE.db", help="on a local disk (default: OUT/tune.db)")
    sub.add_argument("--out", type=Path, help="holds a folder a run (default: runs/tune-METHOD-ENV)")
    sub.add_argument("--jobs", type=up_to(JOBS), default=2, help="trials side by side, a process each")
    configuring(sub)
    checkpointing(sub)

    sub = command(resume, "go on with a run that was cut off, as if it had not been")
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    trusting(sub)
    while_training(sub)

    sub = command(fork, "a new run that goes on from a checkpoint of another: more steps, more labels, other settings")
    sub.add_argument("dir", type=Path, metavar="DIR", help="the other run's folder")
    sub.add_argument("--out", type=Path, required=True, help="the new run's folder, made anew")
    sub.add_argument("--at", type=positive, metavar="STEP", help="the newest checkpoint until there (default: newest)")
    sub.add_argument("--steps", type=positive, help="of the new run, those before included (default: as the other)")
    sub.add_argument("--labels", type=integer, help="of the new run, those before included (default: as the other)")
    sub.add_argument("--method", metavar="METHOD", type=method, help="(default: as the other)")
    sub.add_argument("--seed", type=integer, help="another one draws all random numbers anew (default: as the other)")
    sub.add_argument("--teacher", help="as of train (default: as the other)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting that differs; repeatable"
    )
    trusting(sub)
    while_training(sub)

    sub = command(label, "serve the page on which people label a run's pairs")
    labelling(sub)
    sub.add_argument("--labels-db", metavar="postgresql://...", help="where the run keeps its labels, if not in DIR")
    trusting(sub)

    sub = command(watch, "see a run's agent act, beside the true and the learned reward: in a browser, or as a file")
    sub.add_argument("dir", type=Path, metavar="RUN", help="the run's folder; it may still train")
    sub.add_argument("other", type=Path, nargs="?", metavar="RUN2", help="another one beside it, on the same episodes")
    sub.add_argument(
        "--at",
        type=moment,
        action="append",
        default=[],
        metavar="STEP",
        help="the newest checkpoint until there, or all; repeatable (default: the end, or the newest checkpoint)",
    )
    sub.add_argument("--episodes", type=up_to(WATCHED), default=3, help="how many")
    sub.add_argument("--html", type=Path, metavar="FILE.html", help="write the page as one file, and serve nothing")
    sub.add_argument("--video", type=Path, metavar="FILE.mp4", help="write a video, where pictures can be drawn")
    trusting(sub)

    sub = command(evaluate, "true return and success of a run's agent on fresh episodes")
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    sub.add_argument("--episodes", type=up_to(EPISODES), default=10, help="how many")
    sub.add_argument("--json", action="store_true", help="print JSON")
    trusting(sub)

    sub = command(explain, "the weights of a run's linear or quadratic reward, those that matter most first")
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    sub.add_argument("--top", type=positive, default=20, help="features that are shown")
    sub.add_argument("--json", action="store_true", help="all of them, one JSON list on standard output")
    trusting(sub)

    sub = command(export, "write a run's agent as a plain Stable-Baselines3 file, or its labels as a dataset")
    sub.add_argument("dir", type=Path, metavar="DIR", help="the run's folder")
    sub.add_argument("--sb3", type=Path, metavar="FILE.zip", help="the agent")
    sub.add_argument("--preferences", type=Path, metavar="FILE.parquet", help="the labels, also of an unfinished run")
    trusting(sub)

    sub = command(fit_reward, "fit a reward to a preference dataset alone, and say how good it is")
    sub.add_argument("data", type=Path, metavar="DATA", help="a Parquet file, or a run's folder")
    sub.add_argument("--env", required=True, help="whose true reward it is compared with")
    sub.add_argument("--out", type=Path, help="a folder, made anew, for reward.safetensors and report.json")
    sub.add_argument("--seed", type=integer, default=0, help="of all random numbers")
    sub.add_argument("--threads", type=up_to(THREADS), default=1, help="CPU threads that torch may use")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of config.py; repeatable",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    trusting(sub)

    sub = command(import_minari, "make a preference dataset of a local Minari dataset")
    sub.add_argument("dataset", metavar="DATASET", help="its id, as minari list local shows it")
    sub.add_argument("--pairs", type=positive, required=True, help="how many queries")
    sub.add_argument("--segment-length", type=positive, default=50, help="steps")
    teachers = ("oracle", "none")
    sub.add_argument(
        "--teacher", default="oracle", type=one_of("teacher", teachers), help="oracle, or none: open labels"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="made anew")
    sub.add_argument("--seed", type=integer, default=0, help="of all random numbers")

    sub = command(plot, "figures of runs: IQM over seeds, profiles, improvement, with 95 % bootstrap intervals")
    sub.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=PATHS)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.svg", help=".svg, .png or .pdf")
    sub.add_argument("--kind", default="curves", type=one_of("kind", KINDS), help=", ".join(KINDS))
    sub.add_argument("--baseline", metavar="METHOD", help="of --kind improvement (default: pebble)")

    sub = command(compare, "a table of runs: IQM a method and environment, and probability of improvement")
    sub.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=PATHS)
    sub.add_argument("--baseline", metavar="METHOD", help="what others are compared with (default: pebble)")
    sub.add_argument("--json", action="store_true", help="print JSON")

    command(doctor, "what works on this machine, and what to install")
    return top


def configuring(sub: argparse.ArgumentParser, people: str = "") -> None:
    sub.add_argument("--steps", type=positive, help="environment steps, all learners together")
    sub.add_argument("--labels", type=integer, help="answers that may be asked of the teacher (default: 100)")
    sub.add_argument(
        "--algorithm",
        metavar="LEARNER",
        type=one_of("learner", LEARNERS, or_place=True),
        help=f"{', '.join(LEARNERS)} or module:NAME (default: the method's)",
    )
    sub.add_argument(
        "--teacher",
        help="oracle, or some of boltzmann, mistake, skip, equal, myopic, with values where not B-Pref's: "
        f"mistake=0.1,skip=0.1,beta=10; or {people}replay=FILE, another run's labels.sqlite or a .parquet dataset, or "
        "rerun=FILE, a labels.sqlite session by session; https://HOST/PATH, which is asked by HTTP; "
        "vlm:https://HOST/v1?model=NAME, a vision-language model; or module:NAME, a teacher of your own "
        "(default: oracle)",
    )
    sub.add_argument(
        "--reward",
        metavar="FILE",
        help="a reward.safetensors, or a run's folder, whose reward is learnt on as it is: nobody is asked",
    )
    sub.add_argument("--preset", default="cpu", type=one_of("preset", PRESET_NAMES), help=", ".join(PRESET_NAMES))
    sub.add_argument(
        "--device", default="cpu", type=one_of("device", ("cpu", "cuda", "auto")), help="cpu, cuda or auto"
    )
    sub.add_argument("--threads", type=up_to(THREADS), default=1, help="CPU threads that torch may use")
    sub.add_argument(
        "--env-kwargs", nargs="+", metavar="KEY=VALUE", help="arguments of gymnasium.make for the environment"
    )
    sub.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="settings from a file, such as a run's config.yaml"
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of config.py or METHOD.NAME; repeatable",
    )


def checkpointing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--checkpoint-every", default="1m", metavar="1m|STEPS", help="minutes or steps; 0 is never")


def while_training(sub: argparse.ArgumentParser) -> None:
    checkpointing(sub)
    sub.add_argument(
        "--keep-every",
        type=natural,
        default=0,
        metavar="STEPS",
        help="a checkpoint that stays, for fork (default: 0)",
    )
    sub.add_argument("--reference", type=Path, help="CSV of earlier runs to compare the result with")
    sub.add_argument("--verbose", action="store_true", help="print the metrics in place of the progress bar")


def labelling(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dir", type=Path, metavar="DIR", help="of a run with --teacher human")
    sub.add_argument("--question", default="Which one is better?", help="what people are asked")
    sub.add_argument(
        "--guidelines", type=Path, metavar="FILE.md", help="what to judge by: shown at the first visit, and in the help"
    )
    sub.add_argument(
        "--labeller", action="append", default=[], metavar="NAME", help="gets a link; repeatable (default: human)"
    )
    sub.add_argument(
        "--expert", action="append", default=[], metavar="NAME", help="whose answers check those of others"
    )
    sub.add_argument(
        "--owner", action="append", default=[], metavar="NAME", help="sees the overview (default: human, if alone)"
    )
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on; 127.0.0.1 is this machine alone")
    sub.add_argument("--port", type=positive, help="to listen on (default: 8007, or the next that is free)")
    sub.add_argument("--url", help="how people reach it, where a proxy stands before it")
    sub.add_argument("--repeats", type=float, default=0.05, help="share of pairs that are shown again, as a check")
    sub.add_argument("--gold", type=float, default=0.05, help="share of pairs that an expert has answered")
    sub.add_argument(
        "--import", dest="import_file", type=Path, metavar="FILE.parquet", help="add answers given elsewhere, and end"
    )


def trusting(sub: argparse.ArgumentParser) -> None:
    trusts = "import the modules that the run names, go to the labels database or the teacher that it names"
    sub.add_argument("--trust", action="store_true", help=trusts)


if __name__ == "__main__":
    main()
