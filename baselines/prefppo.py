"""PrefPPO: PEBBLE with PPO as the learner [Christiano et al. 2017; Lee et al. 2021].

phi descends        CE, the cross-entropy of labelled pairs
the learner gets    mean_m r_m, once for each rollout
"""

from typing import Annotated

from pydantic import Field

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Fraction, Often, Positive, Rate, Size, Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method


class PrefPPOOptions(Options):
    """Arguments of Stable-Baselines3's PPO, with the values of B-Pref."""

    n_steps: Annotated[int, Field(ge=2, le=10**6)] = 2048
    """Steps of a rollout. B-Pref has 500 in each of 32 environments."""
    batch_size: Annotated[Size, Field(ge=2)] = 64
    """Steps in a batch. Advantages are normalised within each."""
    n_epochs: Often = 20
    """Epochs over each rollout."""
    learning_rate: Rate = 5e-5
    """Adam's learning rate."""
    clip_range: Positive = 0.4
    """The probability ratio is clipped to 1 +- this."""
    gae_lambda: Fraction = 0.92
    """Lambda of generalised advantage estimation."""
    ent_coef: Weight = 0.0
    """Weight of the entropy in the loss."""


PREFPPO = Method(
    "prefppo",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(run.reward)],
    reward_loss=lambda run, batch, logits: cross_entropy(logits, batch.label).mean(),
    options=PrefPPOOptions,
    algorithm="PPO",
    arguments=lambda options: options.model_dump(),
)
