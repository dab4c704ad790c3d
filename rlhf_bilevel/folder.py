"""What a run's folder tells of its start and its end: what was run, and what was learnt. Nothing is unpickled."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save as to_bytes
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn

from rlhf_bilevel.config import Config, Record, gather, recorded, settle, spread
from rlhf_bilevel.doctor import versions
from rlhf_bilevel.files import (
    CONFIG,
    EVALUATIONS,
    PROGRESS,
    SUMS,
    YAML_LIMIT,
    Damaged,
    examine,
    read_yaml,
    sealed,
    tensors,
    trusted,
    write,
    write_sums,
)

POLICY, REWARD, MODEL = "policy.safetensors", "reward.safetensors", "model.zip"
OWN = "own"  # in place of algorithm settings that no file can hold
HEADER = 2**20  # bytes of a safetensors file that are no weights, at most


def write_config(folder: Path, told: Mapping[str, Any]) -> None:
    """All that is needed to repeat the run."""
    write(folder / CONFIG, config_bytes(told))


def config_bytes(told: Mapping[str, Any]) -> bytes:
    """What ``write_config`` writes."""
    told = {"version": Record.model_fields["version"].default, **_plainly(told)}
    told |= {"versions": versions(), "commit": commit()}
    return yaml.dump(told, Dumper=_WithoutAliases, sort_keys=False).encode()


def same_config(folder: Path, told: Mapping[str, Any]) -> bool:
    """Whether ``write_config`` wrote the same there, versions apart. Settings that no file holds are never the same."""
    there = read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    asked = yaml.safe_load(yaml.dump(_plainly(told), Dumper=_WithoutAliases))
    return asked["algorithm_settings"] != OWN and all(key in there and there[key] == asked[key] for key in asked)


def read_config(folder: Path, trust: bool) -> dict[str, Any]:
    """What ``write_config`` wrote. Refused where its environment's module were imported without ``trust``, Damaged
    where a setting cannot be.
    """
    examine(folder)
    told = read_yaml(folder / CONFIG)
    recorded(folder / CONFIG, told)
    told["settings"] = gather(spread(told["settings"], told["method"]), told["method"])
    try:
        settle(told["settings"])
    except ValueError as error:
        raise Damaged(f"{folder / CONFIG}: {error}") from None
    module = told["env"].rpartition(":")[0]
    if module and module not in sys.modules:
        trusted(trust, f"{folder} would import the module {module!r}")
    return told


def write_models(folder: Path, model: OffPolicyAlgorithm, reward: nn.Module) -> None:
    """``model.zip`` is for other programs: a plain SB3 file, which is a pickle, and which nothing here reads."""
    file = io.BytesIO()
    model.save(file, exclude=["_last_obs"])
    write(folder / MODEL, file.getvalue())
    write(folder / POLICY, to_bytes(model.policy.state_dict()))
    write(folder / REWARD, to_bytes(reward.state_dict()))
    logs = [name for name in (PROGRESS, EVALUATIONS) if (folder / name).is_file()]
    write_sums(folder, (CONFIG, MODEL, POLICY, REWARD, *logs))  # the last to be written: with it, a run has ended


def ended(folder: Path) -> bool:
    return (folder / SUMS).exists()


def check_sizes(folder: Path, config: Config, algorithm_settings: Mapping[str, Any]) -> None:
    """Damaged where the settings tell of larger networks than the files hold, which no memory may hold either."""
    given = algorithm_settings.get("policy_kwargs")
    own = given.get("net_arch", config.hidden) if isinstance(given, dict) else config.hidden
    network = sum(config.reward_hidden) if config.reward_form == "network" else 1
    for name, weights in ((POLICY, sum(map(_weights, _layers(own)))), (REWARD, config.members * network)):
        file = folder / name
        size = file.stat().st_size if file.is_file() else math.inf  # that it is missing is told later
        if 4 * weights > size:
            raise Damaged(f"{folder / name} does not fit {CONFIG}, which tells of at least {weights:,} weights")


def _layers(told: Any) -> Iterator[Sequence[int]]:
    """Of SB3's ``net_arch``: a list, or a dict of them."""
    for layers in told.values() if isinstance(told, dict) else [told]:
        yield [units for units in layers if isinstance(units, int)]


def _weights(hidden: Sequence[int]) -> int:
    """At least, whatever goes in and out."""
    return sum(hidden) + sum(i * j for i, j in pairwise(hidden))


def read_models(folder: Path, model: OffPolicyAlgorithm, reward: nn.Module) -> None:
    """Into a model and a reward of the same settings. Damaged where a file is not as it was written."""
    sealed(folder, CONFIG, YAML_LIMIT)
    for module, name in ((model.policy, POLICY), (reward, REWARD)):
        size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
        try:
            module.load_state_dict(tensors(sealed(folder, name, size + HEADER), folder / name))
        except RuntimeError as error:
            raise Damaged(f"{folder / name} does not fit {CONFIG}: {' '.join(str(error).split())}") from None


class _WithoutAliases(yaml.SafeDumper):
    """What ``files.read_yaml`` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plainly(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told} if _plain(told["algorithm_settings"]) else {**told, "algorithm_settings": OWN}


def _plain(value: Any) -> bool:
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError:
        return False
    return True


def commit() -> str | None:
    """The commit of the checkout that this file is tracked in, with a + where files differ from it; else None.

    An installed package may lie in the folder of some other repository; and git may be missing.
    """
    file = Path(__file__)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # as in a git hook
    for words in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty=+", "--abbrev=12"]):
        try:
            call = subprocess.run(["git", *words], cwd=file.parent, env=environment, capture_output=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if call.returncode:
            return None
    return call.stdout.decode().strip() or None
