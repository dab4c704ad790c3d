"""The penalty on the value gap: a bilevel gradient from first-order terms only.

    upper level    min_phi  Phi(phi) = G(phi, lambda*(phi))
    lower level    lambda*(phi) = argmax_lambda J(phi, lambda)
    tilted value   h(phi, t) = max_lambda { J(phi, lambda) + t G(phi, lambda) }

Danskin's theorem gives dh/dt = Phi at t = 0. So a difference quotient of h in t is a proxy of Phi,

    Phi_sigma(phi) = [h(phi, a) - h(phi, b)] / (a - b),

    one-sided   (a, b) = (0, -sigma):      min_lambda { G + [J(phi, lambda*) - J(phi, lambda)] / sigma }, bias O(sigma)
    two-sided   (a, b) = (sigma, -sigma):  the central difference, bias O(sigma^2) on the gradient
    forward     (a, b) = (0, sigma):       max_lambda { G - [J(phi, lambda*) - J(phi, lambda)] / sigma }, bias O(sigma)

By Danskin's theorem again, its gradient is the partial derivative in phi with both maximisers held fixed: it needs no
Hessian and no implicit differentiation. One-sided is the proxy of arXiv 2503.17644 (Algorithm 1). Two-sided is F2SA-2
of arXiv 2509.02937 if the lower level is strongly convex. docs/theory.md derives both, and measures how many samples
each needs.

Below, ``lower`` and ``upper`` are J and G as functions of a response: a policy's ``Occupancy``, or any other lower
variable. Terms that do not depend on phi may be left out. The same code serves tables, problems in closed form and deep
networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_bilevel.types import Occupancy, RewardFn

Response = TypeVar("Response")
"""The lower variable lambda: a policy's ``Occupancy``, or a tensor."""


def tilts(sigma: float, two_sided: bool) -> tuple[float, float]:
    """The pair (a, b) for ``sigma``, which is in units of J per unit of G: discounted return per nat.

    One-sided with a negative sigma is the forward difference.
    """
    return (sigma if two_sided else 0.0, -sigma)


def value(reward: RewardFn, visits: Occupancy) -> Float[Tensor, ""]:
    """E[sum_t gamma^t r(s_t, a_t)]: the part of J that depends on phi. Differentiable in r and in the weights."""
    return (visits.weight * reward(visits.obs, visits.act)).sum()


def tilted(reward: RewardFn, cost: RewardFn, tilt: float) -> RewardFn:
    """r + tilt c. Its best response attains h(phi, tilt) if c = dG/dvisits at that response."""
    return lambda obs, act: reward(obs, act) + tilt * cost(obs, act)


def bounded(
    loss: Float[Tensor, ""],
    gap: Float[Tensor, ""],
    parameters: Sequence[Tensor],
    norms: tuple[float, float],
    share: float,
    surgery: bool,
) -> tuple[Float[Tensor, ""], tuple[float, float], float]:
    """loss + s gap, with s <= 1 such that the gap's gradient is at most ``share`` times as long as the loss's.

    Both lengths are running means over calls: ``norms`` are those of the loss and of the gap until now, 0 if there are
    none. With ``surgery`` the gap's gradient is first projected so as not to oppose the loss's gradient, so that to
    first order it does not raise the loss [Yu et al. 2020]. s gap is the gap of a larger sigma, sigma / s.

    Returns a scalar whose value has no meaning: only its gradient with respect to ``parameters`` is used; the new
    running means; and s.
    """
    of_loss = torch.autograd.grad(loss, parameters, retain_graph=True)
    of_gap = torch.autograd.grad(gap, parameters, retain_graph=True, materialize_grads=True)
    if surgery:
        along = sum((a * b).sum() for a, b in zip(of_loss, of_gap, strict=True))
        square = sum(a.square().sum() for a in of_loss)
        if along < 0:
            of_gap = tuple(b - along / square * a for a, b in zip(of_loss, of_gap, strict=True))
    lengths = [torch.nn.utils.get_total_norm(gradient).item() for gradient in (of_loss, of_gap)]
    loss_norm, gap_norm = (0.9 * old + 0.1 * new if old else new for old, new in zip(norms, lengths, strict=True))
    scale = min(1.0, share * loss_norm / max(gap_norm, 1e-12))
    linear = sum((slope.detach() * parameter).sum() for slope, parameter in zip(of_gap, parameters, strict=True))
    return loss + scale * linear, (loss_norm, gap_norm), scale


def proxy(
    lower: Callable[[Response], Tensor],
    upper: Callable[[Response], Tensor],
    responses: tuple[Response, Response],
    sides: tuple[float, float],
) -> Float[Tensor, "*problems"]:
    """A scalar whose gradient in phi is that of Phi_sigma, if ``responses`` attain h at ``sides`` = (a, b).

    If ``lower`` leaves out terms without phi, such as the policies' entropies, only the gradient has a meaning: the
    value is not Phi_sigma, and the part that stands for the value gap may be negative.
    """
    (high, low), (a, b) = responses, sides
    gap = (lower(high) - lower(low)) / (a - b)
    return gap + (a * upper(high) - b * upper(low)) / (a - b)
