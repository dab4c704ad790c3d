"""The penalty's gradient against finite differences of the proxy's definition and against the true hypergradient."""

from collections.abc import Callable
from math import log2

import pytest
import torch
from torch import Tensor

from rlhf_bilevel.bilevel.objectives import preference_loss, win_rate
from rlhf_bilevel.bilevel.penalty import proxy, tilted, tilts, value
from rlhf_bilevel.bilevel.problems import central_difference, differentiate, phi_sigma
from rlhf_bilevel.bilevel.tabular import RewardLearning, random_mdp, reward_table, table_reward, visits

STATES, ACTIONS, FEATURES = 4, 3, 3
SIGMA = 1.0


@pytest.fixture(params=["preference_loss", "win_rate"])
def problem(request: pytest.FixtureRequest) -> RewardLearning:
    rng = torch.Generator().manual_seed(3)
    mdp = random_mdp(rng, STATES, ACTIONS)
    truth = table_reward(torch.randn(STATES, ACTIONS, generator=rng, dtype=torch.float64))
    features = torch.randn(STATES, ACTIONS, FEATURES, generator=rng, dtype=torch.float64)
    reference = visits(mdp, mdp.reference)
    objectives = {"preference_loss": preference_loss(truth), "win_rate": win_rate(truth, reference, reference, 1.0)}
    return RewardLearning(mdp, objectives[request.param], lambda x: table_reward(torch.tanh(features @ x)))


@pytest.fixture
def phi() -> Tensor:
    return torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64)


def definition(problem: RewardLearning, sigma: float, two_sided: bool) -> Callable[[Tensor], Tensor]:
    """Phi_sigma = [h(a) - h(b)] / (a - b) with h = max J + t G, every maximum found anew."""

    def h(x: Tensor, tilt: float) -> Tensor:
        best = problem.respond(x, tilt)
        return problem.lower(x, best) + tilt * problem.upper(x, best)

    if two_sided:
        return lambda x: (h(x, sigma) - h(x, -sigma)) / (2 * sigma)
    return lambda x: (h(x, 0.0) - h(x, -sigma)) / sigma


def relative(estimate: Tensor, exact: Tensor) -> float:
    return float((estimate - exact).norm() / exact.norm())


@pytest.mark.parametrize("sigma, two_sided", [(SIGMA, False), (-SIGMA, False), (SIGMA, True)])
def test_gradient_is_that_of_the_proxy(problem: RewardLearning, phi: Tensor, sigma: float, two_sided: bool) -> None:
    """Danskin: holding both responses fixed loses nothing."""
    estimate = differentiate(lambda x: phi_sigma(problem, x, sigma, two_sided), phi)
    exact = central_difference(definition(problem, sigma, two_sided), phi, 1e-3)
    assert relative(estimate, exact) < 1e-8
    whole = phi_sigma(problem, phi, sigma, two_sided)
    assert whole.item() == pytest.approx(definition(problem, sigma, two_sided)(phi).item(), rel=1e-12)


@pytest.mark.parametrize("sign, two_sided, order", [(1, False, 1), (-1, False, 1), (1, True, 2)])
def test_bias_has_the_promised_order(
    problem: RewardLearning, phi: Tensor, sign: int, two_sided: bool, order: int
) -> None:
    errors = [
        relative(differentiate(lambda x, s=sigma: phi_sigma(problem, x, s, two_sided), phi), problem.gradient(phi))
        for sigma in (0.2 * sign, 0.1 * sign)
    ]
    assert log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


def test_proxy_bounds_phi(problem: RewardLearning, phi: Tensor) -> None:
    """min_lambda G + gap / sigma <= G(lambda*) <= max_lambda G - gap / sigma, with gaps >= 0; all only if the soft
    value is complete."""
    best, penalised = problem.respond(phi, 0.0), problem.respond(phi, -SIGMA)
    gap = problem.lower(phi, best) - problem.lower(phi, penalised)
    assert gap > 0
    assert phi_sigma(problem, phi, SIGMA, two_sided=False) < problem.upper(phi, best)
    assert phi_sigma(problem, phi, -SIGMA, two_sided=False) > problem.upper(phi, best)
    assert problem.upper(phi, penalised) < problem.upper(phi, best)


@pytest.mark.parametrize("two_sided", [False, True])
def test_terms_free_of_phi_may_be_left_out(problem: RewardLearning, phi: Tensor, two_sided: bool) -> None:
    """What deep runs descend, returns without entropies, has another value but the same gradient."""
    sides = tilts(SIGMA, two_sided)
    responses = (problem.respond(phi, sides[0]), problem.respond(phi, sides[1]))

    def surrogate(x: Tensor) -> Tensor:
        return proxy(lambda seen: value(problem.reward(x), seen), lambda seen: problem.upper(x, seen), responses, sides)

    exact = differentiate(lambda x: phi_sigma(problem, x, SIGMA, two_sided), phi)
    torch.testing.assert_close(differentiate(surrogate, phi), exact, rtol=1e-12, atol=1e-14)
    assert abs(surrogate(phi) - phi_sigma(problem, phi, SIGMA, two_sided)) > 1e-3


def test_penalty_reaches_the_reward(problem: RewardLearning, phi: Tensor) -> None:
    """grad Phi_sigma - d_phi G is the difference of the two policies' visits, pulled back through r: never nothing."""
    best, penalised = problem.respond(phi, 0.0), problem.respond(phi, -SIGMA)
    whole = differentiate(lambda x: phi_sigma(problem, x, SIGMA, two_sided=False), phi)
    loss = differentiate(lambda x: problem.upper(x, penalised), phi)
    slopes = central_difference(lambda x: reward_table(problem.mdp, problem.reward(x)), phi, 1e-3).flatten(1)
    torch.testing.assert_close(whole - loss, slopes @ (best.weight - penalised.weight) / SIGMA, rtol=1e-8, atol=1e-10)
    assert (whole - loss).norm() > 0.05 * whole.norm()


def test_pebble_is_another_gradient(problem: RewardLearning, phi: Tensor) -> None:
    """d_phi G at the best response, which ignores that the policy follows the reward, is far from the truth."""
    best, true = problem.respond(phi, 0.0), problem.gradient(phi)
    pebble = differentiate(lambda x: problem.upper(x, best), phi)
    penalty = differentiate(lambda x: phi_sigma(problem, x, SIGMA, two_sided=False), phi)
    assert relative(pebble, true) > 0.1 > 2 * relative(penalty, true)


def test_tilted_reward_adds_the_cost() -> None:
    obs, act = torch.eye(2), torch.ones(2, 1)
    reward, cost = (table_reward(torch.tensor(table)) for table in ([[1.0], [2.0]], [[10.0], [20.0]]))
    assert tilted(reward, cost, -0.5)(obs, act).tolist() == [-4.0, -8.0]
    assert tilts(0.5, two_sided=False) == (0.0, -0.5) and tilts(0.5, two_sided=True) == (0.5, -0.5)
