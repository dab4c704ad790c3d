"""A reward model that leaves nothing to learn from is seen within one session, and taken back to the last sound one."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch

from rlhf_bilevel.preference import PreferenceStore, cross_entropy
from rlhf_bilevel.reward import RewardEnsemble
from rlhf_bilevel.tree import Tree, load_optimizer, optimizer_state

NEWEST = 1000  # labels that are looked at
LEAST_SPREAD = 1e-3  # of the bound: an untrained ensemble has some hundredths
EVEN_ODDS = math.log(2)


class Vitals(NamedTuple):
    loss: float  # nats a label, mean over members
    spread: float  # standard deviation of the reward over labelled steps, as a share of its bound
    gradient: float  # norm of the last step's
    decided: bool  # whether not all labels are ties


class Health:
    """Holds the reward as it was after the last session that left it sound; before the first, as it was made."""

    def __init__(self, reward: RewardEnsemble, optimizer: torch.optim.Optimizer) -> None:
        self._reward, self._optimizer = reward, optimizer
        self._keep(EVEN_ODDS)

    def check(self, prefs: PreferenceStore, session: bool) -> str | None:
        """After a move of the reward model: None, or what is wrong with it, and it is back where it was sound.

        Refreshes are compared with the last session, so that a slow decline is seen too.
        """
        vitals = self._vitals(prefs)
        fault = describe(vitals, self._loss)
        if fault:
            self._reward.load_state_dict(self._sound["reward"])
            load_optimizer(self._optimizer, copy.deepcopy(self._sound["optimizer"]))
        elif session:
            self._keep(vitals.loss)
        return fault

    def _keep(self, loss: float) -> None:
        optimizer = optimizer_state(self._optimizer)
        self._loss = loss
        self._sound = copy.deepcopy({"reward": self._reward.state_dict(), "optimizer": optimizer})

    def _vitals(self, prefs: PreferenceStore) -> Vitals:
        answers, parameters = prefs[-NEWEST:], self._reward.parameters()
        with torch.no_grad():
            first, second = (self._reward.members(segments.obs, segments.act) for segments in answers[:2])  # (M, B, T)
            loss = cross_entropy((first - second).sum(-1), answers.label).mean().item()
            spread = (torch.cat([first, second]).mean(0).std() / self._reward.bound).item()
            gradient = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()
        return Vitals(loss, spread, gradient, bool((answers.label != 0.5).any()))

    def state(self) -> Tree:
        return self._sound | {"loss": self._loss}

    def load(self, state: Tree) -> None:
        self._loss, self._sound = state["loss"], {name: state[name] for name in ("reward", "optimizer")}


def describe(now: Vitals, sound_loss: float) -> str | None:
    """What is wrong with a reward whose loss, when it was sound, was ``sound_loss`` nats a label."""
    if not all(map(math.isfinite, (now.loss, now.spread, now.gradient))):
        return f"the reward diverged: loss {now.loss:.3g} nats, gradient norm {now.gradient:.3g}"
    if now.loss > max(sound_loss, EVEN_ODDS) + EVEN_ODDS:
        return f"the reward unlearnt its labels: their loss rose from {sound_loss:.2f} to {now.loss:.2f} nats"
    if now.decided and now.spread < LEAST_SPREAD:
        return f"the reward collapsed: over labelled steps it spreads by {now.spread:.1e} of its bound"
    return None
