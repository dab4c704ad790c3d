"""Environments by name, every episode of which is a function of (seed, stream, episode) and of nothing else.

Episode k of an env that has run for days equals, bit for bit, episode k of a fresh one under the same actions; so a
run resumes by setting one number, and two methods meet the same starts. What ``make`` returns also has flat float32
observations and bounded actions, whichever family it comes from: Gymnasium, the dm_control suite or Meta-World v3.
No simulator is imported before it is made, no OpenGL before a picture is asked for, and numpy's and Python's global
generators are neither read nor moved.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import importlib.util
import itertools
import math
import re
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.spaces.utils import flatdim
from gymnasium.wrappers import FlattenObservation

from rlhf_bilevel.envs.dm_control import DMControlEnv
from rlhf_bilevel.envs.episodes import SeededEpisodes
from rlhf_bilevel.envs.foreign import _here, refusing
from rlhf_bilevel.envs.interface import InvalidEnvError, NotFiniteError, shown, unlearnable
from rlhf_bilevel.envs.metaworld import PROTOCOLS, MetaWorldEnv
from rlhf_bilevel.envs.opengl import _find_opengl
from rlhf_bilevel.envs.wrappers import AbsorbingState, ActionRepeat
from rlhf_bilevel.errors import UserError

OWN = "Own/"  # before the names of a user's own factories
TAKEN = {"id", "render_mode", "disable_env_checker"}  # arguments of gymnasium.make that are not a user's


def resolve(env_id: str) -> str:
    """The canonical id of an environment, from a canonical id or the literature's name for it.

    ``walker_walk`` is dm_control/walker-walk-v0; ``metaworld_door-open-v2`` is Meta-World/door-open-v3, with a warning.
    ``module:Id-v0`` imports the module that registers the id, as in Gymnasium, also from the current folder. UserError,
    with the nearest known ids, where there is none, and where the module fails.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        if not all(part.isidentifier() for part in module.split(".")) or not name:
            raise UserError(f"unknown environment {env_id!r}: module:Id-v0 names a Python module and an id")
        with refusing(f"{env_id}: the module {module} cannot be imported"), _here():
            importlib.import_module(module)
    known = {spec: spec for spec in gymnasium.registry if not spec.startswith(("dm_control/", "Meta-World/"))}
    if not colon:
        known |= _task_ids()
    if name not in known:
        near = [known[key] for key in difflib.get_close_matches(name, known, n=6, cutoff=0.5)]
        hint = f"; the nearest are {', '.join(list(dict.fromkeys(near))[:3])}" if near else ""
        raise UserError(f"unknown environment {env_id!r}{hint}")
    if known[name].startswith("Meta-World/") and name.endswith("-v2"):
        warnings.warn(f"{env_id} runs as {known[name]}: results are not comparable with v2's", stacklevel=2)
    return env_id if colon else known[name]


class Factory:
    """A callable of a user's that makes an environment anew each time, as an entry point of Gymnasium's."""

    def __init__(self, make: Callable[..., gymnasium.Env[Any, Any]]) -> None:
        self.make = make
        self.name = getattr(make, "__name__", type(make).__name__)
        self._last: Callable[[], Any] = lambda: None

    def __call__(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        env = self.make(**kwargs)
        if not isinstance(env, gymnasium.Env):
            raise UserError(f"{self.name} must return an environment of Gymnasium's, not {shown(env)}")
        if env.unwrapped is self._last():
            raise UserError(f"{self.name} returns the same environment again: it must make a new one each time")
        self._last = weakref.ref(env.unwrapped)
        return env

    def __deepcopy__(self, memo: Any) -> Factory:  # Gymnasium copies what it has registered
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Factory, (self.make,)


def own(make: Callable[..., gymnasium.Env[Any, Any]]) -> str:
    """The id, in this process alone, of the environments that ``make`` makes."""
    for name, spec in gymnasium.registry.items():
        if isinstance(spec.entry_point, Factory) and spec.entry_point.make == make:
            return name
    factory = Factory(make)
    word = re.sub(r"\W", "", factory.name)
    name = next(name for number in itertools.count() if (name := f"{OWN}{word}-v{number}") not in gymnasium.registry)
    gymnasium.register(name, factory)
    return name


def make(
    env_id: str,
    seed: int,
    stream: int = 0,
    protocol: str = "bpref",
    render_mode: str | None = None,
    action_repeat: int = 1,
    absorb: bool = False,
    kwargs: Mapping[str, Any] = {},
    flatten: bool = False,
    discrete: bool = False,
) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """An environment that is ready to train on: observations (o,) float32, actions (a,) within a bounded Box.

    ``seed`` (>= 0) is the run's; ``stream`` (>= 0) tells apart the envs of one run, such as training and evaluation.
    ``protocol`` is one of PROTOCOLS and matters to Meta-World alone. ``render_mode`` is None or "rgb_array".
    ``action_repeat`` steps of the simulator make one step of the environment; their rewards are summed.
    With ``absorb`` an episode that ends for good goes on in an absorbing state until the time limit (``Absorb``).
    ``kwargs`` are passed to ``gymnasium.make``. With ``flatten`` observations that are no Box become one. With
    ``discrete`` actions may be Discrete.
    Raises UserError for an unknown id, protocol or mode, for spaces that are not as above, where a library is missing
    that the environment needs, where what is registered makes none, and where ``absorb`` finds no time limit;
    RuntimeError where a picture is asked for and OpenGL is missing.
    """
    canonical = resolve(env_id)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"unknown render_mode {render_mode!r}; choose None or 'rgb_array'")
    env = _made(canonical, protocol, render_mode, kwargs)
    if flatten and not isinstance(env.observation_space, Box):
        with refusing(f"{canonical}: its observations cannot be made flat"):
            env = FlattenObservation(env)
    with refusing(f"{canonical} cannot be used"):
        obs, act = (getattr(env, name, None) for name in ("observation_space", "action_space"))
        fault = unlearnable(obs, act, discrete=discrete)
    if fault:
        with suppress(Exception, SystemExit):
            env.close()
        raise UserError(f"{env_id}: {fault}")
    if render_mode is not None and hasattr(env.unwrapped, "mujoco_renderer"):
        _find_opengl()
    limit = _limit(env)
    episodes: Any = SeededEpisodes(env, seed, stream, limit)
    if action_repeat > 1:
        episodes = ActionRepeat(episodes, action_repeat)
    if not absorb:
        return episodes
    if limit is None:
        told = f"termination=absorb needs a time limit, and {canonical} tells none: register it with max_episode_steps"
        raise UserError(f"{told}, or choose termination=nonnegative")
    return AbsorbingState(episodes, math.ceil(limit / action_repeat))


