"""Odd but legal environments are learnt on, and what is stored is what happened; others are refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, RescaleAction

from rlhf_bilevel import Agent
from rlhf_bilevel.envs import episodes, registration
from rlhf_bilevel.errors import UserError
from tests.cli.test_cli import fails
from tests.conftest import SMALL

STEPS, LENGTH = 300, 60
VECTOR, UNIT = Box(-np.inf, np.inf, (2,), np.float32), Box(-1, 1, (1,), np.float32)


class Line(gymnasium.Env):
    """A point on a line that the first number of the action pushes; odd in what the arguments say.

    ``sees`` makes the observation of place and speed, ``says`` changes what a step returns. ``trace`` keeps what
    happened, in float64: place, speed, push and reward at each step of each episode.
    """

    trace: list[list[tuple[float, ...]]]

    def __init__(
        self,
        obs: gymnasium.Space = VECTOR,
        act: gymnasium.Space = UNIT,
        sees: Callable[[float, float], Any] = lambda x, v: np.array([x, v], np.float32),
        says: Callable[..., Any] = lambda *told: told,
        length: int = LENGTH,
    ) -> None:
        self.observation_space, self.action_space = obs, act
        self._sees, self._says, self._length = sees, says, length
        self.trace = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.x, self.v, self.t = float(self.np_random.normal()), 0.0, 0
        self.trace.append([])
        return self._sees(self.x, self.v), {}

    def step(self, action: Any) -> Any:
        before, push = (self.x, self.v), float(np.ravel(action)[0])
        self.v = 0.9 * self.v + 0.1 * float(np.clip(push, -1, 1))
        self.x, self.t = self.x + self.v, self.t + 1
        self.trace[-1].append((*before, push, -abs(self.x)))
        return self._says(self._sees(self.x, self.v), -abs(self.x), False, self.t >= self._length, {})


class InPlace(Line):
    """Gives one array that it moves, takes the action as its own memory, and has one info for all steps."""

    def __init__(self) -> None:
        super().__init__(sees=self._look)
        self._own, self._info = np.zeros(2, np.float32), dict[str, Any]()

    def _look(self, x: float, v: float) -> np.ndarray:
        self._own[:] = x, v
        return self._own

    def step(self, action: np.ndarray) -> Any:
        told = super().step(action)
        action *= 0
        self._info["at"] = self.t
        return *told[:4], self._info


class Named(Line):
    """Has attributes of its own by the names that other families use."""

    names, model, data, episode = ("x", "v", "push"), "a model", "some data", -7


class OldStep(Line):
    """Its step is of Gym before 0.26."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


