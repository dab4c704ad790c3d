"""Episodes that depend only on (seed, stream, number), and not on what was done before."""

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

LONGEST = 10_000  # the most steps in an episode without a time limit of Gymnasium's


class SeededEpisodes(gymnasium.Wrapper[np.ndarray, np.ndarray, Any, np.ndarray]):
    """Checks an environment and numbers its episodes: the k-th ``reset`` starts episode k of (seed, stream).

    Observations are cast to flat float32. ``episode`` is the number of the next episode; set it to resume, or to see
    the same starts again (through other wrappers: ``env.set_wrapper_attr("episode", k)``). A seed given to ``reset`` is
    ignored: Stable-Baselines3 gives one to the first reset only, and would change that episode.
    ``registration.make`` sets it.

    What the environment returns is checked and copied, and so is the action that it gets: ``InvalidEnvError`` if it
    breaks Gymnasium's interface. An episode without a time limit of Gymnasium's is cut after ``LONGEST`` steps, with a
    warning. ``limit`` is the most simulator steps in an episode, None if that is not known.
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
        """Starts the next episode: its first observation (o,) and info. ``seed`` is ignored."""
        del seed
        draw = np.random.SeedSequence([*self._key, self.episode]).generate_state(1)
        try:
            returned = self.env.reset(seed=int(draw[0]), options=options)
        except Exception as error:
            _raise_if_misuse(error, "reset(seed=..., options=...)", interface.RESET)
            raise
        obs, info = interface.check_returned(returned, 2, "reset", interface.RESET)
        self.episode += 1
        self._left = self._longest
        return interface.check_observation(obs, self._shape), interface.check_info(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Gymnasium's step, checked and copied. InvalidEnvError if what came back is not as its interface says."""
        try:
            step_action: Any = np.int64(action) if self._discrete else np.array(action)
            returned = self.env.step(step_action)
        except Exception as error:
            _raise_if_misuse(error, "step(action)", interface.STEP)
            raise
        obs, reward, terminated, truncated, info = interface.check_returned(returned, 5, "step", interface.STEP)
        over = interface.check_flag("terminated", terminated), interface.check_flag("truncated", truncated)
        self._left -= 1
        if self._left <= 0 and not any(over):
            warnings.warn(
                f"an episode is cut after {LONGEST:,} steps, as by a time limit, for the environment has not ended it: "
                "say how long episodes are with gymnasium.register(..., max_episode_steps=...)",
                stacklevel=2,
            )
            over = False, True
        return (
            interface.check_observation(obs, self._shape),
            interface.check_reward(reward),
            *over,
            interface.check_info(info),
        )


def _raise_if_misuse(error: Exception, call: str, form: str) -> None:
    """Raises InvalidEnvError if ``error`` shows that ``call`` follows another interface."""
    if interface.is_misuse(error):
        failure = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidEnvError(
            f"{call} must return {form}, as Gymnasium's interface says; it failed with {failure}"
        ) from error
