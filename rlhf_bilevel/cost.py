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

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlhf_bilevel.config import Config
from rlhf_bilevel.preference import PreferenceStore, logits
from rlhf_bilevel.query import entropy_of_mean, information_gain
from rlhf_bilevel.reward import RewardEnsemble
from rlhf_bilevel.tree import Tree, load_optimizer, optimizer_state
from rlhf_bilevel.types import Preferences, Queries, RewardFn

BOUND = 4.0
"""Nats: largest |U| of a segment. A loss of ln 2 is what an uninformed reward has."""


def label_targets(config: Config, answers: Preferences, fresh_loss: Tensor) -> Tensor:
    """What U(first) +- U(second) is fitted to, from labels (B,) and the losses (B,) before training on them."""
    return 2 * fresh_loss if config.objective == "preference_loss" else -config.win_weight * (answers.label - 0.5)


def posterior_targets(config: Config, members: RewardFn, queries: Queries) -> Tensor:
    """The same without labels: expectations under the ensemble's mean preference, (B,).

    Of the preference loss it is the entropy; ``information`` is the part of it that a label would take away.
    """
    with torch.no_grad():
        if config.objective == "win_rate":
            return -config.win_weight * (logits(members, queries).sigmoid().mean(0) - 0.5)
        return 2 * (information_gain if config.cost == "information" else entropy_of_mean)(members, queries)


class LearnedCost(nn.Module):
    """u(s, a) as a small bounded network. Called, it gives c = (1 - gamma) T u: (..., o), (..., a) to (...)."""

    def __init__(self, obs_size: int, act_size: int, config: Config, rng: torch.Generator) -> None:
        super().__init__()
        self._sign = 1 if config.objective == "preference_loss" else -1
        self._scale = (1 - config.gamma) * config.segment_length
        self._batch, self._rng = config.cost_pairs, rng
        self.step = RewardEnsemble(obs_size, act_size, 1, config.cost_hidden, rng, bound=BOUND / config.segment_length)
        self._optimizer = torch.optim.Adam(self.parameters(), config.cost_learning_rate)

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self._scale * self.step(obs, act)

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

    def refit(
        self, config: Config, prefs: PreferenceStore, members: RewardFn, sample: Callable[[int], Queries]
    ) -> None:
        """Go on fitting to what ``config.cost`` names: the newest labels, or as many pairs that ``sample`` draws."""
        if config.cost == "labels":
            newest = slice(-config.cost_labels, None)
            answers = prefs[newest]
            self.fit(answers, label_targets(config, answers, prefs.fresh_loss[newest]), config.cost_steps)
        else:
            pairs = sample(config.cost_labels)
            self.fit(pairs, posterior_targets(config, members, pairs), config.cost_steps)

    def state(self) -> Tree:
        rng = self._rng.get_state()
        return {"step": self.step.state_dict(), "optimizer": optimizer_state(self._optimizer), "rng": rng}

    def load(self, state: Tree) -> None:
        self.step.load_state_dict(state["step"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._rng.set_state(state["rng"])
