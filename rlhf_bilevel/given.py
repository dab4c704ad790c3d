"""The settings that a command's options give, checked; methods' files, which import torch, are read only if need be."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rlhf_bilevel.config import preset, settle
from rlhf_bilevel.files import read_yaml
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
