"""Options against a reward that is followed to where no label is: each does what it says."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.rewards.bradley_terry import bootstrap, cross_entropy, smoothed, weighed
from rlhf_bilevel.training import loop, monitor
from rlhf_bilevel.training.loop import reward_objective, train
from rlhf_bilevel.training.query_session import labels_due, query_session
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries, Segments
from tests.conftest import FEW, build


def trained(method: str = "pebble", until: int = 200, **settings: object) -> Run:
    run = build(method, total_timesteps=300, **settings)
    for _ in train(run):
        if run.step == until:
            return run
    raise AssertionError


def asked_in(run: Run) -> Queries:
    """What the next session asks."""
    told: list[Queries] = []

    def teacher(queries: Queries) -> Preferences:
        told.append(queries)
        return Preferences(*queries, label=torch.ones(len(queries.first.env_reward)))

    run.teacher = teacher
    query_session(run, labels_due(run))
    return told[0]


def keys(segments: Segments) -> list[bytes]:
    return [obs.numpy().tobytes() + act.numpy().tobytes() for obs, act in zip(segments.obs, segments.act, strict=True)]


@pytest.mark.parametrize("method", ["pebble", "twin", "surf"])
def test_an_anchored_pair_has_a_new_segment_and_one_of_the_best_labelled(method: str) -> None:
    run = trained(method, labels=180, queries_per_session=10, anchor_share=0.5, anchor_segments=4)
    labelled = run.prefs.segments()
    rating = run.reward(labelled.obs, labelled.act).sum(-1)
    best = set(keys(Segments(*(column[rating.topk(4).indices] for column in labelled))))
    newest = run.store.episodes(least=10)[-run.config.aligned_episodes :]
    first, second = asked_in(run)
    assert len(first.obs) == 10
    assert set(keys(second)[5:]) <= best and not set(keys(second)[:5]) & best
    rows = run.store.rows_of(Segments(*(column[5:] for column in first)))
    assert all(any(start <= row <= end - 10 for start, end in newest) for row in rows.tolist())


def test_an_anchor_of_the_past_is_any_segment_since_labels_began() -> None:
    run = trained(labels=360, queries_per_session=20, anchor_share=1.0, anchor="past", aligned_episodes=1)
    rows = run.store.rows_of(asked_in(run).second)
    assert int(rows.min()) >= run.on_policy_since and len({int(row) // 50 for row in rows}) >= 3


def test_without_a_reward_nothing_is_anchored() -> None:
    run = trained(until=20, labels=100, queries_per_session=10, anchor_share=1.0)
    assert len(asked_in(run).first.obs) == 10


def test_a_share_of_none_leaves_a_run_as_it_was() -> None:
    one = trained(anchor_share=0)
    other = trained(anchor_share=0, anchor="past", anchor_segments=3, pessimism_from="start")
    assert torch.equal(one.store.table, other.store.table)


def test_smoothing_moves_labels_towards_even_odds_and_the_loss_as_it_should() -> None:
    logits, label = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([1.0, 0.0, 0.5])
    loss = cross_entropy(logits, smoothed(label, 0.05))
    even = cross_entropy(logits, torch.full((3,), 0.5))
    assert torch.allclose(loss, 0.95 * cross_entropy(logits, label) + 0.05 * even)


@pytest.mark.parametrize("method", ["pebble", "penalty", "mrn"])
def test_the_lasso_is_added_to_what_the_reward_descends(method: str) -> None:
    run = build(method, reward_form="additive", labels=40, queries_per_session=20)
    for row in train(run):
        if "reward/labels" in row:
            break
    rows = run.prefs[np.arange(10)]
    values = []
    for lasso in (0.0, 0.5):
        run.config = run.config.model_copy(update={"reward_lasso": lasso})
        torch.manual_seed(0)
        values.append(reward_objective(run, rows)[0].item())
    assert values[1] - values[0] == pytest.approx(0.5 * run.reward.lasso().item(), rel=1e-3)


def test_bootstrap_weights_are_poisson_and_stay_when_labels_come() -> None:
    weights = bootstrap(4000, 3, seed=0)
    assert torch.equal(weights[:, :100], bootstrap(100, 3, seed=0))
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights, bootstrap(4000, 3, seed=1))
    counts = np.bincount(weights.flatten().long().numpy(), minlength=6)
    expected = stats.poisson.pmf(np.arange(5), 1)
    expected = np.append(expected, 1 - expected.sum()) * counts.sum()
    observed = np.append(counts[:5], counts[5:].sum())
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_a_weighed_loss_has_the_value_of_the_plain_one_and_the_gradient_of_the_weighted_one() -> None:
    logits, weight = torch.randn(3, 7, requires_grad=True), torch.rand(3, 7) * 3
    label = torch.rand(7)
    loss = cross_entropy(weighed(logits, weight), label).mean()
    assert torch.allclose(loss, cross_entropy(logits, label).mean())
    (got,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad((weight * cross_entropy(logits, label)).mean(), logits)
    assert torch.allclose(got, expected)


def test_a_label_that_a_member_does_not_hold_does_not_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(reward_damping=0.0, reward_lasso=0.0, member_weights="bootstrap")
    before = [weight.detach().clone() for weight in run.reward.weights]

    def only_the_first(count: int, members: int, seed: int) -> torch.Tensor:
        return torch.tensor([[1.0], [0.0], [0.0]]).expand(members, count)

    monkeypatch.setattr(loop, "bootstrap", only_the_first)
    run.reward_optimizer.state.clear()  # moments would move them
    loop.update_reward(run, 1)
    moved = [(old != new).flatten(1).any(1) for old, new in zip(before, run.reward.weights, strict=True)]
    assert torch.stack(moved).any(0).tolist() == [True, False, False]


QUICKLY = ("pebble", "penalty", "surf", "prefppo")  # the others take a second each


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name in QUICKLY else pytest.mark.slow)
        for name in METHODS
        if name not in ("random", "sac", "unlabelled")
    ],
)
def test_every_method_learns_with_all_of_them(method: str) -> None:
    settings: dict[str, Any] = {"anchor_share": 0.5, "label_smoothing": 0.05, "member_weights": "bootstrap"}
    settings |= {"pessimism": 0.5, "pessimism_from": "start", "critic_layer_norm": method != "prefppo"}
    run = trained(method, until=150, **settings, **FEW.get(method, {}))
    assert len(run.prefs) > 10 and all(torch.isfinite(weight).all() for weight in run.reward.weights)


def test_pessimism_is_the_mean_less_so_many_standard_deviations_after_the_last_label() -> None:
    run = trained(pessimism=0.7, labels=12, until=100, queries_per_session=6)
    obs, act = run.store.obs[:20], run.store.act[:20]
    members = run.reward.members(obs, act)
    assert len(run.prefs) == 12
    expected = members.mean(0) - 0.7 * members.std(0, correction=0)
    assert torch.allclose(run.reward(obs, act), expected, atol=1e-5)
    before = trained(pessimism=0.7, until=60, labels=40, queries_per_session=6)
    assert torch.equal(before.reward(obs, act), before.reward.members(obs, act).mean(0))


def test_normalised_critics_have_a_layer_normalisation_before_each_activation() -> None:
    run = trained(until=60, critic_layer_norm=True)
    critic = run.learners[0].model.critic  # type: ignore[attr-defined]
    for network in critic.q_networks:
        names = [type(module).__name__ for module in network]
        assert names == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    assert len(list(critic.qf0.parameters())) == 10 and critic.q_networks[0] is critic.qf0


@pytest.mark.slow
def test_a_model_with_normalised_critics_trains_on_in_plain_sb3(tmp_path: Path) -> None:
    model = trained(until=60, critic_layer_norm=True).learners[0].model  # type: ignore[attr-defined]
    model.save(tmp_path / "model.zip", exclude=["replay_buffer", "_last_obs"])
    spaces = model.observation_space, model.action_space
    obs = np.linspace(-1, 1, 5, dtype=np.float32)[:, None].repeat(model.observation_space.shape[0], 1)
    program = f"""
