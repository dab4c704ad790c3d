"""The Python front door: SB3's habits, a user's own teacher and environment, save, load and export."""

import io
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy

import rlhf_bilevel
from rlhf_bilevel import Agent, envs
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Preferences, Queries
from rlhf_bilevel.utils import versions
from rlhf_bilevel.utils.serialization import digest
from tests.conftest import FEW, SMALL, Steer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    Agent("penalty", "Steer-v0", out=out, **SMALL | FEW["penalty"]).learn(150)
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
    agent = Agent("penalty", "Steer-v0", **SMALL | FEW["penalty"]).learn(150)  # as in the folder
    loaded = Agent.load(folder)
    main(["export", str(folder), "--sb3", str(tmp_path / "sb3.zip")])
    plain = SAC.load(tmp_path / "sb3.zip")
    obs = np.random.default_rng(0).uniform(-2, 2, (20, 1)).astype(np.float32)
    expected, _ = agent.predict(obs)
    assert expected.std() > 0
    for other in (loaded, plain):
        assert np.array_equal(other.predict(obs, deterministic=True)[0], expected)
    x = torch.from_numpy(obs)
    assert torch.equal(loaded.reward(x, x), agent.reward(x, x))
    env = gymnasium.make("Steer-v0")
    assert np.isfinite(evaluate_policy(plain, env, 2, warn=False)[0])


def test_evaluation_speaks_of_episodes_of_their_own(folder: Path) -> None:
    summary = Agent.load(folder).evaluate(3).summary()
    assert summary["episodes"] == 3
    assert summary["true_return"]["low"] <= summary["true_return"]["mean"] <= summary["true_return"]["high"]
    assert 0 <= summary["success"]["mean"] <= 1


def test_a_users_own_teacher_is_asked() -> None:
    class LikesTheRight:
        """Prefers the segment that ends further to the right."""

        def __call__(self, queries: Queries) -> Preferences:
            first, second = (part.obs[:, -1, 0] for part in queries)
            return Preferences(*queries, label=(first > second).float())

    agent = Agent("pebble", "Steer-v0", teacher=LikesTheRight(), **(SMALL | {"reward_epochs": 20})).learn(300)
    x = torch.linspace(-1, 1, 9)[:, None]
    with torch.no_grad():
        reward = agent.run.reward(x, torch.zeros(9, 1))
    assert reward[-1] > reward[0]


@pytest.mark.slow
def test_another_algorithm_of_sb3_is_a_learner() -> None:
    agent = Agent("penalty", "Steer-v0", algorithm=TD3, **SMALL | FEW["penalty"]).learn(120)
    assert isinstance(agent.model, TD3)


def test_an_agent_learns_once_and_never_overwrites(folder: Path) -> None:
    before = (folder / "model.zip").read_bytes()
    with pytest.raises(FileExistsError):
        Agent("pebble", "Steer-v0", out=folder, **SMALL).learn(150)
    assert (folder / "model.zip").read_bytes() == before
    agent = Agent("pebble", "Steer-v0", **SMALL).learn(150)
    with pytest.raises(RuntimeError, match="learnt already"):
        agent.learn(100)


@pytest.mark.parametrize("which", ["model.zip", "export"])
def test_sb3_goes_on_from_an_exported_model_as_from_its_own(folder: Path, tmp_path: Path, which: str) -> None:
    file = folder / "model.zip"
    if which == "export":
        file = tmp_path / "sb3.zip"
        main(["export", str(folder), "--sb3", str(file)])
    env = gymnasium.wrappers.TimeLimit(gymnasium.make("Steer-v0"), 50)
    model, plain = SAC.load(file, env=env), SAC("MlpPolicy", env)
    assert model.num_timesteps == 150 and model.buffer_size == plain.buffer_size
    assert model.policy_kwargs == {"net_arch": [16, 16], "use_sde": False}
    for part in (model.actor, model.critic):
        assert not part.optimizer.param_groups[0]["fused"]
    theirs, ours = set(vars(plain)), set(vars(model))
    assert not {name for name in ours - theirs if not name.startswith("_")}
    model.learn(60, reset_num_timesteps=False)
    assert model.replay_buffer is not None and model.replay_buffer.size() == 60
    assert len(np.unique(model.replay_buffer.observations[:60])) > 50
    assert model.num_timesteps == 210 and model.actor.optimizer.state


def test_a_model_that_is_saved_goes_on_as_it_was() -> None:
    agent = Agent("pebble", "Steer-v0", **SMALL).learn(120)
    run, file = agent.run, io.BytesIO()
    before = run.learners[0].state_dict()
    agent.model.save(file)
    assert agent.model.policy_kwargs["optimizer_kwargs"] == {"fused": True}
    assert agent.model.actor.optimizer.param_groups[0]["fused"] is True
    assert digest(before) == digest(run.learners[0].state_dict())


