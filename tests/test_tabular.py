"""The exact lower level against plain iteration, brute force and finite differences."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from rlhf_bilevel.objective import Objective, preference_loss, win_rate
from rlhf_bilevel.problems import central_difference
from rlhf_bilevel.tabular import (
    MDP,
    RewardLearning,
    best_response,
    exact_cost,
    random_mdp,
    respond,
    reward_table,
    soft_value,
    table_reward,
    visits,
)

STATES, ACTIONS = 4, 3


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@pytest.fixture(params=[0, 1])
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    return torch.Generator().manual_seed(request.param)


@pytest.fixture
def mdp(rng: torch.Generator) -> MDP:
    return random_mdp(rng, STATES, ACTIONS)


def objectives(mdp: MDP, truth: Tensor) -> list[Objective]:
    reference, teacher = visits(mdp, mdp.reference), table_reward(truth)
    return [preference_loss(teacher), win_rate(teacher, reference, reference, weight=2.0)]


def random_policy(rng: torch.Generator) -> Tensor:
    return torch.softmax(normal(rng, STATES, ACTIONS), 1)


def rollout(mdp: MDP, policy: Tensor, horizon: int = 400) -> Tensor:
    """sum_t gamma^t Pr(s_t, a_t), (S, A), by pushing the state distribution forward."""
    state, total = mdp.initial, torch.zeros_like(policy)
    for t in range(horizon):
        pair = state[:, None] * policy
        total = total + mdp.gamma**t * pair
        state = torch.einsum("sa,sat->t", pair, mdp.transition)
    return total


def test_visits_are_the_discounted_occupancy(mdp: MDP, rng: torch.Generator) -> None:
    policy = random_policy(rng)
    seen = visits(mdp, policy)
    assert seen.weight.sum().item() == pytest.approx(1 / (1 - mdp.gamma), rel=1e-12)
    torch.testing.assert_close(seen.weight.reshape(STATES, ACTIONS), rollout(mdp, policy), rtol=1e-12, atol=1e-14)
    for n, (state, action) in enumerate(product(range(STATES), range(ACTIONS))):
        assert seen.obs[n].argmax() == state and seen.act[n].argmax() == action
    assert torch.equal(seen.obs.sum(1), torch.ones(12)) and torch.equal(seen.act.sum(1), torch.ones(12))


def test_soft_value_is_the_regularised_return(mdp: MDP, rng: torch.Generator) -> None:
    policy, table = random_policy(rng), normal(rng, STATES, ACTIONS)
    step = table - mdp.beta * (policy / mdp.reference).log()
    value = soft_value(mdp, table_reward(table), visits(mdp, policy))
    assert value.item() == pytest.approx((rollout(mdp, policy) * step).sum().item(), rel=1e-12)


def test_best_response_solves_the_soft_bellman_equation(mdp: MDP, rng: torch.Generator) -> None:
    table, values = normal(rng, STATES, ACTIONS), torch.zeros(STATES, dtype=torch.float64)
    for _ in range(400):  # plain soft value iteration
        q = table + mdp.gamma * torch.einsum("sat,t->sa", mdp.transition, values)
        values = mdp.beta * (mdp.reference.log() + q / mdp.beta).logsumexp(1)
    policy = best_response(mdp, table_reward(table))
    torch.testing.assert_close(policy, mdp.reference * ((q - values[:, None]) / mdp.beta).exp(), rtol=1e-11, atol=0)
    attained = soft_value(mdp, table_reward(table), visits(mdp, policy))
    assert attained.item() == pytest.approx((mdp.initial @ values).item(), rel=1e-12)


def test_value_gap_is_never_negative(mdp: MDP, rng: torch.Generator) -> None:
    reward = table_reward(normal(rng, STATES, ACTIONS))
    best = best_response(mdp, reward)
    for _ in range(20):
        other = torch.softmax(best.log() + 0.1 * normal(rng, STATES, ACTIONS), 1)
        gap = soft_value(mdp, reward, visits(mdp, best)) - soft_value(mdp, reward, visits(mdp, other))
        assert gap > 0


def test_objectives_are_expectations_over_pairs(mdp: MDP, rng: torch.Generator) -> None:
    truth, table, policy = normal(rng, STATES, ACTIONS), normal(rng, STATES, ACTIONS), random_policy(rng)
    loss = wins = data_loss = 0.0
    share, reference = ((1 - mdp.gamma) * rollout(mdp, pi).flatten() for pi in (policy, mdp.reference))
    for i, j in product(range(STATES * ACTIONS), repeat=2):
        prefers = torch.sigmoid(truth.flatten()[i] - truth.flatten()[j])
        believes = torch.sigmoid(table.flatten()[i] - table.flatten()[j])
        entropy = -(prefers * believes.log() + (1 - prefers) * (1 - believes).log()).item()
        loss += (share[i] * share[j]).item() * entropy
        data_loss += (reference[i] * reference[j]).item() * entropy
        wins += (share[i] * reference[j] * prefers).item()
    paper, aligned = (g(table_reward(table), visits(mdp, policy)).item() for g in objectives(mdp, truth))
    assert paper == pytest.approx(loss, rel=1e-9)
    assert aligned == pytest.approx(data_loss - 2 * wins, rel=1e-9)


def test_cost_is_the_derivative_in_the_visits(mdp: MDP, rng: torch.Generator) -> None:
    reward, here = table_reward(normal(rng, STATES, ACTIONS)), visits(mdp, random_policy(rng))
    for objective in objectives(mdp, normal(rng, STATES, ACTIONS)):
        cost = exact_cost(objective, reward, here)
        shifted = central_difference(lambda w, g=objective: g(reward, here._replace(weight=w)), here.weight, 1e-3)
        torch.testing.assert_close(cost, shifted, rtol=1e-8, atol=1e-10)
        assert abs(cost @ here.weight) < 1e-12 and not cost.requires_grad


def test_tilted_response_maximises_and_its_value_has_slope_g(mdp: MDP, rng: torch.Generator) -> None:
    """dh/dt = G at lambda_t: Danskin's theorem in the tilt, on which the proxy rests."""
    reward = table_reward(normal(rng, STATES, ACTIONS))
    for objective in objectives(mdp, normal(rng, STATES, ACTIONS)):

        def h(tilt: Tensor, objective: Objective = objective) -> Tensor:
            best = respond(mdp, reward, objective, float(tilt))
            return soft_value(mdp, reward, best) + tilt * objective(reward, best)

        for tilt in torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64):
            best = respond(mdp, reward, objective, float(tilt))
            assert central_difference(h, tilt, 1e-3).item() == pytest.approx(objective(reward, best).item(), rel=1e-9)
            weights = best.weight.reshape(STATES, ACTIONS)
            for _ in range(5):
                logits = weights.log() + 0.1 * normal(rng, STATES, ACTIONS)
                near = visits(mdp, torch.softmax(logits, 1))
                assert soft_value(mdp, reward, near) + tilt * objective(reward, near) < h(tilt)


