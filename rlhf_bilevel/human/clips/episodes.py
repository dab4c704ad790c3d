"""Whole episodes of an agent, as clips, with the rewards of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlhf_bilevel.envs.interface import ABSORBED, FAULT, success_of
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.clips.recorder import ClipMaker, InfoKey

LONGEST = 10_000  # steps of an episode that are shown: without a time limit an episode may never end
Env = Any
"""A Gymnasium environment, whose infos have keys that are no strings (``InfoKey``)."""
Act = Callable[[np.ndarray], np.ndarray]
"""obs (o,) to act (a,)."""
Rewards = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""obs (T, o) and act (T, a) to a reward per step (T,); None if there is no such reward."""


class Episode(NamedTuple):
    """An episode of T steps. Frame t of the clip is what things looked like before step t."""

    clip: dict[str, Any]
    env_rewards: np.ndarray  # (T,)
    learned_rewards: np.ndarray | None  # (T,)
    success: bool | None  # at any step; None if the environment never mentions it


class Episodes(NamedTuple):
    """Episodes of one agent, and the scenes that their clips name."""

    episodes: list[Episode]
    scenes: dict[str, dict[str, Any]]


def record_episodes(act: Act, rewards: Rewards, env: Env, count: int) -> Episodes:
    """The next ``count`` episodes of ``env``: a ``recorder.make`` inside a ``FaultTolerantEnv``.

    An episode in which the environment fails is not counted, and another takes its place.
    """
    if count < 1:
        raise UserError(f"episodes must be at least 1, got {count}")
    maker, recorded = None, list[Episode]()
    while len(recorded) < count:
        obs, info = env.reset()
        if maker is None:
            maker = ClipMaker(info[InfoKey.SETUP])
        pose, record = info[InfoKey.POSE], b""
        steps: list[tuple[np.ndarray, np.ndarray, float, bytes, np.ndarray]] = []
        successes: list[bool] = []
        over = False
        while not over and len(steps) < LONGEST:
            record = pose.record or record
            action = act(obs)
            next_obs, reward, terminated, truncated, info = env.step(action)
            if FAULT in info:
                break
            steps.append((obs, action, float(reward), record, pose.values))
            obs, pose = next_obs, info[InfoKey.POSE]
            if (success := success_of(info)) is not None:
                successes.append(success)
            over = terminated or truncated or ABSORBED in info
        if FAULT in info:
            continue
        observations, actions, env_rewards, records, values = zip(*steps, strict=True)
        clip = maker.clip(records, np.stack(values))
        learned = rewards(np.stack(observations), np.stack(actions))
        recorded.append(Episode(clip, np.array(env_rewards), learned, any(successes) if successes else None))
    assert maker is not None
    return Episodes(recorded, maker.scenes)
