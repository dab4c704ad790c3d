"""What a run is asked to be, and the one place where that is completed to all settings of a run.

The command line, a YAML file, ``Agent`` in Python, a worker, a Ray task, a cohort, a search and the benchmarks all make
a ``RunSpec``. ``RunSpec.resolve`` completes it; each of these goes before the one on its left:

    defaults of ``Config``  <  preset  <  the method's own settings  <  settings that were given

Torch is imported only when a spec is resolved, so that a wrong name or value is refused before anything slow is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_bilevel.config import (
    FORMER,
    Config,
    checkpoint_interval,
    complete,
    fitting,
    gather,
    kept_interval,
    nearest,
    preset,
    reaching,
    renamed,
    settle,
)
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registry
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.utils.files import one_line

if TYPE_CHECKING:
    from rlhf_bilevel.training.method import Method

ANY_STEPS = 10**9  # of settings that are looked at before their number of steps is known


@dataclass(frozen=True)
class RunSpec:
    """What was asked for. ``of`` and ``from_json`` check it; ``replace`` does not.

    ``settings`` holds only what was given, by the names of ``Config``; ``method.name`` stands for an option that one
    method alone has. It must not be changed in place.
    """

    method: str  # its name
    env: str  # canonical id
    settings: Mapping[str, Any]
    preset: str = "cpu"
    device: str = "cpu"
    threads: int | None = None  # of the CPU that torch may use; None: as many as the process has
    out: Path | None = None  # the run's folder; None: nothing is written
    checkpoint_every: str = "1m"  # see ``config.checkpoint_interval``
    keep_every: int = 0  # environment steps between two checkpoints that stay; 0: none

    @classmethod
    def of(cls, method: str, env: str, settings: Mapping[str, Any], **others: Any) -> RunSpec:
        """A spec whose every name and value is sound by itself; ``resolve`` looks at them together.

        ``others`` are the fields after ``settings``. The environment's id becomes the canonical one, a device ``auto``
        what it is here, and a number what it is however it is written. A setting of None is one that was not given.
        UserError, in one line, on the first that is wrong.
        """
        spec = cls(method, registry.resolve(env), _sound(renamed(settings, [method])), **others)
        preset(spec.preset, spec.env)
        checkpoint_interval(spec.checkpoint_every)
        return replace(spec, device=device_here(spec.device), keep_every=kept_interval(spec.keep_every))

    def __hash__(self) -> int:
        return hash((self.method, self.env, self.seed, self.out))

    def __str__(self) -> str:
        """For people: what differs from the defaults."""
        fields = Config.model_fields
        told = {key: value for key, value in self.settings.items() if key not in fields or value != fields[key].default}
        others = {"preset": self.preset, "device": self.device, "threads": self.threads or 1}
        told |= {key: value for key, value in others.items() if value not in ("cpu", 1)}
        return " ".join([self.method, self.env, *(f"{key}={_words(value)}" for key, value in told.items())])

    @property
    def steps(self) -> int:
        """Environment steps, those of all learners together; KeyError where none were given."""
        return self.settings["steps"]

    @property
    def seed(self) -> int:
        return self.settings.get("seed", 0)

    @property
    def folder(self) -> RunFolder:
        """That of a run which has one."""
        assert self.out is not None
        return RunFolder(self.out)

    def having(self, **settings: Any) -> RunSpec:
        """The same with these settings in place of those of the same names, checked as in ``of``."""
        return replace(self, settings={**self.settings, **_sound(renamed(settings, [self.method]))})

    def resolve(self, method: Method | None = None) -> Config:
        """All settings of the run; ``method`` is the object where it is the user's own, which no table has.

        UserError, in one line, where settings do not go together.
        """
        method = method or method_named(self.method)
        check_options(self.settings, method)
        given = {"steps": ANY_STEPS} | preset(self.preset, self.env) | dict(method.settings) | dict(self.settings)
        if self.settings.get("reward"):
            from rlhf_bilevel.runs.given_reward import completed  # imports torch

            settle(gather(given, method.name))
            given |= completed(self.settings, method)
        config = settle(gather(given, method.name))
        return reaching(config).model_copy(update={"options": method.options_of(config).model_dump(mode="json")})

    def fit(self, config: Config, limit: int | None, method: Method | None = None) -> tuple[Config, str]:
        """What ``resolve`` has given, with segments that fit into episodes of at most ``limit`` simulator steps.

        None where nobody knows how long they are. A default length that does not fit is shortened, and what is to be
        said of it comes with the settings; one that was given is refused.
        """
        method = method or method_named(self.method)
        asks = method.upper is not None and config.labels > 0
        return fitting(config, limit, "segment_length" in self.settings) if asks else (config, "")

    def check_env(self, method: Method | None = None) -> int | None:
        """As ``registry.check`` of this run."""
        method = method or method_named(self.method)
        return registry.check(self.env, self.resolve(method).model_dump(), discrete=method.algorithm == "PPO")

    def to_json(self) -> str:
        """One line that ``from_json`` makes an equal spec of."""
        return json.dumps(vars(self) | {"out": self.out and str(self.out)})

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """UserError, in one line, where ``text`` is no spec, and as in ``of``."""
        try:
            told = json.loads(text)
            return cls.of(**told | {"out": told["out"] and Path(told["out"])})
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{text!r:.60} is no specification of a run: {one_line(error)}") from None


def _sound(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values, as ``settle`` reads each of them alone."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if value is None:
            continue
        found[key] = deepcopy(value)
        if key == "reward" and isinstance(value, str | Path) and str(value):
            found[key] = str(Path(value).absolute())  # whatever folder the program goes to
            continue
        if isinstance(key, str) and "." in key:  # its method's file knows it
            continue
        others = {} if key == "steps" else {"steps": ANY_STEPS}
        read = settle(others | {key: value}).model_dump(mode="json").get(key)
        if not isinstance(read, str | dict):  # text stays as it is written: ``query`` has values that stand for others
            found[key] = read
    return found


def _words(value: Any) -> str:
    """As --set takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def method_named(name: str) -> Method:
    """The method of that name; UserError, with the nearest, where there is none."""
    from rlhf_bilevel.methods.registry import METHODS

    return METHODS[name]  # imports torch


