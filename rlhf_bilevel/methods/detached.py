"""The practical variant of the penalty method that its authors ran: one policy, and a critic inside the pair logits.

    phi descends    CE( logits + weight [Q(first) - Q(second)] ),    Q held fixed

Q of a segment is the mean over its steps of min_q Q_q(s, a). No gradient passes through Q: it only shifts the logit of
each pair, so that r is fitted to what the labels say beyond Q.
"""

from torch import Tensor

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences


class DetachedOptions(Options):
    """The published value."""

    weight: Weight = 0.1
    """Weight of the value difference, in nats per unit of discounted return."""


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """Cross-entropy of the logits (M, B) shifted by the critics, in nats."""
    first, second = (run.learners[0].value(part.obs, part.act).mean(-1) for part in batch[:2])  # (B,)
    return cross_entropy(logits + run.options.weight * (first - second), batch.label).mean()


DETACHED = Method("detached", 1, lambda run: [run.store.learned(run.reward)], reward_loss, options=DetachedOptions)
