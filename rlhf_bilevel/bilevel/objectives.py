"""Upper objectives G(reward, visits) on segments of length one: which reward is good, and at whose data?

Rows i, j of ``visits`` are drawn independently from the normalised occupancy p = (1 - gamma) weight; a teacher who is
Boltzmann in the true reward R prefers i to j with probability T_ij = sigmoid(R_i - R_j). With d_ij = r_i - r_j,

    preference_loss   G = sum_ij p_i p_j [ softplus(d_ij) - T_ij d_ij ], the expected Bradley-Terry cross-entropy
    win_rate          G = the same under fixed data, minus weight * sum_ij p_i q_j T_ij for a reference's occupancy q

In ``preference_loss`` (the paper's upper level, arXiv 2503.17644) the policy chooses the pairs on which the reward is
judged; in ``win_rate`` (ours, after the utility term of PARL) it is judged by how often the teacher prefers it.
Both are differentiable in the reward's parameters and in ``visits.weight``, where p is formed as weight / sum(weight):
adding a constant to the weights' gradient changes no best response, and so formed the gradient has mean zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_bilevel.types import Occupancy, RewardFn

Objective = Callable[[RewardFn, Occupancy], Tensor]
"""A reward and a policy's visits to the scalar G that the upper level minimises, nats unless it says otherwise."""


def preference_loss(teacher_reward: RewardFn) -> Objective:
    """G of ``preference_loss``: the reward's expected loss on pairs that the policy itself visits.

    ``teacher_reward`` is the reward R by which the teacher prefers. The objective gives nats.
    """

    def objective(reward: RewardFn, visits: Occupancy) -> Tensor:
        target = torch.sigmoid(_differences(teacher_reward, visits, visits))
        loss = binary_cross_entropy_with_logits(_differences(reward, visits, visits), target, reduction="none")
        share = _share(visits)
        return share @ loss @ share

    return objective


def win_rate(teacher_reward: RewardFn, data: Occupancy, reference: Occupancy, weight: float) -> Objective:
    """The loss (nats) on pairs of ``data`` less ``weight`` times the policy's chance to win against ``reference``."""
    fit = preference_loss(teacher_reward)

    def objective(reward: RewardFn, visits: Occupancy) -> Tensor:
        wins = torch.sigmoid(_differences(teacher_reward, visits, reference))
        return fit(reward, data) - weight * (_share(visits) @ wins @ _share(reference))

    return objective


def _share(visits: Occupancy) -> Tensor:
    return visits.weight / visits.weight.sum()  # (N,) sums to 1


def _differences(reward: RewardFn, rows: Occupancy, columns: Occupancy) -> Tensor:
    return reward(rows.obs, rows.act)[:, None] - reward(columns.obs, columns.act)  # (N, M)
