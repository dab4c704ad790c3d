"""The update of all learners of a run: at once where they are plain SAC, otherwise one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_bilevel.learners.batched_sac import BatchedSAC, stackable
from rlhf_bilevel.learners.off_policy import SB3Learner
from rlhf_bilevel.types import Metrics


class Together:
    """``Improve`` of these learners: all in one update, by ``stack``; one after another where that is None."""

    def __init__(self, learners: Sequence[Any]) -> None:
        self._learners, self.stack = learners, stacked(learners)

    def __call__(self, updates: int, step: int) -> Sequence[Metrics]:
        """As ``types.Improve``."""
        if self.stack:
            return self.stack.improve(updates, step)
        return [learner.improve(updates, step) for learner in self._learners]


def stacked(learners: Sequence[Any]) -> BatchedSAC | None:
    """A ``BatchedSAC`` of all learners; None if one of them is not plain SAC (see ``stackable``)."""
    models = [learner.model for learner in learners]
    if not all(type(learner) is SB3Learner and stackable(learner.model) for learner in learners):
        return None
    views, rngs = [learner._view for learner in learners], [learner._rng for learner in learners]
    return BatchedSAC(models, views, rngs, learners[0]._config.batch_size)
