"""The contents of a run's config.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_bilevel.config.fields import MOST_THREADS
from rlhf_bilevel.config.presets import BPREF
from rlhf_bilevel.errors import CorruptFileError, UserError


class ConfigRecord(BaseModel):
    """The contents of a run's config.yaml. ``version`` counts changes of these names and their meaning."""

    model_config = ConfigDict(strict=True)

    version: Literal[1, 2] = 2
    method: str
    method_name: str | None = None  # the own name of a method that is called module:NAME
    env: str
    teacher: str
    algorithm: str
    algorithm_settings: dict[str, Any] | Literal["own"]
    device: Annotated[str, Field(pattern=r"^(auto|(cpu|cuda|mps|xpu)(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]  # of torch, in each process
    cores: Annotated[int, Field(ge=1, le=MOST_THREADS)] = 1  # what --threads gave to the run
    checkpoint_every: str = "1m"  # as ``RunSpec``
    keep_every: Annotated[int, Field(ge=0, le=10**9)] = 0  # as ``RunSpec``
    settings: dict[str, Any]
    versions: dict[str, str]
    commit: str | None = None


def upgrade(record: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a run's config.yaml, with the settings that did not exist yet as the run was made.

    A run records every setting of its version. One that is missing in an old file gets B-Pref's value (``BPREF``).
    """
    if "versions" not in record or not isinstance(record.get("settings"), Mapping):
        return dict(record)
    return {**record, "settings": {**BPREF, **record["settings"]}}


def check_record(file: object, record: Mapping[str, Any], must_be_complete: bool = True) -> None:
    """UserError if a value in ``record``, read from ``file``, is of another kind than a run writes into config.yaml.

    CorruptFileError if ``must_be_complete`` and a key is missing.
    """
    try:
        ConfigRecord(**record)
    except ValidationError as error:
        missing = [str(problem["loc"][0]) for problem in error.errors() if problem["type"] == "missing"]
        if missing and must_be_complete:
            raise CorruptFileError(f"{file} does not tell {', '.join(sorted(missing))}") from None
        for problem in error.errors():
            key = str(problem["loc"][0])
            if key == "version":
                its_version = f"{record[key]!r:.60}"
                raise UserError(
                    f"{file} has version {its_version} of the format, and this reads versions 1 and 2: update it"
                ) from None
            if key not in missing:
                raise UserError(f"{file}: {key}={record[key]!r:.60}: {problem['msg']}") from None
