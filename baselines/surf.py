"""SURF: pseudo-labels of pairs on which the reward is sure, and random crops of segments [Park et al., ICLR 2022].

    phi descends        CE(crops of labelled pairs)
                        + weight E[ 1{max(p, 1 - p) >= threshold} CE(crops of unlabelled pairs, 1{p > 1/2}) ]
    the learner gets    mean_m r_m

p = P(first better) is held fixed. Each member has its own, on the whole pair.
"""

from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Few, Fraction, Weight, check_order
from rlhf_bilevel.rewards import bradley_terry
from rlhf_bilevel.rewards.bradley_terry import crops, cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries


class SurfOptions(Options):
    """The published values."""

    threshold: Fraction = 0.99
    """tau: a pseudo-label counts if the reward gives it at least this probability."""
    weight: Weight = 1.0
    """lambda: weight of the unlabelled pairs' loss."""
    unlabelled: Annotated[Few, Field(ge=1)] = 4
    """mu: unlabelled pairs for each labelled one."""
    shortest: Fraction = 0.75
    """Shortest crop, as a share of a segment."""
    longest: Fraction = 0.92
    """Longest crop, as a share of a segment."""

    @model_validator(mode="after")
    def check_crops(self) -> "SurfOptions":
        """ValueError if no crop is so short and so long."""
        check_order(self, "shortest", "longest")
        return self


def cropped(run: Run, pairs: Queries | Preferences) -> Tensor:
    """The members' logits (M, B) of one random crop of each pair."""
    first, second = (run.reward.members(part.obs, part.act) for part in pairs[:2])
    return crops(first, second, (run.options.shortest, run.options.longest), run.rng["method"])[0]


def pseudo_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The pseudo-labels 1{p > 1/2} and 1{max(p, 1 - p) >= threshold}, both with the shape of ``logits`` (M, B)."""
    return (logits > 0).float(), (logits.abs().sigmoid() >= threshold).float()


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """The cross-entropies of crops of labelled and of unlabelled pairs, in nats. It does not use ``logits``."""
    loss = cross_entropy(run.weigh(cropped(run, batch)), batch.label).mean()
    if not run.options.weight:
        return loss
    pairs = run.sample_pairs(run.options.unlabelled * len(batch.label))
    with torch.no_grad():
        label, sure = pseudo_labels(bradley_terry.logits(run.reward.members, pairs), run.options.threshold)
    return loss + run.options.weight * (sure * cross_entropy(cropped(run, pairs), label)).mean()


SURF = Method("surf", 1, lambda run: [run.store.learned(run.reward)], reward_loss, options=SurfOptions)
