"""PPO on our store is Stable-Baselines3's, where the reward is the true one; and it sees the reward that it is told."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from stable_baselines3 import PPO, TD3

from rlhf_bilevel import Agent, LearnedReward, LearnedRewardWrapper
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.ppo import PPOLearner
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.types import Preferences, Queries
from tests.conftest import SMALL, Steer, build, small_config

ROLLOUT = {"n_steps": 70, "batch_size": 35, "n_epochs": 3, "learning_rate": 1e-3}


class Choose(Steer):
    """Steer, with three actions; it looks them up, as many environments do."""

    action_space = Discrete(3)  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return super().step(np.array([{0: -1.0, 1: 0.0, 2: 1.0}[action]]))


gymnasium.register("Choose-v0", Choose)


@pytest.mark.parametrize(("env_id", "size"), [("Steer-v0", 1), ("Choose-v0", 3)])
def test_true_reward_is_plain_sb3_ppo_bit_for_bit(env_id: str, size: int) -> None:
    """Over rollouts that begin and end within episodes, whose ends are time limits."""
    config = small_config(total_timesteps=210, learning_starts=0, pretrain_steps=0, train_freq=1, seed=3)
    env, same = (registration.make(env_id, 3, discrete=True) for _ in range(2))
    learner = PPOLearner(env, config, ReplayBuffer(1, size, 210), **ROLLOUT)
    run = build("prefppo", labels=0, options=ROLLOUT, **config.model_dump(exclude={"labels", "options", "ent_coef"}))
    run.learners, run.envs = [learner], [env]
    run.store, run.improve = learner._store, lambda updates, step: [learner.improve(updates, step)]
    run.method = type(run.method)("true", 1, lambda run: [run.store.true_reward])
    learner.set_reward(run.store.true_reward)
    np.random.seed(3)  # SB3 shuffles its minibatches by numpy's global generator
    told = [row for row in train(run) if "learner_0/train/loss" in row]
    theirs = PPO("MlpPolicy", same, seed=3, policy_kwargs={"net_arch": [16, 16]}, **ROLLOUT)
    theirs.learn(210)
    assert len(told) == 3 and torch.equal(run.store.act.abs().amax(0) > 0, torch.ones(size).bool())
    for name, expected in theirs.policy.state_dict().items():
        assert torch.equal(learner.model.policy.state_dict()[name], expected), name


def test_advantages_are_the_generalised_ones_of_the_reward_that_is_seen() -> None:
    """By a loop over the store's rows, with terminations, time limits and a running episode."""
    config, store = small_config(gamma=0.9), ReplayBuffer(1, 1, 12)
    learner = PPOLearner(registration.make("Steer-v0", 0), config, store, n_steps=12, batch_size=12, gae_lambda=0.7)
    ends, rng = {3: True, 7: False}, np.random.default_rng(0)
    obs = next_obs = rng.normal(size=1).astype(np.float32)
    for row in range(12):
        if row == 0 or row - 1 in ends:
            store.begin(0)
        obs, next_obs = rng.normal(size=1) if row - 1 in ends else next_obs, rng.normal(size=1)
        obs, next_obs = obs.astype(np.float32), next_obs.astype(np.float32)
        _, scaled = learner.act(obs, row)
        store.add(obs, scaled, next_obs, 0.0, ends.get(row, False))
    learner.set_reward(lambda rows: rows.float() / 10)
    buffer = learner._rollout()

    def value(obs: torch.Tensor) -> np.ndarray:
        return learner.model.policy.predict_values(obs).detach().numpy()[:, 0]

    now, later, expected, following = value(store.obs), value(store.next_obs), np.zeros(12), 0.0
    for row in reversed(range(12)):
        error = row / 10 + 0.9 * (not ends.get(row, False)) * later[row] - now[row]
        following = error + 0.9 * 0.7 * (0.0 if row in ends else following)
        expected[row] = following
    assert np.allclose(buffer.advantages[:, 0], expected, atol=1e-5)
    assert np.allclose(buffer.returns[:, 0], expected + now, atol=1e-5)


def test_a_step_of_which_nothing_was_stored_leaves_no_trace() -> None:
    store = ReplayBuffer(1, 1, 5)
    learner = PPOLearner(registration.make("Steer-v0", 0), small_config(), store, n_steps=5, batch_size=5)
    store.begin(0)
    for row in range(3):
        learner.act(np.full(1, 9.0, np.float32), row)  # the environment fails
        action, scaled = learner.act(np.full(1, row, np.float32), row)
        store.add(np.full(1, row), scaled, np.full(1, row), 0.0, False)
        assert len(learner._taken) == store.size
        assert learner._taken[-1][0].clip(-1, 1).item() == pytest.approx(float(action[0]))


