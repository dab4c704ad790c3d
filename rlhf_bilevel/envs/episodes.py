"""Episodes that are a function of (seed, stream, number), whatever was done before."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from rlhf_bilevel.envs import interface
from rlhf_bilevel.envs.interface import InvalidEnvError
from rlhf_bilevel.errors import UserError

LONGEST = 10_000  # steps of an episode that has no time limit of Gymnasium's


class SeededEpisodes(gymnasium.Wrapper[np.ndarray, np.ndarray, Any, np.ndarray]):
    """``reset`` number k starts episode k of (seed, stream); observations are cast to flat float32.

    ``episode`` is the number of the next episode; set it to resume, or to meet the same starts again (through other
    wrappers: ``env.set_wrapper_attr("episode", k)``). A seed given to ``reset`` is ignored, because Stable-Baselines3
    gives one to the first reset only and would so move one episode off its place; ``make`` is where the seed is set.

    What the environment returns is checked and copied, and so is the action that it gets: raises ``InvalidEnvError``.
    An episode that no time limit of Gymnasium's ends is cut after ``LONGEST`` steps, with a warning. ``limit`` is the
    number of simulator steps after which an episode ends at the latest, None where it is not known.
    """

    simulator_steps = 1  # in a step

    def __init__(self, env: gymnasium.Env[Any, np.ndarray], seed: int, stream: int, limit: int | None = None) -> None:
        super().__init__(env)
        self.limit = limit
        if seed < 0 or stream < 0:
            raise UserError(f"seed and stream must not be negative, got {seed} and {stream}")
        self.episode, self._key = 0, (seed, stream)
        space = env.observation_space
        assert isinstance(space, Box)
        self._shape, self._discrete = space.shape, isinstance(env.action_space, Discrete)
        with np.errstate(over="ignore"):
            low, high = (bound.ravel().astype(np.float32) for bound in (space.low, space.high))
        self.observation_space = Box(low, high, dtype=np.float32)
        limited = env.spec is not None and env.spec.max_episode_steps is not None
        self._left, self._longest = 0.0, math.inf if limited else LONGEST

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        del seed
        draw = np.random.SeedSequence([*self._key, self.episode]).generate_state(1)
        try:
            told = self.env.reset(seed=int(draw[0]), options=options)
        except Exception as error:
            _explain(error, "reset(seed=..., options=...)", interface.RESET)
            raise
        obs, info = interface.parts(told, 2, "reset", interface.RESET)
        self.episode += 1
        self._left = self._longest
        return interface.observation(obs, self._shape), interface.info(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        try:
            given: Any = np.int64(action) if self._discrete else np.array(action)
            told = self.env.step(given)
        except Exception as error:
            _explain(error, "step(action)", interface.STEP)
            raise
        obs, reward, terminated, truncated, info = interface.parts(told, 5, "step", interface.STEP)
        over = interface.flag("terminated", terminated), interface.flag("truncated", truncated)
        self._left -= 1
        if self._left <= 0 and not any(over):
            warnings.warn(
                f"an episode is cut after {LONGEST:,} steps, as by a time limit, for the environment has not ended it: "
                "say how long episodes are with gymnasium.register(..., max_episode_steps=...)",
                stacklevel=2,
            )
            over = False, True
        return interface.observation(obs, self._shape), interface.reward(reward), *over, interface.info(info)


def _explain(error: Exception, call: str, form: str) -> None:
    """Raises InvalidEnvError where an error says that ``call`` is of another interface."""
    if interface.misused(error):
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidEnvError(
            f"{call} must return {form}, as Gymnasium's interface says; it failed with {told}"
        ) from error