def check(env_id: str, settings: Mapping[str, Any], discrete: bool = False) -> int | None:
    """UserError where a run with these settings of ``Config`` could not learn on the environment: before it has begun.

    ``discrete`` says whether its learner can choose among Discrete actions.

    The environment is made, reset and stepped once. An error of its own may pass, and is ``guard``'s; where it is to
    run in a process of its own (``env_timeout``), it is only made. Returns ``Episodes.limit``.
    """
    told = {"protocol": settings.get("protocol", "bpref"), "kwargs": settings.get("env_kwargs", {})}
    env: Any = make(env_id, settings.get("seed", 0), **told, flatten=settings.get("flatten", False), discrete=discrete)
    try:
        if not settings.get("env_timeout"):
            env.reset()
            env.step(env.action_space.sample())
    except NotFiniteError:
        pass
    except InvalidEnvError as error:
        raise UserError(f"{env_id}: {error}") from error
    except (Exception, SystemExit):
        pass
    finally:
        with suppress(Exception, SystemExit):
            env.close()
    return env.limit


def _made(canonical: str, protocol: str, render_mode: str | None, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    family, _, name = canonical.rpartition("/")
    if kwargs and family in ("dm_control", "Meta-World"):
        raise UserError(f"env_kwargs {', '.join(kwargs)}: {canonical} takes none; environments of gymnasium.make do")
    if taken := TAKEN & kwargs.keys():
        raise UserError(f"env_kwargs {', '.join(sorted(taken))}: set here and not by a user")
    if family == "dm_control":
        domain, _, task = name.removesuffix("-v0").partition("-")
        return DMControlEnv(domain, task, render_mode)
    if family == "Meta-World":
        return MetaWorldEnv(name, protocol, render_mode)
    # Not every env takes the argument
    drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with refusing(f"{canonical} cannot be made"), _here():
        return gymnasium.make(canonical, disable_env_checker=True, **drawn, **copy.deepcopy(dict(kwargs)))


def names(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Of the observation's entries and then the action's: what the suite calls them, else obs[0], act[0], ..."""
    known: tuple[list[str], list[str]] = env.unwrapped.names if isinstance(env.unwrapped, DMControlEnv) else ([], [])
    spaces, found = (env.observation_space, env.action_space), list[str]()
    for own, space, word in zip(known, spaces, ("obs", "act"), strict=True):
        size = flatdim(space)
        told = own or [f"{word}[{i}]" for i in range(size)]
        found += [*told, *["absorbed"] * (size - len(told))]  # the entry of ``Absorb``
    return found


def _limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Simulator steps after which an episode ends at the latest; None where the environment does not tell."""
    inner: Any = env.unwrapped
    if isinstance(inner, DMControlEnv):
        return inner.limit
    told = env.spec.max_episode_steps if env.spec else getattr(inner, "max_path_length", None)
    return None if told is None else int(told)


@functools.cache
def _task_ids() -> dict[str, str]:
    """Every name of a dm_control suite or Meta-World task to its canonical id, read from sources and not imported."""
    names: dict[str, str] = {}
    for path in [path for folder in _folders("dm_control") for path in folder.glob("suite/*.py")]:
        for task in re.findall(r"(?m)^@SUITE\.add\(.*\)\ndef (\w+)\(", path.read_text("utf-8")):
            canonical = f"dm_control/{path.stem}-{task}-v0"
            names |= {canonical: canonical, f"{path.stem}_{task}": canonical}
    for folder in _folders("metaworld"):
        for task in re.findall(r'(?m)^    "([\w-]+)-v3": envs\.', (folder / "env_dict.py").read_text("utf-8")):
            for name in (task, f"metaworld_{task}", f"Meta-World/{task}"):
                names |= dict.fromkeys([f"{name}-v3", f"{name}-v2"], f"Meta-World/{task}-v3")
    return names


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
