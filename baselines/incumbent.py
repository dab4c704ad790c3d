"""Relative pessimism: the advantage of the policy over the best labelled segments counts against the reward.

    phi descends        cross-entropy + [J(phi, lambda*) - J(phi, ref)] / sigma
    the learner gets    mean_m r_m

ref are the ``anchor_segments`` labelled segments that the reward rates best. It is the penalty method's objective with
ref in place of the penalised policy. As that policy is the minimiser there, this is an upper bound of Phi_sigma. As far
as the labels allow, the reward falls where the policy goes beyond the labelled segments, and rises on the best of them.
Offline, this is the objective of ATAC [Cheng et al., ICML 2022].
"""

import torch
from torch import Tensor

from rlhf_bilevel.bilevel.penalty import bounded, value
from rlhf_bilevel.config import Config, Options
from rlhf_bilevel.config.fields import Fraction, Positive, Size
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics, Occupancy, Preferences


class IncumbentOptions(Options):
    """Options of relative pessimism."""

    sigma: Positive = 10.0
    """Penalty, in discounted return per nat."""
    gap_share: Positive = 0.5
    """The gap's gradient is at most this many times as long as the labels'."""
    surgery: bool = False
    """Whether the gap's gradient loses its part against the labels' gradient."""
    visit_episodes: Size = 2
    """Newest episodes of the learner from which its occupancy is estimated."""
    visit_batch: Size = 256
    """Steps of these episodes in each reward step."""
    visit_discount: Fraction = 1.0
    """Weight of a step relative to the one before. gamma would be the paper's occupancy."""

    def numbers(self, config: Config, inputs: int) -> int:
        """How many floats the method needs at most; ``inputs`` is o + a."""
        return self.visit_batch * config.ensemble_size * 2 * sum(config.reward_net_arch)


def reference(run: Run) -> Occupancy:
    """The steps of the best labelled segments, with equal weights, as an occupancy."""
    obs, act = (column.flatten(0, 1) for column in run.best_labelled()[:2])
    return Occupancy(obs, act, torch.full((len(obs),), 1 / (1 - run.config.gamma) / len(obs)))


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """Cross-entropy, in refreshes plus the bounded gap. ``logits`` are (M, B)."""
    loss, o, memory = cross_entropy(logits, batch.label).mean(), run.options, run.state
    episodes = run.store.episodes(0, run.on_policy_since)[-o.visit_episodes :]
    if not (run.in_refresh and episodes):  # the policy must have had time to adapt to the reward
        return loss
    visits = run.store.sample_visits(episodes, o.visit_batch, o.visit_discount, run.config.gamma, run.rng["visits"])
    gap = (value(run.reward, visits) - value(run.reward, reference(run))) / o.sigma
    norms = memory.get("labels_gradient", 0.0), memory.get("gap_gradient", 0.0)
    total, norms, scale = bounded(loss, gap, list(run.reward.parameters()), norms, o.gap_share, o.surgery)
    memory |= {"labels_gradient": norms[0], "gap_gradient": norms[1], "gap_scale": scale}
    return total


def diagnose(run: Run) -> Metrics:
    """Running lengths of both gradients, and the factor by which the gap was scaled."""
    return {f"incumbent/{name}": value for name, value in sorted(run.state.items())}


INCUMBENT = Method(
    "incumbent",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(run.reward)],
    reward_loss=reward_loss,
    diagnose=diagnose,
    options=IncumbentOptions,
)
