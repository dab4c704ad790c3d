"""Actions as learners and rewards see them, in float32: scaled to [-1, 1], of a Discrete space as one-hot vectors."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike

from rlhf_bilevel.errors import UserError


def scaled(space: Box | Discrete, action: ArrayLike) -> np.ndarray:
    """A scaled copy: actions of the environment (..., a), or (...) of a Discrete space, become (..., a).

    Those of a Box are scaled bit for bit as Stable-Baselines3 does it; what is outside the bounds counts as the nearest
    inside. UserError where they are no such actions.
    """
    array = np.asarray(action)
    if isinstance(space, Discrete):
        if array.dtype.kind not in "iu" or ((array < 0) | (array >= space.n)).any():
            raise UserError(f"actions must be whole numbers from 0 to {space.n - 1}, not {array!s:.60}")
        return np.eye(int(space.n), dtype=np.float32)[array]
    if array.dtype.kind not in "fiu" or array.shape[-1:] != space.shape:
        raise UserError(f"actions must be {space.shape[0]} numbers each, not an array of shape {array.shape}")
    low, high = space.low, space.high
    return (2.0 * ((np.clip(array, low, high) - low) / (high - low)) - 1.0).astype(np.float32)