def exported(agent: Agent, tmp_path: Path, capsys: pytest.CaptureFixture) -> tuple[Any, str]:
    """The environment that the export of an agent's run says how to make, and all that it says."""
    main(["export", str(agent.out), "--sb3", str(tmp_path / "sb3.zip")])
    told = capsys.readouterr().out
    (maker,) = [line.strip() for line in told.splitlines() if "envs.registration.make(" in line]
    return eval(maker, {"envs": envs}), told


def test_an_export_says_which_environment_its_policy_expects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    agent = Agent("pebble", "Steer-v0", out=tmp_path / "run", action_repeat=5, **SMALL).learn(120)
    env, _ = exported(agent, tmp_path, capsys)
    model = SAC.load(tmp_path / "sb3.zip", env=env)
    env.reset()
    steps, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = env.step(model.predict(np.zeros(1, np.float32))[0])
        steps, over = steps + 1, terminated or truncated
    assert steps == 10


def test_an_export_of_discrete_actions_and_absorbed_episodes_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = SMALL | FEW["prefppo"] | {"termination": "absorb"}
    env, told = exported(Agent("prefppo", "CartPole-v1", out=tmp_path / "run", **settings).learn(120), tmp_path, capsys)
    assert env.observation_space.shape == (5,) and f"flat float32 {env.observation_space.shape}" in told
    PPO.load(tmp_path / "sb3.zip", env=env)  # ValueError if the spaces are others


def test_an_agent_is_saved_into_no_folder_but_its_own(folder: Path, tmp_path: Path) -> None:
    agent = Agent("pebble", "Steer-v0", **SMALL).learn(120)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for taken in (folder, tmp_path / "mine"):
        with pytest.raises(UserError, match="is not overwritten"):
            agent.save(taken)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        agent.save(tmp_path / "file")
    agent.save(tmp_path / "new")
    agent.save(tmp_path / "new")  # its own
    (tmp_path / "empty").mkdir()
    Agent.load(tmp_path / "new").save(tmp_path / "empty")
    obs = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    assert np.array_equal(Agent.load(tmp_path / "empty").predict(obs)[0], agent.predict(obs)[0])


