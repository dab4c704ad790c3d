"""The Python front door: SB3's habits, a user's own teacher and environment, save, load and export."""

import subprocess
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.types import Preferences, Queries
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    Agent("penalty", "Steer-v0", out=out, **SMALL).learn(150)
    return out


def test_a_run_leaves_all_that_repeats_and_shows_it(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "progress.csv", "evaluations.csv", "labels.sqlite"} <= names
    assert {"model.zip", "policy.safetensors", "reward.safetensors", "SHA256SUMS"} <= names
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert any(name.startswith("events.out.tfevents") for name in names)
    header = (folder / "progress.csv").read_text().splitlines()[0].split(",")
    expected = {"rollout/true_return", "rollout/learned_return", "train/actor_loss", "train_1/actor_loss",
                "reward/labels", "reward/fresh_loss", "penalty/value_gap", "penalty/cost_to_reward",
                "eval/true_return", "time/fps"}  # fmt: skip
    assert expected <= set(header)


def test_saved_and_loaded_agents_act_the_same_and_so_does_the_exported_file(folder: Path, tmp_path: Path) -> None:
    agent = Agent("penalty", "Steer-v0", **SMALL).learn(150)  # the same seed: the same agent as in the folder
    loaded = Agent.load(folder)
    main(["export", str(folder), "--sb3", str(tmp_path / "sb3.zip")])
    plain = SAC.load(tmp_path / "sb3.zip")
    obs = np.random.default_rng(0).uniform(-2, 2, (20, 1)).astype(np.float32)
    expected, _ = agent.predict(obs)
    assert expected.std() > 0
    for other in (loaded, plain):
        assert np.array_equal(other.predict(obs, deterministic=True)[0], expected)
    x = torch.from_numpy(obs)
    assert loaded.reward is not None and agent.reward is not None
    assert torch.equal(loaded.reward(x, x), agent.reward(x, x))
    env = gymnasium.make("Steer-v0")
    assert np.isfinite(evaluate_policy(plain, env, 2, warn=False)[0])


def test_evaluation_speaks_of_episodes_of_their_own(folder: Path) -> None:
    summary = Agent.load(folder).evaluate(3).summary()
    assert summary["episodes"] == 3
    assert summary["true_return"]["low"] <= summary["true_return"]["mean"] <= summary["true_return"]["high"]
    assert 0 <= summary["success"]["mean"] <= 1


def test_sb3_callbacks_work_and_can_stop_the_training(tmp_path: Path) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 60

    seen = EvalCallback(gymnasium.wrappers.TimeLimit(gymnasium.make("Steer-v0"), 50), eval_freq=20, verbose=0)
    agent = Agent("pebble", "Steer-v0", **SMALL).learn(150, callback=[seen, Stop()])
    assert agent.run is not None and agent.run.step == 60
    assert seen.n_calls == 60 and np.isfinite(seen.last_mean_reward)


def test_a_users_own_teacher_is_asked() -> None:
    class LikesTheRight:
        """Prefers the segment that ends further to the right."""

        def __call__(self, queries: Queries) -> Preferences:
            first, second = (part.obs[:, -1, 0] for part in queries)
            return Preferences(*queries, label=(first > second).float())

    agent = Agent("pebble", "Steer-v0", teacher=LikesTheRight(), **(SMALL | {"reward_epochs": 20})).learn(300)
    assert agent.run is not None
    x = torch.linspace(-1, 1, 9)[:, None]
    with torch.no_grad():
        reward = agent.run.reward(x, torch.zeros(9, 1))
    assert reward[-1] > reward[0]


def test_another_algorithm_of_sb3_is_a_learner() -> None:
    agent = Agent("penalty", "Steer-v0", algorithm=TD3, **SMALL).learn(120)
    assert isinstance(agent.model, TD3)


def test_a_wrong_name_or_value_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for wrong in (
        {"method": "pebbel"},
        {"env_id": "walker_wlak"},
        {"preset": "quik"},
        {"sigma": -1},
        {"checkpoint_every": "soon"},
    ):
        arguments = {"method": "pebble", "env_id": "Steer-v0", "out": tmp_path / "run"} | wrong
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            Agent(**arguments).learn(100)
    assert not (tmp_path / "run").exists()


def test_an_agent_learns_once_and_never_overwrites(folder: Path) -> None:
    before = (folder / "model.zip").read_bytes()
    with pytest.raises(FileExistsError):
        Agent("pebble", "Steer-v0", out=folder, **SMALL).learn(150)
    assert (folder / "model.zip").read_bytes() == before
    agent = Agent("pebble", "Steer-v0", **SMALL).learn(150)
    with pytest.raises(RuntimeError, match="learnt already"):
        agent.learn(100)
