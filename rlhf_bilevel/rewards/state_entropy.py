"""State entropy, the reward of pre-training, before there is a label [PEBBLE, eq. 4].

    r(s) = log(1 + |s - s_k|),    s_k the k-th nearest of the visited states, Euclidean

Its expectation estimates the entropy of the visited states, so that a learner spreads over the state space. The 1 keeps
the logarithm from falling without bound where states repeat.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.types import RowReward


def state_entropy(states: Tensor, visited: Tensor, k: int) -> Tensor:
    """r of ``states`` (N, o) by a sample of ``visited`` states (V, o): (N,). k counts from 1, and at most V counts."""
    distance = torch.cdist(states, visited)  # (N, V)
    return distance.kthvalue(min(k, len(visited)), dim=-1).values.log1p()


def state_entropy_reward(store: ReplayBuffer, config: Config, rng: np.random.Generator) -> RowReward:
    """State entropy at rows of ``store``, by ``entropy_states`` of its states, which are drawn anew at each call."""

    def row_reward(rows: Tensor) -> Tensor:
        visited = rng.integers(store.size, size=config.entropy_states)
        return state_entropy(store.obs[rows], store.obs[torch.from_numpy(visited)], config.neighbour)

    return row_reward


def fit_entropy(
    reward: RewardEnsemble, store: ReplayBuffer, config: Config, steps: int, rngs: tuple[np.random.Generator, ...]
) -> None:
    """Fits each member to state entropy: ``steps`` gradient steps on the squared error at batches of stored rows.

    In each batch the entropy is shifted to mean 0 and scaled to at most 1, as the reward is bounded. ``rngs`` are two:
    the first draws visited states, the second rows. It has an Adam of its own.
    """
    entropy = state_entropy_reward(store, config, rngs[0])
    optimizer = torch.optim.Adam(reward.parameters(), config.reward_lr)
    for _ in range(steps):
        rows = torch.from_numpy(rngs[1].integers(store.size, size=config.batch_size))
        target = entropy(rows)
        target = target - target.mean()
        target = reward.level + target / target.abs().max().clamp_min(1e-8)
        error = reward.members(store.obs[rows], store.act[rows]) - target
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
