"""Methods differ where they say they differ, and nowhere else; above all, the penalty reaches the reward."""

import functools
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_bilevel.baselines import pebble
from rlhf_bilevel.methods import penalty
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.rewards.bradley_terry import cross_entropy, logits
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Occupancy
from tests.conftest import FEW, build


def fresh(method: str, **settings) -> Run:
    run = build(method, **({"total_timesteps": 160} | settings))
    list(train(run))
    run.in_refresh = True
    return run


@functools.cache
def _trained(method: str, settings: tuple) -> Run:
    return fresh(method, **dict(settings))


def trained(method: str, **settings) -> Run:
    """A run that is shared between tests: not to be changed."""
    return _trained(method, tuple(settings.items()))


def flat(scalar: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Its gradient, as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(parameters), retain_graph=True)])


def gradient(run: Run, reward_loss) -> Tensor:
    """Of a method's upper objective on all labels, over all of the reward's parameters."""
    answers = run.prefs[:]
    return flat(reward_loss(run, answers, logits(run.reward.members, answers)), run.reward.parameters())


def torn(sides: str = "one") -> Run:
    """A run of the penalty method in which sigma c spreads three times as far as r, so that best responses differ."""
    run = fresh("penalty", sides=sides, reward_lasso=0.1)
    obs, act = run.store.obs[: run.store.size], run.store.act[: run.store.size]
    with torch.no_grad():
        reward, cost = (f(obs, act).std().item() for f in (run.reward, run.state.cost))
    run.options = run.options.model_copy(update={"sigma": 3 * reward / cost})
    return run


def best_responses(run: Run) -> tuple[Occupancy, Occupancy]:
    """The steps in the store that each learner's reward likes best: neither could do better with the other's."""
    obs, act = run.store.obs[: run.store.size], run.store.act[: run.store.size]
    with torch.no_grad():
        best = [reward(obs, act).topk(40).indices for reward in penalty.rewards(run)]
    high, low = (Occupancy(obs[rows], act[rows], torch.full((40,), 100 / 40)) for rows in best)
    return high, low


@pytest.fixture(scope="module")
def torn_run() -> Run:
    return torn()


@pytest.fixture
def run(torn_run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    pair = best_responses(torn_run)
    monkeypatch.setattr(penalty, "sample_visits", lambda run: pair)
    return torn_run


def test_it_moves_the_penalty_reaches_the_reward_and_not_as_pebbles_step_does(run: Run) -> None:
    ours, pebbles = gradient(run, penalty.reward_loss), gradient(run, pebble.reward_loss)
    assert pebbles.norm() > 0 and ours.norm() > 0
    assert (ours - pebbles).norm() > 0.1 * pebbles.norm()


@pytest.mark.parametrize("sides", ["one", "forward", "two"])
def test_the_upper_gradient_equals_finite_differences(sides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = torn(sides)
    fixed = tuple(Occupancy(*(column.double() for column in visits)) for visits in best_responses(run))
    run.reward.double()
    run.state.cost.double()
    monkeypatch.setattr(penalty, "sample_visits", lambda run: fixed)
    answers = run.prefs[:]
    answers = answers._replace(
        first=answers.first._replace(obs=answers.first.obs.double(), act=answers.first.act.double()),
        second=answers.second._replace(obs=answers.second.obs.double(), act=answers.second.act.double()),
        label=answers.label.double(),
    )
    width = run.options.sigma * {"one": 1, "forward": -1, "two": 2}[sides]

    def discounted(visits: Occupancy) -> Tensor:
        return (visits.weight * run.reward(visits.obs, visits.act)).sum()

    def objective() -> float:  # written out again from the paper's formula, not through penalty.py
        with torch.no_grad():
            loss = cross_entropy(logits(run.reward.members, answers), answers.label).mean()
            return (loss + (discounted(fixed[0]) - discounted(fixed[1])) / width).item()

    loss = penalty.reward_loss(run, answers, logits(run.reward.members, answers))
    grads = torch.autograd.grad(loss, list(run.reward.parameters()))
    rng = np.random.default_rng(0)
    for parameter, grad in zip(run.reward.parameters(), grads, strict=True):
        for index in rng.choice(parameter.numel(), min(4, parameter.numel()), replace=False):
            entry = parameter.data.view(-1)
            kept, step = entry[index].item(), 1e-6
            entry[index] = kept + step
            up = objective()
            entry[index] = kept - step
            down = objective()
            entry[index] = kept
            assert grad.view(-1)[index].item() == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("sides", ["one", "forward", "two"])
def test_visits_that_no_best_responses_make_leave_pebbles_gradient(
    run: Run, monkeypatch: pytest.MonkeyPatch, sides: str
) -> None:
    monkeypatch.setattr(run, "options", run.options.model_copy(update={"sides": sides}))
    high, low = best_responses(run)
    obs, act = run.store.obs[: run.store.size], run.store.act[: run.store.size]
    with torch.no_grad():
        least = [reward(obs, act).argsort()[:40] for reward in penalty.rewards(run)]
    lazy_high, lazy_low = (Occupancy(obs[rows], act[rows], high.weight) for rows in least)
    for visits in ((high, high), (low, high), (lazy_high, low), (high, lazy_low)):
        monkeypatch.setattr(penalty, "sample_visits", lambda run, visits=visits: visits)
        assert torch.equal(gradient(run, penalty.reward_loss), gradient(run, pebble.reward_loss))
    monkeypatch.setattr(penalty, "sample_visits", lambda run: (high, low))
    assert not torch.equal(gradient(run, penalty.reward_loss), gradient(run, pebble.reward_loss))


def test_the_gap_waits_until_learners_had_time_to_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "in_refresh", False)
    assert torch.equal(gradient(run, penalty.reward_loss), gradient(run, pebble.reward_loss))


@pytest.mark.parametrize("sides", ["one", "forward", "two"])
def test_learners_see_the_tilted_rewards(run: Run, monkeypatch: pytest.MonkeyPatch, sides: str) -> None:
    rows = torch.arange(50)
    monkeypatch.setattr(run, "options", run.options.model_copy(update={"sides": sides}))
    first, second = (signal(rows) for signal in penalty.learner_rewards(run))
    with torch.no_grad():
        reward, cost = (f(run.store.obs[rows], run.store.act[rows]) for f in (run.reward, run.state.cost))
    assert cost.std() > 0
    tilt = run.options.sigma * cost
    assert torch.allclose(first, reward + (tilt if sides == "two" else 0), atol=1e-6)
    assert torch.allclose(second, reward + (tilt if sides == "forward" else -tilt), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sides", ["one", "forward", "two"])
def test_sigma_spread_is_how_far_the_cost_spreads_beside_the_reward(sides: str) -> None:
    run = fresh("penalty", sides=sides, sigma_spread=0.7)
    penalty.update_estimates(run)
    first, second = (signal(torch.arange(run.store.size)) for signal in penalty.learner_rewards(run))
    reward = run.store.learned(run.reward)(torch.arange(run.store.size))
    assert (first - second).std() / reward.std() == pytest.approx(0.7 * (2 if sides == "two" else 1), rel=1e-3)
    assert run.state.memory["sigma"] != run.options.sigma


def same_weights(first: Run, second: Run) -> bool:
    pairs = [(first.reward, second.reward)]
    pairs += [(a.model.policy, b.model.policy) for a, b in zip(first.learners, second.learners, strict=True)]
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x.parameters(), y.parameters(), strict=True))


