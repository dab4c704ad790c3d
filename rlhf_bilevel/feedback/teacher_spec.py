"""A teacher as text: ``mistake=0.1,skip`` sets ``teacher_mistake`` and ``teacher_skip`` of ``Config``.

All other ``teacher_*`` settings keep their defaults. A word without a value takes that of B-Pref's published scripts
[Lee et al. 2021]; ``person``, ``bound`` and ``watch`` are ours (feedback/person.py). A URL is a teacher that is asked
by HTTP. ``module:NAME`` is a teacher of the user's own, and installed packages may have more (``TEACHERS``). This
module imports no torch, so that a wrong word is refused before anything slow is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rlhf_bilevel.config import Config
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import TEACHERS
from rlhf_bilevel.utils.suggest import did_you_mean
from rlhf_bilevel.utils.urls import check_teacher_url

ORACLE, COMPAT, REPLAY, RERUN, HUMAN = "oracle", "bpref_compat", "replay", "rerun", "human"
NAMES: dict[str, tuple[str, Any]] = {  # word to setting and B-Pref's value
    "boltzmann": ("teacher_beta", 1.0),
    "beta": ("teacher_beta", 1.0),
    "mistake": ("teacher_mistake", 0.1),
    "skip": ("teacher_skip", 0.1),
    "equal": ("teacher_equal", 0.1),
    "myopic": ("teacher_discount", 0.9),
    "person": ("teacher_person", 0.5),
    "bound": ("teacher_bound", 2.0),
    "watch": ("teacher_watch", 3.0),
    COMPAT: ("teacher_bpref_compat", True),
    REPLAY: ("teacher_replay", ""),
    RERUN: ("teacher_rerun", ""),
    HUMAN: ("teacher_human", True),
}
URLS = ("https://HOST/PATH", "vlm:https://HOST/v1?model=NAME")
URL = re.compile(r"\s*(vlm:|\w+://)")
ASKING = ("teacher_question", "teacher_frames", "teacher_timeout", "teacher_max_requests")
"""Settings that say how a teacher with a URL is asked. Naming the URL does not change them."""
ALONE = (ORACLE, REPLAY, RERUN, HUMAN)  # go with no other word
BY_SETTINGS = "settings"
OURS = (BY_SETTINGS, "OracleTeacher")
"""Values of ``teacher`` in a run's config.yaml. Any other value there names an object of the user's own."""


def teacher_settings(spec: str) -> dict[str, Any]:
    """All settings ``teacher_*`` of the teacher that ``spec`` describes; without ``ASKING`` if it is a URL.

    UserError, in one line, for a wrong word or URL. Whether values are in range, ``config.reading.validate`` checks.
    """
    chosen: dict[str, Any] = {}
    defaults = {key: field.default for key, field in Config.model_fields.items() if key.startswith("teacher_")}
    if URL.match(spec):
        check_teacher_url(spec)
        return {key: value for key, value in defaults.items() if key not in ASKING} | {"teacher_url": spec}
    if spec in TEACHERS or (":" in spec and "=" not in spec):
        return defaults | {"teacher_object": spec}
    for word in spec.split(","):
        name, equals, value = word.partition("=")
        if name not in (ORACLE, *NAMES):
            hint = did_you_mean(name, [ORACLE, *NAMES, *URLS, *TEACHERS, "module:NAME"])
            raise UserError(f"unknown teacher {name!r}; {hint}")
        if equals and name in (ORACLE, COMPAT, HUMAN):
            raise UserError(f"teacher {word!r}: {name} takes no value")
        if (name in ALONE and word != spec) or (name != ORACLE and NAMES[name][0] in chosen):
            raise UserError(f"teacher {spec!r}: {name} does not go together with the rest")
        if name != ORACLE:
            key, published = NAMES[name]
            chosen[key] = _value(name, value) if equals or name in (REPLAY, RERUN) else published
    if chosen.get("teacher_person") == 0:
        raise UserError(f"teacher {spec!r}: the drift of a person must be above 0")
    return defaults | chosen


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
