"""A learnt reward in one file, and plain environments that pay it."""

import json
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from safetensors.torch import load, save
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

import rlhf_bilevel
from rlhf_bilevel import Agent, LearnedReward, LearnedRewardVecEnvWrapper, LearnedRewardWrapper
from rlhf_bilevel.config.presets import BPREF
from rlhf_bilevel.envs import registration
from rlhf_bilevel.envs.interface import NotFiniteError
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.rewards import reward_file
from tests.conftest import SMALL, Steer
from tests.integration.test_strangers import Canary


class Wide(Steer):
    """Steer with observations of an unusual shape, and actions of float64 from -3 to 1; it reuses its memory."""

    observation_space = Box(-2, 2, (1, 2, 1), np.float64)
    action_space = Box(-3, 1, (1,), np.float64)
    memory = np.zeros((1, 2, 1))
    acted: ClassVar[list[np.ndarray]] = []
    """By all of them."""

    def _seen(self) -> np.ndarray:
        self.memory[:] = self.x[0]
        return self.memory

    def reset(self, **given: Any) -> tuple[np.ndarray, dict]:
        super().reset(**given)
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.acted.append(action.copy())
        _, *told = super().step((action + 1) / 2)
        action[:] = 99
        return self._seen(), *told


class Falls(Steer):
    """Ends for good after three steps to the right."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, bool(self.x[0] > 1), truncated, info


gymnasium.register("Wide-v0", Wide)
gymnasium.register("Falls-v0", Falls, max_episode_steps=30)
QUICK = SMALL | {"eval_freq": 10_000}


def trained(path: Path, env_id: str, method: str = "pebble", **settings: Any) -> Agent:
    return Agent(method, env_id, out=path, **QUICK | settings).learn(settings.get("total_timesteps", 300))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """Its reward prefers the right: enough to learn on."""

    def right(queries: Any) -> Any:
        first, second = (part.obs[..., 0].sum(-1) for part in queries)
        return rlhf_bilevel.types.Preferences(*queries, label=(first > second).float())

    out = tmp_path_factory.mktemp("runs") / "right"
    settings = QUICK | {"reward_epochs": 40, "labels": 60} | BPREF
    return Agent("pebble", "Steer-v0", teacher=right, out=out, **settings).learn(400)


@pytest.fixture(scope="module")
def folder(agent: Agent) -> Path:
    assert agent.out is not None
    return agent.out


@pytest.mark.parametrize(
    "settings",
    [
        {"pessimism": 0.5, "reward_clip": True, "action_repeat": 2, "pessimism_from": "start"},
        {"reward_form": "quadratic", "termination": "nonnegative"},
        {"reward_form": "additive", "reward_lasso": 0.1, "reward_lr": 0.01},
        {},
    ],
)
def test_the_wrapped_environment_pays_what_training_gave_its_learners_bit_for_bit(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """For the very observations, in an unusual shape, and actions, in float64, of a run: one step at a time, as a
    batch of another size differs in its last bits."""
    Wide.acted.clear()
    own = {"options": {"n_steps": 64}} | settings
    agent = Agent("prefppo", "Wide-v0", **QUICK | own).learn(300)
    agent.save(tmp_path / "run")
    run = agent.run
    assert run is not None and run.reward.unit.ne(1).any()
    repeat = settings.get("action_repeat", 1)
    env = LearnedRewardWrapper(gymnasium.make("Wide-v0"), tmp_path / "run")
    signal, scaled = run.store.learned(run.reward), set[float]()
    acted = Wide.acted[: repeat * run.store.size : repeat]
    paid, rows = list[float](), list[float]()
    starts = run.store.index()["starts"].tolist()
    for row in range(100):
        if row in starts:
            seed = np.random.SeedSequence([0, 0, starts.index(row)]).generate_state(1)
            obs, _ = env.reset(seed=int(seed[0]))
        assert np.array_equal(obs.ravel().astype(np.float32), run.store.obs[row])
        obs, reward, *_, info = env.step(acted[row])
        paid.append(reward)
        rows.append(signal(torch.tensor([row])).item())
        scaled.add(run.store.act[row].item())
        assert info["true_reward"] == pytest.approx(run.store.env_reward[row].item(), rel=1e-6)
    assert paid == rows and len(scaled) > 50 and np.std(paid) > 0
    assert env.learned.info.pessimism == run.reward.pessimism == settings.get("pessimism", 0)


def test_a_vector_of_environments_pays_the_same_all_at_once(folder: Path, agent: Agent) -> None:
    venv = LearnedRewardVecEnvWrapper(DummyVecEnv([Steer] * 3), folder)
    venv.seed(0)
    obs = venv.reset()
    assert agent.reward is not None
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(120):
        act = rng.uniform(-1, 1, (3, 1)).astype(np.float32)
        with torch.no_grad():
            scaled = torch.from_numpy(2 * ((act + 1) / 2) - 1)  # as Stable-Baselines3 has it: not act, in its last bits
            expected = agent.reward(torch.from_numpy(obs), scaled).numpy()
        seen = obs.copy()
        obs, reward, dones, infos = venv.step(act)
        assert np.array_equal(reward, expected) and reward.dtype == np.float32
        truth = 1 - np.abs(np.clip(seen + 0.2 * act, -2, 2) - 0.5)[:, 0]
        assert np.allclose([info["true_reward"] for info in infos], truth, atol=1e-5)
        ended += dones.sum()
    assert ended == 6  # and the first reward of each new episode is of its own first observation


def pushes_right(model: Any, env: gymnasium.Env) -> float:
    """Where episodes end on average."""
    ends = []
    for seed in range(5):
        obs, over = env.reset(seed=seed)[0], False
        while not over:
            obs, _, terminated, truncated, _ = env.step(model.predict(obs, deterministic=True)[0])
            over = terminated or truncated
        ends.append(obs[0])
    return float(np.mean(ends))


@pytest.mark.slow
def test_plain_sb3_sac_and_ppo_learn_on_it(folder: Path) -> None:
    """The environment itself pays most at 0.5, the learnt reward at the right end, 2."""
    env = LearnedRewardWrapper(Steer(), folder)
    sac = SAC("MlpPolicy", env, learning_rate=3e-3, learning_starts=100, batch_size=64, gamma=0.9, seed=0,
              policy_kwargs={"net_arch": [16, 16]}).learn(1000)  # fmt: skip
    assert pushes_right(sac, Steer()) > 1.5
    venv = VecNormalize(VecMonitor(LearnedRewardVecEnvWrapper(DummyVecEnv([Steer] * 4), folder)), norm_obs=False)
    ppo = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, learning_rate=3e-3, gamma=0.9, seed=0).learn(5000)
    assert pushes_right(ppo, Steer()) > 1.5


def test_a_bare_loop_learns_on_it(folder: Path) -> None:
    """Random search for the slope and the level of a linear policy, by the learnt return."""
    env, rng = LearnedRewardWrapper(Steer(), folder), np.random.default_rng(0)

    def returned(policy: np.ndarray) -> float:
        obs, total, over = env.reset(seed=0)[0], 0.0, False
        while not over:
            act = np.clip(policy[:1] * obs + policy[1:], -1, 1)
            obs, reward, terminated, truncated, _ = env.step(act)
            total, over = total + reward, terminated or truncated
        return total

    best = max((rng.normal(size=2) for _ in range(30)), key=returned)
    assert returned(best) > returned(-best)
    unwrapped: Any = env.unwrapped
    assert unwrapped.x[0] < 0  # the worst one goes to the left
    assert returned(best) and unwrapped.x[0] > 1


def test_one_file_is_all_that_is_needed(folder: Path, tmp_path: Path, agent: Agent) -> None:
    """In another process, which knows neither the run nor its environment."""
    LearnedReward.load(folder).save(tmp_path / "handed_on.safetensors")
    obs, act = np.linspace(-2, 2, 7)[:, None], np.linspace(1, -1, 7)[:, None]
    program = (
        "import sys; import rlhf_bilevel; assert 'torch' not in sys.modules;"
        "import numpy as np; from rlhf_bilevel import LearnedReward;"
        f"reward = LearnedReward.load({str(tmp_path / 'handed_on.safetensors')!r});"
        f"print(reward(np.array({obs.tolist()}), np.array({act.tolist()})).tolist(), reward.info.env)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert agent.reward is not None
    with torch.no_grad():
        expected = agent.reward(torch.tensor(obs).float(), torch.tensor(act).float())
    assert told == f"{expected.tolist()} Steer-v0\n"
    assert (tmp_path / "handed_on.safetensors").read_bytes() == (folder / "reward.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        LearnedReward.load(folder).save(tmp_path / "handed_on.safetensors")


def test_members_and_their_spread_can_be_seen(folder: Path) -> None:
    reward = LearnedReward.load(folder)
    obs, act = np.random.default_rng(0).uniform(-1, 1, (2, 4, 5, 1))
    members = reward(obs, act, members=True)
    assert members.shape == (3, 4, 5) and np.allclose(members.mean(0), reward(obs, act), atol=1e-6)
    assert np.allclose(members.std(0), reward.std(obs, act)) and reward.std(obs, act).min() > 0
    assert reward(obs[0, 0], act[0, 0]).shape == ()


def test_actions_outside_the_bounds_count_as_the_nearest_inside(folder: Path) -> None:
    reward = LearnedReward.load(folder)
    assert np.array_equal(reward([[0.3]], [[7.0]]), reward([[0.3]], [[1.0]]))


def test_a_saved_agent_is_a_reward_too_and_so_is_what_fit_reward_writes(
    folder: Path, tmp_path: Path, agent: Agent
) -> None:
    from rlhf_bilevel.studies.offline_fit import fit_reward

    agent.save(tmp_path / "saved")
    Agent.load(tmp_path / "saved").save(tmp_path / "again")
    for saved in ("saved", "again"):
        assert (tmp_path / saved / "reward.safetensors").read_bytes() == (folder / "reward.safetensors").read_bytes()
    settings = {"reward_net_arch": 16, "reward_epochs": 3, "n_eval_episodes": 1, "termination": "nonnegative"}
    fitted = fit_reward(folder, "Steer-v0", **settings)
    fitted.write(tmp_path / "fitted")
    reward = LearnedReward.load(tmp_path / "fitted")
    obs = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    with torch.no_grad():
        expected = fitted.reward(torch.from_numpy(obs), torch.from_numpy(obs)).numpy()
    assert np.array_equal(reward(obs, obs), expected) and reward(obs, obs).min() >= 0
    assert reward.info.labels == fitted.report["labels"]["train"]


def test_what_does_not_fit_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    reward = LearnedReward.load(folder)
    trained(tmp_path / "repeated", "Steer-v0", action_repeat=2)
    repeated = tmp_path / "repeated"

    class Chosen(Steer):
        action_space = Discrete(3)  # type: ignore[assignment]

    class Narrow(Steer):
        action_space = Box(-0.5, 0.5, (1,), np.float32)

    def vector(env: Any = Steer) -> DummyVecEnv:
        return DummyVecEnv([env])

    for make, told in {
        lambda: LearnedRewardWrapper(Wide(), reward): "observations of 1 numbers, and these have 2",
        lambda: LearnedRewardWrapper(Chosen(), reward): r"actions Box\(-1.0, 1.0.*these are Discrete\(3\)",
        lambda: LearnedRewardWrapper(Narrow(), reward): r"actions Box\(-1.0, 1.0.*these are Box\(-0.5",
        lambda: LearnedRewardVecEnvWrapper(vector(Narrow), reward): r"actions Box\(-1.0, 1.0.*these are Box\(-0.5",
        lambda: LearnedRewardWrapper(
            registration.make("Steer-v0", 0, action_repeat=3), repeated
        ): "=2, and the .* has 3",
        lambda: LearnedRewardWrapper(registration.make("Steer-v0", 0, action_repeat=3), reward): "=1, and the .* has 3",
        lambda: LearnedRewardVecEnvWrapper(vector(), repeated): "has 1: put LearnedRewardWrapper around each",
        lambda: LearnedRewardWrapper(Steer(), tmp_path / "nothing"): "cannot be read",
        lambda: LearnedRewardWrapper(Steer(), tmp_path): "is not a run's folder",
        lambda: reward([[0.0, 1.0]], [[0.0]]): "observations of 1 numbers",
        lambda: reward([0.0, 1.0], [[0.0]]): "observations of 1 numbers",
        lambda: reward([0.0], [0.0, 1.0]): "actions must be 1 numbers",
        lambda: reward([np.nan], [0.0]): "the observation holds nan",
        lambda: reward([0.0], [np.nan]): "the action holds nan",
    }.items():
        with pytest.raises(UserError, match=told) as error:
            make()
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_environment_that_repeats_actions_itself_is_not_repeated_again(tmp_path: Path) -> None:
    agent = trained(tmp_path / "run", "Steer-v0", action_repeat=2)
    lengths = []
    for env in (Steer(), registration.make("Steer-v0", 0, action_repeat=2), agent.make_env()):
        wrapped, steps, over = LearnedRewardWrapper(env, tmp_path / "run"), 0, False
        wrapped.reset(seed=0)
        while not over:
            *_, terminated, truncated, _ = wrapped.step(np.zeros(1, np.float32))
            steps, over = steps + 1, terminated or truncated
        lengths.append(steps)
    assert lengths == [25, 25, 25]
    inside = DummyVecEnv([lambda: LearnedRewardWrapper(Steer(), tmp_path / "run")])
    assert LearnedRewardVecEnvWrapper(inside, tmp_path / "run").reset().shape == (1, 1)


@pytest.mark.slow
def test_of_a_run_with_absorbing_states_both_kinds_of_environment_are_paid(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "Falls-v0", termination="absorb").run
    assert run is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = LearnedRewardWrapper(registration.make("Falls-v0", 0, absorb=True), tmp_path / "run")
    with pytest.warns(UserWarning, match="worth nothing more"):
        plain = LearnedRewardWrapper(gymnasium.make("Falls-v0"), tmp_path / "run")
    obs, _ = env.reset()
    plain_obs, _ = plain.reset(seed=int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]))
    act, paid, ended = np.ones(1, np.float32), list[float](), False
    for step in range(30):
        x = torch.from_numpy(obs)
        with torch.no_grad():
            paid.append(run.reward(x[None], torch.ones(1, 1)).item())
        obs, reward, terminated, truncated, _ = env.step(act)
        assert reward == paid[-1] and not terminated and truncated == (step == 29)
        if not ended:
            plain_obs, reward, ended, *_ = plain.step(act)
            assert reward == paid[-1]
    assert ended and x.tolist() == [0, 1] and plain_obs.shape == (1,)


def test_a_run_that_learnt_no_reward_has_none_to_hand_on(tmp_path: Path) -> None:
    trained(tmp_path / "sac", "Steer-v0", "sac", labels=0, total_timesteps=60)
    with pytest.raises(UserError, match=r"sac/reward.safetensors was fitted to no label"):
        LearnedReward.load(tmp_path / "sac")


def test_a_file_of_an_older_version_says_how_to_write_it_anew(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "reward.safetensors"
    old.write_bytes(save(load((folder / "reward.safetensors").read_bytes())))
    for path in (old, tmp_path):
        with pytest.raises(UserError, match=r"Agent\.load\(RUN\)\.save\(FOLDER\) writes it anew"):
            LearnedReward.load(path)


def test_a_file_of_version_1_is_read_without_means(folder: Path, tmp_path: Path) -> None:
    data = (folder / "reward.safetensors").read_bytes()
    found, info = load(data), reward_file.read_info(data, "")
    assert info is not None and found.pop("center").any()
    path = tmp_path / "reward.safetensors"
    path.write_bytes(save(found, {reward_file.KEY: info.model_copy(update={"version": 1}).model_dump_json()}))
    reward, _ = reward_file.from_bytes(path.read_bytes(), path)
    assert not reward.center.any()
    LearnedReward.load(path).save(tmp_path / "again.safetensors")
    again = LearnedReward.load(tmp_path / "again.safetensors")
    assert not again.ensemble.center.any() and again.info == info


def test_an_observation_beyond_all_numbers_has_no_reward(folder: Path) -> None:
    reward = LearnedReward.load(folder)
    obs = np.full(reward.info.observations, 3e38)
    with pytest.raises(NotFiniteError, match=r"too large for the reward: 3e\+38"):
        reward(obs, np.zeros(reward.info.act_size))


def test_no_steps_have_no_rewards(folder: Path) -> None:
    reward = LearnedReward.load(folder)
    assert reward(np.zeros((0, reward.info.observations)), np.zeros((0, reward.info.act_size))).shape == (0,)


def test_a_file_that_another_has_changed_is_refused_and_makes_nothing_large(folder: Path, tmp_path: Path) -> None:
    data = (folder / "reward.safetensors").read_bytes()
    found, info = load(data), reward_file.read_info(data, "")
    assert info is not None
    told = json.loads(info.model_dump_json())
    path = tmp_path / "reward.safetensors"

    def refused(told: Any = told, **changed: Any) -> str:
        text = told if isinstance(told, str) else json.dumps(told)
        path.write_bytes(save({**found, **changed}, {reward_file.KEY: text}))
        with pytest.raises(UserError) as error:
            LearnedReward.load(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "version 3 of the format" in refused(told | {"version": 3})
    assert "is damaged" in refused("{" * 100_000)
    for key, value in {
        "observations": 10**9, "form": "quadratic", "bound": 0.0, "level": "1", "env": None, "labels": -1,
        "pessimism": -1, "action_repeat": 0, "more": 1,
        "actions": {"low": [1.0], "high": [-1.0], "dtype": "float32"},
    }.items():  # fmt: skip
        assert "is damaged" in refused(told | {key: value}), key
    one = torch.ones(1)
    for name, tensor in {
        "weights.0": torch.zeros(3, 2, 17), "weights.1": torch.full((3, 16, 1), torch.nan), "unit": torch.zeros(2),
        "low": torch.full((2,), torch.nan), "biases.1": torch.zeros(3, 1, 1).double(), "weights.7": one, "other": one,
        "weights.00": one,
    }.items():  # fmt: skip
        assert "is damaged" in refused(**{name: tensor}), name
    wide = {"weights.0": torch.zeros(1, 2, 10**6), "weights.1": torch.zeros(1, 1, 10**6)}
    assert "is damaged" in refused(**wide)  # a layer between would hold 10^12 numbers
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptFileError, match="damaged"):
        LearnedReward.load(path)
    path.write_bytes(pickle.dumps(Canary(tmp_path / "sprung")))
    with pytest.raises(CorruptFileError, match="no safetensors file"):
        LearnedReward.load(path)
    assert not (tmp_path / "sprung").exists()


def test_a_runs_file_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    data = bytearray((run / "reward.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "reward.safetensors").write_bytes(data)
    with pytest.raises(CorruptFileError, match="its SHA-256 is not the one"):
        LearnedReward.load(run)
    (run / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match="has not come to its end"):
        LearnedReward.load(run)
