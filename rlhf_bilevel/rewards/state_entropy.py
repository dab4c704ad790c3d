"""State entropy as a reward before any label: log(1 + distance to the k-th nearest visited state) [PEBBLE, eq. 4]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.types import RowReward


def state_entropy(states: Tensor, visited: Tensor, k: int) -> Tensor:
    """``states`` (N, o) against a sample of ``visited`` states (V, o), Euclidean: (N,).

    The 1 keeps the logarithm bounded where states repeat. k is capped by V.
    """
    distance = torch.cdist(states, visited)  # (N, V)
    return distance.kthvalue(min(k, len(visited)), dim=-1).values.log1p()


def state_entropy_reward(store: ReplayBuffer, config: Config, rng: np.random.Generator) -> RowReward:
    """State entropy at rows of ``store``, against ``entropy_states`` of its states, drawn anew each time."""

    def signal(rows: Tensor) -> Tensor:
        visited = rng.integers(store.size, size=config.entropy_states)
        return state_entropy(store.obs[rows], store.obs[torch.from_numpy(visited)], config.neighbour)

    return signal


def fit_entropy(
    reward: RewardEnsemble, store: ReplayBuffer, config: Config, steps: int, rngs: tuple[np.random.Generator, ...]
) -> None:
    """Gradient steps of each member on its squared error from the state entropy at batches of the store's rows.

    Of each batch the entropy is brought to mean 0 and largest magnitude 1, as the reward is bounded. ``rngs`` draw the
    visited states and the rows. Adam's moments are not those of any other fit.
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
