"""The penalty on the value gap: a bilevel gradient from first-order terms only.

Upper level: min_phi Phi(phi) = G(phi, lambda*(phi)).  Lower level: lambda*(phi) = argmax_lambda J(phi, lambda).
With the **tilted value** h(phi, t) = max_lambda { J(phi, lambda) + t G(phi, lambda) }, Danskin's theorem gives
dh/dt = G at t = 0, so a difference quotient of h in t is a proxy of Phi,

    Phi_sigma(phi) = [h(phi, a) - h(phi, b)] / (a - b),

    one-sided   (a, b) = (0, -sigma):      min_lambda { G + [J(phi, lambda*) - J(phi, lambda)] / sigma }, bias O(sigma)
    two-sided   (a, b) = (sigma, -sigma):  the central difference, bias O(sigma^2) on the gradient
    forward     (a, b) = (0, sigma):       max_lambda { G - [J(phi, lambda*) - J(phi, lambda)] / sigma }, bias O(sigma)

and, by Danskin again, its gradient is the partial derivative in phi with both maximisers held fixed: no Hessian, no
implicit differentiation. One-sided is the proxy of arXiv 2503.17644 (Algorithm 1); two-sided is, for strongly convex
lower levels, F2SA-2 of arXiv 2509.02937. docs/theory.md derives both and measures what either costs in samples.

``lower`` and ``upper`` are J and G as functions of a response (a policy's ``Visits``, or any lower variable), up to
terms that do not depend on phi. The same code serves tables, closed-form toys and deep networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rlhf_bilevel.types import Occupancy, RewardFn

Response = TypeVar("Response")


def tilts(sigma: float, two_sided: bool) -> tuple[float, float]:
    """The pair (a, b). sigma has the unit of J over the unit of G: discounted return per nat of preference loss.

    Negative and one-sided, it is the forward difference.
    """
    return (sigma if two_sided else 0.0, -sigma)


def value(reward: RewardFn, visits: Occupancy) -> Tensor:
    """E[sum_t gamma^t r(s_t, a_t)], the part of J that depends on phi; differentiable in r and in the weights."""
    return (visits.weight * reward(visits.obs, visits.act)).sum()


def tilted(reward: RewardFn, cost: RewardFn, tilt: float) -> RewardFn:
    """r + tilt c, the reward whose best response attains h(phi, tilt), for c = dG/dvisits at that response."""
    return lambda obs, act: reward(obs, act) + tilt * cost(obs, act)


def bounded(
    loss: Tensor, gap: Tensor, parameters: Sequence[Tensor], norms: tuple[float, float], share: float, surgery: bool
) -> tuple[Tensor, tuple[float, float], float]:
    """A scalar with the gradient of loss + s gap, s <= 1 such that the gap's part is ``share`` of the loss's at most.

    The larger sigma is, the less the gap weighs: s gap is the gap of sigma / s. Norms of both gradients are running
    means, ``norms`` those until now (0 for none), and come back with s. ``surgery`` first takes from the gap's gradient
    its part against the loss's [Yu et al. 2020]: then, to first order, it does not raise the loss.
    """
    own = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(gap, parameters, retain_graph=True, materialize_grads=True)
    if surgery:
        along = sum((a * b).sum() for a, b in zip(own, theirs, strict=True))
        square = sum(a.square().sum() for a in own)
        if along < 0:
            theirs = tuple(b - along / square * a for a, b in zip(own, theirs, strict=True))
    now = [torch.nn.utils.get_total_norm(part).item() for part in (own, theirs)]
    first, second = (0.9 * old + 0.1 * new if old else new for old, new in zip(norms, now, strict=True))
    scale = min(1.0, share * first / max(second, 1e-12))
    linear = sum((part.detach() * parameter).sum() for part, parameter in zip(theirs, parameters, strict=True))
    return loss + scale * linear, (first, second), scale


def proxy(
    lower: Callable[[Response], Tensor],
    upper: Callable[[Response], Tensor],
    responses: tuple[Response, Response],
    sides: tuple[float, float],
) -> Tensor:
    """A scalar whose gradient in phi is that of Phi_sigma when ``responses`` attain h at ``sides`` = ``tilts(...)``.

    Only its gradient is meaningful where ``lower`` leaves out terms free of phi (the policies' entropies): then its
    value is not Phi_sigma, and what it holds in place of the value gap may be negative.
    """
    (high, low), (a, b) = responses, sides
    gap = (lower(high) - lower(low)) / (a - b)
    return gap + (a * upper(high) - b * upper(low)) / (a - b)