@pytest.mark.parametrize("use_gap", [True, False])  # without a cost, the best responses are one, and there is no gap
def test_without_cost_the_penalty_method_is_the_control_bit_for_bit(use_gap: bool) -> None:
    assert same_weights(trained("penalty", use_cost=False, use_gap=use_gap), trained("twin"))


@pytest.mark.slow
def test_cost_and_gap_each_move_a_run() -> None:
    costly = trained("penalty", total_timesteps=300, use_gap=False)
    assert not same_weights(costly, trained("twin", total_timesteps=300))
    assert not same_weights(costly, trained("penalty", total_timesteps=300))


def test_zero_cost_and_one_learner_is_pebble_bit_for_bit() -> None:
    """The penalty's parts with the second learner away: what it sees and descends is PEBBLE's."""
    lone = build("pebble", total_timesteps=160)
    lone.method = Method("lone", 1, lambda run: penalty.learner_rewards(run)[:1], penalty.reward_loss)
    lone.options = penalty.PenaltyOptions(use_cost=False, use_gap=False)
    lone.state = penalty.PENALTY.state(lone)
    list(train(lone))
    assert same_weights(lone, trained("pebble"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "win_rate", "cost": "labels", "sides": "one"},
        {"cost": "posterior"},
        {"objective": "win_rate", "cost": "posterior", "sides": "two"},
        {"cost": "information", "sides": "forward", "query_source": "cross"},
        {"query": "policy_aligned", "query_source": "second"},
        {"query": "uniform", "query_source": "cross", "visit_discount": 0.99},
        {"query": "k_center+information_gain", "policy_aligned": True, "teacher_mistake": 0.1},
    ],
)
def test_every_choice_runs_through_all_phases(settings: dict) -> None:
    run = trained("penalty", **settings)
    assert len(run.prefs) == run.config.labels and penalty.sample_visits(run) is not None
    assert all(torch.isfinite(p).all() for p in run.reward.parameters())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    assert same_weights(trained("penalty"), fresh("penalty"))
    assert not same_weights(trained("penalty"), trained("penalty", seed=1))


@pytest.mark.parametrize("name", METHODS)
def test_three_hundred_steps_of_each(name: str) -> None:
    """Only a method with an upper objective asks for labels, and learns a reward from them; what is learnt is sound."""
    run = build(name, total_timesteps=300, train_freq=4, refresh_every=30, **FEW.get(name, {}))
    before = [p.clone() for p in run.reward.parameters()]
    rows = list(train(run))
    learns = METHODS[name].reward_loss is not None
    assert len(run.prefs) == (40 if learns else 0)
    assert learns == any(not torch.equal(a, b) for a, b in zip(before, run.reward.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for learner in run.learners for p in learner.model.policy.parameters())
    assert any("learner_0/train/n_updates" in row for row in rows) == (name != "random")
