"""An episode is a function of (seed, stream, episode); names resolve; what cannot be trained on is refused."""

import random
import re
import subprocess
import sys
import warnings
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from rlhf_bilevel.envs import episodes, registration
from rlhf_bilevel.envs.episodes import SeededEpisodes
from rlhf_bilevel.envs.interface import ABSORBED, NotFiniteError, space_problem
from rlhf_bilevel.envs.registration import entry_names, make, resolve
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import SUITES

FAMILIES = [
    "Pendulum-v1",
    "dm_control/walker-walk-v0",
    "dm_control/cartpole-swingup-v0",
    "dm_control/reacher-easy-v0",
    "dm_control/quadruped-escape-v0",
    "Meta-World/door-open-v3",
    "Meta-World/push-v3",
]


def play(env: gymnasium.Env, steps: int = 25) -> np.ndarray:
    """One episode under fixed actions, (steps + 1, o + 1): observations beside rewards."""
    rng = np.random.default_rng(0)
    rows = [np.append(env.reset()[0], 0.0)]
    for _ in range(steps):
        obs, reward, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        rows.append(np.append(obs, reward))
    return np.array(rows)


@pytest.mark.filterwarnings("ignore:.*results are not comparable")
@pytest.mark.parametrize("name", SUITES.ours)
def test_a_suite_makes_its_tasks_by_all_their_names(name: str) -> None:
    suite = SUITES[name]
    tasks = list(suite.tasks())
    assert len(tasks) == len(set(tasks)) > 0 and set(suite.aliases().values()) <= set(tasks)
    for called, task in [(f"{name}/{tasks[0]}", tasks[0]), *list(suite.aliases().items())[:3]]:
        assert resolve(called) == f"{name}/{task}"
    env, again = make(f"{name}/{tasks[0]}", seed=0), make(f"{name}/{tasks[0]}", seed=0)
    rows = play(env)
    assert np.isfinite(rows).all() and np.array_equal(rows, play(again)) and not np.array_equal(rows, play(env))
    assert len(entry_names(env)) == env.observation_space.shape[0] + env.action_space.shape[0]


@pytest.mark.parametrize("env_id", FAMILIES)
def test_used_env_equals_fresh_env(env_id: str) -> None:
    used, fresh = make(env_id, seed=3), make(env_id, seed=3)
    first = [play(used, steps) for steps in (30, 60)]
    assert not np.array_equal(first[0][0], first[1][0])
    fresh.set_wrapper_attr("episode", 2)
    np.testing.assert_array_equal(play(used), play(fresh))
    used.set_wrapper_attr("episode", 0)
    np.testing.assert_array_equal(play(used, 30), first[0])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "dm_control/walker-walk-v0", "Meta-World/door-open-v3"])
def test_seed_stream_and_episode_each_matter_and_nothing_else_does(env_id: str) -> None:
    np.random.seed(0)
    random.seed(0)
    before = repr(np.random.get_state()), random.getstate()
    env = make(env_id, seed=0)
    starts = [play(env, 3) for _ in range(2)] + [play(make(env_id, 1), 3), play(make(env_id, 0, stream=1), 3)]
    assert len({start.tobytes() for start in starts}) == 4
    assert (repr(np.random.get_state()), random.getstate()) == before
    np.random.seed(1)
    other = make(env_id, seed=0)
    other.reset(seed=7)  # as Stable-Baselines3 does: the first reset is still episode 0
    np.testing.assert_array_equal(play(other, 3), starts[1])


def test_resets_leave_the_action_space_alone() -> None:
    env = make("Meta-World/door-open-v3", seed=0)
    env.action_space.seed(0)
    draws = []
    for _ in range(2):
        env.reset()
        draws.append(env.action_space.sample())
    assert not np.array_equal(draws[0], draws[1])


@pytest.mark.parametrize("env_id", FAMILIES)
def test_observations_are_flat_float32_and_actions_bounded(env_id: str) -> None:
    env = make(env_id, seed=0)
    obs, _ = env.reset()
    assert isinstance(env.observation_space, Box) and env.observation_space.contains(obs)
    assert obs.dtype == env.observation_space.dtype == np.float32 and obs.ndim == 1
    assert isinstance(env.action_space, Box) and env.action_space.is_bounded() and len(env.action_space.shape) == 1
    obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs) and isinstance(reward, float)
    assert (terminated, truncated) == (False, False)


