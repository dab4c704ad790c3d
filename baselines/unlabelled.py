"""The control without labels: state entropy is the reward from the first step to the last.

What PEBBLE's pre-training is worth by itself, and what a method reaches whose teacher never answers.
"""

from rlhf_bilevel.rewards.state_entropy import state_entropy_reward
from rlhf_bilevel.training.method import Method

UNLABELLED = Method(
    "unlabelled",
    learners=1,
    learner_rewards=lambda run: [state_entropy_reward(run.store, run.config, run.rng["entropy"])],
    cache_rewards=False,
)
