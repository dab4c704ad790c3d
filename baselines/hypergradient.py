"""The hypergradient of an entropy-regularised policy, from its own episodes: one policy, no Hessian.

    grad Phi = d_phi G + (1 / alpha) E[ sum_k e_k grad r(s_k, a_k) ],     e_k = gamma e_{k-1} + w_k A_c(s_k, a_k)

alpha is the weight of the entropy, w_k the weight of step k in the policy's occupancy, and A_c the advantage of the
cost c = dG/dvisits under the policy, without entropies. docs/methods/hypergradient.md derives it.

phi descends the cross-entropy of the labels plus that sum over the learner's newest episodes, with e_k held fixed. The
sum is scaled down so that its gradient is at most ``gradient_share`` times as long as the labels' gradient. As in the
penalty method, this happens in refreshes only, where the policy has had time to adapt to the reward.
"""

from itertools import accumulate

import torch
from torch import Tensor

from rlhf_bilevel.config.fields import Fraction, Share, Size
from rlhf_bilevel.methods.cost import CostOptions, CostState
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics, Preferences

RIDGE = 1e-3  # ridge penalty on the weights of V


class HypergradientOptions(CostOptions):
    """Options of the hypergradient. Without ``use_cost`` the method is PEBBLE."""

    gradient_share: Share = 0.5
    """Largest length of the second part's gradient, as a share of the labels' gradient."""
    visit_episodes: Size = 2
    """Newest episodes of the learner from which its occupancy is estimated."""
    visit_discount: Fraction = 1.0
    """Weight of a step relative to the one before. gamma would be the paper's occupancy."""


def traces(advantage: Tensor, weight: Tensor, gamma: float) -> Tensor:
    """e_k of an episode (T,), or of many of one length (T, ...), from A_c and w_k of the same shape."""
    return torch.stack(list(accumulate(weight * advantage, lambda before, now: gamma * before + now)))


def advantages(obs: Tensor, next_obs: Tensor, terminated: Tensor, cost: Tensor, gamma: float) -> Tensor:
    """A_c of N steps, (N,), as c + gamma (1 - terminated) V(s') - V(s).

    V is linear in the standardised observations and their squares, and fitted by least-squares temporal differences
    [LSTD, Bradtke and Barto 1996]. obs and next_obs are (N, o), terminated and cost (N,).
    """
    states, cost = torch.cat([obs, next_obs]).double(), cost.double()
    states = (states - states.mean(0)) / states.std(0).clamp_min(1e-6)
    features = torch.cat([torch.ones_like(states[:, :1]), states, states.square()], 1)
    now, then = features.split(len(obs))
    then = gamma * (1 - terminated.double())[:, None] * then
    penalty = RIDGE * torch.ones(now.shape[1], dtype=torch.float64)
    penalty[0] = 0
    value = torch.linalg.solve(now.T @ (now - then) / len(now) + penalty.diag(), now.T @ cost / len(now))
    return cost + (then - now) @ value


def coefficients(run: Run, episodes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The rows (N,) of ``episodes``, and e_k / alpha of each row (N,)."""
    gamma, store = run.config.gamma, run.store
    rows = torch.cat([torch.arange(*episode) for episode in episodes])
    lengths = [end - start for start, end in episodes]
    with torch.no_grad():
        cost = run.state.cost(store.obs[rows], store.act[rows])
    advantage = advantages(store.obs[rows], store.next_obs[rows], store.terminated[rows], cost, gamma)
    weights = [run.options.visit_discount ** torch.arange(length, dtype=torch.float64) for length in lengths]
    unit = (1 - gamma) * sum(float(weight.sum()) for weight in weights)
    parts = zip(advantage.split(lengths), weights, strict=True)
    e = torch.cat([traces(part, weight / unit, gamma) for part, weight in parts])
    return rows, e / run.learners[0].temperature()


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """Cross-entropy, in refreshes plus the scaled sum of e_k r / alpha. ``logits`` are (M, B)."""
    loss = cross_entropy(logits, batch.label).mean()
    o, share = run.options, run.options.gradient_share
    episodes = run.store.episodes(0, run.on_policy_since)[-o.visit_episodes :]
    if not (share and o.use_cost and run.in_refresh and episodes):
        return loss
    rows, e = coefficients(run, episodes)
    answer = (e.float() * run.reward(run.store.obs[rows], run.store.act[rows])).sum()
    weights = list(run.reward.parameters())
    labels, policy = (
        torch.cat([g.flatten() for g in torch.autograd.grad(part, weights, retain_graph=True)]).norm().item()
        for part in (loss, answer)
    )
    run.state.memory["ratio"] = policy / max(labels, 1e-12)
    return loss + min(1.0, share * labels / max(policy, 1e-12)) * answer


def fit_cost(run: Run) -> None:
    """Fits the cost further, if it is used."""
    if run.options.use_cost and run.options.gradient_share:
        run.state.refit(run)


def diagnose(run: Run) -> Metrics:
    """The length of the sum's gradient over that of the labels', before scaling."""
    memory = run.state.memory
    return {"hypergradient/ratio": memory["ratio"]} if "ratio" in memory else {}


HYPERGRADIENT = Method(
    "hypergradient", 1, lambda run: [run.store.learned(run.reward)], reward_loss, update_estimates=fit_cost,
    diagnose=diagnose, state=CostState.of, options=HypergradientOptions, learner_needs=("temperature",),
)  # fmt: skip