@pytest.mark.parametrize("env_id, length", [("cartpole_balance", 1000), ("Meta-World/reach-v3", 500)])
def test_episodes_are_cut_off_at_their_length(env_id: str, length: int) -> None:
    env = make(env_id, seed=0)
    env.reset()
    ends = [env.step(np.zeros(env.action_space.shape, np.float32))[2:4] for _ in range(length)]
    assert ends == [(False, False)] * (length - 1) + [(False, True)]


def test_dm_control_is_stepped_as_it_is_by_itself() -> None:
    from dm_control import suite

    env, plain = make("quadruped_walk", seed=0), suite.load("quadruped", "walk")
    obs, _ = env.reset()
    draw = np.random.SeedSequence([0, 0, 0]).generate_state(1)
    plain.task.random.seed(int(draw[0]))
    timestep = plain.reset()
    spec = plain.action_spec()
    assert env.metadata["render_fps"] == 50
    for unit in (-1.0, 0.25, 1.0):
        np.testing.assert_array_equal(obs, np.hstack([*timestep.observation.values()]).astype(np.float32))
        obs, reward, *_ = env.step(np.full(12, unit, np.float32))
        timestep = plain.step(spec.minimum + (spec.maximum - spec.minimum) * (unit + 1) / 2)
        assert reward == pytest.approx(timestep.reward, rel=1e-9)


def test_goal_is_hidden_in_bpref_and_visible_and_random_in_mt1() -> None:
    hidden, visible = (make("Meta-World/door-open-v3", 0, protocol=name) for name in ("bpref", "mt1"))
    goals = []
    for _ in range(3):
        seen, unseen = visible.reset()[0], hidden.reset()[0]
        np.testing.assert_array_equal(seen[:-3], unseen[:-3])  # the same episode, but for the goal
        np.testing.assert_allclose(seen[-3:], visible.unwrapped._target_pos, rtol=1e-6)
        assert not unseen[-3:].any()
        goals.append(tuple(seen[-3:]))
        for env, start in ((visible, seen), (hidden, unseen)):
            np.testing.assert_array_equal(env.step(np.zeros(4, np.float32))[0][-3:], start[-3:])
    assert len(set(goals)) == 3
    assert "success" in hidden.step(np.zeros(4, np.float32))[4]


