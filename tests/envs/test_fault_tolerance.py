"""Environments that fail cost an episode, not the run, and nothing that is not finite gets past them."""

import os
import threading
import time
import warnings
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlhf_bilevel import Agent
from rlhf_bilevel.envs import fault_tolerance, registration
from rlhf_bilevel.envs.fault_tolerance import LIMIT, FaultTolerantEnv
from rlhf_bilevel.envs.interface import FAULT
from rlhf_bilevel.envs.subprocess import SubprocessEnv
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.rollout import evaluate
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.utils import child
from tests.conftest import SMALL, Steer, build


class Poisoned(Steer):
    """Steer that fails with a small probability a step, as ``fault`` says."""

    def __init__(self, fault: str = "obs", probability: float = 0.02) -> None:
        self.fault, self.probability = fault, probability

    def reset(self, **given: Any) -> tuple[np.ndarray, dict]:
        obs, info = super().reset(**given)
        if self.fault == "reset" and self.np_random.random() < 0.5:
            raise ConnectionError("the simulator is away")
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.np_random.random() < self.probability:
            match self.fault:
                case "obs":
                    obs = obs * np.nan
                case "huge":
                    obs = np.array([1e300])  # finite, but not as float32
                case "reward":
                    reward = float("inf")
                case "shape":
                    obs = np.zeros(3)
                case "none":
                    reward = None  # type: ignore[assignment]
                case "far":
                    reward = 1e39  # finite, but not as float32
                case "raise":
                    raise ZeroDivisionError("a bug in the simulator")
                case "sys.exit":
                    raise SystemExit(3)
                case "exit":
                    os._exit(3)
                case "hang":
                    time.sleep(60)
        return obs, reward, terminated, truncated, info


FAULTS = ("obs", "huge", "shape", "none", "far", "reward", "raise", "sys.exit", "reset")
for fault in (*FAULTS, "exit", "hang"):
    gymnasium.register(f"Poisoned-{fault}-v0", partial(Poisoned, fault))
gymnasium.register("Raising-v0", partial(Poisoned, "raise", 1.0))


def guarded(env_id: str, apart: bool = False) -> FaultTolerantEnv:
    return FaultTolerantEnv(lambda: isolated(env_id) if apart else registration.make(env_id, 0))


def poisoned(fault: str) -> FaultTolerantEnv:
    return guarded(f"Poisoned-{fault}-v0")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore:episode")
def test_nothing_that_is_not_finite_is_stored_and_the_run_comes_to_its_end(fault: str) -> None:
    run = build("pebble", total_timesteps=300)
    run.envs = [poisoned(fault)]
    assert len(list(train(run))) == 300
    store = run.store
    assert not (store.env_reward == 0).any()  # what stands in for the reward of a step that failed is not stored
    assert store.size == 300 and all(np.isfinite(column.numpy()).all() for column in store.columns().values())
    lengths = [end - start for start, end in store.episodes()]
    assert min(lengths) < 50 if fault != "reset" else max(lengths) == 50  # some were cut
    assert len(set(store.obs[[start for start, _ in store.episodes()], 0].tolist())) == len(lengths)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:episode")
def test_ten_thousand_poisoned_steps_store_no_row_that_is_not_finite() -> None:
    run = build("pebble", total_timesteps=10_000, train_freq=20)
    run.envs = [poisoned("obs")]
    assert len(list(train(run))) == 10_000
    assert all(np.isfinite(column.numpy()).all() for column in run.store.columns().values())


def test_a_failure_is_told_with_its_reason_and_the_next_episode_is_the_next_one() -> None:
    env = poisoned("raise")
    starts = []
    with pytest.warns(UserWarning, match="episode 0 is cut: ZeroDivisionError: a bug in the simulator"):
        for _ in range(5):
            starts.append(env.reset()[0].item())
            for _ in range(50):
                _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
                if terminated or truncated:
                    break
    plain = registration.make("Steer-v0", 0)
    assert starts == [plain.reset()[0].item() for _ in range(5)]


def test_an_environment_that_always_fails_stops_the_run_with_the_first_traceback() -> None:
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=f"{LIMIT} episodes in a row failed") as told:
        env = guarded("Raising-v0")
        for _ in range(2 * LIMIT):
            env.reset()
            env.step(np.zeros(1, np.float32))
    assert "a bug in the simulator" in str(told.value) and "in step" in str(told.value)


@pytest.mark.filterwarnings("ignore:episode")
def test_a_clean_episode_starts_the_count_of_failures_anew() -> None:
    env, failures = poisoned("raise"), 0
    for _ in range(80):
        env.reset()
        for _ in range(50):
            *_, truncated, info = env.step(np.zeros(1, np.float32))
            failures += FAULT in info
            if truncated:
                break
    assert failures > 2 * LIMIT


def test_an_episode_that_fails_in_an_evaluation_is_replaced() -> None:
    found = []
    for fault in ("obs", "raise"):
        with pytest.warns(UserWarning, match="is cut"):
            found.append(evaluate(lambda obs: np.zeros(1, np.float32), poisoned(fault), 8).returns)
    assert np.isfinite(found[0]).all()
    assert np.array_equal(*found)  # the same episodes fail, and none of them counts


