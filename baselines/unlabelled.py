"""The control without labels: the reward is state entropy, from the first step to the last.

It shows what PEBBLE's pre-training reaches alone, and what a method reaches if its teacher never answers.
"""

from rlhf_bilevel.rewards.state_entropy import state_entropy_reward
from rlhf_bilevel.training.method import Method

UNLABELLED = Method(
    "unlabelled",
    learners=1,
    learner_rewards=lambda run: [state_entropy_reward(run.store, run.config, run.rng["entropy"])],
    cache_rewards=False,
)
