"""The cost c(s, a) = dG/dvisits(s, a): how the upper objective G moves where a policy visits (s, a) more often.

The penalised learner gets the reward r - sigma c. In a finite MDP c is an exact derivative (see ``bilevel.tabular``).
Here it is estimated from pairs of segments of T steps. A small network u(s, a) is fitted by least squares, with
U(x) = sum_t u(s_t, a_t) over a segment x:

    preference_loss   G = E[loss(first, second)]    U(first) + U(second) ~ 2 loss   =>  U(x) = 2 E[loss | x] - const
    win_rate          G = -w P(policy's better)     U(first) - U(second) ~ -w (y - 1/2)  =>  U(x) = -w P(x wins) + const

A constant in c changes no best response. Segments are cut uniformly from episodes, so that a change of the normalised
occupancy changes G by T sum u. With the weights of ``Occupancy``, which sum to 1 / (1 - gamma), this is
c = (1 - gamma) T u. The win rate is against segments that are distributed as the labelled ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from rlhf_bilevel.config import Config, Options
from rlhf_bilevel.config.fields import Layers, Often, Positive, Rate, Size
from rlhf_bilevel.config.memory import num_weights, pair_size
from rlhf_bilevel.feedback.query_rules import entropy_of_mean, information_gain
from rlhf_bilevel.rewards.bradley_terry import logits
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.training.method import Memory
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries, RewardFn
from rlhf_bilevel.utils.serialization import Tree, load_optimizer, optimizer_state

BOUND = 4.0
"""The largest |U| of a segment, in nats. For comparison: a reward that knows nothing has the loss ln 2."""


class CostOptions(Options):
    """Options of every method with a cost."""

    objective: Literal["preference_loss", "win_rate"] = "preference_loss"
    """Distribution term G of the upper objective: the mean loss of a preference pair, or the win rate."""
    win_weight: Positive = 1.0
    """With objective=win_rate: nats that a win rate of 1 is worth."""
    cost: Literal["labels", "posterior", "information"] = "information"
    """Target of the cost c: the labels' losses, the losses that the ensemble expects, or the information in a label."""
    cost_hidden: Layers = (64, 64)
    """Units of each hidden layer of the cost network."""
    cost_learning_rate: Rate = 1e-3
    """Adam's learning rate for the cost network."""
    cost_steps: Often = 50
    """Gradient steps of the cost network after each move of the reward."""
    cost_pairs: Size = 64
    """Pairs in each of these steps."""
    cost_labels: Size = 250
    """Newest labels to which c is fitted."""
    use_cost: bool = True
    """Whether learners see the cost (ablation)."""

    @model_validator(mode="after")
    def check_cost(self) -> CostOptions:
        """ValueError if the cost and the objective do not go together."""
        if self.cost == "information" and self.objective == "win_rate":
            raise ValueError("objective=win_rate has no cost=information: cost=labels or cost=posterior")
        return self

    def numbers(self, config: Config, inputs: int) -> int:
        """How many floats the cost needs at most; ``inputs`` is o + a."""
        batch = min(self.cost_pairs, self.cost_labels) * 2 * config.segment_length * 2 * sum(self.cost_hidden)
        return 7 * num_weights(inputs, *self.cost_hidden, 1) + self.cost_labels * pair_size(config, inputs) + batch


