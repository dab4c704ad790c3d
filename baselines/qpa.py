"""QPA: queries and half of each batch come from the policy as it is now; crops of segments [Hu et al., ICLR 2024].

    phi descends        E over ``copies`` crops of CE(crop of a labelled pair)
    the learner gets    r, the reward of a single member

Queries are random pairs from the ``aligned_episodes`` newest episodes. A share ``newest_share`` of each batch of the
learner is drawn from the ``newest_rows`` newest rows (hybrid replay).
"""

from pydantic import model_validator
from torch import Tensor

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Few, Fraction, check_order
from rlhf_bilevel.rewards.bradley_terry import crops, cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences


class QpaOptions(Options):
    """Crops, with the published values."""

    copies: Few = 20
    """Crops of each labelled pair in a reward step. 0: the pairs as they are."""
    shortest: Fraction = 0.7
    """Shortest crop, as a share of a segment."""
    longest: Fraction = 0.9
    """Longest crop, as a share of a segment."""

    @model_validator(mode="after")
    def check_crops(self) -> "QpaOptions":
        """ValueError if no crop is so short and so long."""
        check_order(self, "shortest", "longest")
        return self


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """The mean cross-entropy of crops of the pairs. ``logits`` (M, B) are those of the whole pairs."""
    o = run.options
    if o.copies:
        first, second = (run.reward.members(part.obs, part.act) for part in batch[:2])
        logits = run.weigh(crops(first, second, (o.shortest, o.longest), run.rng["method"], o.copies))
    return cross_entropy(logits, batch.label).mean()


QPA = Method(
    "qpa",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(run.reward)],
    reward_loss=reward_loss,
    settings={"anchor_share": 0.0, "initial_comparison_frac": 0.0, "ensemble_size": 1},
    options=QpaOptions,
)
