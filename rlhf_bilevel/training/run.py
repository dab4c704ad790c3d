"""Everything that moves during training, and what is drawn from it: pairs, anchors, visits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.feedback import queries
from rlhf_bilevel.rewards import health
from rlhf_bilevel.rewards.bradley_terry import weighed
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.state_entropy import state_entropy_reward
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.types import Improve, Learner, Queries, Segments, Teacher


@dataclass
class Run:
    """Everything that moves during training."""

    method: Method
    config: Config
    envs: Sequence[Any]  # gymnasium environments, one a learner
    learners: Sequence[Learner]
    teacher: Teacher
    store: ReplayBuffer
    reward: RewardEnsemble
    generator: torch.Generator  # of weights: the reward's have been drawn from it, then come the method's own
    improve: Improve
    prefs: PreferenceBuffer = field(default_factory=PreferenceBuffer)
    asked: queries.Asked = field(default_factory=queries.Asked)
    step: int = 0
    episode: int = 0  # of all learners together
    info: dict[str, Any] = field(default_factory=dict)  # what the environment told of the newest step
    tracked: bool = False  # whether learners have had time to answer the reward as it is
    weights: Tensor | None = None  # (M, B) of the labels of this reward step; None where all weigh alike

    def __post_init__(self) -> None:
        self.reward_optimizer = torch.optim.Adam(self.reward.parameters(), self.config.reward_learning_rate)
        self.health = health.Health(self.reward, self.reward_optimizer)
        # One generator a purpose, so that switching one part off leaves the draws of the others as they were
        purposes = ("query", "reward", "visits", "entropy", "method")
        self.rng = {purpose: np.random.default_rng([self.config.seed, i]) for i, purpose in enumerate(purposes)}
        self.options = self.method.options_of(self.config)
        self.state: Any = self.method.state(self)
        show(self)

    @property
    def learnt(self) -> bool:
        """Whether the reward has been fitted to any label, by this run or before it was given."""
        return bool(self.reward_optimizer.state) or bool(self.config.reward)

    @property
    def on_policy_since(self) -> int:
        """First row that was written after a reward had been learnt (a row is a step)."""
        return self.config.learning_starts + self.config.pretrain_steps

    def sample_pairs(self, count: int) -> Queries:
        """Random pairs of segments from recent episodes, those that ``query_source`` says if any is long enough."""
        c, episodes = self.config, partial(self.store.episodes, least=self.config.segment_length)
        recent = c.aligned_episodes if c.policy_aligned else c.recent_episodes
        two = len(self.learners) == 2
        sources = {"all": (None, None), "second": (1, 1), "cross": (0, 1)}[c.query_source if two else "all"]
        pools = [episodes(writer)[-recent:] or episodes()[-recent:] for writer in sources]
        first, second = (self.store.sample_segments(p, count, c.segment_length, self.rng["query"]) for p in pools)
        return Queries(first, second)

    def sample_anchored(self, count: int) -> Queries:
        """Random pairs of a segment of the newest episodes and an anchor: the newest is compared with what there was.

        Anchors are the ``anchor_segments`` labelled segments that the reward rates best, or any since labels began.
        """
        c, rng = self.config, self.rng["query"]
        episodes = partial(self.store.episodes, least=c.segment_length)
        new = self.store.sample_segments(episodes()[-c.aligned_episodes :], count, c.segment_length, rng)
        if c.anchor == "past":
            past = episodes(since=self.on_policy_since) or episodes()
            return Queries(new, self.store.sample_segments(past, count, c.segment_length, rng))
        labelled = self.prefs.segments()
        with torch.no_grad():
            rating = self.reward(labelled.obs, labelled.act).sum(-1)
        best = rating.argsort(descending=True, stable=True)[: c.anchor_segments]
        drawn = best[torch.from_numpy(rng.integers(len(best), size=count))]
        return Queries(new, Segments(*(column[drawn] for column in labelled)))

    def weigh(self, logits: Tensor) -> Tensor:
        """The members' logits (M, B) on this reward step's labels, so that each label counts as it weighs."""
        return logits if self.weights is None else weighed(logits, self.weights)


def show(run: Run) -> None:
    """Let each learner see its reward as it is now: state entropy until a reward has been learnt."""
    careful = run.config.pessimism_from == "start" or len(run.prefs) >= run.config.labels
    run.reward.pessimism = run.config.pessimism if careful else 0.0
    pretraining = run.method.upper is not None and not run.learnt
    exploring = state_entropy_reward(run.store, run.config, run.rng["entropy"])
    signals = [exploring] * len(run.learners) if pretraining else run.method.sees(run)
    for learner, signal in zip(run.learners, signals, strict=True):
        learner.see(signal, keep=run.method.keep and not pretraining)
