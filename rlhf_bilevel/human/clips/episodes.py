"""Whole episodes of an agent, as clips, beside what each step was worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from rlhf_bilevel.envs.interface import ABSORBED, FAULT, succeeded
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.clips.recorder import Clips, Told

Env = gymnasium.Env[np.ndarray, np.ndarray]
Act = Callable[[np.ndarray], np.ndarray]
"""obs (o,) to act (a,)."""
Rewards = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""obs (T, o) and act (T, a) to a reward per step (T,); None where there is no such reward."""


class Episode(NamedTuple):
    """Of T steps. Frame t of the clip is what stood before step t."""

    clip: dict[str, Any]
    truth: np.ndarray  # (T,) the environment's own reward
    learnt: np.ndarray | None  # (T,)
    success: bool | None  # at any step; None where the env never speaks of it


class Episodes(NamedTuple):
    found: list[Episode]
    scenes: dict[str, dict[str, Any]]  # those that clips name


def played(act: Act, rewards: Rewards, env: Env, count: int) -> Episodes:
    """The next ``count`` episodes of ``env``, one of ``recorder.make`` that is guarded.

    An episode in which the environment fails is not counted, and another takes its place.
    """
    if count < 1:
        raise UserError(f"episodes must be at least 1, got {count}")
    clips, found = None, list[Episode]()
    while len(found) < count:
        obs, info = env.reset()
        if clips is None:
            clips = Clips(info[Told.SET])
        pose, record = info[Told.POSE], b""
        steps: list[tuple[np.ndarray, np.ndarray, float, bytes, np.ndarray]] = []
        success: list[bool] = []
        over = False
        while not over:
            record = pose.record or record
            action = act(obs)
            following, truth, terminated, truncated, info = env.step(action)
            if FAULT in info:
                break
            steps.append((obs, action, float(truth), record, pose.values))
            obs, pose = following, info[Told.POSE]
            if (told := succeeded(info)) is not None:
                success.append(told)
            over = terminated or truncated or ABSORBED in info
        if over:
            observations, actions, truths, records, values = zip(*steps, strict=True)
            clip = clips.clip(records, np.stack(values))
            learnt = rewards(np.stack(observations), np.stack(actions))
            found.append(Episode(clip, np.array(truths), learnt, any(success) if success else None))
    assert clips is not None
    return Episodes(found, clips.scenes)
