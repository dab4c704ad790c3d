"""A reward that collapses or diverges is seen within its session and taken back; a healthy one raises no alarm."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.rewards.health import Vitals, describe
from rlhf_bilevel.training.loop import train, update_reward
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences
from tests.conftest import build


def weights(run: Run) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.reward.parameters()])


def collapsing(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    for weight in run.reward.weights:
        weight.data *= 0.1
    return 0 * logits.sum()


def diverging(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    return cross_entropy(logits, batch.label).mean() + (0 * logits).sum().sqrt()  # whose gradient is infinite


def unlearning(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    return cross_entropy(logits, 1 - batch.label).mean()


def saturating(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    run.reward.biases[-1].data += 3
    return cross_entropy(logits, batch.label).mean()


@pytest.mark.parametrize(
    ("upper", "told"),
    [
        (collapsing, "the reward collapsed"),
        (diverging, "the reward diverged: loss nan"),
        (unlearning, "the reward unlearnt its labels"),
        (saturating, "the reward collapsed"),
    ],
)
def test_a_reward_that_goes_wrong_is_told_and_taken_back_within_its_session(upper: Any, told: str) -> None:
    run = build("pebble", total_timesteps=400, train_freq=10, labels=80, reward_form="network", reward_lr=0.03)
    healthy, steps = run.method, train(run)
    while len(run.prefs) < 40:
        next(steps)
    before, optimizer = weights(run), run.reward_optimizer.state_dict()["state"][0]["step"].item()
    run.method = type(healthy)(healthy.name, 1, healthy.learner_rewards, upper)
    run.reward_optimizer.param_groups[0]["lr"] = 0.05
    with pytest.warns(UserWarning, match=told):
        while len(run.prefs) == 40:
            next(steps)
    assert torch.equal(weights(run), before)
    assert run.reward_optimizer.state_dict()["state"][0]["step"].item() == optimizer
    assert run.reward_optimizer.param_groups[0]["lr"] == 0.03
    run.method = healthy
    for _ in steps:
        pass
    assert not torch.equal(weights(run), before) and weights(run).isfinite().all()


def test_a_first_session_that_goes_wrong_leaves_the_learners_at_the_state_entropy() -> None:
    run = build("pebble", total_timesteps=60, train_freq=10)
    healthy = run.method
    run.method = type(healthy)(healthy.name, 1, healthy.learner_rewards, diverging)
    before, steps = weights(run), train(run)
    with pytest.warns(UserWarning, match="diverged"):
        for _ in steps:
            pass
    assert torch.equal(weights(run), before) and not run.reward_optimizer.state
    view = run.learners[0]._view  # type: ignore[attr-defined]
    assert not view.cached  # the entropy's signal, which changes by itself


def test_without_the_roll_back_the_same_move_would_have_destroyed_it() -> None:
    """The alarm's test can fail: the moves above do what they say."""
    run = build("pebble", total_timesteps=60, train_freq=10)
    for _ in train(run):
        pass
    run.method = type(run.method)("pebble", 1, run.method.learner_rewards, diverging)
    update_reward(run, 2)
    assert not weights(run).isfinite().all()


def test_a_learner_that_diverges_stops_the_run_and_names_what_did() -> None:
    run = build("sac", total_timesteps=100, learning_starts=20, train_freq=1)
    steps = train(run)
    for _ in range(30):
        next(steps)
    run.learners[0].model.critic.qf0[0].weight.data.fill_(math.nan)  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match=r"diverged at step 31: train/\w+=nan"):
        next(steps)


def test_one_label_of_one_step_is_no_divergence() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = build("pebble", total_timesteps=8, segment_length=1, labels=1)
        for _ in train(run):
            pass
    assert len(run.prefs) == 1 and not [each for each in told if "the reward" in str(each.message)]


def test_ties_alone_are_no_collapse() -> None:
    assert describe(Vitals(loss=0.69, right=0.5, decided=9, spread=1e-6, gradient=0.1))
    assert not describe(Vitals(loss=0.69, right=1.0, decided=0, spread=1e-6, gradient=0.1))


def test_an_overconfident_reward_that_the_penalty_moves_raises_no_alarm() -> None:
    """As on cartpole: a loss of 1.5 nats at 78 % right, which the next session mends."""
    assert not describe(Vitals(loss=1.5, right=0.78, decided=60, spread=0.4, gradient=5.0))
    assert not describe(Vitals(loss=1.5, right=0.0, decided=3, spread=0.4, gradient=5.0))  # three labels are none
    assert describe(Vitals(loss=1.5, right=0.3, decided=60, spread=0.4, gradient=5.0))
    run = build("pebble", total_timesteps=150, train_freq=10)
    run.teacher = lambda queries: Preferences(*queries, label=torch.full((len(queries.first.env_reward),), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in train(run):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("method", ["pebble", "penalty"])
def test_twenty_healthy_runs_raise_no_alarm(method: str, seed: int) -> None:
    run = build(method, total_timesteps=900, labels=80, net_arch=(32, 32), batch_size=64, reward_epochs=20, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in train(run):
            pass
