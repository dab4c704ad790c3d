"""The exact lower level against plain iteration, brute force and finite differences."""

from itertools import product

import pytest
import torch
from torch import Tensor

from rlhf_bilevel.baselines.hypergradient import advantages, traces
from rlhf_bilevel.bilevel.objectives import Objective, preference_loss, win_rate
from rlhf_bilevel.bilevel.problems import central_difference, differentiate
from rlhf_bilevel.bilevel.tabular import (
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


def test_a_fixed_reference_bounds_the_proxy_and_phi_up_to_an_order_of_sigma(mdp: MDP, rng: torch.Generator) -> None:
    """docs/theory.md, (e): Phi_sigma <= G(ref) + gap / sigma, and Phi <= that + sigma C^2 / (2 beta (1 - gamma)^3)."""
    truth = normal(rng, STATES, ACTIONS)
    reward, below = table_reward(normal(rng, STATES, ACTIONS)), 0
    best = visits(mdp, best_response(mdp, reward))
    references = [random_policy(rng) for _ in range(10)] + [best_response(mdp, table_reward(truth))]
    for number, objective in enumerate(objectives(mdp, truth)):
        cost = exact_cost(objective, reward, best)
        slack = ((cost.max() - cost.min()) / 2) ** 2 / (2 * mdp.beta * (1 - mdp.gamma) ** 3)
        phi = objective(reward, best)
        for policy, sigma in product(references, (0.1, 1.0, 1e4)):
            reference = visits(mdp, policy)
            gap = soft_value(mdp, reward, best) - soft_value(mdp, reward, reference)
            divergence = (reference.weight * (policy / best_response(mdp, reward)).log().flatten()).sum()
            assert gap.item() == pytest.approx(mdp.beta * divergence.item(), rel=1e-8)
            bound = objective(reward, reference) + gap / sigma
            if sigma < 10:
                low = respond(mdp, reward, objective, -sigma)
                proxy = objective(reward, low) + (soft_value(mdp, reward, best) - soft_value(mdp, reward, low)) / sigma
                assert proxy <= bound + 1e-9 and proxy <= phi + 1e-9
            if number:  # of the win rate, whose cost is the same at all visits
                assert phi <= bound + sigma * slack
                below += bool(bound < phi)
    assert below > 0  # the bound alone does not hold for Phi


# The same from the policy's own trajectories, by the code of the deep method (docs/methods/hypergradient.md)


class Walks:
    """Every trajectory of so many steps of a policy's, with its probability: expectations without sampling."""

    def __init__(self, mdp: MDP, policy: Tensor, steps: int) -> None:
        states, actions = policy.shape
        shape = (states * actions,) * steps
        pairs = torch.stack([index.flatten() for index in torch.meshgrid(*map(torch.arange, shape), indexing="ij")])
        self.state, self.action = pairs // actions, pairs % actions  # (T, walks)
        self.chance = mdp.initial[self.state[0]] * policy[self.state, self.action].prod(0)
        self.chance *= mdp.transition[self.state[:-1], self.action[:-1], self.state[1:]].prod(0)

    def answer(self, mdp: MDP, advantage: Tensor, reward: Tensor) -> Tensor:
        """The second part of the gradient as a scalar of rewards (S, A); ``advantage`` (T, walks), at its steps."""
        steps = len(advantage)
        weight = (mdp.gamma ** torch.arange(steps, dtype=torch.float64))[:, None]
        e = traces(advantage, weight, mdp.gamma)
        return (self.chance * (e * reward[self.state[:steps], self.action[:steps]]).sum(0)).sum() / mdp.beta


def cost_values(mdp: MDP, policy: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Q_c (S, A) and V_c (S,), by iterating the Bellman equation."""
    values = torch.zeros(len(cost), dtype=torch.float64)
    for _ in range(200):
        q = cost + mdp.gamma * mdp.transition @ values
        values = (policy * q).sum(1)
    return q, values


@pytest.mark.parametrize("kind", [0, 1])
def test_traces_of_the_costs_advantage_are_the_rest_of_the_hypergradient(rng: torch.Generator, kind: int) -> None:
    """The expectation over all trajectories of what the deep method sums, against the closed form and differences."""
    mdp, features = random_mdp(rng, 2, 2, gamma=0.2), normal(rng, 2, 2, 3)
    objective = objectives(mdp, normal(rng, 2, 2))[kind]
    problem, phi = RewardLearning(mdp, objective, lambda x: table_reward(torch.tanh(features @ x))), normal(rng, 3)
    policy = best_response(mdp, problem.reward(phi))
    here = visits(mdp, policy)
    cost = exact_cost(problem.objective, problem.reward(phi), here).reshape(2, 2)
    q, values = cost_values(mdp, policy, cost)
    walks = Walks(mdp, policy, 8)
    advantage = (q - values[:, None])[walks.state, walks.action]

    def whole(x: Tensor) -> Tensor:
        table = reward_table(mdp, problem.reward(x))
        return problem.upper(x, here) + walks.answer(mdp, advantage, table)

    ours, direct = differentiate(whole, phi), differentiate(lambda x: problem.upper(x, here), phi)
    closed = problem.gradient(phi)
    shifted = central_difference(lambda x: problem.upper(x, problem.respond(x, 0.0)), phi, 1e-3)
    for exact in closed, shifted:
        assert (ours - exact).norm() < 1e-4 * (exact - direct).norm()  # .2^8 of it is beyond the last step
    assert (direct - closed).norm() > 1e-3 * closed.norm()


@pytest.mark.parametrize("deterministic", [True, False])
def test_temporal_differences_stand_for_the_advantage_up_to_what_the_next_state_ties_together(
    rng: torch.Generator, deterministic: bool
) -> None:
    """Their bias is E[sum_t w_t gamma^2 Cov(V_c(s'), V_r(s') | s_t, a_t)] / alpha: none where dynamics are certain."""
    mdp = random_mdp(rng, 2, 2, gamma=0.2)
    if deterministic:
        where = torch.randint(2, (2, 2), generator=rng)
        mdp = MDP(torch.eye(2).double()[where], mdp.initial, mdp.reference, mdp.gamma, mdp.beta)
    policy = best_response(mdp, table_reward(normal(rng, 2, 2)))
    cost, reward = normal(rng, 2, 2), normal(rng, 2, 2)
    (q, values), (_, later) = (cost_values(mdp, policy, table) for table in (cost, reward))
    walks = Walks(mdp, policy, 8)
    now, then = walks.state[:-1], walks.state[1:]
    act = walks.action[:-1]
    differences = cost[now, act] + mdp.gamma * values[then] - values[now]
    exact = walks.answer(mdp, (q - values[:, None])[now, act], reward)
    got = walks.answer(mdp, differences, reward)
    mean = [mdp.transition @ table for table in (values, later, values * later)]
    tied = mdp.gamma**2 * (mean[2] - mean[0] * mean[1])
    bias = (visits(mdp, policy).weight * tied.flatten()).sum() / mdp.beta
    assert (got - exact).item() == pytest.approx(bias.item(), abs=1e-4 * abs(exact.item()))
    assert (abs(bias) < 1e-12) == deterministic


def test_the_deep_methods_advantages_are_exact_where_its_value_can_be(rng: torch.Generator) -> None:
    """Dynamics that are certain, states as rows of 0 and 1: of them every value is linear."""
    where = torch.tensor([[0, 1, 2], [2, 3, 0], [3, 0, 1], [1, 2, 3]])
    mdp = random_mdp(rng, STATES, ACTIONS, gamma=0.9)
    mdp = MDP(torch.eye(4).double()[where], mdp.initial, mdp.reference, mdp.gamma, mdp.beta)
    policy, cost = random_policy(rng), normal(rng, STATES, ACTIONS)
    state, action = [0], list[int]()
    for _ in range(6000):
        action.append(int(torch.multinomial(policy[state[-1]], 1, generator=rng)))
        state.append(int(where[state[-1], action[-1]]))
    here, act = torch.tensor(state), torch.tensor(action)
    obs = torch.eye(4).double()[here]
    told = advantages(obs[:-1], obs[1:], torch.zeros(6000), cost[here[:-1], act], mdp.gamma)
    q, values = cost_values(mdp, policy, cost)
    exact = (q - values[:, None])[here[:-1], act]
    assert (told - exact).norm() < 0.1 * exact.norm()
    level = advantages(obs[:-1], obs[1:], torch.zeros(6000), torch.full((6000,), 3.0), mdp.gamma)
    assert level.abs().max() < 1e-9  # a constant cost moves no policy


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
