"""PARL: the loss of the labels also changes because the policy follows the reward [Chakraborty et al., ICLR 2024].

The idea is the paper's; docs/methods/parl.md derives these equations by the score function.

    dG/dphi = E[dl/dphi] + (dlambda*/dphi)' v,                           v = E[l sum_t grad_lambda log pi(a_t|s_t)]
    dlambda*/dphi = H^-1 d2J/dlambda dphi,  d2J/dlambda dphi = E[sum_t gamma^t grad_phi r_t sum_{k<=t} grad log pi_k]

l is the cross-entropy of a pair, and v sums over the pair's steps. H^-1 is replaced by a multiple of the identity,
which is one step of policy gradient in place of the best response. So phi descends

    CE + weight sum_t c_t r_t / sum_t |c_t|,        c_t = gamma^t sum_{k<=t} <v, grad log pi(a_k|s_k)>

over the learner's newest episodes, with c held fixed. By the division, the term is worth at most ``weight`` nats per
unit of reward. As in the penalty method, it is there in refreshes only, where the policy has had time to adapt to the
reward. The learner gets mean_m r_m.
"""

import torch
from torch import Tensor

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Size, Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences


class ParlOptions(Options):
    """Options of PARL."""

    weight: Weight = 0.1
    """Weight of the second part of the gradient, in nats per unit of reward."""
    visit_episodes: Size = 2
    """Newest episodes of the learner from which its occupancy is estimated."""


def credit(run: Run, batch: Preferences, losses: Tensor, episodes: list[tuple[int, int]]) -> Tensor:
    """c_t of all rows of ``episodes``, one episode after the other: (N,).

    ``losses`` (B,) are those of the pairs. Their mean is subtracted, which lowers the variance of v.
    """
    steps = batch.first.obs.shape[1]
    centred = ((losses - losses.mean()) / len(losses)).repeat_interleave(steps)
    obs, act = (torch.cat([part[column].flatten(0, 1) for part in batch[:2]]) for column in (0, 1))
    rows = torch.cat([torch.arange(*episode) for episode in episodes])
    visited = run.store.obs[rows], run.store.act[rows]
    along = run.learners[0].score_products(visited, (obs, act), centred.repeat(2))
    parts = along.split([end - start for start, end in episodes])
    return torch.cat([run.config.gamma ** torch.arange(len(part)) * part.cumsum(0) for part in parts])


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """Cross-entropy, in refreshes plus the term of the policy. ``logits`` are (M, B)."""
    loss = cross_entropy(logits, batch.label)
    episodes = run.store.episodes(0, run.on_policy_since)[-run.options.visit_episodes :]
    if not (run.options.weight and run.in_refresh and episodes):
        return loss.mean()
    c = credit(run, batch, loss.detach().mean(0), episodes)
    rows = torch.cat([torch.arange(*episode) for episode in episodes])
    response = (c * run.reward(run.store.obs[rows], run.store.act[rows])).sum() / c.abs().sum().clamp_min(1e-8)
    return loss.mean() + run.options.weight * response


PARL = Method(
    "parl",
    1,
    lambda run: [run.store.learned(run.reward)],
    reward_loss,
    options=ParlOptions,
    learner_needs=("score_products",),
)
