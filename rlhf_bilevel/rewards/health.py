"""Watches the reward model: one that diverged, collapsed or unlearnt its labels is taken back to the last sound one.

It is checked after every move, so that learners never get a reward that they cannot learn from.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch

from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.rewards.bradley_terry import accuracy, cross_entropy
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.utils.serialization import Tree, load_optimizer, optimizer_state

NEWEST = 1000  # so many of the newest labels are looked at
LEAST_SPREAD = 1e-3  # of the bound; an untrained ensemble has some hundredths


class Vitals(NamedTuple):
    """What is measured of a reward, on its newest labels."""

    loss: float  # nats a label, mean over members
    right: float  # share of the decided labels that the mean member orders as labelled
    decided: int  # how many labels are not ties
    spread: float  # standard deviation of the reward over labelled steps, as a share of its bound
    gradient: float  # norm of the gradient of the last step


class Health:
    """Keeps a copy of the reward and its optimizer: as new, and later as after the last sound session."""

    def __init__(self, reward: RewardEnsemble, optimizer: torch.optim.Optimizer) -> None:
        self._reward, self._optimizer = reward, optimizer
        self._keep()

    def check(self, prefs: PreferenceBuffer, session: bool) -> str | None:
        """To be called after each move of the reward, ``session`` unless it was a refresh.

        Returns None if the reward is sound. Otherwise it puts the copy back and returns what was wrong.
        """
        fault = describe(self._vitals(prefs))
        if fault:
            self._reward.load_state_dict(self._sound["reward"])
            load_optimizer(self._optimizer, copy.deepcopy(self._sound["optimizer"]))
        elif session:
            self._keep()
        return fault

    def _keep(self) -> None:
        optimizer = optimizer_state(self._optimizer)
        self._sound = copy.deepcopy({"reward": self._reward.state_dict(), "optimizer": optimizer})

    def _vitals(self, prefs: PreferenceBuffer) -> Vitals:
        answers, parameters = prefs[-NEWEST:], self._reward.parameters()
        with torch.no_grad():
            first, second = (self._reward.members(segments.obs, segments.act) for segments in answers[:2])  # (M, B, T)
            output = (first - second).sum(-1)  # (M, B)
            loss = cross_entropy(output, answers.label).mean().item()
            right = accuracy(output.mean(0), answers.label).item()
            spread = (torch.cat([first, second], 1).mean(0).std() / self._reward.bound).item()
            gradient = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()
        return Vitals(loss, right, int((answers.label != 0.5).sum()), spread, gradient)

    def state_dict(self) -> Tree:
        """The copy, which is not copied again."""
        return self._sound

    def load_state_dict(self, state: Tree) -> None:
        """Continues with the copy of ``state_dict``."""
        self._sound = state


def describe(now: Vitals) -> str | None:
    """What is wrong with a reward, in one sentence; None if it is sound.

    The loss is judged only by being finite: a few labels against an overconfident reward cost many nats, and a method
    such as the penalty moves the loss on purpose. A reward that orders the labels it was fitted to worse than chance
    has unlearnt them.
    """
    if not all(map(math.isfinite, (now.loss, now.spread, now.gradient))):
        return f"the reward diverged: loss {now.loss:.3g} nats, gradient norm {now.gradient:.3g}"
    if now.right < 0.5 - 1 / math.sqrt(max(now.decided, 1)):  # by two standard deviations
        return f"the reward unlearnt its labels: {now.right:.0%} of {now.decided} are right"
    if now.decided and now.spread < LEAST_SPREAD:
        return f"the reward collapsed: over labelled steps it spreads by {now.spread:.1e} of its bound"
    return None
