"""The control for the penalty method: two learners with the same reward and the same data, without the penalty.

    phi descends      CE, the cross-entropy of labelled pairs
    learner k gets    mean_m r_m,    k = 1, 2

An advantage of the penalty method over PEBBLE that twin also has is not due to the penalty.
"""

from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method

TWIN = Method(
    "twin",
    learners=2,
    learner_rewards=lambda run: [run.store.learned(run.reward)] * 2,
    reward_loss=lambda run, batch, logits: cross_entropy(logits, batch.label).mean(),
    settings={"other_every": 4},  # the agent acts in three of four episodes
)
