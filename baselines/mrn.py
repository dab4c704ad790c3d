"""Meta-Reward-Net: the reward is judged by the critic that learns from it [Liu et al., NeurIPS 2022].

    theta' = theta - lr grad_theta E[(Q_theta(s, a) - r_phi(s, a) - gamma V(s'))^2]      one step of the critics

In sessions phi descends the cross-entropy CE, as in PEBBLE. In refreshes it descends another loss of the labels, summed
over the critics. There Q, after that step, stands in place of a segment's return:

    weight CE( Q_theta'(first step of the first) - Q_theta'(first step of the second) )

theta' depends on phi, so that the gradient goes through the step of the critics. The learner gets mean_m r_m.
"""

import torch
from torch import Tensor

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences


class MrnOptions(Options):
    """The published value."""

    weight: Weight = 0.1
    """Weight of the critics' loss. With 0 the method is PEBBLE."""


def outer(run: Run, batch: Preferences, rows: Tensor) -> Tensor:
    """The loss of the labels by the critics after a step on stored rows (N,): a scalar, in nats."""
    critics = run.learners[0].critics_after(rows, run.reward(run.store.obs[rows], run.store.act[rows]))
    first, second = (critics(part.obs[:, 0], part.act[:, 0]) for part in batch[:2])  # (Q, B)
    return cross_entropy(first - second, batch.label).mean(-1).sum()


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """Cross-entropy in sessions, ``outer`` in refreshes. ``logits`` are (M, B)."""
    if not (run.in_refresh and run.options.weight):
        return cross_entropy(logits, batch.label).mean()
    rows = torch.from_numpy(run.rng["method"].integers(run.store.size, size=run.config.batch_size))
    return run.options.weight * outer(run, batch, rows)


MRN = Method(
    "mrn",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(run.reward)],
    reward_loss=reward_loss,
    settings={"refresh_epochs": 1},
    options=MrnOptions,
    learner_needs=("critics_after",),
)
