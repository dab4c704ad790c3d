"""The practical variant of the penalty method that its authors ran: one policy, and a critic inside the pair logits.

phi descends    CE( logits + weight [Q(first) - Q(second)] ),    Q held fixed

with Q of a segment the mean over its steps of the least critic's Q(s, a). No gradient passes through Q, so that the
penalty does not reach phi but by moving each pair's residual: what the labels say beyond Q is what r is fitted to.
"""

from torch import Tensor

from rlhf_bilevel.config import Options, Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences


class DetachedOptions(Options):
    weight: Weight = 0.1  # nats per unit of discounted return


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    first, second = (run.learners[0].value(part.obs, part.act).mean(-1) for part in batch[:2])  # (B,)
    return cross_entropy(logits + run.options.weight * (first - second), batch.label).mean()


DETACHED = Method("detached", 1, lambda run: [run.store.learned(run.reward)], reward_loss, options=DetachedOptions)
