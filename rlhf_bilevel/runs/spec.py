"""What a run is asked to be, and the one place where this is completed to all settings of a run.

The command line, a YAML file, ``Agent`` in Python, a worker, a Ray task, batched seeds, a search and the benchmarks all
create a ``RunSpec``. ``RunSpec.resolve`` completes it. The later ones take precedence:

    defaults of ``Config``  <  preset  <  the method's own settings  <  the given settings

Torch is imported only when a spec is resolved, so that a wrong name or value is refused before anything slow is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.budget import check_budget, fit_segment_length
from rlhf_bilevel.config.names import MOVED, RENAMED, current_names, nest_options
from rlhf_bilevel.config.presets import preset_settings
from rlhf_bilevel.config.reading import (
    did_you_mean_setting,
    parse_checkpoint_every,
    parse_keep_every,
    validate,
    validate_as,
)
from rlhf_bilevel.config.schema import NAMED
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.selection import ERROR, MARGIN, lead_of
from rlhf_bilevel.registries import LEARNERS, METHODS
from rlhf_bilevel.utils.files import one_line
from rlhf_bilevel.utils.suggest import did_you_mean

if TYPE_CHECKING:
    from rlhf_bilevel.training.method import Method

ANY_STEPS = 10**9  # in place of a number of steps that is not known yet


@dataclass(frozen=True)
class RunSpec:
    """What was asked for. ``of`` and ``from_json`` check it; ``replace`` does not.

    ``settings`` holds only the given settings, by the names of ``Config``; an option of one method has the name
    ``method.name``. It must not be changed in place.
    """

    method: str  # its name
    env: str  # canonical id
    settings: Mapping[str, Any]
    preset: str = "cpu"
    device: str = "cpu"
    threads: int | None = None  # CPU threads of the run; None: one process, with as many threads as torch has there
    out: Path | None = None  # the run's folder; None: nothing is written
    checkpoint_every: str = "1m"  # see ``config.reading.parse_checkpoint_every``
    keep_every: int = 0  # environment steps between two checkpoints that are kept; 0: none
    algorithm: str = ""  # of the learners, a name in LEARNERS; empty: the method's

    @classmethod
    def of(cls, method: str, env: str, settings: Mapping[str, Any], **other_fields: Any) -> RunSpec:
        """A spec in which every name and value is valid by itself; ``resolve`` checks them together.

        ``other_fields`` are the fields after ``settings``. The environment's id becomes canonical, ``auto`` becomes the
        device here, and numbers may be written as ``parse_value`` reads them. A setting of None counts as not given.
        UserError, in one line, for the first that is wrong.
        """
        spec = cls(
            method,
            registration.resolve(env),
            _parse_settings(current_names(settings, [method]), method),
            **other_fields,
        )
        preset_settings(spec.preset, spec.env)
        if spec.algorithm and not LEARNERS.knows(spec.algorithm):
            raise UserError(LEARNERS.unknown(spec.algorithm))
        parse_checkpoint_every(spec.checkpoint_every)
        return replace(spec, device=resolve_device(spec.device), keep_every=parse_keep_every(spec.keep_every))

    def __hash__(self) -> int:
        return hash((self.method, self.env, self.seed, self.out))

    def __str__(self) -> str:
        """For people: what differs from the defaults."""
        fields = Config.model_fields
        differing = {
            key: value for key, value in self.settings.items() if key not in fields or value != fields[key].default
        }
        defaults = {"preset": self.preset, "device": self.device, "threads": self.threads or 1}
        differing |= {key: value for key, value in defaults.items() if value not in ("cpu", 1)}
        return " ".join([self.method, self.env, *(f"{key}={_value_text(value)}" for key, value in differing.items())])

    @property
    def steps(self) -> int:
        """Environment steps, those of all learners together. KeyError if they were not given."""
        return self.settings["total_timesteps"]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.settings.get("seed", 0)

    @property
    def folder(self) -> RunFolder:
        """The folder of a run that has one."""
        assert self.out is not None
        return RunFolder(self.out)

    def having(self, **settings: Any) -> RunSpec:
        """A copy with these settings changed, checked as in ``of``."""
        changed = _parse_settings(current_names(settings, [self.method]), self.method)
        return replace(self, settings={**self.settings, **changed})

    def resolve(self, method: Method | None = None) -> Config:
        """All settings of the run. ``method`` is the object if it is the user's own, which has no name.

        UserError, in one line, if settings do not fit together.
        """
        method = method or METHODS[self.method]
        check_options(self.settings, method)
        preset = preset_settings(self.preset, self.env, bool(self.settings.get("reward")))
        settings = {"total_timesteps": ANY_STEPS} | preset
        settings |= dict(method.settings) | dict(self.settings)
        if self.settings.get("reward"):
            from rlhf_bilevel.runs.given_reward import completed  # imports torch

            validate(nest_options(settings, method.name))
            settings |= completed(self.settings, method)
        config = validate(nest_options(settings, method.name))
        names = [(LEARNERS, self.algorithm), *((table, getattr(config, key)) for key, table in NAMED.items())]
        for table, name in names:
            if name and name not in table.ours:
                _ = table[name]  # what is not ours is checked before anything is written
        check_selection(check_budget(config))
        return config.model_copy(update={"options": method.options_of(config).model_dump(mode="json")})

    def fit(self, config: Config, limit: int | None, method: Method | None = None) -> tuple[Config, str]:
        """``config`` with segments that fit into episodes of ``limit`` simulator steps, and a sentence if that changed.

        ``limit`` is None if it is not known. A default segment length is shortened; UserError if the user gave it.
        """
        method = method or METHODS[self.method]
        if method.reward_loss is None or not config.labels:
            return config, ""
        return fit_segment_length(config, limit, "segment_length" in self.settings)

    def check_env(self, method: Method | None = None) -> int | None:
        """As ``registration.check`` of this run."""
        method = method or METHODS[self.method]
        return registration.check(self.env, self.resolve(method).model_dump(), discrete=method.algorithm == "PPO")

    def to_json(self) -> str:
        """The spec as one line; ``from_json`` makes an equal spec from it."""
        return json.dumps(vars(self) | {"out": self.out and str(self.out)})

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """The spec in ``text``. UserError, in one line, if it is not one, and as in ``of``."""
        try:
            fields = json.loads(text)
            return cls.of(**fields | {"out": fields["out"] and Path(fields["out"])})
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{text!r:.60} is no specification of a run: {one_line(error)}") from None


def _parse_settings(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Each setting of a run with this ``method`` as a plain value, checked by itself."""
    plain_values: dict[str, Any] = {}
    for key, value in settings.items():
        if value is None:
            continue
        plain_values[key] = deepcopy(value)
        if key == "reward" and isinstance(value, str | Path) and str(value):
            plain_values[key] = str(Path(value).absolute())  # whatever folder the program goes to
            continue
        if isinstance(key, str) and "." in key:  # checked by its method
            continue
        if key not in Config.model_fields:
            options = METHODS[method].option_names() if METHODS.knows(method) else ()
            raise UserError(f"unknown setting {key!r:.60}; {did_you_mean_setting(key, Config.model_fields, options)}")
        budget = {} if key == "total_timesteps" else {"total_timesteps": ANY_STEPS}
        value_read = validate(budget | {key: value}).model_dump(mode="json").get(key)
        if not isinstance(value_read, str | dict):  # text stays as it is: ``query`` has values that stand for others
            plain_values[key] = value_read
    return plain_values


