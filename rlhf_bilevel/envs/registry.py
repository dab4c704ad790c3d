"""Environments by name. Each of their episodes depends only on (seed, stream, episode).

Episode k of an environment that has run for days equals, bit for bit, episode k of a new one under the same actions. So
a run resumes by setting one number, and two methods see the same starts. What ``make`` returns has flat float32
observations and bounded actions, whether it comes from Gymnasium or from a suite such as dm_control (``SUITES``). No
simulator is imported before it is used, and OpenGL only for pictures. The global generators of numpy and Python are
neither read nor changed.
"""

from __future__ import annotations

import difflib
import importlib
import math
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import gymnasium
import numpy as np

from rlhf_bilevel.envs.episodes import SeededEpisodes
from rlhf_bilevel.envs.foreign import faults_as_user_errors
from rlhf_bilevel.envs.interface import InvalidEnvError, NotFiniteError, space_problem, value_text
from rlhf_bilevel.envs.metaworld import PROTOCOLS
from rlhf_bilevel.envs.opengl import find_opengl
from rlhf_bilevel.envs.suites import Suite, SuiteEnv
from rlhf_bilevel.envs.wrappers import AbsorbingState, ActionRepeat
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import SUITES
from rlhf_bilevel.utils.registry import current_folder_importable

MOST = 100_000  # tasks of a suite
VERSION = re.compile(r"-v\d+$")


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


def make(
    env_id: str,
    seed: int,
    stream: int = 0,
    protocol: str = "bpref",
    render_mode: str | None = None,
    action_repeat: int = 1,
    absorb: bool = False,
) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """An environment to train on: observations (o,) float32, actions (a,) in a bounded Box.

    - ``seed`` (>= 0): the run's seed. ``stream`` (>= 0) separates the environments of one run, such as training and
      evaluation.
    - ``protocol``: one of PROTOCOLS; for Meta-World only.
    - ``render_mode``: None or "rgb_array".
    - ``action_repeat``: simulator steps in one step; their rewards are summed.
    - ``absorb``: an episode that terminates goes on in an absorbing state until the time limit (``AbsorbingState``).

    Raises UserError for an unknown id, protocol or mode, for other spaces, for a missing library, if the registered
    entry makes no environment, and if ``absorb`` finds no time limit. RuntimeError if a picture is asked for and OpenGL
    is missing.
    """
    canonical = resolve(env_id)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"unknown render_mode {render_mode!r}; choose None or 'rgb_array'")
    env = _make_raw(canonical, protocol, render_mode)
    with faults_as_user_errors(f"{canonical} cannot be used"):
        fault = space_problem(*(getattr(env, name, None) for name in ("observation_space", "action_space")))
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
        problem = (
            f"termination=absorb needs a time limit, and {canonical} tells none: register it with max_episode_steps"
        )
        raise UserError(f"{problem}, or choose termination=nonnegative")
    return AbsorbingState(episodes, math.ceil(limit / action_repeat))


def check(env_id: str, settings: Mapping[str, Any]) -> int | None:
    """UserError if a run with these ``settings`` of ``Config`` could not learn on the environment.

    The environment is made, reset and stepped once; with ``env_timeout`` it is only made. Errors of the environment's
    own code are ignored here: ``FaultTolerantEnv`` handles them. Returns the most simulator steps in an episode, None
    if that is not known.
    """
    env: Any = make(env_id, settings.get("seed", 0), protocol=settings.get("protocol", "bpref"))
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


def _make_raw(canonical: str, protocol: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    family, _, task = canonical.rpartition("/")
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
        return gymnasium.make(canonical, disable_env_checker=True, **drawn)


def entry_names(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Names of the observation's entries, then of the action's: the suite's own, else obs[0], ..., act[0], ..."""
    suite_names: tuple[list[str], list[str]] = env.unwrapped.names if isinstance(env.unwrapped, SuiteEnv) else ([], [])
    spaces, all_names = (env.observation_space, env.action_space), list[str]()
    for own_names, space, prefix in zip(suite_names, spaces, ("obs", "act"), strict=True):
        size = int(np.prod(space.shape or ()))
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