def isolated(env_id: str, timeout: float = 20.0) -> SubprocessEnv:
    return SubprocessEnv(partial(registration.make, env_id, 0), env_id, timeout)


def rollout(env: Any, episodes: int) -> list[float]:
    seen = []
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        obs, done = env.reset()[0], False
        seen += obs.tolist()
        while not done:
            obs, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 1).astype(np.float32))
            done = terminated or truncated
            seen += [*obs.tolist(), reward]
    return seen


def test_an_environment_in_a_process_of_its_own_says_the_same_bit_for_bit() -> None:
    env = isolated("Steer-v0")
    assert rollout(env, 3) == rollout(registration.make("Steer-v0", 0), 3)
    assert env.observation_space == registration.make("Steer-v0", 0).observation_space and env.episode == 3
    assert env.limit is None
    env.close()


@pytest.mark.parametrize(
    ("fault", "timeout", "told"),
    [pytest.param("exit", 20.0, "ended with code 3", marks=pytest.mark.slow), ("hang", 0.3, "0.3 s")],
)
def test_one_that_ends_its_process_or_hangs_is_replaced(fault: str, timeout: float, told: str) -> None:
    env = FaultTolerantEnv(lambda: isolated(f"Poisoned-{fault}-v0", timeout))
    with pytest.warns(UserWarning, match=told):
        env.reset()
        info: dict = {}
        while FAULT not in info:
            *_, truncated, info = env.step(np.zeros(1, np.float32))
            if truncated and FAULT not in info:
                env.reset()
    first = env.env._child._process  # type: ignore[attr-defined]
    assert first.is_alive() and env.reset()[0].shape == (1,)
    env.close()
    assert not first.is_alive()


@pytest.mark.slow
def test_a_run_with_a_timeout_equals_one_without(tmp_path: Any) -> None:
    def learnt(**settings: Any) -> bytes:
        agent = Agent("pebble", "Steer-v0", **(SMALL | {"train_freq": 5} | settings)).learn(120)
        assert agent.run is not None
        return agent.run.store.obs.numpy().tobytes()

    assert learnt(env_timeout=20.0) == learnt()


class Wordy(Steer):
    """Tells of a fault in every info, and of what no other process can have."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        warnings.warn("the simulator says so", stacklevel=1)
        return *super().step(action)[:4], {"fault": "none", "success": True, "lock": threading.Lock()}


class Shaped(Steer):
    def reset(self, **given: Any) -> tuple[np.ndarray, dict]:
        return np.zeros(3), super().reset(**given)[1]


gymnasium.register("Wordy-v0", Wordy)
gymnasium.register("Shaped-v0", Shaped)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_what_an_environment_says_is_the_same_from_another_process(apart: bool) -> None:
    """Its own word for a fault is none, its warnings are heard, and what cannot be sent is left out."""
    env = guarded("Wordy-v0", apart)
    env.reset()
    with pytest.warns(UserWarning, match="the simulator says so"):
        *_, info = env.step(np.zeros(1, np.float32))
    assert (info["fault"], info["success"], "lock" in info, FAULT in info) == ("none", True, not apart, False)
    env.close()


@pytest.mark.parametrize("apart", [False, True])
def test_a_wrong_shape_at_the_start_is_refused_at_once(apart: bool) -> None:
    env = guarded("Shaped-v0", apart)
    told = r"^an observation must have the shape \(1,\), not \(3,\)$"
    with warnings.catch_warnings(), pytest.raises(UserError, match=told):
        warnings.simplefilter("error")
        env.reset()
    env.close()


@pytest.mark.slow
def test_a_failure_in_another_process_has_one_line_and_its_traceback_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_tolerance, "LIMIT", 1)
    env = guarded("Raising-v0", apart=True)
    env.reset()
    with pytest.raises(RuntimeError, match=r"(?s)1 episodes in a row.*in step.*ZeroDivisionError: a bug") as told:
        env.step(np.zeros(1, np.float32))
    assert child.error_line(told.value.__cause__) == "ZeroDivisionError: a bug in the simulator"  # type: ignore[arg-type]
    env.close()


def test_an_environment_that_cannot_be_made_anew_at_once_is_tried_again() -> None:
    made = iter([None, OSError("no free port"), None, *[OSError("no free port")] * LIMIT])

    def make() -> Any:
        if error := next(made):
            raise error
        return registration.make("Raising-v0", 0)

    env = FaultTolerantEnv(make)
    env.reset()
    with pytest.warns(UserWarning, match=r"episode 0 is cut|could not be made anew: OSError: no free port") as told:
        env.step(np.zeros(1, np.float32))
    assert len(told) == 2 and env.episode == 1 and np.isfinite(env.reset()[0]).all()
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=f"{LIMIT} episodes in a row"):
        env.step(np.zeros(1, np.float32))
