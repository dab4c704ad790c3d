"""Upper objectives G(r, visits), which the upper level minimises, for segments of one step.

    preference_loss   G = sum_ij p_i p_j [ softplus(d_ij) - T_ij d_ij ]        the expected Bradley-Terry cross-entropy
    win_rate          G = the same on fixed data, minus weight * sum_ij p_i q_j T_ij

Here d_ij = r_i - r_j is the difference of the rewards of two visited steps i and j, p = (1 - gamma) weight is the
policy's normalised occupancy, q that of a reference policy, and T_ij = sigmoid(R_i - R_j) is the probability that the
teacher, with reward R, prefers i to j.

In ``preference_loss`` (the paper's upper level, arXiv 2503.17644) the policy decides on which pairs the reward is
judged. In ``win_rate`` (ours, after the utility term of PARL) the policy is judged by how often the teacher prefers it.
Both are differentiable in the reward's parameters and in ``visits.weight``. The code computes p as weight /
sum(weight), so that the gradient by the weights has mean zero; a constant in it would change no best response.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rlhf_bilevel.types import Occupancy, RewardFn

Objective = Callable[[RewardFn, Occupancy], Tensor]
"""Takes a reward and a policy's occupancy, returns the scalar G, in nats."""


def preference_loss(teacher_reward: RewardFn) -> Objective:
    """The expected loss of the reward on pairs that the policy visits. ``teacher_reward`` is R."""

    def objective(reward: RewardFn, visits: Occupancy) -> Tensor:
        target = torch.sigmoid(_differences(teacher_reward, visits, visits))
        loss = binary_cross_entropy_with_logits(_differences(reward, visits, visits), target, reduction="none")
        share = _share(visits)
        return share @ loss @ share

    return objective


def win_rate(teacher_reward: RewardFn, data: Occupancy, reference: Occupancy, weight: float) -> Objective:
    """The loss on pairs of ``data``, minus ``weight`` times the policy's probability to win against ``reference``.

    ``teacher_reward`` is R, ``data`` and ``reference`` are occupancies, ``weight`` is in nats.
    """
    fit = preference_loss(teacher_reward)

    def objective(reward: RewardFn, visits: Occupancy) -> Tensor:
        wins = torch.sigmoid(_differences(teacher_reward, visits, reference))
        return fit(reward, data) - weight * (_share(visits) @ wins @ _share(reference))

    return objective


def _share(visits: Occupancy) -> Tensor:
    """The normalised occupancy p, (N,)."""
    return visits.weight / visits.weight.sum()


def _differences(reward: RewardFn, rows: Occupancy, columns: Occupancy) -> Tensor:
    """The differences of rewards between all ``rows`` (N) and all ``columns`` (K): (N, K)."""
    return reward(rows.obs, rows.act)[:, None] - reward(columns.obs, columns.act)