def label_targets(options: CostOptions, answers: Preferences, fresh_loss: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """What U(first) + U(second), or for the win rate U(first) - U(second), is fitted to: (B,), in nats.

    ``fresh_loss`` (B,) are the losses of the answers before the reward was trained on them.
    """
    return 2 * fresh_loss if options.objective == "preference_loss" else -options.win_weight * (answers.label - 0.5)


def posterior_targets(options: CostOptions, members: RewardFn, queries: Queries) -> Float[Tensor, " B"]:
    """The same without labels: its expectation under the ensemble's mean preference, (B,), in nats.

    For the preference loss this is twice the entropy of the mean preference. ``cost=information`` takes of the entropy
    only the part that a label would remove.
    """
    with torch.no_grad():
        if options.objective == "win_rate":
            return -options.win_weight * (logits(members, queries).sigmoid().mean(0) - 0.5)
        return 2 * (information_gain if options.cost == "information" else entropy_of_mean)(members, queries)


class LearnedCost(nn.Module):
    """The cost c = (1 - gamma) T u of obs (..., o) and act (..., a): (...). u is ``per_step``, a small bounded network.

    ``rng`` draws u's initial weights and the pairs of each gradient step.
    """

    def __init__(
        self, obs_size: int, act_size: int, config: Config, options: CostOptions, rng: torch.Generator
    ) -> None:
        super().__init__()
        self._sign = 1 if options.objective == "preference_loss" else -1
        self._scale = (1 - config.gamma) * config.segment_length
        self._batch, self._rng = options.cost_pairs, rng
        bound = BOUND / config.segment_length
        self.per_step = RewardEnsemble(obs_size, act_size, 1, options.cost_hidden, rng, bound=bound)
        self.optimizer = torch.optim.Adam(self.parameters(), options.cost_learning_rate)

    def forward(self, obs: Float[Tensor, "*lead o"], act: Float[Tensor, "*lead a"]) -> Float[Tensor, "*lead"]:
        """c, in nats per discounted visit."""
        return self._scale * self.per_step(obs, act)

    def fit(self, pairs: Queries | Preferences, targets: Float[Tensor, " B"], steps: int) -> float:
        """Takes gradient steps on ``squared_error`` of random pairs, with ``targets`` (B,). Returns the last error."""
        error = torch.zeros(())
        for _ in range(steps):
            rows = torch.randint(len(targets), (min(self._batch, len(targets)),), generator=self._rng)
            error = self.squared_error(pairs, targets, rows)
            self.optimizer.zero_grad()
            error.backward()
            self.optimizer.step()
        return error.item()

    def squared_error(
        self, pairs: Queries | Preferences, targets: Float[Tensor, " B"], rows: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """The mean of (U(first) +- U(second) - target)^2 over the pairs ``rows``: a scalar, in nats squared."""
        first, second = (self.per_step(part.obs[rows], part.act[rows]).sum(-1) for part in pairs[:2])
        return (first + self._sign * second - targets[rows]).square().mean()


@dataclass
class CostState:
    """What a method with a cost keeps: the cost, and numbers by name."""

    cost: LearnedCost
    memory: Memory = field(default_factory=Memory)

    @classmethod
    def of(cls, run: Run) -> CostState:
        """A cost of the run's sizes, with new weights from ``run.generator``."""
        sizes = run.store.obs.shape[1], run.store.act.shape[1]
        return cls(LearnedCost(*sizes, run.config, run.options, run.generator))

    def refit(self, run: Run) -> None:
        """Fits the cost further, after a move of the reward model: to the newest labels or to newly drawn pairs.

        Its inputs have the units and the range of the reward's inputs.
        """
        c, o = run.config, run.options
        if c.reward_clip and not run.in_refresh:
            self.cost.per_step.clip(*run.prefs.steps())
        if c.reward_units == "measured" and not self.cost.optimizer.state:  # before its first step
            self.cost.per_step.measure(*run.prefs.steps())
        if o.cost == "labels":
            newest = slice(-o.cost_labels, None)
            answers = run.prefs[newest]
            self.cost.fit(answers, label_targets(o, answers, run.prefs.fresh_loss[newest]), o.cost_steps)
        else:
            pairs = run.sample_pairs(o.cost_labels)
            self.cost.fit(pairs, posterior_targets(o, run.reward.members, pairs), o.cost_steps)

    def state_dict(self) -> Tree:
        """The numbers, the cost's weights and its optimizer."""
        return self.memory.state_dict() | {
            "cost": self.cost.state_dict(),
            "optimizer": optimizer_state(self.cost.optimizer),
        }

    def load_state_dict(self, state: Tree) -> None:
        """Continues from ``state_dict``."""
        self.memory.load_state_dict(state)
        self.cost.load_state_dict(state["cost"])
        load_optimizer(self.cost.optimizer, state["optimizer"])
