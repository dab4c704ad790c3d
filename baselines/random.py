"""The control that never learns: it acts uniformly at random, in training and when it is evaluated."""

from rlhf_bilevel.training.method import Method

RANDOM = Method("random", learners=1, sees=lambda run: [run.store.true_reward], algorithm="RandomPolicy")