def _value_text(value: Any) -> str:
    """A value as --set takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def check_selection(config: Config) -> Config:
    """Returns ``config``. UserError if no policy could be chosen at the end of such a run."""
    if config.select_labels and config.select_labels < (least := lead_of(MARGIN, ERROR)):
        raise UserError(f"select_labels={config.select_labels}: no test can be decided with fewer than {least}")
    if config.select_labels and len(config.policy_steps) < 2:
        raise UserError(f"select_labels={config.select_labels}: a run with these phases keeps only one policy")
    return config


def check_options(settings: Mapping[str, Any], method: Method) -> None:
    """UserError if an option is wrong: one of this ``method``, or one written as ``method.name``."""
    dotted = {key: value for key, value in settings.items() if "." in key}
    owners = dict.fromkeys([method.name, *(key.partition(".")[0] for key in dotted)])
    for owner in owners:
        if owner != method.name and owner not in METHODS:
            key = next(key for key in dotted if key.startswith(f"{owner}."))
            hint = did_you_mean(owner, list(dict.fromkeys([*METHODS, method.name])))
            if nearest := get_close_matches(key.replace(".", "_"), [*Config.model_fields, *RENAMED], 1, 0.8):
                hint = f"did you mean {RENAMED.get(nearest[0], nearest[0])!r}?"
            raise UserError(f"unknown setting {key!r}: no method is called {owner!r}; {hint}")
        owner_settings = nest_options(settings if owner == method.name else dotted, owner)
        options = (method if owner == method.name else METHODS[owner]).options
        validate_as(options, owner_settings.get("options", {}), f"{owner}.")


def resolve_device(device: object) -> str:
    """The device that ``auto`` is here; any other name stays. UserError if there is no such device."""
    name = str(device)
    if name == "cpu":
        return name
    import torch  # slow, but only torch knows

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UserError(f"device={name!r}: cpu, cuda (or cuda:0, ...) and auto are known")
    if gpus <= int(number or 0):
        raise UserError(f"device={name!r}: PyTorch finds {gpus or 'no'} NVIDIA GPU here; choose cpu or auto")
    return name


def check_owners(method: str, keys: Iterable[str]) -> None:
    """UserError if one of the settings belongs to another method: it would have no effect."""
    method = METHODS[method].name if ":" in method else method
    for key in keys:
        owner, dot, _ = key.partition(".")
        methods = [owner] if dot else MOVED.get(key, [method])  # only this one if all have the setting
        if method not in methods:
            which = " and ".join(methods) + (" alone has" if len(methods) == 1 else " alone have")
            raise UserError(f"{key}: {which} it, and this is {method}")
