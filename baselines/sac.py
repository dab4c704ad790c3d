"""SAC on the environment's reward [Haarnoja et al. 2018].

It shows what could be reached if nothing had to be learnt from labels.
"""

from rlhf_bilevel.training.method import Method

SAC = Method("sac", learners=1, learner_rewards=lambda run: [run.store.true_reward])
