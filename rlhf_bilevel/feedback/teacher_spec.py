"""A teacher in words: ``mistake=0.1,skip`` stands for settings ``teacher_*`` of ``config.Config``, the others at rest.

``module:NAME`` is one of the user's own, and an installed package may have others (``TEACHERS``). A word without a
value takes B-Pref's [Lee 2021, its published scripts]. Imports no torch: a wrong word is refused
before anything slow is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_bilevel.config import Config, nearest
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import TEACHERS

ORACLE, COMPAT, REPLAY, RERUN, HUMAN = "oracle", "bpref_compat", "replay", "rerun", "human"
NAMES: dict[str, tuple[str, Any]] = {
    "boltzmann": ("teacher_beta", 1.0),
    "beta": ("teacher_beta", 1.0),
    "mistake": ("teacher_mistake", 0.1),
    "skip": ("teacher_skip", 0.1),
    "equal": ("teacher_equal", 0.1),
    "myopic": ("teacher_discount", 0.9),
    COMPAT: ("teacher_bpref_compat", True),
    REPLAY: ("teacher_replay", ""),
    RERUN: ("teacher_rerun", ""),
    HUMAN: ("teacher_human", True),
}
ALONE = (ORACLE, REPLAY, RERUN, HUMAN)
BY_SETTINGS = "settings"
OURS = (BY_SETTINGS, "OracleTeacher")
"""Under ``teacher`` in a run's config.yaml: whoever else stands there was an object of its user's own."""


def traits(told: str) -> dict[str, Any]:
    """All settings of that teacher; ValueError in one line on a wrong word. Ranges are for ``config.settle``."""
    found: dict[str, Any] = {}
    rest = {key: field.default for key, field in Config.model_fields.items() if key.startswith("teacher_")}
    if told in TEACHERS or (":" in told and "=" not in told):
        return rest | {"teacher_object": told}
    for word in told.split(","):
        name, equals, value = word.partition("=")
        if name not in (ORACLE, *NAMES):
            raise UserError(f"unknown teacher {name!r}; {nearest(name, [ORACLE, *NAMES, *TEACHERS, 'module:NAME'])}")
        if equals and name in (ORACLE, COMPAT, HUMAN):
            raise UserError(f"teacher {word!r}: {name} takes no value")
        if (name in ALONE and word != told) or (name != ORACLE and NAMES[name][0] in found):
            raise UserError(f"teacher {told!r}: {name} does not go together with the rest")
        if name != ORACLE:
            key, published = NAMES[name]
            found[key] = _value(name, value) if equals or name in (REPLAY, RERUN) else published
    return rest | found


def _value(name: str, value: str) -> Any:
    if name in (REPLAY, RERUN):
        path = Path(value).absolute()
        if value and path.is_dir():
            raise UserError(
                f"teacher {name}={value}: is a folder; a run's labels are in {Path(value) / 'labels.sqlite'}"
            )
        if not path.is_file():
            raise UserError(f"teacher {name}={value}: no such file")
        return str(path)
    try:
        return float(value)
    except ValueError:
        raise UserError(f"teacher {name}={value}: {value!r} is no number") from None
