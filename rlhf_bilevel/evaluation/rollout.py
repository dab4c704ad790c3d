"""What one policy is worth: true returns and successes of whole episodes, as a mean with a bootstrap interval.

The interval is over the episodes that this policy might have met, and says nothing of what another seed would learn.

The episodes are those that the env comes to next, so an env whose ``episode`` is set back gives two policies, or one
policy at two ages, the same starts. Nothing here learns, and nothing draws from a generator that others use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import gymnasium
import numpy as np

from rlhf_bilevel.envs.interface import ABSORBED, FAULT, succeeded
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.statistics import interval, mean


@dataclass(frozen=True)
class Evaluation:
    """Episodes of one policy, in the order in which they ran."""

    returns: np.ndarray  # (episodes,) undiscounted sums of the environment's own reward
    successes: np.ndarray | None  # (episodes,) bool: success at any step; None where the env never speaks of it

    def summary(self, within: tuple[float, float] = (-inf, inf)) -> dict[str, Any]:
        """{"true_return": {"mean", "low", "high"}, "success": the same or None, "episodes"}, in plain numbers.

        ``within``: least and most that an episode can pay. One episode has no interval: low and high are None.
        """

        success = None if self.successes is None else stated(self.successes.astype(float), (0, 1))
        return {"true_return": stated(self.returns, within), "success": success, "episodes": len(self.returns)}


def stated(samples: np.ndarray, within: tuple[float, float]) -> dict[str, float | None]:
    """Mean of samples (n,), n >= 1, and its 95 % interval: none of a single one.

    The bounds stay ``within`` what is known of samples; where samples do not, nothing is known.
    """
    if len(samples) == 1:
        return {"mean": float(samples[0]), "low": None, "high": None}
    if not within[0] <= samples.min() <= samples.max() <= within[1]:
        within = (-inf, inf)
    return dict(zip(("mean", "low", "high"), map(float, interval(mean, samples[None], within=within)), strict=True))


def shown(found: Mapping[str, float | None], form: str = ".4g") -> str:
    """What ``stated`` gives, for the screen."""
    mean, low, high = (found[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"{mean:{form}} (one sample, no interval)"
    return f"{mean:{form}} (95 % interval {low:{form}} to {high:{form}})"


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray], env: gymnasium.Env[np.ndarray, np.ndarray], episodes: int
) -> Evaluation:
    """Runs ``predict``, obs (o,) to act (a,), for whole episodes (>= 1) and returns what the env said of them.

    An episode in which the environment fails (``guard.Guard``) is not counted, and another takes its place.
    """
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    returns, successes, reported = np.zeros(episodes), np.zeros(episodes, bool), False
    episode = 0
    while episode < episodes:
        returns[episode], successes[episode] = 0.0, False
        obs, _ = env.reset()
        over, info = False, dict[Any, Any]()
        while not over:
            obs, reward, terminated, truncated, info = env.step(predict(obs))
            returns[episode] += float(reward)
            success = succeeded(info)
            successes[episode] |= bool(success)
            reported = reported or success is not None
            over = terminated or truncated or ABSORBED in info
        episode += FAULT not in info
    return Evaluation(returns, successes if reported else None)
