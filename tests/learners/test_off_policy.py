"""Our loop over SB3's learners is SB3, where the reward is the true one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import DDPG, SAC, TD3

from benchmarks.performance.ours import Plain
from rlhf_bilevel import Agent
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.envs import registration
from rlhf_bilevel.learners.off_policy import SB3Learner, settings
from rlhf_bilevel.training.loop import train
from tests.conftest import build, small_config


def test_true_reward_is_plain_sb3_sac_bit_for_bit() -> None:
    config = small_config(total_timesteps=260, learning_starts=40, net_arch=(32, 32), seed=3)
    ours = build("sac", "Pendulum-v1", {"algorithm": Plain}, **config.model_dump())
    assert ours.config == config
    list(train(ours))
    theirs = SAC(env=registration.make("Pendulum-v1", seed=3), **settings(config, SAC))
    theirs.learn(config.total_timesteps)
    model = ours.learners[0].model
    for name, expected in theirs.policy.state_dict().items():
        assert torch.equal(model.policy.state_dict()[name], expected), name
    assert torch.equal(model.log_ent_coef, theirs.log_ent_coef)
    buffer = theirs.replay_buffer
    assert np.array_equal(ours.store.obs.numpy(), buffer.observations[:260, 0])
    assert np.array_equal(ours.store.act.numpy(), buffer.actions[:260, 0])
    assert np.array_equal(ours.store.env_reward.numpy(), buffer.rewards[:260, 0])


@pytest.mark.parametrize("algorithm", [TD3, DDPG])
def test_any_off_policy_algorithm_of_sb3_learns_on_the_store(algorithm: type) -> None:
    run = build("sac", own={"algorithm": algorithm}, total_timesteps=60, learning_starts=20)
    learner = run.learners[0]
    before = [p.clone() for p in learner.model.actor.parameters()]
    assert "learner_0/train/critic_loss" in list(train(run))[-1]
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.model.actor.parameters(), strict=True))
    assert learner.value_gap(learner, run.store.obs) == 0  # deterministic policies: no noise in it


def test_actions_are_stored_in_the_learners_scale() -> None:
    env, config = registration.make("Pendulum-v1", 0), small_config(learning_starts=10)
    learner = SB3Learner(env, config, ReplayBuffer(3, 1, 10))
    obs, _ = env.reset()
    for step in range(10):
        action, scaled = learner.act(obs, step)
        assert np.allclose(action, 2 * scaled) and env.action_space.contains(action)


def test_a_critics_reset_is_a_fresh_critic_and_spares_the_actor() -> None:
    run = build("sac", total_timesteps=100, learning_starts=20)
    list(train(run))
    learner = run.learners[0]
    actor = [p.clone() for p in learner.model.actor.parameters()]
    critic = [p.clone() for p in learner.model.critic.parameters()]
    learner.reset_critic()
    assert all(torch.equal(a, b) for a, b in zip(actor, learner.model.actor.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(critic, learner.model.critic.parameters(), strict=True))
    targets = learner.model.critic_target.parameters()
    assert all(torch.equal(a, b) for a, b in zip(learner.model.critic.parameters(), targets, strict=True))
    moments = learner.model.critic.optimizer.state.values()
    assert moments and not any(moment.any() for each in moments for moment in each.values())


def test_the_value_gap_obeys_the_performance_difference_lemma() -> None:
    """With the critics replaced by Q(s, a) = -(a - m)^2 and two Gaussian actors, the gap is known in closed form."""
    run = build("twin", total_timesteps=60, learning_starts=20)
    first, second = run.learners
    first.model.log_ent_coef.data.fill_(float(np.log(0.1)))
    first.model.critic.forward = lambda s, a: (-((a - 0.3) ** 2), -((a - 0.3) ** 2))

    def actor(mean: float, scale: float):
        class Gaussian:
            @staticmethod
            def action_log_prob(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                law = torch.distributions.Normal(mean, scale)
                act = law.sample((len(states), 1))
                return act, law.log_prob(act).squeeze(-1)

        return Gaussian

    first.model.actor, second.model.actor = actor(0.3, 0.2), actor(0.5, 0.1)

    def exact(mean: float, scale: float) -> float:  # E[Q] + alpha * entropy
        entropy = 0.5 * np.log(2 * np.pi * np.e * scale**2)
        return -((mean - 0.3) ** 2 + scale**2) + 0.1 * entropy

    expected = (exact(0.3, 0.2) - exact(0.5, 0.1)) / (1 - run.config.gamma)
    before = torch.get_rng_state()
    assert first.value_gap(second, torch.zeros(200_000, 1)) == pytest.approx(expected, rel=0.02)
    assert torch.equal(torch.get_rng_state(), before)  # a metric does not move the run


@pytest.mark.parametrize(
    ("algorithm", "method"), [pytest.param(TQC, "penalty", marks=pytest.mark.slow), (TQC, "mrn"), (CrossQ, "pebble")]
)
def test_an_algorithm_of_sb3_contrib_is_a_learner(algorithm: type, method: str) -> None:
    run = build(method, own={"algorithm": algorithm}, ent_coef="auto_0.3")
    list(train(run))
    learner = run.learners[0]
    assert learner.model.ent_coef == "auto_0.3" and learner.temperature() != 0.3  # it was learnt
    obs, act = run.store.obs[:7], run.store.act[:7]
    assert learner.value(obs[None], act[None]).shape == (1, 7)
    before = learner.value(obs, act)
    learner.load_state_dict(run.learners[0].state_dict())
    assert learner.value(obs, act).equal(before)  # no batch statistics: asking changes nothing


def test_a_critic_of_quantiles_counts_with_their_mean() -> None:
    learner = build("pebble", own={"algorithm": TQC}).learners[0]
    obs, act = torch.rand(5, 1), torch.rand(5, 1) * 2 - 1
    quantiles = learner.model.critic(obs, act)  # (5, critics, quantiles)
    assert learner.value(obs, act).allclose(quantiles.mean(2).min(1).values)


def test_a_run_of_tqc_is_loaded_by_its_name(tmp_path: Path) -> None:
    settings = {"labels": 4, "learning_starts": 20, "eval_freq": 100, "n_eval_episodes": 1, "net_arch": 8}
    agent = Agent("pebble", "Pendulum-v1", algorithm="sb3_contrib:TQC", out=tmp_path / "run", **settings).learn(120)
    obs = agent.make_env().reset()[0]
    loaded = Agent.load(tmp_path / "run", trust=True)
    assert type(loaded.model) is TQC and np.array_equal(loaded.predict(obs)[0], agent.predict(obs)[0])
