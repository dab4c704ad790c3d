"""SAC on the true reward: what could be reached if nothing had to be learnt from labels [Haarnoja 2018]."""

from rlhf_bilevel.training.method import Method

SAC = Method("sac", learners=1, learner_rewards=lambda run: [run.store.true_reward])
