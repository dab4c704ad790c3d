"""One file with a learnt reward and all that it takes to rebuild it: safetensors, with a JSON text in its metadata.

The tensors are those of ``RewardEnsemble.state_dict``; how many members and layers there are is told by their shapes.
Nothing in the file is code, and nothing is made that is larger than the file.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.fields import Size, Weight
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.registries import REWARD_FORMS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.utils.files import load_tensors

KEY = "rlhf_bilevel.reward"  # the only one in the metadata: the order of several is not fixed

Finite = Annotated[float, Field(allow_inf_nan=False)]


class BoxActions(BaseModel):
    """A bounded Box with one axis. The reward sees its actions scaled to [-1, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: Annotated[list[Finite], Field(min_length=1)]
    high: list[Finite]
    dtype: Literal["float16", "float32", "float64"]

    @model_validator(mode="after")
    def _sound(self) -> BoxActions:
        if len(self.low) != len(self.high) or any(a >= b for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError("each action must have a lower and an upper bound")
        return self


class DiscreteActions(BaseModel):
    """Whole numbers from 0 to n - 1. The reward sees one-hot vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    n: Size


class RewardInfo(BaseModel):
    """What a reward is of. ``version`` is that of these names and their meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1, 2] = 2  # 1 had no ``center``
    env: str  # id of the environment that it was learnt on
    env_kwargs: dict[str, JsonValue]  # its arguments
    protocol: Literal["bpref", "mt1"]  # of Meta-World
    action_repeat: Size  # simulator steps in a step
    termination: Literal["as_is", "absorb", "nonnegative"]  # absorb: observations end with an entry more
    observations: Size  # numbers in an observation
    actions: BoxActions | DiscreteActions
    form: str  # by its name in ``REWARD_FORMS``
    level: Finite  # of r = level + bound * tanh(f)
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    pessimism: Weight  # learners see the members' mean less so many of their standard deviations
    labels: Annotated[int, Field(ge=0)]  # that it was fitted to

    @classmethod
    def of(cls, reward: RewardEnsemble, env_id: str, config: Config, obs: Space[Any], act: Space[Any]) -> RewardInfo:
        """Of a reward that was learnt with these settings, in an environment with these spaces."""
        assert obs.shape is not None
        actions: BoxActions | DiscreteActions
        if isinstance(act, Discrete):
            actions = DiscreteActions(n=int(act.n))
        else:
            assert isinstance(act, Box)
            ends = {"low": act.low.tolist(), "high": act.high.tolist(), "dtype": str(act.dtype)}
            actions = BoxActions(**ends)
        return cls(
            env=env_id,
            env_kwargs=config.env_kwargs,
            protocol=config.protocol,
            action_repeat=config.action_repeat,
            termination=config.termination,
            observations=math.prod(obs.shape),
            actions=actions,
            form=config.reward_form,
            level=float(reward.level),
            bound=float(reward.bound),
            pessimism=float(reward.pessimism),
            labels=reward.labels,
        )

    @property
    def act_size(self) -> int:
        """Numbers in an action, as the reward sees it."""
        return self.actions.n if isinstance(self.actions, DiscreteActions) else len(self.actions.low)

    @cached_property
    def action_space(self) -> Box | Discrete:
        """The space of the actions that it was learnt on."""
        if isinstance(self.actions, DiscreteActions):
            return Discrete(self.actions.n)
        kind: Any = np.dtype(self.actions.dtype)
        return Box(np.array(self.actions.low, kind), np.array(self.actions.high, kind), dtype=kind.type)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of ``Config`` that a run must have whose learners see this reward."""
        return {"action_repeat": self.action_repeat, "protocol": self.protocol, "termination": self.termination}


def to_bytes(reward: RewardEnsemble, info: RewardInfo) -> bytes:
    """The file's content: the reward's tensors, and ``info`` in the metadata."""
    from safetensors.torch import save

    return save(reward.state_dict(), {KEY: info.model_dump_json()})


def from_bytes(data: bytes, source: object) -> tuple[RewardEnsemble, RewardInfo]:
    """The reward in a file's content. CorruptFileError where it is none, UserError where it does not tell what it is.

    ``source`` is the file's name, for messages.
    """
    found = load_tensors(data, str(source))  # checks the header
    info = read_info(data, source)
    if info is None:
        raise UserError(
            f"{source} holds no word of what its reward is of, as older versions wrote it: "
            "rlhf_bilevel.Agent.load(RUN).save(FOLDER) writes it anew"
        )
    if info.form not in REWARD_FORMS.ours:
        raise UserError(f"{source} has a reward form of somebody's own, {info.form:.60}, which no file can bring along")
    sizes = _sizes(found, info, source)
    obs_size, members, hidden = info.observations, len(found["weights.0"]), sizes[1:-1]
    form = REWARD_FORMS[info.form]
    reward = form(obs_size, info.act_size, members, hidden, torch.Generator(), info.bound, info.level)
    reward.load_state_dict(found)
    reward.pessimism, reward.labels = info.pessimism, info.labels
    return reward, info


def read_info(data: bytes, source: object) -> RewardInfo | None:
    """What a sound safetensors file's content tells; None where it tells nothing, as files of older versions."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    told = header.get("__metadata__", {}).get(KEY)
    if told is None:
        return None
    try:
        return RewardInfo.model_validate_json(told)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        if name == "version":
            theirs = f"{fault['input']!r:.60}"
            raise UserError(
                f"{source} has version {theirs} of the format, and this reads versions 1 and 2: update it"
            ) from None
        raise CorruptFileError(f"{source} is damaged: {name}={fault['input']!r:.60}: {fault['msg']}") from None


def _sizes(found: dict[str, Tensor], info: RewardInfo, source: object) -> list[int]:
    """Numbers in each layer. CorruptFileError where the tensors are not those of such a reward."""
    inputs = info.observations + info.act_size
    form = REWARD_FORMS[info.form]
    features = form.num_features(inputs)
    layers = [found.get(f"weights.{number}", torch.zeros(0)) for number in range(len(found))]
    layers = [layer for layer in layers if layer.dim() == 3 and layer.numel()]
    if layers and (not form.linear or len(layers) == 1):
        members, sizes = len(layers[0]), [form.num_terms(features), *(layer.shape[2] for layer in layers)]
        expected: dict[str, tuple[int, ...]] = {"unit": (features,), "low": (inputs,), "high": (inputs,)}
        expected |= {"center": (features,)} if info.version > 1 else {}
        for number, (i, j) in enumerate(pairwise(sizes)):
            expected |= {f"weights.{number}": (members, i, j), f"biases.{number}": (members, 1, j)}
        same = {name: tuple(value.shape) for name, value in found.items()} == expected
        if same and sizes[-1] == 1 and all(value.dtype == torch.float32 for value in found.values()):
            weights = [value for name, value in found.items() if name not in ("low", "high")]
            ordered = bool((found["low"] <= found["high"]).all())  # False of NaN
            if ordered and all(value.isfinite().all() for value in weights) and bool((found["unit"] > 0).all()):
                return sizes
            raise CorruptFileError(f"{source} is damaged: it holds numbers that no reward has")
    raise CorruptFileError(f"{source} is damaged: its tensors are not those of a {info.form} reward of {inputs} inputs")
