"""A control that never learns: it acts uniformly at random, in training and in evaluation."""

from rlhf_bilevel.training.method import Method

RANDOM = Method("random", learners=1, learner_rewards=lambda run: [run.store.true_reward], algorithm="RandomPolicy")
