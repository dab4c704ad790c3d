"""PEBBLE: the reward fits the labels, and one policy learns from it [Lee, Smith and Abbeel, ICML 2021].

    phi descends        CE, the cross-entropy of labelled pairs under Bradley-Terry
    the learner gets    mean_m r_m

That the loss also depends on the policy is ignored.
"""

from torch import Tensor

from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """The mean cross-entropy over pairs and members, in nats. ``logits`` are (M, B)."""
    return cross_entropy(logits, batch.label).mean()


PEBBLE = Method(
    "pebble", learners=1, learner_rewards=lambda run: [run.store.learned(run.reward)], reward_loss=reward_loss
)
