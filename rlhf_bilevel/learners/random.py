"""A learner that acts at random and learns nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from stable_baselines3 import SAC


class RandomPolicy(SAC):
    """Acts uniformly at random and never learns."""

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Does nothing."""

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        """Random actions (..., a) for observations (..., o), and SB3's state, which is None."""
        batch = np.shape(observation)[:-1]
        actions = np.stack([self.action_space.sample() for _ in range(math.prod(batch))])
        return actions.reshape(*batch, *actions.shape[1:]), None
