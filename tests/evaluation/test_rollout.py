"""Returns and successes of whole episodes, stated with an interval where there is one."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from rlhf_bilevel.evaluation.rollout import Evaluation, evaluate


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
    np.testing.assert_array_equal(result.successes, [True, False, True])


def test_success_is_none_where_the_env_does_not_report_it() -> None:
    result = evaluate(lambda obs: obs, Count(reports=False), episodes=2)
    assert result.successes is None and result.summary()["success"] is None


class Says(Count):
    """Tells a list of infos, one a step."""

    def __init__(self, *infos: dict[str, Any]) -> None:
        super().__init__(reports=False)
        self.infos = infos

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return *super().step(action)[:4], self.infos[self.now - 1]


@pytest.mark.parametrize(
    ("first", "last", "success"),
    [
        ({}, {}, None),
        ({"is_success": False}, {"is_success": True}, True),
        ({"is_success": True}, {}, True),
        ({"success": 0.0}, {"is_success": np.bool_(True)}, True),
        ({"success": np.array([False])}, {"success": np.zeros((1, 1))}, False),
        ({"success": np.array([True])}, {"success": False}, True),
        ({}, {"success": 0, "is_success": 0.0}, False),
    ],
)
def test_success_has_meta_worlds_key_or_stable_baselines3s(first: dict, last: dict, success: bool | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(lambda obs: obs, Says(first, last), episodes=1).successes
    assert (found is None) if success is None else (found is not None and found.tolist() == [success])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(np.nan, "nan"), (np.array([np.inf]), "inf"), (None, "None"), ("no", "'no'"), ([1, 0], "[1, 0]")],
)
def test_what_is_neither_true_nor_false_is_no_success_and_is_said(value: Any, shown: str) -> None:
    with pytest.warns(UserWarning, match=r"info\['is_success'\] is .*neither True nor False") as told:
        found = evaluate(lambda obs: obs, Says({"is_success": value}, {"is_success": value}), episodes=1).successes
    assert found is not None and not found.any() and shown in str(told[0].message)


def test_it_is_said_once_by_pythons_own_rule() -> None:
    program = """
import numpy as np
from rlhf_bilevel.evaluation.rollout import evaluate
from tests.evaluation.test_rollout import Says
evaluate(lambda obs: obs, Says(*[{"success": np.nan}] * 9), episodes=6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("neither True nor False") == 1


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
    def high(*within: tuple[float, float]) -> float:
        return Evaluation(np.array([-900.0, -10.0, -10.0]), None, *within).summary()["true_return"]["high"]

    assert high() > 0
    assert high((-1000, 0)) == 0
    assert high((-100, 0)) == high()


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        evaluate(lambda obs: obs, Count(reports=True), episodes=0)
