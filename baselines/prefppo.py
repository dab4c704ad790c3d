"""PrefPPO: PEBBLE with PPO as the learner [Christiano et al. 2017; Lee et al. 2021].

phi descends        CE, the cross-entropy of labelled pairs
the learner gets    mean_m r_m, once for each rollout
"""

from typing import Annotated

from pydantic import Field

from rlhf_bilevel.config import Fraction, Often, Options, Positive, Rate, Size, Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method


class PrefPPOOptions(Options):
    """Arguments of Stable-Baselines3's PPO, with the values of B-Pref."""

    n_steps: Annotated[int, Field(ge=2, le=10**6)] = 2048  # of a rollout; B-Pref's are 500 in each of 32 environments
    batch_size: Annotated[Size, Field(ge=2)] = 64  # advantages are normalised within each
    n_epochs: Often = 20
    learning_rate: Rate = 5e-5
    clip_range: Positive = 0.4
    gae_lambda: Fraction = 0.92
    ent_coef: Weight = 0.0


PREFPPO = Method(
    "prefppo",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(run.reward)],
    reward_loss=lambda run, batch, logits: cross_entropy(logits, batch.label).mean(),
    options=PrefPPOOptions,
    algorithm="PPO",
    arguments=lambda options: options.model_dump(),
)
