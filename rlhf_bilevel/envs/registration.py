"""Environments by name. Each of their episodes depends only on (seed, stream, episode).

Episode k of an environment that has run for days equals, bit for bit, episode k of a new one under the same actions. So
a run resumes by setting one number, and two methods see the same starts. What ``make`` returns has flat float32
observations and bounded actions, whether it comes from Gymnasium or from a suite such as dm_control (``SUITES``). No
simulator is imported before it is used, and OpenGL only for pictures. The global generators of numpy and Python are
neither read nor changed.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import itertools
import math
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.spaces.utils import flatdim
from gymnasium.wrappers import FlattenObservation

from rlhf_bilevel.envs.episodes import SeededEpisodes
from rlhf_bilevel.envs.interface import InvalidEnvError, NotFiniteError, space_problem, value_text
from rlhf_bilevel.envs.metaworld import PROTOCOLS
from rlhf_bilevel.envs.opengl import find_opengl
from rlhf_bilevel.envs.suite import Suite, SuiteEnv
from rlhf_bilevel.envs.user_code import faults_as_user_errors
from rlhf_bilevel.envs.wrappers import AbsorbingState, ActionRepeat
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import SUITES
from rlhf_bilevel.utils.registry import current_folder_importable

MOST = 100_000  # tasks of a suite
VERSION = re.compile(r"-v\d+$")

OWN = "Own/"  # before the names of a user's own factories
TAKEN = {"id", "render_mode", "disable_env_checker"}  # arguments of gymnasium.make that are not a user's


def resolve(env_id: str) -> str:
    """The canonical id of an environment, from a canonical id or from the literature's name for it.

    ``walker_walk`` is dm_control/walker-walk-v0. ``metaworld_door-open-v2`` is Meta-World/door-open-v3, with a warning.
    ``module:Id-v0`` imports the module that registers the id, as in Gymnasium, also from the current folder.
    ``module:SUITE/task`` imports the module that has this ``Suite``.

    UserError, with the nearest known ids, if there is no such environment, or if the module fails.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        if not all(part.isidentifier() for part in module.split(".")) or not name:
            raise UserError(f"unknown environment {env_id!r}: module:Id-v0 names a Python module and an id")
        with faults_as_user_errors(f"{env_id}: the module {module} cannot be imported"), current_folder_importable():
            importlib.import_module(module)
        family = env_id.rpartition("/")[0]
        if _is_suite(family):
            name, id_of = env_id, _ids_in(family)
        else:
            id_of = {each: env_id if each == name else each for each in gymnasium.registry}
    else:
        id_of = {each: each for each in gymnasium.registry if each.partition("/")[0] not in SUITES}
        for family in _families(name):
            id_of |= {} if name in id_of else _ids_in(family)
    if name not in id_of:
        matches = [id_of[key] for key in difflib.get_close_matches(name, id_of, n=6, cutoff=0.5)]
        hint = f"; the nearest are {', '.join(list(dict.fromkeys(matches))[:3])}" if matches else ""
        raise UserError(f"unknown environment {env_id!r}{hint}")
    if (was := VERSION.search(name)) and (now := VERSION.search(id_of[name])) and was[0] != now[0]:
        caution = f"results are not comparable with {was[0].lstrip('-')}'s"
        warnings.warn(f"{env_id} runs as {id_of[name]}: {caution}", stacklevel=2)
    return id_of[name]


def _families(name: str) -> Iterator[str]:
    """Suites that may have an environment of that name. Suites of other packages come last, as each is imported."""
    family = name.partition("/")[0]
    if family in SUITES:
        yield family
        return
    yield from SUITES.ours
    for family in SUITES:
        if family not in SUITES.ours:
            try:
                _ = SUITES[family]
                yield family
            except UserError as error:  # a suite that cannot be used need not have to do with the name
                warnings.warn(str(error), stacklevel=3)


def _is_suite(place: str) -> bool:
    """Whether ``module:NAME`` is a suite, of a module that has been imported."""
    module, _, name = place.partition(":")
    return isinstance(getattr(sys.modules.get(module), name, None), Suite)


def _ids_in(family: str) -> dict[str, str]:
    """Maps each name of an environment of that suite to its canonical id."""
    suite = SUITES[family]
    with faults_as_user_errors(f"suite {family}: its tasks cannot be listed"):
        ids = {f"{family}/{task}": f"{family}/{task}" for task in islice(suite.tasks(), MOST)}
        return ids | {name: f"{family}/{task}" for name, task in islice(suite.aliases().items(), MOST)}