def check_options(settings: Mapping[str, Any], method: Method) -> None:
    """UserError where ``method.name``, of whatever method, or an option of this ``method`` is wrong."""
    from rlhf_bilevel.methods.registry import METHODS

    dotted = {key: value for key, value in settings.items() if "." in key}
    owners = dict.fromkeys([method.name, *(key.partition(".")[0] for key in dotted)])
    for owner in owners:
        if owner != method.name and owner not in METHODS:
            key = next(key for key in dotted if key.startswith(f"{owner}."))
            raise UserError(
                f"unknown setting {key!r}: no method is called {owner!r}; {nearest(owner, [*METHODS, method.name])}"
            )
        told = gather(settings if owner == method.name else dotted, owner)
        complete((method if owner == method.name else METHODS[owner]).options, told.get("options", {}), f"{owner}.")


def device_here(device: object) -> str:
    """What ``auto`` is here; else as it was given. UserError where there is no such device."""
    name = str(device)
    if name == "cpu":
        return name
    import torch  # slow, but nothing else can tell

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UserError(f"device={name!r}: cpu, cuda (or cuda:0, ...) and auto are known")
    if gpus <= int(number or 0):
        raise UserError(f"device={name!r}: PyTorch finds {gpus or 'no'} NVIDIA GPU here; choose cpu or auto")
    return name


def its_own(method: str, keys: Iterable[str]) -> None:
    """UserError where one of the settings is another method's own: it would change nothing."""
    for key in keys:
        if method not in (having := owners(key, method)):
            which = " and ".join(having) + (" alone has" if len(having) == 1 else " alone have")
            raise UserError(f"{key}: {which} it, and this is {method}")


def owners(key: str, method: str) -> Sequence[str]:
    """The methods that have the setting; ``method`` alone where all have it."""
    owner, dot, _ = key.partition(".")
    return [owner] if dot else FORMER.get(key, [method])
