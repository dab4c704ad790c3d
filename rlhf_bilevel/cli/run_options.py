"""The options that describe a run, and the ``RunSpec`` that they ask for: the only place that makes one of them."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_bilevel.cli.arguments import add_choice, add_set_option, add_threads_option, integer, one_of, positive
from rlhf_bilevel.config.names import current_names, flatten_options
from rlhf_bilevel.config.presets import PRESETS, preset_settings
from rlhf_bilevel.config.record import check_record, upgrade
from rlhf_bilevel.config.schema import FORM_DEFAULTS, NAMED
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teacher_spec import BY_SETTINGS, OURS, teacher_settings
from rlhf_bilevel.registries import LEARNERS, METHODS
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.utils.json_yaml import from_yaml, read_yaml

METHOD = one_of("method", METHODS, or_place=True)
PRESET_NAMES = tuple(name for name in PRESETS if "/" not in name)


def add_method(sub: argparse.ArgumentParser, **others: Any) -> None:
    """Adds the argument that names the method; ``others`` are argparse's."""
    names = ", ".join(METHODS)
    sub.add_argument(
        "method",
        metavar="METHOD",
        type=METHOD,
        help=f"{names}, or module:NAME of your own; begin with pebble",
        **others,
    )


def add_run_options(sub: argparse.ArgumentParser, people: str = "") -> None:
    """Adds the options that ``spec`` reads; ``people`` is what the help of --teacher says of people."""
    sub.add_argument(
        "--steps", type=positive, help="length of the training in environment steps, those of all learners together"
    )
    sub.add_argument(
        "--labels", type=integer, help="number of answers that the teacher may be asked for (default: 100)"
    )
    sub.add_argument(
        "--algorithm",
        metavar="LEARNER",
        type=one_of("learner", LEARNERS, or_place=True),
        help=f"of the policy: {', '.join(LEARNERS)}, or module:NAME of your own (default: the method's)",
    )
    sub.add_argument(
        "--teacher",
        help="who answers: oracle; one that errs, boltzmann, mistake, skip, equal, myopic or several, such as "
        f"mistake=0.1,skip=0.1; {people}replay=FILE or rerun=FILE, the answers of another run; an https:// or "
        "vlm:https:// address; or module:NAME of your own; see docs/teachers.md (default: oracle)",
    )
    sub.add_argument(
        "--reward",
        metavar="FILE",
        help="train on a learnt reward, and ask nobody: a run's folder, or its reward.safetensors",
    )
    add_choice(sub, "--preset", PRESET_NAMES, "cpu", f"a group of settings: {', '.join(PRESET_NAMES)}")
    add_choice(sub, "--device", ("cpu", "cuda", "auto"), "cpu", "of the learners: cpu, cuda or auto")
    add_threads_option(sub, default=1)
    sub.add_argument(
        "--env-kwargs", nargs="+", metavar="KEY=VALUE", help="arguments of gymnasium.make for the environment"
    )
    sub.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="settings from a file, such as a run's config.yaml"
    )
    add_set_option(sub)


def spec(args: argparse.Namespace, method: str, env: str, more: Mapping[str, Any] = {}, **others: Any) -> RunSpec:
    """The run that options of ``train`` ask for; settings in the order --config, options, --set.

    ``more`` are settings of options that only one command has, ``others`` fields of the spec in place of the options'.
    Raises UserError, in one line, on the first mistake.
    """
    given: dict[str, Any] = {"total_timesteps": args.steps, "labels": args.labels, "seed": args.seed}
    given |= {"reward": args.reward, "env_kwargs": None if args.env_kwargs is None else env_kwargs(args.env_kwargs)}
    given |= (teacher_settings(args.teacher) if args.teacher is not None else {}) | dict(more)
    methods = [args.method] if isinstance(args.method, str) else args.method
    given = {key: value for key, value in given.items() if value is not None}
    given |= current_names(assigned(args.set), methods)
    filed = from_file(args.config, methods, args.teacher is not None, given) if args.config else {}
    if given.get("reward_form", filed.get("reward_form")) != filed.get("reward_form"):
        by_form = {key for values in FORM_DEFAULTS.values() for key in values}
        filed = {key: value for key, value in filed.items() if key not in by_form}  # they were the other form's
    reward = given.get("reward") or filed.get("reward")
    preset = preset_settings(args.preset, registration.resolve(env), bool(reward))
    budget = {key: preset[key] for key in ("total_timesteps", "labels") if key in preset}
    settings = {"seed": 0} | budget | {key: value for key, value in filed.items() if value is not None} | given
    options = {name: getattr(args, name) for name in ("preset", "device", "threads", "checkpoint_every")}
    options |= {"algorithm": args.algorithm or ""}
    asked = RunSpec.of(method, env, settings, **options | others)
    if "total_timesteps" not in settings:
        raise UserError(f"--steps is missing, and neither --config nor --preset {args.preset} gives it")
    return asked


def from_file(file: Path, methods: Collection[str], taught: bool, given: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The settings in a YAML file, for runs of ``methods``, or in a run's config.yaml; ``taught`` says that another
    teacher is given, and ``given`` are settings that go before those of the file.

    UserError where a run's config.yaml, which may be a stranger's, names a module that would be imported.
    """
    told = read_yaml(file)
    settings = told.get("settings", told)
    if not taught and isinstance(settings, dict) and settings.get("teacher_url"):
        raise UserError(f"{file} names a teacher elsewhere, {settings['teacher_url']!r:.60}: give it with --teacher")
    if "settings" not in told:
        return current_names(told, methods)
    check_record(file, told, must_be_complete=False)
    told = upgrade(told)
    if not taught and told.get("teacher", BY_SETTINGS) not in OURS:
        raise UserError(f"{file} had a teacher of its own, {told['teacher']}: choose another with --teacher")
    for key, value in told["settings"].items():
        if key in NAMED and ":" in str(value) and key not in given:
            raise UserError(f"{file} names a module: if you trust it, say so with --set {key}={value!s:.60}")
    if "method" not in told:
        return current_names(told["settings"], methods)
    method = told["method"]
    if ":" not in method:
        return flatten_options(told["settings"], method)
    own = METHODS[method].name if method in methods else ""  # what the options of another method are is not known here
    return {key: value for key, value in flatten_options(told["settings"], own).items() if not key.startswith(".")}


def env_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """What --env-kwargs gives, its values as YAML."""
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals and value):
            raise UserError(f"--env-kwargs takes key=value, not {pair!r:.60}")
        if key in given:
            raise UserError(f"--env-kwargs: {key} is given twice")
        given[key] = yaml_value(f"--env-kwargs {key}", value)
    return given


def yaml_value(name: str, text: str) -> Any:
    """``text`` read as YAML. UserError, with ``name``, if it is not YAML."""
    try:
        return from_yaml(text)
    except ValueError as error:
        raise UserError(f"{name}={text!r:.60}: {error}") from None


def assigned(pairs: Sequence[str], unused: Sequence[str] = ()) -> dict[str, Any]:
    """What --set gives; ``unused`` are settings that mean nothing to the command.

    ``config.reading.validate_as`` knows what a setting takes: only a method's own are read here.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UserError(f"--set takes key=value, not {pair!r}")
        if key in unused:
            raise UserError(f"--set {pair:.60}: {key} means nothing to this command")
        if key in ("total_timesteps", "steps", "labels", "seed"):
            raise UserError(f"{key} has an option of its own: --{'steps' if key == 'total_timesteps' else key}")
        given[key] = value
        if key in ("options", "env_kwargs") or "." in key:
            given[key] = yaml_value(f"--set {key}", value)
    return given