def test_names() -> None:
    from dm_control.suite import ALL_TASKS
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert resolve("Pendulum-v1") == resolve("gymnasium:Pendulum-v1").removeprefix("gymnasium:") == "Pendulum-v1"
    for domain, task in ALL_TASKS:
        canonical = f"dm_control/{domain}-{task}-v0"
        assert resolve(f"{domain}_{task}") == resolve(f"{domain}-{task}-v0") == resolve(canonical) == canonical
    for task in ALL_V3_ENVIRONMENTS:
        canonical = f"Meta-World/{task}"
        assert resolve(task) == resolve(f"metaworld_{task}") == resolve(canonical) == canonical
    for old in ("metaworld_door-open-v2", "door-open-v2"):
        with pytest.warns(UserWarning, match="not comparable"):
            assert resolve(old) == "Meta-World/door-open-v3"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve("door-open-v3")


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("walker_wlak", "dm_control/walker-walk-v0"),
        ("dm_control/walker_walk", "dm_control/walker-walk-v0"),
        ("metaworld_dor-open-v3", "Meta-World/door-open-v3"),
        ("pendulum-v1", "Pendulum-v1"),
        ("no_such_module:Pendulum-v1", "no_such_module"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(wrong)
    assert wrong in str(caught.value) and right in str(caught.value) and "\n" not in str(caught.value)


class Odd(gymnasium.Env):
    """An env whose spaces are given."""

    def __init__(self, obs: gymnasium.Space, act: gymnasium.Space, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = obs, act

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.random(self.observation_space.shape), {}


BOX = Box(-1, 1, (2, 3), np.float64)
UNIT = Box(-1, 1, (2,))


def test_boxes_of_any_shape_and_type_become_flat_float32() -> None:
    env = SeededEpisodes(Odd(BOX, UNIT), seed=0, stream=0)
    obs, _ = env.reset()
    assert env.observation_space == Box(-1, 1, (6,), np.float32) and obs.shape == (6,) and obs.dtype == np.float32


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="protocol 'mt2'"):
        make("Pendulum-v1", 0, protocol="mt2")
    with pytest.raises(ValueError, match="render_mode 'human'"):
        make("Pendulum-v1", 0, render_mode="human")
    with pytest.raises(ValueError, match="-1"):
        make("Pendulum-v1", -1)
    with pytest.raises(ValueError, match="bounded"):
        make("lqr_lqr_2_1", 0)


def test_resolving_loads_no_simulator_and_training_no_opengl() -> None:
    program = """
import os, sys
from rlhf_bilevel.envs.registration import make, resolve
resolve("walker_walk"), resolve("door-open-v3")
assert not {"torch", "mujoco", "dm_control", "metaworld"} & set(sys.modules)
before = dict(os.environ)
make("quadruped_escape", 0).reset(), make("door-open-v3", 0).reset()  # both simulators in one process
assert os.environ == before and not {"OpenGL", "mujoco.egl"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pictures_are_drawn_or_the_hint_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    for env_id in ("walker_walk", "door-open-v3"):
        try:
            env = make(env_id, 0, render_mode="rgb_array")
        except RuntimeError as error:
            assert "apt-get" in str(error) and "\n" not in str(error)
        else:
            env.reset()
            frame = env.render()
            assert isinstance(frame, np.ndarray) and frame.shape == (480, 480, 3) and frame.std() > 10
            env.close()


class Counter(gymnasium.Env):
    """Pays what it is told to, changes the action that it gets, and succeeds, in SB3's word, at its third step."""

    observation_space, action_space = UNIT, UNIT

    def __init__(self, pays: float = 1.0) -> None:
        self.pays, self.pushed = pays, list[float]()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        self.pushed.append(float(action[0]))
        action /= 2
        return np.full(2, self.t / 10, np.float32), self.pays, False, False, {"is_success": self.t == 3}


gymnasium.register("Counter-v0", Counter)
gymnasium.register("Pays-v0", partial(Counter, 8e29))
gymnasium.register("Bounded-v0", Counter, max_episode_steps=12)


def test_a_repeated_action_is_the_same_each_time_and_any_success_counts() -> None:
    env = make("Counter-v0", 0, action_repeat=4)
    env.reset()
    action = np.array([0.5, 0.5], np.float32)
    obs, reward, *_, info = env.step(action)
    assert env.unwrapped.pushed == [0.5] * 4 and action.tolist() == [0.5, 0.5]  # type: ignore[attr-defined]
    assert reward == 4.0 and obs[0] == np.float32(0.4) and info["success"] is True
    assert env.step(action)[4]["success"] is False
    assert "success" not in make("Pendulum-v1", 0, action_repeat=2).reset()[1]


def test_rewards_that_are_too_large_together_are_refused() -> None:
    once, twice = make("Pays-v0", 0), make("Pays-v0", 0, action_repeat=2)
    for env in (once, twice):
        env.reset()
    assert once.step(np.zeros(2, np.float32))[1] == 8e29
    with pytest.raises(NotFiniteError, match=r"the reward is 1.6e\+30"):
        twice.step(np.zeros(2, np.float32))


def length(env: gymnasium.Env, most: int) -> int:
    env.reset()
    return next((t for t in range(1, most + 1) if env.step(np.zeros(2, np.float32))[3]), 0)


def test_an_episode_without_a_time_limit_is_cut_and_one_with_its_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "LONGEST", 10)
    for repeat, expected in ((1, 10), (4, 3)):  # steps of the environment itself
        with pytest.warns(UserWarning, match=r"cut after 10 steps.*max_episode_steps"):
            env = make("Counter-v0", 0, action_repeat=repeat)
            assert [length(env, 20) for _ in range(2)] == [expected] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert length(make("Bounded-v0", 0), 20) == 12
        assert length(SeededEpisodes(gymnasium.wrappers.TimeLimit(gymnasium.make("Counter-v0"), 12), 0, 0), 20) == 12


def test_wrappers_that_a_refusal_names_do_help(monkeypatch: pytest.MonkeyPatch) -> None:
    for act in (Box(-1, 1, ()), BOX, Box(0, 9, (2,), np.int64), Box(-np.inf, np.inf, (3,)), Box(-3.4e38, 3.4e38, (2,))):
        env = Odd(UNIT, act)
        told = space_problem(UNIT, act)
        found = re.search(r"gymnasium\.wrappers\.TransformAction\(env, .*\)(?= helps| sets)", told or "")
        assert found, told
        helped = eval(found.group(), {"gymnasium": gymnasium, "env": env, "Box": Box})
        assert space_problem(UNIT, helped.action_space) is None
        given = helped.func(helped.action_space.sample())
        assert np.shape(given) == act.shape and np.asarray(given).dtype.kind == act.dtype.kind


