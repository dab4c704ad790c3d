"""The settings that a command's options give, checked; methods' files, which import torch, are read only if need be."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_bilevel.config import FORMER, preset, reaching, recorded, renamed, settle, spread
from rlhf_bilevel.files import from_yaml, read_yaml
from rlhf_bilevel.traits import BY_SETTINGS, OURS, traits


def configure(args: argparse.Namespace, more: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The settings that the user gave, in the order --config, options, --set; checked as they are, on the preset.

    ``more`` are those of options that only one command has.
    """
    if args.device == "cuda":  # a slow import, but PyTorch alone can tell
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch finds no NVIDIA GPU here; choose cpu or auto")
    given: dict[str, Any] = {"steps": args.steps, "labels": args.labels, "seed": args.seed}
    given |= traits(args.teacher) if args.teacher is not None else {}
    given |= {key: value for key, value in more.items() if value is not None}
    methods = [args.method] if isinstance(args.method, str) else args.method
    given |= renamed(assigned(args.set), methods)
    told = read_yaml(args.config) if args.config else {}
    if "settings" in told:  # a run's config.yaml has more
        recorded(args.config, told, whole=False)
        settings = told["settings"]
        filed = spread(settings, told["method"]) if "method" in told else renamed(settings, methods)
        if args.teacher is None and told.get("teacher", BY_SETTINGS) not in OURS:
            raise ValueError(
                f"{args.config} had a teacher of its own, {told['teacher']}: choose another with --teacher"
            )
    else:
        filed = renamed(told, methods)
    chosen = {"seed": 0} | {key: value for key, value in [*filed.items(), *given.items()] if value is not None}
    if "steps" not in chosen:
        raise ValueError("--steps is missing, and no --config gives it")
    plain = {key: value for key, value in chosen.items() if "." not in key}
    config = reaching(settle(preset(args.preset, args.env) | plain))
    read = config.model_dump(mode="json")
    chosen |= {key: read[key] for key in ("steps", "seed")}
    for key, value in chosen.items():
        if isinstance(value, str) and not isinstance(read.get(key, value), str):
            chosen[key] = read[key]  # a number as people write it
    if any("." in key or key == "options" for key in chosen):  # methods' files import torch: not for nothing
        from rlhf_bilevel.agent import check_options

        check_options(chosen, methods)
    return chosen


def assigned(pairs: Sequence[str], unused: Sequence[str] = ()) -> dict[str, Any]:
    """What --set gives; ``unused`` are settings that mean nothing to the command.

    ``config.complete`` knows what a setting takes: only a method's own are read here.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise ValueError(f"--set takes key=value, not {pair!r}")
        if key in unused:
            raise ValueError(f"--set {pair:.60}: {key} means nothing to this command")
        if key in ("steps", "labels", "seed"):
            raise ValueError(f"{key} has an option of its own: --{key}")
        given[key] = value
        if key == "options" or "." in key:
            try:
                given[key] = from_yaml(value)
            except ValueError as error:
                raise ValueError(f"--set {key}={value!r:.60}: {error}") from None
    return given


def its_own(method: str, keys: Iterable[str]) -> None:
    """ValueError where one of the settings is another method's own: it would change nothing."""
    for key in keys:
        owner, dot, _ = key.partition(".")
        owners = [owner] if dot else FORMER.get(key, [method])
        if method not in owners:
            which = f"{owner} alone has" if dot else f"{', '.join(owners)} {'have' if owners[1:] else 'alone has'}"
            raise ValueError(f"{key}: {which} it, and this is {method}")