class Old(OldStep):
    """Its reset too."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset(seed=0)[0]


def wrapped() -> gymnasium.Env:
    inner = RescaleAction(Line(act=Box(-3, 5, (1,), np.float32)), -1, 1)
    return FrameStackObservation(RecordEpisodeStatistics(inner), 3)


def dies(obs: Any, reward: float, terminated: bool, truncated: bool, info: dict) -> tuple:
    return obs, 1.0, bool(abs(obs[0]) > 1.5), truncated, info


def box(low: Any, high: Any, shape: Any = None, dtype: Any = np.float32) -> Box:
    return Box(
        np.array(low, dtype) if shape is None else low, np.array(high, dtype) if shape is None else high, shape, dtype
    )


LEARNT: dict[str, Callable[[], gymnasium.Env]] = {
    "plain": Line,
    "InPlace": InPlace,
    "Short": partial(Line, length=10),
    "OneStep": partial(Line, length=1),
    "Never": partial(Line, length=10**9),
    "Success": partial(Line, says=lambda o, *rest: (o, *rest[:3], {"is_success": np.array([abs(o[0]) < 5])})),
    "Terminates": partial(Line, says=dies, length=200),
    "Float64": partial(
        Line, box(-1e300, 1e300, (2,), np.float64), box(-1, 1, (1,), np.float64), lambda x, v: np.array([x, v])
    ),
    "ScalarObs": partial(Line, box(-np.inf, np.inf, ()), sees=lambda x, v: x),
    "MatrixObs": partial(Line, box(-np.inf, np.inf, (2, 1), np.float64), sees=lambda x, v: np.array([[x], [v]])),
    "ListObs": partial(Line, sees=lambda x, v: [x, v]),
    "IntObs": partial(Line, box(0, 1, (2,), np.int8), sees=lambda x, v: np.array([x > 0, v > 0], np.int8)),
    "ConstObs": partial(Line, sees=lambda x, v: np.ones(2, np.float32)),
    "BigAct": partial(Line, act=box(-1e6, 1e6, (1,))),
    "TinyAct": partial(Line, act=box(-1e-4, 1e-4, (1,))),
    "LopsidedAct": partial(Line, act=box([0, 100], [1, 300])),
    "RewardArray": partial(Line, says=lambda o, r, *rest: (o, np.array([r]), *rest)),
    "RewardInt": partial(Line, says=lambda o, r, *rest: (o, round(r), *rest)),
    "BigReward": partial(Line, says=lambda o, r, *rest: (o, r * 1e12, *rest)),
    "ZeroReward": partial(Line, says=lambda o, r, *rest: (o, 0.0, *rest)),
    "BothEnds": partial(Line, says=lambda o, r, te, tr, i: (o, r, tr, tr, i)),
    "NumpyTypes": partial(
        Line,
        says=lambda o, r, te, tr, i: (o, np.float64(r), np.bool_(te), np.array([tr]), {"success": np.array([False])}),
    ),
    "OwnWords": partial(
        Line, says=lambda *told: (*told[:4], {"fault": "none", "pose": 1, "set": 2, "success": np.nan})
    ),
    "Named": Named,
    "Wrapped": wrapped,
}
REFUSED: dict[str, tuple[Callable[[], gymnasium.Env], str]] = {
    "ZeroDimAct": (
        partial(Line, act=box(-1, 1, ())),
        r"TransformAction\(env, lambda a: a\[0\], Box\(-1, 1, \(1,\)\)\)",
    ),
    "MatrixAct": (partial(Line, act=box(-1, 1, (2, 2))), r"TransformAction\(env, lambda a: a.reshape\(2, 2\)"),
    "IntAct": (
        partial(Line, act=box(-3, 3, (2,), np.int64)),
        r"floats .* a.round\(\).astype\('int64'\), Box\(-3, 3, \(2,\)",
    ),
    "InfAct": (partial(Line, act=box(-np.inf, np.inf, (1,))), "bounded Box .*TransformAction"),
    "FarAct": (partial(Line, act=box(-3.4e38, 3.4e38, (2,))), r"action\[0\] reaches from -3.4e\+38 to 3.4e\+38"),
    "FarAct64": (
        partial(Line, act=box([-1, -1], [1, 1e300], dtype=np.float64)),
        r"action\[1\] reaches from -1 to 1e\+300",
    ),
    "FlatAct": (partial(Line, act=box([-1, 0], [1, 0])), r"action\[1\] is fixed, from 0 to 0"),
    "PointAct": (partial(Line, act=box([0.5, 2], [0.5, 2])), "actions are one point"),
    "Choices": (partial(Line, act=Discrete(2)), r"Discrete\(2\)"),
    "MoreChoices": (partial(Line, act=MultiDiscrete([2, 3])), "MultiDiscrete"),
    "DiscreteObs": (partial(Line, Discrete(3)), r"Discrete\(3\)"),
    "DictObs": (partial(Line, Dict(x=VECTOR)), "FlattenObservation"),
    "NoObs": (partial(Line, box(-1, 1, (0,))), "at least one number"),
    "Picture": (partial(Line, box(0, 255, (24, 24, 3), np.uint8)), "are pictures, .*TransformObservation"),
    "GreyPicture": (partial(Line, box(0, 255, (24, 24), np.uint8)), "are pictures"),
    "Film": (partial(Line, box(0, 255, (4, 24, 24, 3), np.uint8)), "are pictures"),
    "Old": (
        Old,
        r"reset\(seed=..., options=...\) must return \(observation, info\).*unexpected keyword argument 'seed'",
    ),
    "OldStep": (OldStep, "step must return .*, not 4 values"),
    "Six": (partial(Line, says=lambda *told: (*told, 6)), "step must return .*, not 6 values"),
    "One": (partial(Line, says=lambda *told: told[0]), r"step must return .*, not array\(.* \(ndarray\)"),
    "WrongShape": (partial(Line, sees=lambda x, v: np.zeros(3)), r"shape \(2,\), not \(3,\)"),
    "LaterWrongShape": (partial(Line, says=lambda o, *rest: (o[:1], *rest)), r"shape \(2,\), not \(1,\)"),
    "NoneObs": (partial(Line, sees=lambda x, v: None), r"an observation must be numbers, not None \(NoneType\)"),
    "TextObs": (partial(Line, sees=lambda x, v: ["1", "2"]), r"an observation must be numbers, not \['1', '2'\]"),
    "NoneReward": (partial(Line, says=lambda o, r, *rest: (o, None, *rest)), "a reward must be one number, not None"),
    "TextReward": (partial(Line, says=lambda o, r, *rest: (o, "1.5", *rest)), "a reward must be one number, not '1.5'"),
    "TwoRewards": (partial(Line, says=lambda o, r, *rest: (o, [r, r], *rest)), r"one number, not \[.*\] \(list\)"),
    "NoneEnd": (
        partial(Line, says=lambda o, r, te, *rest: (o, r, None, *rest)),
        "terminated must be True or False, not None",
    ),
    "TextEnd": (
        partial(Line, says=lambda o, r, te, tr, i: (o, r, te, "no", i)),
        "truncated must be True or False, not 'no'",
    ),
    "NoInfo": (partial(Line, says=lambda *told: (*told[:4], None)), "info must be a dict, not None"),
    "FarReward": (partial(Line, says=lambda o, r, *rest: (o, 1e39, *rest)), r"10 episodes .*: the reward is 1e\+39"),
    "LargeReward": (partial(Line, says=lambda o, r, *rest: (o, 3e38, *rest)), r"10 episodes .*: the reward is 3e\+38"),
    "NeverFinite": (
        partial(Line, sees=lambda x, v: np.array([v, np.nan])),
        "10 episodes .*: the observation holds nan",
    ),
}
for name, make in LEARNT.items():
    gymnasium.register(f"Learnt/{name}-v0", make)
for name, (make, _) in REFUSED.items():
    gymnasium.register(f"UserError/{name}-v0", make)
gymnasium.register("UserError/OldLimited-v0", OldStep, max_episode_steps=50)
REFUSED["OldLimited"] = (OldStep, r"step\(action\) must return .*not enough values to unpack")

TINY = SMALL | {
    "net_arch": (8,),
    "labels": 12,
    "queries_per_session": 4,
    "train_freq": 30,
    "n_eval_episodes": 1,
    "reset_updates": 1,
}


@pytest.mark.parametrize("name", LEARNT)
@pytest.mark.filterwarnings("ignore:step", "ignore:no queries")
def test_what_is_odd_and_legal_is_learnt_on_and_stored_as_it_happened(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes, "LONGEST", 100)
    told = {"Never": "cut after 100 steps", "OwnWords": r"info\['success'\] is nan"}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        length = {"segment_length": 1} if name == "OneStep" else {}
        agent = Agent("pebble", f"Learnt/{name}-v0", **TINY | length).learn(STEPS)
    assert (name in told) == any(part in str(line.message) for line in said for part in ("is cut after", "is nan"))
    store, env, labels = agent.run.store, agent.run.envs[0].unwrapped, len(agent.run.prefs)
    assert store.size == STEPS and torch.isfinite(store.table).all() and labels == 12
    x, v, push, reward = (torch.tensor(column).double() for column in zip(*chain(*env.trace), strict=True))
    lengths = [end - start for start, end in store.episodes()]
    assert lengths == [len(episode) for episode in env.trace]
    low, high = env.action_space.low.item(0), env.action_space.high.item(0)
    torch.testing.assert_close(2 * (push - low) / (high - low) - 1, store.act[:, 0].double(), rtol=1e-5, atol=1e-5)
    if name in ("Terminates", "RewardInt", "BigReward", "ZeroReward"):
        reward = {"Terminates": torch.ones_like, "RewardInt": torch.round, "BigReward": lambda r: r * 1e12,
                  "ZeroReward": torch.zeros_like}[name](reward)  # fmt: skip
    torch.testing.assert_close(store.env_reward.double(), reward, rtol=1e-5, atol=1e-5)
    if name not in ("ScalarObs", "IntObs", "ConstObs"):
        place, speed = (store.obs[:, -2], store.obs[:, -1])
        torch.testing.assert_close(torch.stack([place, speed]).double(), torch.stack([x, v]), rtol=1e-5, atol=1e-5)
        assert not (store.obs == store.next_obs).all(1).any()
    inside = torch.ones(STEPS, dtype=torch.bool)
    inside[[end - 1 for _, end in store.episodes()]] = False
    assert torch.equal(store.next_obs[:-1][inside[:-1]], store.obs[1:][inside[:-1]])


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:episode")
def test_what_cannot_be_learnt_on_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name][1]) as told:
        Agent("pebble", f"UserError/{name}-v0", **TINY).learn(STEPS)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"FarReward", "LargeReward", "NeverFinite"}))
def test_it_is_refused_before_a_run_has_begun(name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name][1]) as told:
        registration.check(f"UserError/{name}-v0", {})
    assert str(told.value).startswith(f"UserError/{name}-v0: ")


@pytest.mark.parametrize("name", [*LEARNT, "FarReward", "NeverFinite"])
def test_what_may_be_learnt_on_begins(name: str) -> None:
    registration.check(f"{'Learnt' if name in LEARNT else 'UserError'}/{name}-v0", {})


def test_the_command_line_says_so_in_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fails(capsys, *f"train pebble --env UserError/Old-v0 --steps 300 --out {tmp_path / 'run'}".split())
    assert told.startswith("rlhf-bilevel: UserError/Old-v0: reset") and not (tmp_path / "run").exists()
