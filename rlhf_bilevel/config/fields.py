"""The kinds of settings: numbers with their ranges, and names that a registry knows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from rlhf_bilevel.utils.numbers import parse_number
from rlhf_bilevel.utils.registry import Registry
from rlhf_bilevel.utils.suggest import did_you_mean

Count = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**9)]
Turns = Annotated[int, Field(ge=2, le=10**9)]
Times = Annotated[int, Field(ge=0, le=100_000)]  # repeated without a pause for checks
Often = Annotated[int, Field(ge=1, le=100_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Few = Annotated[int, Field(ge=0, le=10_000)]
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]  # a step of Adam is about this long
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Layers = Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1, max_length=16)]


MOST_THREADS = 1024  # of a run: more than any machine has use for


def one_of(registry: Registry[Any], optional: bool = False) -> AfterValidator:
    """A name that the registry knows, or ``module:NAME``, which is not imported here; with ``optional`` or nothing."""

    def check(name: str) -> str:
        if not registry.knows(name) and not (optional and not name):
            raise ValueError(f"no {registry.kind} has that name; {did_you_mean(name, registry)}")
        return name

    return AfterValidator(check)


def check_order(settings: BaseModel, low: str, high: str) -> None:
    """ValueError if the setting ``low`` is above the setting ``high``."""
    if getattr(settings, low) > getattr(settings, high):
        raise ValueError(f"{low}={getattr(settings, low)} is above {high}={getattr(settings, high)}")


def check_ent_coef(value: Any) -> Any:
    """``ent_coef`` as SB3's SAC takes it: a positive number, ``auto`` or ``auto_0.1``. ValueError for anything else."""
    kind, _, start = value.partition("_") if str(value).startswith("auto") else ("auto", "", value)
    if value == "auto" or (kind == "auto" and "_" not in str(start) and 0 < parse_number(start) <= 1e9):
        return value
    raise ValueError("must be a positive number, auto or auto_NUMBER")
