"""The cost c(s, a) = dG/dvisits(s, a): how the upper objective G moves where a policy visits (s, a) more often.

A penalised learner is rewarded with r - sigma c. For tables c is a derivative, see ``tabular``. Here it is estimated
from pairs of segments of length T, by least-squares decomposition into per-step terms u(s, a), U = sum_t u over a
segment:

    preference_loss   G = E[loss(first, second)]    U(first) + U(second) ~ 2 loss   =>  U(x) = 2 E[loss | x] - const
    win_rate          G = -w P(policy's better)     U(first) - U(second) ~ -w (y - 1/2)  =>  U(x) = -w P(x wins) + const

A constant in c moves no best response. Segments are cut uniformly from episodes, so a change of the normalised
occupancy moves G by T sum u, and c = (1 - gamma) T u in terms of ``Visits``, whose weights sum to 1 / (1 - gamma).
The reference of the win rate is the distribution from which labelled segments come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from rlhf_bilevel.config import Config, Layers, Often, Options, Positive, Rate, Size, num_weights, pair_size
from rlhf_bilevel.feedback.queries import entropy_of_mean, information_gain
from rlhf_bilevel.rewards.bradley_terry import logits
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.training.method import Memory
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries, RewardFn
from rlhf_bilevel.utils.serialization import Tree, load_optimizer, optimizer_state

BOUND = 4.0
"""Nats: largest |U| of a segment. A loss of ln 2 is what an uninformed reward has."""


class CostOptions(Options):
    """Of a method with a cost."""

    objective: Literal["preference_loss", "win_rate"] = "preference_loss"
    win_weight: Positive = 1.0  # nats that a win rate of one is worth
    cost: Literal["labels", "posterior", "information"] = "information"  # what c is fitted to
    cost_hidden: Layers = (64, 64)
    cost_learning_rate: Rate = 1e-3
    cost_steps: Often = 50  # gradient steps after each reward update
    cost_pairs: Size = 64  # pairs per gradient step
    cost_labels: Size = 250  # newest labels that c is fitted to
    use_cost: bool = True  # ablation

    @model_validator(mode="after")
    def check_cost(self) -> CostOptions:
        if self.cost == "information" and self.objective == "win_rate":
            raise ValueError("objective=win_rate has no cost=information: cost=labels or cost=posterior")
        return self

    def numbers(self, config: Config, inputs: int) -> int:
        batch = min(self.cost_pairs, self.cost_labels) * 2 * config.segment_length * 2 * sum(self.cost_hidden)
        return 7 * num_weights(inputs, *self.cost_hidden, 1) + self.cost_labels * pair_size(config, inputs) + batch


def label_targets(options: CostOptions, answers: Preferences, fresh_loss: Tensor) -> Tensor:
    """What U(first) +- U(second) is fitted to, from labels (B,) and the losses (B,) before training on them."""
    return 2 * fresh_loss if options.objective == "preference_loss" else -options.win_weight * (answers.label - 0.5)


def posterior_targets(options: CostOptions, members: RewardFn, queries: Queries) -> Tensor:
    """The same without labels: expectations under the ensemble's mean preference, (B,).

    Of the preference loss it is the entropy; ``information`` is the part of it that a label would take away.
    """
    with torch.no_grad():
        if options.objective == "win_rate":
            return -options.win_weight * (logits(members, queries).sigmoid().mean(0) - 0.5)
        return 2 * (information_gain if options.cost == "information" else entropy_of_mean)(members, queries)


class LearnedCost(nn.Module):
    """u(s, a) as a small bounded network. Called, it gives c = (1 - gamma) T u: (..., o), (..., a) to (...)."""

    def __init__(
        self, obs_size: int, act_size: int, config: Config, options: CostOptions, rng: torch.Generator
    ) -> None:
        super().__init__()
        self._sign = 1 if options.objective == "preference_loss" else -1
        self._scale = (1 - config.gamma) * config.segment_length
        self._batch, self._rng = options.cost_pairs, rng
        bound = BOUND / config.segment_length
        self.step = RewardEnsemble(obs_size, act_size, 1, options.cost_hidden, rng, bound=bound)
        self._optimizer = torch.optim.Adam(self.parameters(), options.cost_learning_rate)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self._scale * self.step(obs, act)

    @property
    def fitted(self) -> bool:
        return bool(self._optimizer.state)

    def fit(self, pairs: Queries | Preferences, targets: Tensor, steps: int) -> float:
        """Gradient steps on the squared error of the decomposition; returns the last one's, in nats squared."""
        error = torch.zeros(())
        for _ in range(steps):
            rows = torch.randint(len(targets), (min(self._batch, len(targets)),), generator=self._rng)
            first, second = (self.step(part.obs[rows], part.act[rows]).sum(-1) for part in pairs[:2])
            error = (first + self._sign * second - targets[rows]).square().mean()
            self._optimizer.zero_grad()
            error.backward()
            self._optimizer.step()
        return error.item()

    def state(self) -> Tree:
        return {"step": self.step.state_dict(), "optimizer": optimizer_state(self._optimizer)}

    def load(self, state: Tree) -> None:
        self.step.load_state_dict(state["step"])
        load_optimizer(self._optimizer, state["optimizer"])


@dataclass
class CostState:
    """What a method with a cost keeps: the cost, and numbers."""

    cost: LearnedCost
    memory: Memory = field(default_factory=Memory)

    @classmethod
    def of(cls, run: Run) -> CostState:
        sizes = run.store.obs.shape[1], run.store.act.shape[1]
        return cls(LearnedCost(*sizes, run.config, run.options, run.generator))

    def refit(self, run: Run) -> None:
        """After a move of the reward model: go on fitting to the newest labels, or to as many pairs that are drawn.

        The network sees observations and actions in the units, and the range, in which the reward sees them.
        """
        c, o = run.config, run.options
        if c.reward_clip and not run.tracked:
            self.cost.step.clip(*run.prefs.steps())
        if c.reward_units == "measured" and not self.cost.fitted:
            self.cost.step.measure(*run.prefs.steps())
        if o.cost == "labels":
            newest = slice(-o.cost_labels, None)
            answers = run.prefs[newest]
            self.cost.fit(answers, label_targets(o, answers, run.prefs.fresh_loss[newest]), o.cost_steps)
        else:
            pairs = run.sample_pairs(o.cost_labels)
            self.cost.fit(pairs, posterior_targets(o, run.reward.members, pairs), o.cost_steps)

    def state_dict(self) -> Tree:
        return self.memory.state_dict() | {"cost": self.cost.state()}

    def load_state_dict(self, state: Tree) -> None:
        self.memory.load_state_dict(state)
        self.cost.load(state["cost"])