class Factory:
    """A callable of a user's that makes an environment anew each time, as an entry point of Gymnasium's."""

    def __init__(self, make: Callable[..., gymnasium.Env[Any, Any]]) -> None:
        self.make = make
        self.name = getattr(make, "__name__", type(make).__name__)
        self._last: Callable[[], Any] = lambda: None

    def __call__(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """A new environment of the user's function."""
        env = self.make(**kwargs)
        if not isinstance(env, gymnasium.Env):
            raise UserError(f"{self.name} must return an environment of Gymnasium's, not {value_text(env)}")
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
    """An environment to train on: observations (o,) float32, actions (a,) in a bounded Box.

    - ``seed`` (>= 0): the run's seed. ``stream`` (>= 0) separates the environments of one run, such as training and
      evaluation.
    - ``protocol``: one of PROTOCOLS; for Meta-World only.
    - ``render_mode``: None or "rgb_array".
    - ``action_repeat``: simulator steps in one step; their rewards are summed.
    - ``absorb``: an episode that terminates goes on in an absorbing state until the time limit (``AbsorbingState``).
    - ``kwargs``: arguments for ``gymnasium.make``.
    - ``flatten``: observations that are not a Box become one.
    - ``discrete``: actions may also be Discrete.

    Raises UserError for an unknown id, protocol or mode, for other spaces, for a missing library, if the registered
    entry makes no environment, and if ``absorb`` finds no time limit. RuntimeError if a picture is asked for and OpenGL
    is missing.
    """
    canonical = resolve(env_id)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"unknown render_mode {render_mode!r}; choose None or 'rgb_array'")
    env = _make_raw(canonical, protocol, render_mode, kwargs)
    if flatten and not isinstance(env.observation_space, Box):
        with faults_as_user_errors(f"{canonical}: its observations cannot be made flat"):
            env = FlattenObservation(env)
    with faults_as_user_errors(f"{canonical} cannot be used"):
        obs, act = (getattr(env, name, None) for name in ("observation_space", "action_space"))
        fault = space_problem(obs, act, discrete=discrete)
    if fault:
        with suppress(Exception, SystemExit):
            env.close()
        raise UserError(f"{env_id}: {fault}")
    if render_mode is not None and hasattr(env.unwrapped, "mujoco_renderer"):
        find_opengl()
    limit = _step_limit(env)
    episodes: Any = SeededEpisodes(env, seed, stream, limit)
    if action_repeat > 1:
        episodes = ActionRepeat(episodes, action_repeat)
    if not absorb:
        return episodes
    if limit is None:
        problem = f"termination=absorb needs a time limit, and {canonical} tells none"
        raise UserError(f"{problem}: register it with max_episode_steps, or choose termination=nonnegative")
    return AbsorbingState(episodes, math.ceil(limit / action_repeat))


def check(env_id: str, settings: Mapping[str, Any], discrete: bool = False) -> int | None:
    """UserError if a run with these ``settings`` of ``Config`` could not learn on the environment.

    ``discrete`` says whether its learner can choose among Discrete actions.

    The environment is made, reset and stepped once; with ``env_timeout`` it is only made. Errors of the environment's
    own code are ignored here: ``FaultTolerantEnv`` handles them. Returns the most simulator steps in an episode, None
    if that is not known.
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


def _make_raw(
    canonical: str, protocol: str, render_mode: str | None, kwargs: Mapping[str, Any]
) -> gymnasium.Env[Any, Any]:
    family, _, task = canonical.rpartition("/")
    if kwargs and (family in SUITES or _is_suite(family)):
        raise UserError(f"env_kwargs {', '.join(kwargs)}: {canonical} takes none; environments of gymnasium.make do")
    if taken := TAKEN & kwargs.keys():
        raise UserError(f"env_kwargs {', '.join(sorted(taken))}: set here and not by a user")
    if family in SUITES.ours:
        return SUITES[family].make(task, protocol, render_mode)
    if family in SUITES or _is_suite(family):
        with faults_as_user_errors(f"{canonical} cannot be made"), current_folder_importable():
            env = SUITES[family].make(task, protocol, render_mode)
        if not isinstance(env, gymnasium.Env):
            raise UserError(f"suite {family} must make a gymnasium.Env, and {task} is {value_text(env)}")
        return env
    # Not every environment takes this argument
    drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with faults_as_user_errors(f"{canonical} cannot be made"), current_folder_importable():
        return gymnasium.make(canonical, disable_env_checker=True, **drawn, **copy.deepcopy(dict(kwargs)))


def entry_names(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Names of the observation's entries, then of the action's: the suite's own, else obs[0], ..., act[0], ..."""
    suite_names: tuple[list[str], list[str]] = env.unwrapped.names if isinstance(env.unwrapped, SuiteEnv) else ([], [])
    spaces, all_names = (env.observation_space, env.action_space), list[str]()
    for own_names, space, prefix in zip(suite_names, spaces, ("obs", "act"), strict=True):
        size = flatdim(space)
        entries = own_names or [f"{prefix}[{i}]" for i in range(size)]
        all_names += [*entries, *["absorbed"] * (size - len(entries))]  # the entry of ``AbsorbingState``
    return all_names


def _step_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """The most simulator steps in an episode; None if the environment does not say."""
    inner: Any = env.unwrapped
    if isinstance(inner, SuiteEnv):
        return inner.limit
    steps = env.spec.max_episode_steps if env.spec else getattr(inner, "max_path_length", None)
    return None if steps is None else int(steps)
