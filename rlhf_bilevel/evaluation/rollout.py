"""How good one policy is: true returns and successes of whole episodes, as a mean with a bootstrap interval.

The interval is over the episodes that this policy might have had; it says nothing about other seeds.

The episodes are those that the environment comes to next. If ``episode`` is set back, two policies, or one policy at
two times, see the same starts. Nothing is learnt here, and no random number is drawn from a generator that others use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import gymnasium
import numpy as np

from rlhf_bilevel.envs.interface import ABSORBED, FAULT, success_of
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.statistics import interval, mean


@dataclass(frozen=True)
class Evaluation:
    """Episodes of one policy, in their order."""

    returns: np.ndarray  # (episodes,) undiscounted sums of the environment's own reward
    successes: np.ndarray | None  # (episodes,) bool: success at any step; None if the env never mentions it
    within: tuple[float, float] = (-inf, inf)  # the least and most that an episode can pay, where it is known

    def summary(self) -> dict[str, Any]:
        """{"true_return": {"mean", "low", "high"}, "success": the same or None, "episodes"}, as plain numbers.

        The intervals are of 95 %. One episode has none: low and high are None.
        """
        returns = mean_interval(self.returns, self.within)
        success = None if self.successes is None else mean_interval(self.successes.astype(float), (0, 1))
        return {"true_return": returns, "success": success, "episodes": len(self.returns)}


def mean_interval(samples: np.ndarray, within: tuple[float, float]) -> dict[str, float | None]:
    """Mean of samples (n,), n >= 1, with its 95 % interval, as {"mean", "low", "high"}. One sample has no interval.

    Bounds stay ``within`` the known range of samples; a sample outside shows that the range is not known.
    """
    if len(samples) == 1:
        return {"mean": float(samples[0]), "low": None, "high": None}
    if not within[0] <= samples.min() <= samples.max() <= within[1]:
        within = (-inf, inf)
    return dict(zip(("mean", "low", "high"), map(float, interval(mean, samples[None], within=within)), strict=True))


def interval_text(estimated: Mapping[str, float | None], number_format: str = ".4g") -> str:
    """What ``mean_interval`` gave, as text."""
    mean, low, high = (estimated[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"{mean:{number_format}} (one sample, no interval)"
    return f"{mean:{number_format}} (95 % interval {low:{number_format}} to {high:{number_format}})"


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray], env: gymnasium.Env[np.ndarray, np.ndarray], episodes: int
) -> Evaluation:
    """Runs ``predict``, from obs (o,) to act (a,), for ``episodes`` >= 1 whole episodes.

    An episode in which the environment fails (``FaultTolerantEnv``) is not counted, and another takes its place.
    """
    if episodes < 1:
        raise UserError(f"episodes must be at least 1, got {episodes}")
    returns, successes, success_reported = np.zeros(episodes), np.zeros(episodes, bool), False
    episode = 0
    while episode < episodes:
        returns[episode], successes[episode] = 0.0, False
        obs, _ = env.reset()
        over, info = False, dict[Any, Any]()
        while not over:
            obs, reward, terminated, truncated, info = env.step(predict(obs))
            returns[episode] += float(reward)
            success = success_of(info)
            successes[episode] |= bool(success)
            success_reported = success_reported or success is not None
            over = terminated or truncated or ABSORBED in info
        episode += FAULT not in info
    return Evaluation(returns, successes if success_reported else None)
