"""Environments by name, every episode of which is a function of (seed, stream, episode) and of nothing else.

Episode k of an env that has run for days equals, bit for bit, episode k of a fresh one under the same actions; so a
run resumes by setting one number, and two methods meet the same starts. What ``make`` returns also has flat float32
observations and bounded actions, wherever it comes from: Gymnasium, or a suite such as dm_control (``SUITES``).
No simulator is imported before it is made, no OpenGL before a picture is asked for, and numpy's and Python's global
generators are neither read nor moved.
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
from rlhf_bilevel.envs.foreign import refusing
from rlhf_bilevel.envs.interface import InvalidEnvError, NotFiniteError, shown, unlearnable
from rlhf_bilevel.envs.metaworld import PROTOCOLS
from rlhf_bilevel.envs.opengl import _find_opengl
from rlhf_bilevel.envs.suites import Suite, SuiteEnv
from rlhf_bilevel.envs.wrappers import AbsorbingState, ActionRepeat
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import SUITES
from rlhf_bilevel.utils.registry import here

MOST = 100_000  # tasks of a suite
VERSION = re.compile(r"-v\d+$")


def resolve(env_id: str) -> str:
    """The canonical id of an environment, from a canonical id or the literature's name for it.

    ``walker_walk`` is dm_control/walker-walk-v0; ``metaworld_door-open-v2`` is Meta-World/door-open-v3, with a warning.
    ``module:Id-v0`` imports the module that registers the id, as in Gymnasium, also from the current folder, and
    ``module:SUITE/task`` one that has a ``Suite``. UserError, with the nearest known ids, where there is none, and
    where the module fails.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        if not all(part.isidentifier() for part in module.split(".")) or not name:
            raise UserError(f"unknown environment {env_id!r}: module:Id-v0 names a Python module and an id")
        with refusing(f"{env_id}: the module {module} cannot be imported"), here():
            importlib.import_module(module)
        family = env_id.rpartition("/")[0]
        if _is_suite(family):
            name, known = env_id, _names_in(family)
        else:
            known = {each: env_id if each == name else each for each in gymnasium.registry}
    else:
        known = {each: each for each in gymnasium.registry if each.partition("/")[0] not in SUITES}
        for family in _families(name):
            known |= {} if name in known else _names_in(family)
    if name not in known:
        near = [known[key] for key in difflib.get_close_matches(name, known, n=6, cutoff=0.5)]
        hint = f"; the nearest are {', '.join(list(dict.fromkeys(near))[:3])}" if near else ""
        raise UserError(f"unknown environment {env_id!r}{hint}")
    if (was := VERSION.search(name)) and (now := VERSION.search(known[name])) and was[0] != now[0]:
        told = f"results are not comparable with {was[0].lstrip('-')}'s"
        warnings.warn(f"{env_id} runs as {known[name]}: {told}", stacklevel=2)
    return known[name]


def _families(name: str) -> Iterator[str]:
    """Suites that may have an environment of that name. Those of others come last, as each is imported."""
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
            except UserError as error:  # which has nothing to do with the name, perhaps
                warnings.warn(str(error), stacklevel=3)


def _is_suite(place: str) -> bool:
    """Of ``module:NAME``, whose module has been imported."""
    module, _, name = place.partition(":")
    return isinstance(getattr(sys.modules.get(module), name, None), Suite)


def _names_in(family: str) -> dict[str, str]:
    """Every name of an environment of that suite to its canonical id."""
    suite = SUITES[family]
    with refusing(f"suite {family}: its tasks cannot be told"):
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
    """An environment that is ready to train on: observations (o,) float32, actions (a,) within a bounded Box.

    ``seed`` (>= 0) is the run's; ``stream`` (>= 0) tells apart the envs of one run, such as training and evaluation.
    ``protocol`` is one of PROTOCOLS and matters to Meta-World alone. ``render_mode`` is None or "rgb_array".
    ``action_repeat`` steps of the simulator make one step of the environment; their rewards are summed.
    With ``absorb`` an episode that ends for good goes on in an absorbing state until the time limit (``Absorb``).
    Raises UserError for an unknown id, protocol or mode, for spaces that are not as above, where a library is missing
    that the environment needs, where what is registered makes none, and where ``absorb`` finds no time limit;
    RuntimeError where a picture is asked for and OpenGL is missing.
    """
    canonical = resolve(env_id)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"unknown render_mode {render_mode!r}; choose None or 'rgb_array'")
    env = _made(canonical, protocol, render_mode)
    with refusing(f"{canonical} cannot be used"):
        fault = unlearnable(*(getattr(env, name, None) for name in ("observation_space", "action_space")))
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


def check(env_id: str, settings: Mapping[str, Any]) -> int | None:
    """UserError where a run with these settings of ``Config`` could not learn on the environment: before it has begun.

    The environment is made, reset and stepped once. An error of its own may pass, and is ``guard``'s; where it is to
    run in a process of its own (``env_timeout``), it is only made. Returns ``Episodes.limit``.
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


def _made(canonical: str, protocol: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    family, _, task = canonical.rpartition("/")
    if family in SUITES.ours:
        return SUITES[family].make(task, protocol, render_mode)
    if family in SUITES or _is_suite(family):
        with refusing(f"{canonical} cannot be made"), here():
            env = SUITES[family].make(task, protocol, render_mode)
        if not isinstance(env, gymnasium.Env):
            raise UserError(f"suite {family} must make a gymnasium.Env, and {task} is {shown(env)}")
        return env
    # Not every env takes the argument
    drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with refusing(f"{canonical} cannot be made"), here():
        return gymnasium.make(canonical, disable_env_checker=True, **drawn)


def names(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Of the observation's entries and then the action's: what the suite calls them, else obs[0], act[0], ..."""
    known: tuple[list[str], list[str]] = env.unwrapped.names if isinstance(env.unwrapped, SuiteEnv) else ([], [])
    spaces, found = (env.observation_space, env.action_space), list[str]()
    for own, space, word in zip(known, spaces, ("obs", "act"), strict=True):
        size = int(np.prod(space.shape or ()))
        told = own or [f"{word}[{i}]" for i in range(size)]
        found += [*told, *["absorbed"] * (size - len(told))]  # the entry of ``Absorb``
    return found


def _limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Simulator steps after which an episode ends at the latest; None where the environment does not tell."""
    inner: Any = env.unwrapped
    if isinstance(inner, SuiteEnv):
        return inner.limit
    told = env.spec.max_episode_steps if env.spec else getattr(inner, "max_path_length", None)
    return None if told is None else int(told)