@pytest.mark.parametrize("kind", ["linear", "squashed", "tabular"])
def test_closed_form_hypergradient_matches_differences(mdp: MDP, rng: torch.Generator, kind: str) -> None:
    features = torch.eye(12, dtype=torch.float64).reshape(STATES, ACTIONS, 12)
    features = features if kind == "tabular" else normal(rng, STATES, ACTIONS, 3)
    squash = torch.tanh if kind == "squashed" else torch.clone
    phi = normal(rng, features.shape[-1])
    for objective in objectives(mdp, normal(rng, STATES, ACTIONS)):
        problem = RewardLearning(mdp, objective, lambda x: table_reward(squash(features @ x)))
        exact = central_difference(lambda x, p=problem: p.upper(x, p.respond(x, 0.0)), phi, 1e-3)
        assert (problem.gradient(phi) - exact).norm() < 1e-8 * exact.norm()


def test_reward_and_table_are_inverse(mdp: MDP, rng: torch.Generator) -> None:
    table = normal(rng, STATES, ACTIONS)
    assert torch.equal(reward_table(mdp, table_reward(table)), table)


def test_deterministic_worlds_and_unreached_states_are_solved(rng: torch.Generator) -> None:
    transition = torch.eye(3, dtype=torch.float64)[torch.tensor([[1, 0], [0, 1], [2, 2]])]  # nothing leads to state 2
    initial, reference = torch.tensor([1.0, 0, 0]).double(), torch.full((3, 2), 0.5).double()
    mdp, reward = MDP(transition, initial, reference, 0.95, 0.01), table_reward(normal(rng, 3, 2))
    best = respond(mdp, reward, preference_loss(reward), -0.1)
    assert best.weight[4:].sum() == 0 and torch.isfinite(soft_value(mdp, reward, best))


def test_a_tilt_too_large_says_so() -> None:
    """A bandit that is paid for arm 0 but charged in proportion to its popularity swings from arm to arm."""
    arms = torch.full((1, 2), 0.5).double()
    bandit, paid = MDP(torch.ones(1, 2, 1).double(), torch.ones(1).double(), arms, gamma=0.0, beta=0.01), arms.cumsum(1)
    popularity = lambda _, visits: visits.weight[1].square()  # noqa: E731
    assert 0 < respond(bandit, table_reward(paid), popularity, -0.001).weight[1] <= 1
    with pytest.raises(RuntimeError, match="smaller"):
        respond(bandit, table_reward(paid), popularity, -10.0)


@pytest.mark.parametrize(
    "change", [{"gamma": 1.0}, {"beta": 0.0}, {"initial": torch.ones(STATES)}, {"initial": torch.ones(1)}]
)
def test_an_impossible_mdp_is_refused(mdp: MDP, change: dict[str, float | Tensor]) -> None:
    with pytest.raises(ValueError):
        MDP(**{**vars(mdp), **change})
