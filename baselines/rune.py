"""RUNE: a bonus where the members of the reward disagree [Liang et al., ICLR 2022].

    phi descends        CE, the cross-entropy of labelled pairs
    the learner gets    mean_m r_m + beta_t std_m r_m,    beta_t = beta (1 - rho)^t    at environment step t

The reward of a row is cached until the reward model moves. So beta_t may be that of up to ``refresh_every`` steps ago.
"""

from torch import Tensor

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Fraction, Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics


class RuneOptions(Options):
    """The published values."""

    beta: Weight = 0.05
    """beta_0: weight of the standard deviation at the first step."""
    rho: Fraction = 1e-5
    """Share of the weight that is lost at each step."""


def weight(run: Run) -> float:
    """beta_t at the run's step."""
    return run.options.beta * (1 - run.options.rho) ** run.step


def optimistic(run: Run, obs: Tensor, act: Tensor) -> Tensor:
    """The reward with its bonus: (...) for obs (..., o) and act (..., a)."""
    members = run.reward.members(obs, act)
    return members.mean(0) + weight(run) * members.std(0, correction=0)


def diagnose(run: Run) -> Metrics:
    """beta_t."""
    return {"rune/beta": weight(run)}


RUNE = Method(
    "rune",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(lambda obs, act: optimistic(run, obs, act))],
    reward_loss=lambda run, batch, logits: cross_entropy(logits, batch.label).mean(),
    diagnose=diagnose,
    options=RuneOptions,
    settings={"reward_form": "network"},  # members of the other forms become alike, and their spread says little
)
