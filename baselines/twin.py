"""The control for the penalty method: two learners on one store and one reward, no coupling whatever.

Whatever the penalty method has over PEBBLE that twin has too is not due to the penalty.
"""

from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method

TWIN = Method(
    "twin",
    learners=2,
    learner_rewards=lambda run: [run.store.learned(run.reward)] * 2,
    reward_loss=lambda run, batch, logits: cross_entropy(logits, batch.label).mean(),
    # Pairs at the policies' own visits are where the upper level has them; both settings are [QPA]'s
    settings={"query": "uniform", "policy_aligned": True, "newest_share": 0.5, "other_every": 4},
)
