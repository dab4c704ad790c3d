"""The border to environments, which are not our code: which spaces can be used, and whether what came back is valid.

What an environment returns is checked and copied here, once. Nothing behind this shares memory with the environment.
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
LARGEST = 1e30  # largest size of a reward: the sum of 10^8 such rewards is still a float32
FAULT: Final = object()
"""Key of a step's info under which ``FaultTolerantEnv`` says why the environment failed. No environment can have it."""
ABSORBED: Final = object()
"""Key of the infos from the step that leads to the absorbing state (``AbsorbingState``). No environment can have it."""
SUCCESS = ("success", "is_success")  # keys of an info in Meta-World and in Stable-Baselines3
RESET = "(observation, info)"
STEP = "(observation, reward, terminated, truncated, info)"
WRAPPER = "gymnasium.wrappers.TransformAction"


class InvalidEnvError(UserError):
    """An environment returned something that Gymnasium's interface does not allow."""


class NotFiniteError(InvalidEnvError):
    """A number that is not finite, or too large for float32. The next one may be valid."""


def space_problem(obs: Any, act: Any, discrete: bool = False) -> str | None:
    """Why these spaces of observations and actions cannot be used, in one line with the wrapper that helps; None if
    they can. With ``discrete`` actions may be Discrete.
    """
    if not isinstance(obs, Box):
        helps = "flatten=true, or gymnasium.wrappers.FlattenObservation, makes one of a Dict"
        return f"observations must be a Box ({helps}), not {_short(obs)}"
    if 0 in obs.shape:
        return f"observations must hold at least one number, not {_short(obs)}"
    if obs.dtype == np.uint8 and (len(obs.shape) > 2 or (len(obs.shape) == 2 and obs.high.max() == 255)):
        return (
            f"observations are pictures, {_short(obs)}, and the networks here take features: "
            "gymnasium.wrappers.TransformObservation makes such of a picture"
        )
    if discrete and isinstance(act, Discrete):
        back = f"{WRAPPER}(env, lambda a: a + ({act.start}), Discrete({act.n})) helps"
        return None if act.start == 0 else f"actions must begin at 0, not {_short(act)}: {back}"
    return _action_problem(act)


def _action_problem(act: Any) -> str | None:
    rule = f"actions must be a bounded Box of floats with one axis, not {_short(act)}"
    if not isinstance(act, Box):
        others = ", and the method prefppo takes them as they are" if isinstance(act, Discrete) else ""
        return f"{rule}: the learners choose numbers, and {WRAPPER} can make something else of them{others}"
    size, dtype = math.prod(act.shape), act.dtype
    if size == 0:
        return rule
    if len(act.shape) != 1:
        back = f"a.reshape{act.shape}" if act.shape else "a[0]"
        return f"{rule}: {WRAPPER}(env, lambda a: {back}, Box(-1, 1, ({size},))) helps"
    if dtype.kind != "f":
        bounds = f"{act.low.min()}, {act.high.max()}" if act.is_bounded() else "-1, 1"
        return f"{rule}: {WRAPPER}(env, lambda a: a.round().astype('{dtype}'), Box({bounds}, ({size},))) helps"
    if not act.is_bounded():
        return f"{rule}: {WRAPPER}(env, lambda a: a, Box(-1, 1, ({size},))) sets bounds; take those that your task has"
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
        return f"actions are one point, {_short(act)}: there is nothing to choose"
    if (width <= 0).any():
        i = int(np.flatnonzero(width <= 0)[0])
        return f"action[{i}] is fixed, from {low[i]:g} to {high[i]:g}: leave it out, {WRAPPER} can put it back"
    return None


def check_observation(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A flat float32 copy of the observation ``value``.

    InvalidEnvError unless it holds finite numbers of that ``shape``; axes of length one are ignored.
    """
    array = value if type(value) is np.ndarray and value.dtype.kind == "f" else _as_numbers(value)
    if array is None:
        raise InvalidEnvError(f"an observation must be numbers, not {value_text(value)}")
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


def scale_action(act: Any, space: Box) -> np.ndarray:
    """Actions (..., a) as a run stores them: clipped to the space's bounds, and scaled to [-1, 1]."""
    clipped = np.clip(act, space.low, space.high)
    return 2 * (clipped - space.low) / (space.high - space.low) - 1


def check_reward(value: Any) -> float:
    """The reward as a float. InvalidEnvError unless ``value`` is one finite number of at most LARGEST in size."""
    if not isinstance(value, float):
        array = _as_numbers(value)
        if array is None or array.size != 1:
            raise InvalidEnvError(f"a reward must be one number, not {value_text(value)}")
        value = array.item()
    if not abs(value) <= LARGEST:
        raise NotFiniteError(f"the reward is {value}, and must be a number of at most {LARGEST:g} in size")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """``terminated`` or ``truncated`` (``name``) as a bool. InvalidEnvError unless ``value`` is true, false, 0 or 1."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    array = _as_numbers(value)
    if array is None or array.size != 1 or array.item() not in (0, 1):
        raise InvalidEnvError(f"{name} must be True or False, not {value_text(value)}")
    return bool(array.item())


def check_info(value: Any) -> dict[Any, Any]:
    """A shallow copy of the info. InvalidEnvError unless ``value`` is a mapping."""
    if type(value) is not dict and not isinstance(value, Mapping):
        raise InvalidEnvError(f"info must be a dict, not {value_text(value)}")
    return dict(value)


def check_returned(returned: Any, count: int, name: str, form: str) -> Any:
    """What ``name`` (reset or step) returned. InvalidEnvError unless it is the ``count`` values that ``form`` lists."""
    if type(returned) is tuple and len(returned) == count:
        return returned
    if not isinstance(returned, tuple | list):
        raise InvalidEnvError(f"{name} must return {form}, not {value_text(returned)}")
    if len(returned) != count:
        raise InvalidEnvError(
            f"{name} must return {form}, not {len(returned)} values: Gymnasium's interface, not that of older Gym"
        )
    return returned


def success_of(info: Mapping[Any, Any]) -> bool | None:
    """What ``info`` says about success under any key of SUCCESS; None if it says nothing."""
    success = None
    for key in SUCCESS:
        if key in info:
            success = _success_flag(key, info[key]) or bool(success)
    return success


def _success_flag(key: str, value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    array = _as_numbers(value)
    if array is None or array.size != 1 or not np.isfinite(array.item()):
        warnings.warn(f"info[{key!r}] is {value_text(value)}, neither True nor False: this is no success", stacklevel=3)
        return False
    return bool(array.item())


def is_misuse(error: BaseException) -> bool:
    """Whether the error comes from the call itself, or from Gymnasium's code about it, and not from the environment's
    code.
    """
    first = trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    gymnasiums = "gymnasium.core", "gymnasium.wrappers", "gymnasium.envs.registration"
    shallow = trace is first or where.startswith(gymnasiums)
    return shallow and isinstance(error, TypeError | ValueError | AttributeError | AssertionError)


def value_text(value: Any) -> str:
    """A value and its type, shortened for a message."""
    return f"{_short(reprlib.repr(value))} ({type(value).__name__})"


def _as_numbers(value: Any) -> np.ndarray | None:
    """``value`` as an array of numbers; None if it is not."""
    try:
        array = np.asarray(value)
    except Exception:  # objects of a user's class, lists of unequal lengths
        return None
    return array if array.dtype.kind in "fiub" else None


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:200]  # the text of a large space has many lines