import sys
sys.modules["rlhf_bilevel"] = None  # as where it is not installed
import gymnasium, numpy as np
from stable_baselines3 import SAC
from gymnasium.spaces import Box as Space
class Box(gymnasium.Env):
    observation_space = Space(*np.array([{spaces[0].low.tolist()}, {spaces[0].high.tolist()}], np.float32))
    action_space = Space(*np.array([{spaces[1].low.tolist()}, {spaces[1].high.tolist()}], np.float32))
    def reset(self, *, seed=None, options=None): return self.observation_space.low * 0, {{}}
    def step(self, action): return self.observation_space.low * 0, 0.0, False, True, {{}}
model = SAC.load({str(tmp_path / "model.zip")!r}, env=Box(), custom_objects={{"learning_starts": 5}})
print(model.predict(np.array({obs.tolist()}, np.float32), deterministic=True)[0].tolist())
model.learn(20)
assert [type(module).__name__ for module in model.critic.qf0][1] == "LayerNorm" and model._n_updates > 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert np.allclose(json.loads(done.stdout), model.predict(obs, deterministic=True)[0], atol=1e-6)


def test_the_monitors_numbers_are_what_they_say() -> None:
    run = trained()
    told = monitor.newest_episode(run)
    assert set(told) == {"monitor/q", "monitor/spread", "monitor/distance", "monitor/beyond"}
    rows = torch.arange(*run.store.episodes(0, run.on_policy_since, 10)[-1])
    obs, act, labelled = run.store.obs[rows], run.store.act[rows], run.prefs.segments()
    reward = run.reward(obs, act)
    windows = max(reward[i : i + 10].mean().item() for i in range(len(rows) - 9))
    best = run.reward(labelled.obs, labelled.act).mean(1).max().item()
    assert told["monitor/beyond"] == pytest.approx(windows - best, abs=1e-5)
    x = torch.cat([obs, act], 1) / run.reward.unit
    y = torch.cat([labelled.obs, labelled.act], 2).flatten(0, 1) / run.reward.unit
    nearest = (x[:, None] - y).square().mean(-1).sqrt().amin(1)
    assert told["monitor/distance"] == pytest.approx(nearest.median().item(), rel=1e-4)