def test_a_critics_reset_spares_the_policy_and_forgets_the_rollout() -> None:
    run = build("prefppo", total_timesteps=100, options=ROLLOUT)
    list(train(run))
    learner = run.learners[0]
    policy = learner.model.policy  # type: ignore[attr-defined]
    obs = torch.linspace(-1, 1, 9)[:, None]
    seen = [policy.get_distribution(obs).distribution.mean, policy.predict_values(obs)]
    learner.reset_critic()
    assert torch.equal(policy.get_distribution(obs).distribution.mean, seen[0])
    assert not torch.allclose(policy.predict_values(obs), seen[1])
    assert learner.state_dict()["taken"] is None and learner.state_dict()["begin"] == 100


def test_prefppo_learns_a_task_from_labels_alone() -> None:
    """True return on the probe: random is about 15, the best possible about 46 of 50. Some seeds are misled."""
    options = {"n_steps": 96, "batch_size": 32, "n_epochs": 10, "learning_rate": 1e-2, "clip_range": 0.2}
    run = build(
        "prefppo", total_timesteps=1200, labels=60, options=options, reward_epochs=10, refresh_every=100, seed=1
    )
    returns = [row["rollout/true_return"] for row in train(run) if "rollout/true_return" in row]
    assert np.mean(returns[-6:]) > 32 > 1.5 * np.mean(returns[:4])


def test_an_algorithm_that_does_not_fit_the_method_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithm=PPO: the method pebble takes any off-policy algorithm"):
        Agent("pebble", "Steer-v0", algorithm=PPO)
    with pytest.raises(ValueError, match="algorithm=TD3: the method random takes RandomPolicy"):
        Agent("random", "Steer-v0", algorithm=TD3)
    with pytest.raises(ValueError, match="algorithm=TD3: the method parl needs probabilities"):
        Agent("parl", "Steer-v0", algorithm=TD3)


@pytest.mark.parametrize("name", ["n_steps", "batch_size"])
def test_advantages_of_one_step_have_no_spread_to_be_normalised_with(name: str) -> None:
    with pytest.raises(UserError, match=f"prefppo.{name}=1: Input should be greater than or equal to 2"):
        Agent("prefppo", "Steer-v0", options={name: 1})


QUICK = {"n_steps": 128, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-3}


def test_preferences_teach_it_discrete_actions_and_their_reward_can_be_handed_on(tmp_path: Path) -> None:
    settings = SMALL | {"reward_epochs": 30, "gamma": 0.9, "options": QUICK, "eval_freq": 10_000}
    agent = Agent("prefppo", "Choose-v0", out=tmp_path / "run", **settings).learn(1500)
    assert agent.evaluate(5).returns.mean() > 35  # of 50; staying where an episode begins has about 25
    obs, reward = np.zeros(1, np.float32), LearnedReward.load(tmp_path / "run")
    assert Agent.load(tmp_path / "run").predict(obs)[0] == agent.predict(obs)[0]
    env = LearnedRewardWrapper(Choose(), reward)
    first, _ = env.reset(seed=0)
    assert agent.reward is not None
    expected = agent.reward(torch.from_numpy(first)[None], torch.eye(3)[2:]).item()
    assert env.step(2)[1] == expected == reward(first, 2)
    with pytest.raises(UserError, match="whole numbers from 0 to 2, not 3"):
        reward(first, 3)
    with pytest.raises(UserError, match=r"with actions Discrete\(3\), and these are Box"):
        LearnedRewardWrapper(Steer(), reward)


def test_other_methods_refuse_discrete_actions_in_one_line() -> None:
    for method in ("pebble", "sac", "penalty"):
        with pytest.raises(UserError, match=r"Discrete\(3\).* the method prefppo takes them as they are"):
            Agent(method, "Choose-v0", **SMALL).learn(60)


@pytest.mark.slow
def test_cartpole_is_learnt_from_preferences() -> None:
    """Of somebody who wants the pole upright. An episode ends when it falls, which is bad: termination=nonnegative."""

    def upright(queries: Queries) -> Preferences:
        first, second = (-part.obs[..., 2].abs().sum(-1) for part in queries)
        return Preferences(*queries, label=(first > second).float())

    options = {"n_steps": 1024, "n_epochs": 10, "learning_rate": 3e-4, "clip_range": 0.2}
    settings = {"termination": "nonnegative", "segment_length": 8, "labels": 100, "options": options, "seed": 0}
    settings |= {"reward_net_arch": (32, 32), "net_arch": (64, 64), "eval_freq": 100_000, "pretrain_steps": 1000}
    agent = Agent("prefppo", "CartPole-v1", teacher=upright, **settings).learn(20_000)
    assert agent.evaluate(10).returns.mean() > 150  # at random: 22
