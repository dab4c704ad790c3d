"""Which settings of an SB3 algorithm a run's config.yaml may hold. The file may be a stranger's.

In Python, ``algorithm_settings`` may be anything that the algorithm takes. From a file, only the settings listed here
are taken: plain numbers and switches within bounds. No class, no path, nothing else that allocates memory or writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from rlhf_bilevel.config.fields import (
    Count,
    Fraction,
    Often,
    Positive,
    Rate,
    Share,
    Size,
    Times,
    Weight,
    check_ent_coef,
)
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.numbers import parse_number
from rlhf_bilevel.utils.suggest import did_you_mean

Units = Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=16)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Log = Annotated[float, Field(ge=-20, le=20)]
SDE = Annotated[int, Field(ge=-1, le=10**9)]


def _entropy(value: Any) -> Any:
    if value == "auto" or (not isinstance(value, str) and abs(parse_number(value)) <= 1e9):
        return value
    raise ValueError("must be a number or auto")


def _number_or_switch(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= 1e9):
        return value
    raise ValueError("must be a number or a switch")


def _for_each(value: Any, *names: str) -> Any:
    return dict.fromkeys(names, value) if isinstance(value, list) else value


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Adam(_Settings):
    fused: bool | None = None
    eps: Positive = 1e-8
    weight_decay: Weight = 0.0
    amsgrad: bool = False
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.999]


class _Policy(_Settings):
    use_sde: bool = False  # SB3 writes it there
    optimizer_kwargs: _Adam | None = None
    share_features_extractor: bool = False
    normalize_images: bool = True


class _OffPolicyArch(_Settings):
    pi: Units
    qf: Units


class _OffPolicyPolicy(_Policy):
    net_arch: Annotated[_OffPolicyArch | None, BeforeValidator(lambda value: _for_each(value, "pi", "qf"))] = None
    n_critics: Annotated[int, Field(ge=1, le=100)] = 2


class _SACPolicy(_OffPolicyPolicy):
    log_std_init: Log = -3.0
    use_expln: bool = False
    clip_mean: Weight = 2.0


class _PPOArch(_Settings):
    pi: Units = []
    vf: Units = []


class _PPOPolicy(_Policy):
    net_arch: Annotated[_PPOArch | None, BeforeValidator(lambda value: _for_each(value, "pi", "vf"))] = None
    share_features_extractor: bool = True
    ortho_init: bool = True
    log_std_init: Log = 0.0
    full_std: bool = True
    use_expln: bool = False


class _Algorithm(_Settings):
    learning_rate: Rate = 3e-4
    batch_size: Annotated[Size, Field(ge=2)] = 256
    gamma: Share = 0.99
    seed: Count = 0
    stats_window_size: Often = 100
    verbose: Annotated[int, Field(ge=0, le=2)] = 0


class _OffPolicy(_Algorithm):
    """Of any off-policy algorithm."""

    learning_starts: Count = 100
    buffer_size: Annotated[int, Field(ge=1, le=10**7)] = 10**6  # of the saved model
    tau: Fraction = 0.005
    train_freq: Size = 1
    gradient_steps: Annotated[Times, Field(ge=-1)] = 1
    policy_kwargs: _OffPolicyPolicy | None = None


class _SAC(_OffPolicy):
    ent_coef: Annotated[Any, AfterValidator(check_ent_coef)] = "auto"
    target_entropy: Annotated[Any, AfterValidator(_entropy)] = "auto"
    target_update_interval: Size = 1
    use_sde: bool = False
    use_sde_at_warmup: bool = False
    sde_sample_freq: SDE = -1
    policy_kwargs: _SACPolicy | None = None  # type: ignore[assignment]


class _TD3(_OffPolicy):
    policy_delay: Size = 2
    target_policy_noise: Weight = 0.2
    target_noise_clip: Weight = 0.5


class _PPO(_Algorithm):
    n_steps: Annotated[int, Field(ge=2, le=10**6)] = 2048
    n_epochs: Often = 10
    gae_lambda: Share = 0.95
    clip_range: Positive = 0.2
    clip_range_vf: Positive | None = None
    normalize_advantage: bool = True
    ent_coef: Weight = 0.0
    vf_coef: Weight = 0.5
    max_grad_norm: Positive = 0.5
    target_kl: Positive | None = None
    use_sde: bool = False
    sde_sample_freq: SDE = -1
    policy_kwargs: _PPOPolicy | None = None


class _Own(BaseModel):
    """Of a learner that is not SB3's, what it calls them: numbers and switches."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_number_or_switch)]]


def check(file: object, algorithm: type[Any], settings: Mapping[str, Any]) -> None:
    """UserError, in one line, if ``file`` holds settings of ``algorithm`` that no file may hold."""
    kinds: dict[type[Any], type[BaseModel]] = {
        SAC: _SAC, DDPG: _OffPolicy, TD3: _TD3, PPO: _PPO, BaseAlgorithm: _OffPolicy, object: _Own
    }  # fmt: skip
    kind = next(model for base, model in kinds.items() if issubclass(algorithm, base))
    try:
        kind.model_validate(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        names = [str(part) for part in fault["loc"]]
        why = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            why = f"no file may set it; {did_you_mean(names[-1], _names(kind, names[:-1]))}"
        told = f"algorithm_settings: {'.'.join(names)}={fault['input']!r:.60}: {why}"
        raise UserError(f"{file}: {told}. If it is your own, give algorithm_settings= in Python") from None


def _names(model: Any, below: Sequence[str]) -> list[str]:
    """The names of the settings of ``model``, or of its part that the names in ``below`` lead to."""
    for name in below:
        kinds = [model.model_fields[name].annotation, *getattr(model.model_fields[name].annotation, "__args__", ())]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return [*model.model_fields]
