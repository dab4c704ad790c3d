"""The state of a run: all that changes during training, and the pairs of segments that are sampled from it."""

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
from rlhf_bilevel.feedback.pairs import AskedPairs
from rlhf_bilevel.rewards import health
from rlhf_bilevel.rewards.bradley_terry import weighed
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.state_entropy import state_entropy_reward
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.types import Improve, Learner, Queries, Segments, Teacher


@dataclass
class Run:
    """All that changes during training. ``snapshot`` says what of it a checkpoint holds.

    What the functions of a method use most:

    - ``store``: the replay buffer, with columns such as ``obs`` (N, o) and ``act`` (N, a), and ``learned(reward)``;
    - ``reward``: the reward ensemble; ``reward(obs, act)`` is its mean, ``reward.members(obs, act)`` all members;
    - ``prefs``: all labels so far, oldest first; ``prefs[:]`` are ``Preferences``, ``len(prefs)`` their number;
    - ``batch_rows``: which of them the loss gets at this step;
    - ``learners``: their ``model`` is an SB3 algorithm;
    - ``config``, ``options`` (the method's own), ``state`` (what it keeps), ``step`` and ``rng["method"]``.
    """

    method: Method
    config: Config
    envs: Sequence[Any]  # Gymnasium environments, one for each learner
    learners: Sequence[Learner]
    teacher: Teacher
    store: ReplayBuffer
    reward: RewardEnsemble
    generator: torch.Generator  # draws initial weights: first the reward's, then those of the method's networks
    improve: Improve  # improves all learners
    prefs: PreferenceBuffer = field(default_factory=PreferenceBuffer)
    asked: AskedPairs = field(default_factory=AskedPairs)
    step: int = 0  # environment steps that are stored, of all learners together
    episode: int = 0  # episodes begun, of all learners together
    info: dict[str, Any] = field(default_factory=dict)  # ``info`` of the newest environment step
    labelling_seconds: float | None = 0.0  # of all answers so far; None: the teacher does not tell
    in_refresh: bool = False  # the reward was last moved in a refresh: learners had time to adapt to it before
    batch_rows: Tensor | None = None  # (B,) the labels that the batch of this reward step holds; 0 is the oldest
    label_weights: Tensor | None = None  # (M, B) for the batch of this reward step; None if all labels weigh the same

    def __post_init__(self) -> None:
        self.reward_optimizer = torch.optim.Adam(self.reward.parameters(), self.config.reward_lr)
        self.health = health.Health(self.reward, self.reward_optimizer)
        # One generator a purpose, so that switching one part off leaves the draws of the others as they were
        purposes = ("query", "reward", "visits", "entropy", "method")
        self.rng = {purpose: np.random.default_rng([self.config.seed, i]) for i, purpose in enumerate(purposes)}
        self.options = self.method.options_of(self.config)
        self.state: Any = self.method.state(self)
        set_learner_rewards(self)

    @property
    def learnt(self) -> bool:
        """Whether the reward has been fitted to a label yet, by this run or by the one that it was given from."""
        return bool(self.reward_optimizer.state) or bool(self.config.reward)

    @property
    def on_policy_since(self) -> int:
        """The first step, and so the first row, after pre-training: from there on learners act on a learnt reward."""
        return self.config.learning_starts + self.config.pretrain_steps

    def sample_pairs(self, count: int) -> Queries:
        """``count`` random pairs of segments from recent episodes.

        Whose episodes, ``query_source`` says; if none of them is as long as a segment, anybody's. UserError if no
        episode at all is that long.
        """
        c, episodes = self.config, partial(self.store.episodes, least=self.config.segment_length)
        before = c.initial_labels and not self.learnt  # no policy has followed a learnt reward yet
        recent = c.aligned_episodes if c.policy_aligned and not before else c.recent_episodes
        two = len(self.learners) == 2
        sources = {"all": (None, None), "second": (1, 1), "cross": (0, 1)}[c.query_source if two else "all"]
        pools = [episodes(writer)[-recent:] or episodes()[-recent:] for writer in sources]
        first, second = (self.store.sample_segments(p, count, c.segment_length, self.rng["query"]) for p in pools)
        return Queries(first, second)

    def sample_anchored(self, count: int) -> Queries:
        """``count`` random pairs whose first segment is from the newest episodes, and whose second is an anchor.

        ``anchor=incumbent``: an anchor is one of the ``anchor_segments`` labelled segments that the reward rates best.
        ``anchor=past``: it is any segment since learning from labels began. UserError if no episode is long enough.
        """
        c, rng = self.config, self.rng["query"]
        episodes = partial(self.store.episodes, least=c.segment_length)
        new = self.store.sample_segments(episodes()[-c.aligned_episodes :], count, c.segment_length, rng)
        if c.anchor == "past":
            past = episodes(since=self.on_policy_since) or episodes()
            return Queries(new, self.store.sample_segments(past, count, c.segment_length, rng))
        best = self.best_labelled()
        drawn = torch.from_numpy(rng.integers(len(best.obs), size=count))
        return Queries(new, Segments(*(column[drawn] for column in best)))

    def best_labelled(self) -> Segments:
        """The ``anchor_segments`` labelled segments that the reward rates best, the best one first."""
        labelled = self.prefs.segments()
        with torch.no_grad():
            rating = self.reward(labelled.obs, labelled.act).sum(-1)
        best = rating.argsort(descending=True, stable=True)[: self.config.anchor_segments]
        return Segments(*(column[best] for column in labelled))

    def weigh(self, logits: Tensor) -> Tensor:
        """The same logits (M, B), with a gradient in which each label counts as its member weighs it."""
        return logits if self.label_weights is None else weighed(logits, self.label_weights)


def set_learner_rewards(run: Run) -> None:
    """Gives each learner its reward as it is now: state entropy before the first fit, then what the method says."""
    careful = run.config.pessimism_from == "start" or len(run.prefs) >= run.config.training_labels
    run.reward.pessimism = run.config.pessimism if careful else 0.0
    pretraining = run.method.reward_loss is not None and not run.learnt
    exploring = state_entropy_reward(run.store, run.config, run.rng["entropy"])
    rewards = [exploring] * len(run.learners) if pretraining else run.method.learner_rewards(run)
    for learner, reward in zip(run.learners, rewards, strict=True):
        learner.set_reward(reward, cache=run.method.cache_rewards and not pretraining)