def test_the_monitor_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = trained().store.table
    monkeypatch.setattr(monitor, "newest_episode", lambda run: {})
    assert torch.equal(watched, trained().store.table)


def test_a_methods_loss_does_not_see_the_true_reward_and_knows_which_labels_it_gets() -> None:
    seen = list[tuple[torch.Tensor, Preferences]]()

    def fading(run: Run, answers: Preferences, logits: torch.Tensor) -> torch.Tensor:
        assert run.batch_rows is not None
        seen.append((run.batch_rows, answers))
        return cross_entropy(logits, answers.label).mean()

    def cheating(run: Run, answers: Preferences, logits: torch.Tensor) -> torch.Tensor:
        return (answers.first.env_reward.sum(-1) * logits).mean()

    run = build("pebble", reward_batch=4)
    run.method = replace(run.method, name="fading", reward_loss=fading)
    list(train(run))
    assert all(pairs.first.env_reward.isnan().all() and pairs.second.env_reward.isnan().all() for _, pairs in seen)
    rows, pairs = seen[-1]
    assert pairs.first.obs.equal(run.prefs[rows].first.obs) and pairs.label.equal(run.prefs[rows].label)
    assert not run.prefs[:].first.env_reward.isnan().any()  # what is stored stays
    run = build("pebble")
    run.method = replace(run.method, name="cheating", reward_loss=cheating)
    with pytest.raises(UserError, match=r"the loss of method cheating is NaN.*does it read env_reward"):
        list(train(run))


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (
            lambda run, answers, logits: cross_entropy(logits, answers.label),
            r"is a tensor \(3, \d+\): it must be one number",
        ),
        (lambda run, answers, logits: logits.mean().item(), "is float: it must be one number"),
        (lambda run, answers, logits: answers.label.mean(), r"is a tensor \(\) that does not depend on the logits"),
        (lambda run, answers, logits: logits.square().mean() / 0, "is infinite, and the logits are not"),
    ],
)
def test_a_methods_loss_that_is_no_loss_is_told_in_one_line(loss: Callable[..., Any], told: str) -> None:
    run = build("pebble")
    run.method = replace(run.method, name="wrong", reward_loss=loss)
    with pytest.raises(UserError, match=f"the loss of method wrong {told}"):
        list(train(run))
