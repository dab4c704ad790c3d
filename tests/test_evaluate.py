"""Returns and successes of whole episodes, stated with an interval where there is one."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from rlhf_bilevel.evaluate import Evaluation, evaluate


class Count(gymnasium.Env):
    """Episode k lasts k + 2 steps and pays the action at each; it succeeds at its first step where k is even."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, reports: bool) -> None:
        self.reports, self.episode = reports, -1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.episode, self.now = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.now += 1
        info = {"success": float(self.now == 1 and self.episode % 2 == 0)} if self.reports else {}
        over = self.now == self.episode + 2
        return np.zeros(1, np.float32), float(action[0]), over and self.episode == 0, over and self.episode > 0, info


def test_returns_are_sums_over_whole_episodes_and_success_counts_at_any_step() -> None:
    result = evaluate(lambda obs: obs + 0.5, Count(reports=True), episodes=3)
    np.testing.assert_array_equal(result.returns, [1.0, 1.5, 2.0])
    assert result.successes is not None
    np.testing.assert_array_equal(result.successes, [True, False, True])


def test_success_is_none_where_the_env_does_not_report_it() -> None:
    result = evaluate(lambda obs: obs, Count(reports=False), episodes=2)
    assert result.successes is None and result.summary()["success"] is None


def test_summary_is_plain_numbers() -> None:
    summary = Evaluation(np.array([1.0, 2.0, 3.0, 6.0]), np.array([True, False, True, True])).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["episodes"] == 4 and summary["true_return"]["mean"] == 3.0 and summary["success"]["mean"] == 0.75
    for part in (summary["true_return"], summary["success"]):
        assert part["low"] < part["mean"] < part["high"]
    assert summary["success"]["low"] >= 0 and summary["success"]["high"] <= 1


def test_one_episode_has_no_interval() -> None:
    summary = Evaluation(np.array([4.0]), None).summary()
    assert summary["true_return"] == {"mean": 4.0, "low": None, "high": None}


def test_an_interval_stays_within_what_an_episode_can_pay_unless_episodes_do_not() -> None:
    few = Evaluation(np.array([-900.0, -10.0, -10.0]), None)
    assert few.summary()["true_return"]["high"] > 0
    assert few.summary((-1000, 0))["true_return"]["high"] == 0
    assert few.summary((-100, 0))["true_return"] == few.summary()["true_return"]


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        evaluate(lambda obs: obs, Count(reports=True), episodes=0)