def fails(error: type[Exception], *args: Any, **kwargs: Any) -> gymnasium.Env:
    raise error("box2d is missing:\npip install it")


MISSING, BUG = "box2d is missing: pip install it$", r"{}: .*test_registration.py, line \d+"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (partial(fails, gymnasium.error.DependencyNotInstalled), MISSING),
        (partial(fails, ModuleNotFoundError), MISSING),
        (partial(fails, ImportError), MISSING),
        (partial(fails, TypeError), BUG.format("TypeError")),
        (partial(fails, KeyError), BUG.format("KeyError")),
        (lambda: 3, "must inherit from the gymnasium.Env class"),
        (lambda goal: None, "missing 1 required positional argument: 'goal'"),
        ("tests.envs.test_registration:Nothing", "has no attribute 'Nothing'"),
        ("no_such_module:Nothing", "No module named 'no_such_module'"),
    ],
)
def test_what_is_registered_and_makes_no_environment_is_refused_in_one_line_with_its_cause(
    entry: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Wrong-v0", entry_point=entry)
    monkeypatch.setitem(gymnasium.registry, "Wrong-v0", spec)
    with pytest.raises(UserError, match=f"^Wrong-v0 cannot be made: .*{told}") as caught:
        make("Wrong-v0", 0)
    assert "\n" not in str(caught.value)
    assert not isinstance(entry, partial) or type(caught.value.__cause__) is entry.args[0]


def test_names_are_not_taken_from_an_attribute_of_the_users() -> None:
    env = make("Counter-v0", 0)
    env.unwrapped.names = ["x", "v", "push"]  # type: ignore[attr-defined]
    assert registration.entry_names(env) == ["obs[0]", "obs[1]", "act[0]", "act[1]"]


class Pole(gymnasium.Env):
    """Falls, which ends the episode for good, when it has been pushed by more than 3 altogether."""

    observation_space = Box(1, 9, (2, 1), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 5 + self.np_random.uniform(-1, 1)
        return np.full((2, 1), self.x), {}

    def step(self, action):
        self.x += action[0]
        return np.full((2, 1), np.clip(self.x, 1, 9)), self.x, abs(self.x - 5) > 3, False, {}


gymnasium.register("Pole-v0", entry_point=Pole, max_episode_steps=60)
gymnasium.register("Endless-v0", entry_point=Pole)


def test_absorbed_episodes_stay_where_they_ended_until_the_limit_and_pay_nothing() -> None:
    plain, absorbing = (make("Pole-v0", 0, action_repeat=2, absorb=absorb) for absorb in (False, True))
    assert absorbing.observation_space.shape == (3,)
    for push in (0.2, -0.4):  # falls sooner or later
        action = np.full(1, push, np.float32)
        obs, same, ends, step = plain.reset()[0], absorbing.reset()[0], [False, False], 0
        while not ends[0]:
            assert np.array_equal(same, np.append(obs, 0)) and same in absorbing.observation_space
            obs, reward, *ends, _ = plain.step(action)
            same, paid, *others, info = absorbing.step(action)
            step += 1
            assert paid == reward and others == [False, False] and (ABSORBED in info) == ends[0]
        assert 1 < step < 30 and same.dtype == np.float32
        while not others[1]:
            assert np.array_equal(same, [0, 0, 1]) and same in absorbing.observation_space
            same, paid, *others, info = absorbing.step(action)
            step += 1
            assert paid == 0 and not others[0] and info == {ABSORBED: True}
        assert step == 30  # 60 steps of the simulator
    assert entry_names(absorbing) == ["obs[0]", "obs[1]", "obs[2]", "act[0]"]
    assert entry_names(make("dm_control/cartpole-balance-v0", 0, absorb=True))[-2:] == ["absorbed", "slide"]


def test_absorbing_needs_a_time_limit() -> None:
    with pytest.raises(ValueError, match="termination=absorb needs a time limit, and Endless-v0 tells none"):
        make("Endless-v0", 0, absorb=True)


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [("Pole-v0", 60), ("dm_control/walker-walk-v0", 1000), ("Meta-World/door-open-v3", 500), ("Endless-v0", None)],
)
def test_the_time_limit_is_known_where_the_environment_tells(env_id: str, limit: int | None) -> None:
    env: Any = make(env_id, 0, action_repeat=2)
    assert env.limit == limit
