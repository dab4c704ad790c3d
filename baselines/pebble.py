"""PEBBLE: one learner on the reward that fits the labels; the policy's share in the loss is ignored [Lee 2021].

phi descends the cross-entropy of labelled pairs under Bradley-Terry; the learner sees the ensemble's mean.
"""

from torch import Tensor

from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    return cross_entropy(logits, batch.label).mean()


PEBBLE = Method(
    "pebble", learners=1, learner_rewards=lambda run: [run.store.learned(run.reward)], reward_loss=reward_loss
)