def test_an_agent_that_has_changed_since_it_was_loaded_does_not_replace_the_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    agent = Agent.load(tmp_path / "run")
    agent.save(tmp_path / "run")  # it is there already: nothing is written, such as model.zip without its temperature
    with torch.no_grad():
        agent.model.actor.mu.bias += 1
    with pytest.raises(UserError, match="is not overwritten"):
        agent.save(tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("episodes", ["3", 2.5, 0])
def test_a_number_of_episodes_that_is_none_is_told(folder: Path, episodes: Any) -> None:
    with pytest.raises(UserError, match="must be a whole number, at least 1"):
        Agent.load(folder).evaluate(episodes)


def test_a_run_that_is_cut_off_is_not_sealed_by_another_like_it(tmp_path: Path) -> None:
    def fails_at_70(told: dict[str, Any], _: Any) -> bool:
        return told["self"].num_timesteps != 70 or 1 / 0

    settings: Any = {"checkpoint_every": "50", **SMALL}
    with pytest.raises(ZeroDivisionError):
        Agent("pebble", "Steer-v0", out=tmp_path / "run", **settings).learn(120, fails_at_70)
    with pytest.raises(UserError, match="is not overwritten"):
        Agent("pebble", "Steer-v0", **settings).learn(120).save(tmp_path / "run")
    Agent.resume(tmp_path / "run")


def test_a_callback_cannot_end_the_folder_of_the_run_that_goes_on(tmp_path: Path) -> None:
    agent = Agent("pebble", "Steer-v0", out=tmp_path / "run", **SMALL)

    def save(*_: Any) -> bool:
        agent.save(tmp_path / "run")
        return True

    with pytest.raises(UserError, match="is being trained"):
        agent.learn(120, callback=save)
    assert not (tmp_path / "run" / "SHA256SUMS").exists()


def test_a_device_is_one_that_is_there_and_the_one_that_was_used_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(UserError, match="finds no NVIDIA GPU"):
            Agent("pebble", "Steer-v0", device=device, **SMALL)
    for device in ("gpu", "cuda:x", "mps"):
        with pytest.raises(UserError, match="cpu, cuda"):
            Agent("pebble", "Steer-v0", device=device, **SMALL)
    for number, device in enumerate(("auto", torch.device("cpu"))):
        out = tmp_path / str(number)
        Agent("pebble", "Steer-v0", device=device, out=out, **SMALL).start(100)
        assert yaml.safe_load((out / "config.yaml").read_text())["device"] == "cpu"
    told = (tmp_path / "0" / "config.yaml").read_text()
    (tmp_path / "0" / "config.yaml").write_text(told.replace("device: cpu", "device: cuda"))
    with pytest.raises(UserError, match="finds no NVIDIA GPU"):
        Agent.resume(tmp_path / "0")


def test_the_commit_is_that_of_the_checkout_that_holds_this_package_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    installed = tmp_path / ".venv" / "rlhf_bilevel"
    installed.mkdir(parents=True)
    (installed / "versions.py").write_text("")
    (tmp_path / "thesis.tex").write_text("")
    git("init")
    git("add", "thesis.tex")
    git("commit", "-m", "mine")
    monkeypatch.setattr(versions, "__file__", str(installed / "versions.py"))
    assert versions.current_commit() is None
    git("add", ".venv/rlhf_bilevel/versions.py")
    git("commit", "-m", "a checkout of it")
    expected = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout[:12]
    assert versions.current_commit() == expected
    (installed / "versions.py").write_text("changed")
    assert versions.current_commit() == f"{expected}+"
    monkeypatch.setenv("PATH", "")
    assert versions.current_commit() is None
    Agent("pebble", "Steer-v0", out=tmp_path / "run", **SMALL).start(100)
    assert "commit: null" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_run_keeps_its_folder_wherever_the_program_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def leave(*_: Any) -> bool:
        os.chdir(tmp_path / "elsewhere")
        return True

    Agent("pebble", "Steer-v0", out="run", checkpoint_every="50", **SMALL).learn(120, callback=leave)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert Agent.load(tmp_path / "run").predict(np.zeros(1, np.float32))[0].shape == (1,)


class Wrong:
    """Neither an environment's id nor a teacher."""


@pytest.mark.parametrize(("given", "told"), [
    ({"env_id": gymnasium.make("Steer-v0")}, "gymnasium.register"),
    ({"env_id": 7}, "gymnasium.register"),
    ({"method": None}, "method=None"),
    ({"method": "pebbel"}, "did you mean 'pebble'"),
    ({"teacher": Wrong}, "teacher=<class"),
    ({"teacher": 7}, "teacher=7"),
    ({"algorithm": "TD4"}, "did you mean 'TD3'"),
    ({"lables": 7}, "did you mean 'labels'"),
    ({"devise": "cpu"}, "did you mean 'device'"),
    ({"labels": True}, "labels=True"),
    ({"batch_size": np.True_}, "batch_size=True"),
    ({"labels": 1.5}, "labels=1.5"),
    ({"labels": "many"}, "labels='many'"),
    ({"preset": "quik"}, "unknown preset 'quik'"),
    ({"gamma": 2}, "gamma=2"),
    ({"sigma": -1}, "sigma=-1"),
    ({"checkpoint_every": "soon"}, "soon"),
    ({"env_id": "walker_wlak"}, "walker_wlak"),
])  # fmt: skip
def test_a_wrong_argument_is_named_when_the_agent_is_made(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        Agent(**{"method": "pebble", "env_id": "Steer-v0"} | given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [1e2, np.int64(100), np.float32(100), torch.tensor(100)])
def test_a_whole_number_is_one_whatever_its_type(steps: Any) -> None:
    agent = Agent("pebble", "Steer-v0", **SMALL | {"labels": np.int32(20), "batch_size": 8.0})
    agent.start(steps)
    assert agent.config is not None and (
        agent.config.total_timesteps,
        agent.config.labels,
        agent.config.batch_size,
    ) == (100, 20, 8)


@pytest.mark.parametrize("steps", [True, 1.5, "many", None, 0, -3])
def test_what_is_no_number_of_steps_is_named(steps: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"total_timesteps={steps!r}")):
        Agent("pebble", "Steer-v0", **SMALL).learn(steps)


def test_steps_are_given_once() -> None:
    with pytest.raises(ValueError, match=r"total_timesteps=50 was given to the agent, and learn\(100\)"):
        Agent("pebble", "Steer-v0", **SMALL, total_timesteps=50).learn(100)


def test_what_needs_an_agent_that_has_learnt_says_so(tmp_path: Path) -> None:
    agent = Agent("pebble", "Steer-v0", **SMALL)
    for use in (lambda: agent.predict(np.zeros(1)), lambda: agent.evaluate(1), lambda: agent.save(tmp_path / "run")):
        with pytest.raises(UserError, match="has learnt nothing yet"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{"surf.threshold": 0.9}, {"keep_every": -1}, {"keep_every": "often"}])
def test_what_would_change_nothing_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"surf alone has it|must be a whole number"):
        Agent("pebble", "Steer-v0", **settings)
    Agent("surf", "Steer-v0", keep_every=0, **{"surf.threshold": 0.9})


class Misshapen(Steer):
    def reset(self, **given: Any) -> tuple[np.ndarray, dict]:
        return np.zeros(3, np.float32), {}


gymnasium.register("Misshapen-v0", Misshapen)


def test_an_environment_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Misshapen-v0: an observation must have the shape"):
        Agent("pebble", "Misshapen-v0", out=tmp_path / "runs" / "run", **SMALL).learn(60)
    assert not list(tmp_path.iterdir())


def test_the_front_door_has_what_users_import() -> None:
    for name in ("Agent", "Method", "Teacher", "LearnedReward", "watch", "__version__"):
        assert name in rlhf_bilevel.__all__ and getattr(rlhf_bilevel, name)
    assert rlhf_bilevel.__version__ == metadata.version("rlhf-bilevel")
    with pytest.raises(AttributeError, match="no attribute 'Agents'"):
        _ = rlhf_bilevel.Agents  # type: ignore[attr-defined]
