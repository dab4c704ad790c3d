"""General bilevel problems: the known answers are right, and the penalty's code finds them."""

from collections.abc import Callable
from math import log2

import pytest
import torch
from torch import Tensor

from rlhf_bilevel.bilevel.problems import Problem, Quadratic, Sine, central_difference, differentiate, phi_sigma


def quadratic() -> tuple[Quadratic, Tensor]:
    rng = torch.Generator().manual_seed(0)
    A, b, x = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((5, 3), (5,), (3,)))
    return Quadratic(A, b, rho=0.3), x


def sine(x: float) -> tuple[Sine, Tensor]:
    return Sine(), torch.tensor([x], dtype=torch.float64)


CASES: list[Callable[[], tuple[Problem[Tensor], Tensor]]] = [
    quadratic,
    lambda: sine(0.2),
    lambda: sine(1.3),  # from x = 1 on the lower level is not concave
    lambda: sine(2.9),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tilt", [0.0, -0.05, 0.05])
def test_responses_are_maximisers(case: Callable[[], tuple[Problem[Tensor], Tensor]], tilt: float) -> None:
    problem, x = case()

    def aim(y: Tensor) -> Tensor:
        return (problem.lower(x, y) + tilt * problem.upper(x, y)).sum()

    best = problem.respond(x, tilt)
    assert differentiate(aim, best).norm() < 1e-12
    for shift in torch.linspace(-3, 3, 100, dtype=torch.float64):  # never 0
        assert aim(best + shift) < aim(best)


@pytest.mark.parametrize("case", CASES)
def test_true_gradient_matches_differences(case: Callable[[], tuple[Problem[Tensor], Tensor]]) -> None:
    problem, x = case()
    exact = central_difference(lambda x: problem.upper(x, problem.respond(x, 0.0)).sum(), x, 1e-3)
    torch.testing.assert_close(problem.gradient(x), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("two_sided, order", [(False, 1), (True, 2)])
def test_proxy_gradient_is_exact_and_its_bias_has_the_promised_order(
    case: Callable[[], tuple[Problem[Tensor], Tensor]], two_sided: bool, order: int
) -> None:
    problem, x = case()
    sigmas = (0.01, 0.005)
    proxies = [differentiate(lambda x, s=sigma: phi_sigma(problem, x, s, two_sided), x) for sigma in sigmas]
    exact = central_difference(lambda x: phi_sigma(problem, x, sigmas[0], two_sided).sum(), x, 1e-3)
    torch.testing.assert_close(proxies[0], exact, rtol=1e-7, atol=1e-7)
    errors = [float((estimate - problem.gradient(x)).norm()) for estimate in proxies]
    assert log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("sigma", [0.5, 0.1, 0.01])
def test_quadratic_proxy_is_known_in_closed_form(sigma: float, two_sided: bool) -> None:
    problem, x = quadratic()
    proxy = differentiate(lambda x: phi_sigma(problem, x, sigma, two_sided), x)
    torch.testing.assert_close(proxy, problem.proxy_gradient(x, sigma, two_sided), rtol=1e-11, atol=1e-12)


def test_sine_is_not_concave_but_satisfies_polyak_lojasiewicz() -> None:
    problem = Sine()
    y = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    for x in torch.linspace(0, 3, 13, dtype=torch.float64):
        slope = differentiate(lambda y, x=x: problem.lower(x, y).sum(), y)
        assert (slope.square() >= 0.1 * -problem.lower(x, y)).all()  # J <= 0 = J(y*)
        assert (slope.diff() <= 0).all() == bool(x <= 1)
