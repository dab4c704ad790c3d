"""Gymnasium's interface, where code begins that is not ours: which spaces can be learnt on, and what came back.

What an environment returns is checked and copied here, once. Nothing behind it shares memory with the environment.
"""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from gymnasium.spaces import Box, Discrete

from rlhf_bilevel.errors import UserError

FLOAT32 = np.dtype(np.float32)
LARGEST = 1e30  # size of a reward: the sum of 10^8 of them is a float32
FAULT: Final = object()
"""Key of a step's info under which ``guard`` says why the environment failed. No environment can have it."""
ABSORBED: Final = object()
"""Key of a step's info from the step on that leads into ``envs.Absorb``'s absorbing state; as ``FAULT``."""
SUCCESS = ("success", "is_success")  # keys of an info: Meta-World's, and Stable-Baselines3's
RESET = "(observation, info)"
STEP = "(observation, reward, terminated, truncated, info)"
WRAPPER = "gymnasium.wrappers.TransformAction"


class InvalidEnvError(UserError):
    """What an environment returned is not what Gymnasium's interface says."""


class NotFiniteError(InvalidEnvError):
    """A number that float32 cannot hold, or that is none. The next one may be sound."""


def unlearnable(obs: Any, act: Any, discrete: bool = False) -> str | None:
    """Why nothing can be learnt with these spaces, in one line, and which wrapper helps; None where it can.

    With ``discrete`` actions may be Discrete.
    """
    if not isinstance(obs, Box):
        helps = "flatten=true, or gymnasium.wrappers.FlattenObservation, makes one of a Dict"
        return f"observations must be a Box ({helps}), not {_line(obs)}"
    if 0 in obs.shape:
        return f"observations must hold at least one number, not {_line(obs)}"
    if obs.dtype == np.uint8 and (len(obs.shape) > 2 or (len(obs.shape) == 2 and obs.high.max() == 255)):
        return (
            f"observations are pictures, {_line(obs)}, and the networks here take features: "
            "gymnasium.wrappers.TransformObservation makes such of a picture"
        )
    if discrete and isinstance(act, Discrete):
        back = f"{WRAPPER}(env, lambda a: a + ({act.start}), Discrete({act.n})) helps"
        return None if act.start == 0 else f"actions must begin at 0, not {_line(act)}: {back}"
    return _impossible(act)


def _impossible(act: Any) -> str | None:
    must = f"actions must be a bounded Box of floats with one axis, not {_line(act)}"
    if not isinstance(act, Box):
        others = ", and the method prefppo takes them as they are" if isinstance(act, Discrete) else ""
        return f"{must}: the learners choose numbers, and {WRAPPER} can make something else of them{others}"
    size, dtype = math.prod(act.shape), act.dtype
    if size == 0:
        return must
    if len(act.shape) != 1:
        back = f"a.reshape{act.shape}" if act.shape else "a[0]"
        return f"{must}: {WRAPPER}(env, lambda a: {back}, Box(-1, 1, ({size},))) helps"
    if dtype.kind != "f":
        return f"{must}: {WRAPPER}(env, lambda a: a.round().astype('{dtype}'), Box({_ends(act)}, ({size},))) helps"
    if not act.is_bounded():
        return f"{must}: {WRAPPER}(env, lambda a: a, Box(-1, 1, ({size},))) sets bounds; take those that your task has"
    low, high = (bound.astype(np.float64) for bound in (act.low, act.high))
    with np.errstate(over="ignore"):
        width = high.astype(np.float32) - low.astype(np.float32)
    if not np.isfinite(width).all():
        i = int(np.flatnonzero(~np.isfinite(width))[0])
        return (
            f"action[{i}] reaches from {low[i]:g} to {high[i]:g}, further than float32 does: "
            f"{WRAPPER}(env, lambda a: a, Box(-1, 1, ({size},))) sets other bounds; take those that your task has"
        )
    if (width <= 0).all():
        return f"actions are one point, {_line(act)}: there is nothing to choose"
    if (width <= 0).any():
        i = int(np.flatnonzero(width <= 0)[0])
        return f"action[{i}] is fixed, from {low[i]:g} to {high[i]:g}: leave it out, {WRAPPER} can put it back"
    return None


