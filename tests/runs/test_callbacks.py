"""Every callback of Stable-Baselines3 does on an agent what it does on SB3's own models."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3.common.callbacks as sb3
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Figure, FormatUnsupportedError, KVWriter, Logger
from stable_baselines3.common.monitor import Monitor

from rlhf_bilevel import Agent
from rlhf_bilevel.config.presets import BPREF
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from tests.conftest import SMALL
from tests.support.faults import events, logged, same_run

STEPS = 120
FEW: dict[str, Any] = SMALL | {"eval_freq": STEPS, "n_eval_episodes": 1, "reset_updates": 1, "labels": 10}


def learnt(callback: Any, steps: int = STEPS, method: str = "pebble", **settings: Any) -> Agent:
    return Agent(method, "tests.conftest:Steer-v0", **(FEW | settings)).learn(steps, callback=callback)


def steer() -> gymnasium.Env:
    return Monitor(registration.make("Steer-v0", 0, stream=5))


class Each(sb3.BaseCallback):
    """Calls a function at each step and keeps what happened."""

    def __init__(self, step: Callable[["Each"], Any] = lambda self: True) -> None:
        super().__init__()
        self.step, self.events = step, list[str]()

    def _on_training_start(self) -> None:
        self.events.append("training start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout start")

    def _on_step(self) -> bool:
        self.events.append("step")
        return self.step(self)

    def _on_rollout_end(self) -> None:
        self.events.append("rollout end")

    def _on_training_end(self) -> None:
        self.events.append("training end")


def test_locals_hold_each_step_as_in_sb3() -> None:
    told = list[dict[str, Any]]()
    keep = Each(lambda self: told.append({key: self.locals[key] for key in sorted(names)}) or True)
    names = {"actions", "buffer_actions", "new_obs", "rewards", "dones", "infos", "num_collected_steps"}
    agent = learnt(keep)
    assert agent.run is not None and len(told) == STEPS
    store = agent.run.store
    for step, seen in enumerate(told):
        assert seen["new_obs"].shape == seen["actions"].shape == (1, 1) and seen["rewards"].shape == (1,)
        expected = pytest.approx(1 - abs(seen["new_obs"][0, 0] - 0.5), abs=1e-6)
        assert seen["rewards"][0] == store.env_reward[step] == expected
        assert seen["dones"].tolist() == [step % 50 == 49] and len(seen["infos"]) == 1
        assert isinstance(seen["infos"][0]["success"], (bool, np.bool_))
    over = told[49]["infos"][0]
    assert over["TimeLimit.truncated"] and np.array_equal(over["terminal_observation"], told[49]["new_obs"][0])
    assert over["episode"]["l"] == 50 and over["episode"]["r"] == pytest.approx(sum(t["rewards"][0] for t in told[:50]))
    told[0]["new_obs"][:] = 7  # a callback may write on what it is given
    assert store.next_obs[0, 0] != 7


@pytest.mark.parametrize(("method", "settings", "length"), [
    ("pebble", {"train_freq": 4}, 4),
    ("prefppo", {"options": {"n_steps": 40}}, 40),
])  # fmt: skip
def test_rollouts_begin_and_end_as_in_sb3(method: str, settings: dict[str, Any], length: int) -> None:
    class Plain(gymnasium.Wrapper):
        pass

    theirs, ours = Each(), Each()
    env = Monitor(Plain(registration.make("Steer-v0", 0)))
    if method == "pebble":
        SAC("MlpPolicy", env, train_freq=length, learning_starts=10**6, buffer_size=1000).learn(STEPS, callback=theirs)
    else:
        PPO("MlpPolicy", env, n_steps=length, batch_size=20, n_epochs=1).learn(STEPS, callback=theirs)
    learnt(ours, method=method, learning_starts=20, pretrain_steps=20, **settings)
    if method == "pebble":
        assert ours.events == theirs.events
    else:  # the first labels begin the rollout anew, as its steps were rewarded by nothing that was taught
        assert ours.events.count("rollout end") >= 2 and ours.events.count("step") == STEPS
    assert ours.events[:3] == ["training start", "rollout start", "step"] and ours.events[-1] == "training end"


def test_what_a_callback_logs_is_in_csv_and_tensorboard(tmp_path: Path) -> None:
    def log(self: Each) -> bool:
        self.logger.record("mine/steps", self.num_timesteps)
        self.logger.record("mine/word", "a,b", exclude="tensorboard")
        self.logger.record("mine/hidden", 1.0, exclude="csv")
        self.logger.record_mean("mine/mean", float(self.num_timesteps % 2))
        return True

    out = tmp_path / "run"
    learnt(Each(log), out=out)
    told = logged(out)
    assert [row["mine/steps"] for row in told if row["mine/steps"]] == ["50", "100", "120"]
    assert {row["mine/word"] for row in told} == {"a,b"} and "mine/hidden" not in told[0]
    assert all(row["train/actor_loss"] for row in told[1:])
    assert all(events(out, f"mine/{name}") for name in ("steps", "mean", "hidden"))


@pytest.mark.slow
def test_a_figure_for_the_csv_is_sb3s_error_and_the_run_can_go_on(tmp_path: Path) -> None:
    def draw(self: Each) -> bool:
        self.logger.record("figure", Figure(None, close=False))
        return True

    with pytest.raises(FormatUnsupportedError, match="csv"):
        learnt(Each(draw), out=tmp_path / "run", checkpoint_every="50")
    Agent.resume(tmp_path / "run")
    assert (tmp_path / "run" / "SHA256SUMS").exists()


def test_eval_callback_evaluates_logs_and_keeps_the_best(tmp_path: Path) -> None:
    after, best = Each(), Each()
    seen = sb3.EvalCallback(
        steer(), callback_on_new_best=best, callback_after_eval=after, n_eval_episodes=2, eval_freq=40, verbose=0,
        log_path=str(tmp_path / "eval"), best_model_save_path=str(tmp_path / "best"),
    )  # fmt: skip
    agent = learnt(seen, out=tmp_path / "run")
    told = np.load(tmp_path / "eval" / "evaluations.npz")
    assert told["timesteps"].tolist() == [40, 80, 120] and told["results"].shape == (3, 2)
    assert seen.best_mean_reward == told["results"].mean(1).max()
    assert after.n_calls == 3 and 1 <= best.n_calls <= 3
    means = {row["time/total_timesteps"]: row["eval/mean_reward"] for row in logged(tmp_path / "run")}
    assert float(means["40"]) == pytest.approx(told["results"][0].mean())
    plain = SAC.load(tmp_path / "best" / "best_model")
    mean, _ = evaluate_policy(plain, steer(), 2)
    assert np.isfinite(mean)
    assert np.isfinite(evaluate_policy(agent, agent.make_env(), 2, warn=False)[0])  # an agent is a policy, too


def test_an_agents_own_environment_evaluates_it_before_it_has_learnt_too() -> None:
    agent = Agent("pebble", "Steer-v0", **FEW, action_repeat=5)
    env = agent.make_env()
    assert env.reset()[0].dtype == np.float32
    seen = sb3.EvalCallback(env, n_eval_episodes=1, eval_freq=60, verbose=0, warn=False)
    agent.learn(STEPS, callback=seen)
    assert np.isfinite(seen.last_mean_reward) and seen.last_mean_reward < 50


def stop_at_reward(threshold: float) -> sb3.EvalCallback:
    stop = sb3.StopTrainingOnRewardThreshold(threshold)
    return sb3.EvalCallback(steer(), callback_on_new_best=stop, n_eval_episodes=1, eval_freq=30, verbose=0)


def no_improvement() -> sb3.EvalCallback:
    class Same(gymnasium.Wrapper):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, 1.0, *rest

    stop = sb3.StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=0)
    env = Monitor(Same(registration.make("Steer-v0", 0)))
    return sb3.EvalCallback(env, callback_after_eval=stop, n_eval_episodes=1, eval_freq=30, verbose=0)


@pytest.mark.parametrize(("callback", "end"), [
    (lambda: stop_at_reward(-1e9), 30),
    (lambda: stop_at_reward(1e9), STEPS),
    (no_improvement, 90),
    (lambda: sb3.StopTrainingOnMaxEpisodes(max_episodes=2, verbose=1), 100),
    (lambda: lambda locals_, globals_: locals_["self"].num_timesteps < 7, 7),
    (lambda: sb3.ConvertCallback(lambda locals_, globals_: locals_["self"].num_timesteps < 7), 7),
    (lambda: sb3.CallbackList([Each(), Each(lambda self: self.num_timesteps < 9)]), 9),
    (lambda: (Each(), Each(lambda self: self.n_calls < 11)), 11),
    (lambda: [Each(), lambda locals_, globals_: locals_["self"].num_timesteps < 3], 3),
    (lambda: sb3.EveryNTimesteps(20, Each(lambda self: self.n_calls < 2)), 40),
])  # fmt: skip
def test_callbacks_stop_the_training_where_sb3s_do(tmp_path: Path, callback: Callable[[], Any], end: int) -> None:
    agent = learnt(callback(), out=tmp_path / "run", train_freq=1)
    assert agent.run is not None and agent.run.step == end
    assert Agent.load(tmp_path / "run").predict(np.zeros(1, np.float32))[0].shape == (1,)
    assert logged(tmp_path / "run")[-1]["time/total_timesteps"] == str(end)


def test_progress_bar_and_logs_every_n_steps(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    learnt([sb3.ProgressBarCallback(), sb3.LogEveryNTimesteps(25)], out=tmp_path / "run")
    told = {row["time/total_timesteps"]: row for row in logged(tmp_path / "run")}
    assert {"25", "50", "75", "100"} <= set(told)
    assert float(told["75"]["rollout/ep_len_mean"]) == 50 and told["75"]["time/episodes"] == "1"
    assert "120/120" in "".join(capsys.readouterr())


def test_the_training_environment_is_the_runs() -> None:
    seen = list[Any]()

    def look(self: Each) -> bool:
        env = self.training_env
        seen.append((env.num_envs, env.get_attr("episode")[0], env.observation_space.shape))
        return True

    learnt(Each(look))
    assert seen[0] == (1, 1, (1,)) and seen[-1] == (1, 3, (1,))


def test_a_checkpoint_of_sb3s_is_a_plain_model_with_all_that_was_stored(tmp_path: Path) -> None:
    keep = sb3.CheckpointCallback(60, str(tmp_path / "sb3"), save_replay_buffer=True, save_vecnormalize=True)
    agent = learnt(keep, train_freq=1)
    kinds = ("rl_model_{}_steps.zip", "rl_model_replay_buffer_{}_steps.pkl")
    assert {path.name for path in (tmp_path / "sb3").iterdir()} == {k.format(n) for k in kinds for n in (60, 120)}
    model = SAC.load(tmp_path / "sb3" / "rl_model_120_steps", env=steer())
    model.load_replay_buffer(tmp_path / "sb3" / "rl_model_replay_buffer_120_steps")
    buffer, run = model.replay_buffer, agent.run
    assert type(buffer) is ReplayBuffer and run is not None and buffer.size() == STEPS
    for column, stored in (
        (buffer.observations, run.store.obs),
        (buffer.next_observations, run.store.next_obs),
        (buffer.actions, run.store.act),
    ):
        assert np.array_equal(column[:, 0], stored)
    learned = run.store.learned(run.reward)(torch.arange(STEPS))
    assert buffer.rewards[:, 0] == pytest.approx(learned.numpy(), abs=1e-6)
    assert np.flatnonzero(buffer.dones).tolist() == np.flatnonzero(buffer.timeouts).tolist() == [49, 99]
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == STEPS + 10


def test_a_saved_buffer_moves_nothing(tmp_path: Path) -> None:
    """Its rewards are drawn, as long as they are those of the state entropy."""
    keep = sb3.CheckpointCallback(25, str(tmp_path / "sb3"), save_replay_buffer=True)
    learnt(None, out=tmp_path / "without", pretrain_steps=60, train_freq=1, **BPREF)
    learnt(keep, out=tmp_path / "with", pretrain_steps=60, train_freq=1, **BPREF)
    same_run(tmp_path / "without", tmp_path / "with")
    with (tmp_path / "sb3" / "rl_model_replay_buffer_50_steps.pkl").open("rb") as file:
        buffer = pickle.load(file)
    assert (buffer.rewards[:50] > 0).all() and not buffer.rewards[50:].any() and not buffer.full


def test_ppo_has_checkpoints_of_sb3s_too(tmp_path: Path) -> None:
    keep = sb3.CheckpointCallback(60, str(tmp_path / "sb3"), save_replay_buffer=True)
    agent = learnt(keep, method="prefppo", options={"n_steps": 40})
    model = PPO.load(tmp_path / "sb3" / "rl_model_120_steps", env=steer())
    obs = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    assert np.allclose(model.predict(obs, deterministic=True)[0], agent.predict(obs)[0])
    model.learn(40)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without callbacks."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    learnt(None, out=out)
    return out


@pytest.mark.parametrize("where", ["_on_step", "_on_rollout_end", "_on_training_end"])
def test_a_callback_that_fails_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, where: str
) -> None:
    def fails(self: Each) -> bool:
        if self.num_timesteps >= 75:
            raise ZeroDivisionError("mine")
        return True

    monkeypatch.setattr(Each, where, fails)
    with pytest.raises(ZeroDivisionError, match="mine"):
        learnt(Each(), out=tmp_path / "run", checkpoint_every="50")
    Agent.resume(tmp_path / "run", callback=sb3.CallbackList([]))
    same_run(tmp_path / "run", whole)


def test_callbacks_move_nothing_and_begin_at_the_step_that_is_resumed(tmp_path: Path) -> None:
    def fails(self: Each) -> bool:
        return self.num_timesteps != 70 or 1 / 0

    with pytest.raises(ZeroDivisionError):
        learnt(Each(fails), out=tmp_path / "run", checkpoint_every="50")
    steps = list[int]()
    Agent.resume(tmp_path / "run", callback=Each(lambda self: steps.append(self.num_timesteps) or True))
    assert steps == list(range(51, STEPS + 1))


@pytest.mark.parametrize("wrong", [7, "evaluate", sb3.CheckpointCallback, [Each(), 7]])
def test_what_is_no_callback_is_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match="is no callback"):
        learnt(wrong)


def test_a_callback_that_returns_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="returned None: True goes on"):
        learnt(lambda locals_, globals_: None, out=tmp_path / "run")
    assert not (tmp_path / "run" / "SHA256SUMS").exists()


class Rows(KVWriter):
    """An output format that keeps what it gets."""

    def __init__(self) -> None:
        self.rows, self.closed = list[tuple[int, dict[str, Any]]](), False

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append((step, dict(key_values)))

    def close(self) -> None:
        self.closed = True


def test_an_output_format_of_ones_own_gets_the_rows_of_progress_csv_and_stays_open(tmp_path: Path) -> None:
    mine = Rows()
    agent = Agent("pebble", "tests.conftest:Steer-v0", out=tmp_path / "run", **FEW)
    agent.learn(STEPS, logger=Logger(folder=None, output_formats=[mine]))
    filed = logged(tmp_path / "run")
    assert len(filed) == len(mine.rows) > 1 and not mine.closed
    for (step, values), row in zip(mine.rows, filed, strict=True):
        assert step == int(row["time/total_timesteps"])
        for key in ("rollout/true_return", "reward/labels"):
            assert row[key] == str(values.get(key, ""))


def test_what_is_no_logger_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    agent = Agent("pebble", "tests.conftest:Steer-v0", out=tmp_path / "run", **FEW)
    with pytest.raises(UserError, match="logger='json': must be SB3's, such as"):
        agent.learn(STEPS, logger="json")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is no callback"):
        agent.learn(STEPS, callback=7)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
