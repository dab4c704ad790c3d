"""RUNE: a bonus where the members of the reward disagree [Liang et al., ICLR 2022].

The learner sees    mean_m r_m + beta_t std_m r_m,    beta_t = beta (1 - rho)^t

with t the environment step. phi descends the cross-entropy, as in PEBBLE. Rewards are kept until the reward model
moves: beta_t is that of the step at which a row's was computed, at most ``refresh_every`` steps ago.
"""

from torch import Tensor

from rlhf_bilevel.config import Fraction, Options, Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics


class RuneOptions(Options):
    beta: Weight = 0.05  # of the standard deviation at the first step
    rho: Fraction = 1e-5  # share that it loses at each step


def weight(run: Run) -> float:
    return run.options.beta * (1 - run.options.rho) ** run.step


def optimistic(run: Run, obs: Tensor, act: Tensor) -> Tensor:
    members = run.reward.members(obs, act)
    return members.mean(0) + weight(run) * members.std(0, correction=0)


def diagnose(run: Run) -> Metrics:
    return {"rune/beta": weight(run)}


RUNE = Method(
    "rune",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(lambda obs, act: optimistic(run, obs, act))],
    reward_loss=lambda run, batch, logits: cross_entropy(logits, batch.label).mean(),
    diagnose=diagnose,
    options=RuneOptions,
)