def _ends(act: Box) -> str:
    return f"{act.low.min()}, {act.high.max()}" if act.is_bounded() else "-1, 1"


def observation(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A flat float32 copy of an observation; InvalidEnvError unless it has that shape, axes of one not counted."""
    array = value if type(value) is np.ndarray and value.dtype.kind == "f" else _array(value)
    if array is None:
        raise InvalidEnvError(f"an observation must be numbers, not {shown(value)}")
    if array.shape != shape and [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise InvalidEnvError(f"an observation must have the shape {shape}, not {array.shape}")
    if array.dtype is FLOAT32:
        flat = array.flatten()
    else:
        with np.errstate(over="ignore"):
            flat = array.astype(np.float32).ravel()
    if not np.isfinite(flat).all():
        raise NotFiniteError(f"the observation holds {array.ravel()[~np.isfinite(flat)][0]}")
    return flat


def reward(value: Any) -> float:
    """InvalidEnvError unless it is one number, finite and at most LARGEST in size."""
    if not isinstance(value, float):
        array = _array(value)
        if array is None or array.size != 1:
            raise InvalidEnvError(f"a reward must be one number, not {shown(value)}")
        value = array.item()
    if not abs(value) <= LARGEST:
        raise NotFiniteError(f"the reward is {value}, and must be a number of at most {LARGEST:g} in size")
    return float(value)


def flag(name: str, value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    array = _array(value)
    if array is None or array.size != 1 or array.item() not in (0, 1):
        raise InvalidEnvError(f"{name} must be True or False, not {shown(value)}")
    return bool(array.item())


def info(value: Any) -> dict[Any, Any]:
    if type(value) is not dict and not isinstance(value, Mapping):
        raise InvalidEnvError(f"info must be a dict, not {shown(value)}")
    return dict(value)


def parts(told: Any, count: int, name: str, form: str) -> Any:
    """What ``name``, reset or step, returned; InvalidEnvError unless it is the ``count`` values that ``form`` lists."""
    if type(told) is tuple and len(told) == count:
        return told
    if not isinstance(told, tuple | list):
        raise InvalidEnvError(f"{name} must return {form}, not {shown(told)}")
    if len(told) != count:
        raise InvalidEnvError(
            f"{name} must return {form}, not {len(told)} values: Gymnasium's interface, not that of older Gym"
        )
    return told


def succeeded(info: Mapping[Any, Any]) -> bool | None:
    """What ``info`` says of success by any of SUCCESS; None where it says nothing."""
    found = None
    for key in SUCCESS:
        if key in info:
            found = _true(key, info[key]) or bool(found)
    return found


def _true(key: str, value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    array = _array(value)
    if array is None or array.size != 1 or not np.isfinite(array.item()):
        warnings.warn(f"info[{key!r}] is {shown(value)}, neither True nor False: this is no success", stacklevel=3)
        return False
    return bool(array.item())


def misused(error: BaseException) -> bool:
    """Whether the call itself failed, or Gymnasium's own code on what it got, and no code behind these."""
    first = trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    at_the_border = trace is first or where.startswith(
        ("gymnasium.core", "gymnasium.wrappers", "gymnasium.envs.registration")
    )
    return at_the_border and isinstance(error, TypeError | ValueError | AttributeError | AssertionError)


def shown(value: Any) -> str:
    """A value and its type, in a few words."""
    return f"{_line(reprlib.repr(value))} ({type(value).__name__})"


def _array(value: Any) -> np.ndarray | None:
    """As an array of numbers; None where it is none."""
    try:
        array = np.asarray(value)
    except Exception:  # of the user's own class, or lists of unequal lengths
        return None
    return array if array.dtype.kind in "fiub" else None


def _line(value: Any) -> str:
    return " ".join(str(value).split())[:200]  # a long space prints on many lines
