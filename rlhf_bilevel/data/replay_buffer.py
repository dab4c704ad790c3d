"""One replay buffer for all learners, and each learner's view of it with its own reward.

A learnt reward is never written over what was observed. A view computes the reward of a row when the row is sampled,
and keeps it until the learner's reward function changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Occupancy, RewardFn, RowReward, Segments
from rlhf_bilevel.utils.serialization import Tree, random_state


class ReplayBuffer:
    """Transitions in the order in which they happened, in whole episodes; one learner (the writer) acts in an episode.

    ``table`` has ``capacity`` rows; the first ``size`` are filled. Its columns, as views: obs (., o), act (., a) in
    [-1, 1], next_obs (., o), env_reward (.,) the environment's reward, terminated (.,) 1 if the episode ended there and
    not by a time limit.
    """

    COLUMNS = ("obs", "act", "next_obs", "env_reward", "terminated")

    def __init__(self, obs_size: int, act_size: int, capacity: int) -> None:
        # One table: a batch needs one gather, not one for each column
        self.table = torch.zeros(capacity, 2 * obs_size + act_size + 2)
        self.obs, self.act, self.next_obs, ends = self.table.split([obs_size, act_size, obs_size, 2], dim=-1)
        self.env_reward, self.terminated = ends.unbind(-1)
        self.size = 0
        self._starts: list[int] = []  # first row of each episode
        self._writers: list[int] = []  # learner that acted in it
        # numpy views of the same memory: writing a row is much faster than with torch
        self._rows = [getattr(self, name).numpy() for name in self.COLUMNS]

    def columns(self) -> dict[str, Tensor]:
        """The filled rows of each column, by name."""
        return {name: getattr(self, name)[: self.size] for name in self.COLUMNS}

    def index(self) -> dict[str, Tensor]:
        """First row (E,) and writer (E,) of each episode."""
        return {"starts": torch.tensor(self._starts), "writers": torch.tensor(self._writers)}

    def load(self, columns: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> None:
        """Replaces everything by what ``columns`` and ``index`` gave."""
        self.size = len(columns["env_reward"])
        for name in self.COLUMNS:
            getattr(self, name)[: self.size] = columns[name]
        self._starts, self._writers = index["starts"].tolist(), index["writers"].tolist()

    def begin(self, writer: int) -> None:
        """Begins an episode of learner ``writer``."""
        self._starts.append(self.size)
        self._writers.append(writer)

    def add(self, obs: np.ndarray, act: np.ndarray, next_obs: np.ndarray, env_reward: float, terminated: bool) -> None:
        """Adds one transition to the current episode."""
        for column, value in zip(self._rows, (obs, act, next_obs, env_reward, terminated), strict=True):
            column[self.size] = value
        self.size += 1

    def episodes(self, writer: int | None = None, since: int = 0, least: int = 1) -> list[tuple[int, int]]:
        """(start, end) rows of each episode of ``writer`` (None: of all) in order, also of the one that is not over.

        Episodes are cut to the rows from ``since`` on; those with fewer than ``least`` rows are left out.
        """
        ends = [*self._starts, self.size][1:]
        return [
            (max(start, since), end)
            for start, end, who in zip(self._starts, ends, self._writers, strict=True)
            if (writer is None or who == writer) and end - max(start, since) >= least
        ]

    def sample_segments(
        self, episodes: Sequence[tuple[int, int]], count: int, length: int, rng: np.random.Generator
    ) -> Segments:
        """``count`` random segments of ``length`` steps, uniform over all that lie within one of ``episodes``.

        UserError if no episode is that long.
        """
        starts = np.concatenate([np.arange(start, end - length + 1) for start, end in episodes] or [np.zeros(0, int)])
        if not len(starts):
            longest = max((end - start for start, end in self.episodes()), default=0)
            raise UserError(f"segment_length={length} is longer than every episode so far (longest: {longest} steps)")
        rows = torch.from_numpy(rng.choice(starts, count)[:, None] + np.arange(length))  # (B, T)
        return Segments(self.obs[rows], self.act[rows], self.env_reward[rows])

    def rows_of(self, segments: Segments) -> Tensor:
        """First rows (B,) of segments that were cut from this buffer; the newest if equal steps occur more than once.

        ValueError if a segment is not in this buffer.
        """
        starts, length, first_rows = torch.tensor(self._starts), segments.env_reward.shape[1], list[int]()
        for number, (obs, act, env_reward) in enumerate(zip(*segments, strict=True)):
            rows = (self.obs[: max(0, self.size - length + 1), 0] == obs[0, 0]).nonzero().squeeze(-1)
            for step in range(length):
                at = rows + step
                equal = (self.obs[at] == obs[step]).all(-1) & (self.act[at] == act[step]).all(-1)
                rows = rows[equal & (self.env_reward[at] == env_reward[step])]
            first, last = (torch.searchsorted(starts, at, right=True) for at in (rows, rows + length - 1))
            rows = rows[first == last]  # not across two episodes
            if not len(rows):
                raise ValueError(f"segment {number} was not cut from this store")
            first_rows.append(int(rows.max()))
        return torch.tensor(first_rows)

    def sample_visits(
        self, episodes: Sequence[tuple[int, int]], count: int, discount: float, gamma: float, rng: np.random.Generator
    ) -> Occupancy:
        """``count`` random steps of ``episodes``; step t of an episode has a probability proportional to discount^t.

        The weights are equal and sum to 1 / (1 - gamma). With discount = gamma this is an unbiased sample of the
        discounted occupancy; with discount = 1, of the average occupancy from all states of the episodes.
        """
        rows = np.concatenate([np.arange(start, end) for start, end in episodes])
        weight = np.concatenate([discount ** np.arange(end - start) for start, end in episodes])
        drawn = torch.from_numpy(rng.choice(rows, count, p=weight / weight.sum()))
        return Occupancy(self.obs[drawn], self.act[drawn], torch.full((count,), 1 / (1 - gamma) / count))

    def learned(self, reward: RewardFn) -> RowReward:
        """``reward`` as a function of row numbers (N,) of this buffer."""

        def signal(rows: Tensor) -> Tensor:
            with torch.no_grad():
                return reward(self.obs[rows], self.act[rows])

        return signal

    def true_reward(self, rows: Tensor) -> Tensor:
        """The environment's reward (N,) at rows (N,)."""
        return self.env_reward[rows]


class DeviceCopy:
    """The table of a replay buffer on a learner's device. New rows are copied when rows are taken."""

    def __init__(self, store: ReplayBuffer, device: torch.device) -> None:
        self._store, self._size = store, 0
        self._table = store.table if device.type == "cpu" else torch.empty_like(store.table, device=device)

    def take(self, rows: Tensor, out: Tensor) -> None:
        """Copies rows (N,) of the buffer's table to ``out`` (N, width)."""
        store = self._store
        if self._table is not store.table:
            self._table[self._size : store.size] = store.table[self._size : store.size]
            self._size = store.size
        torch.index_select(self._table, 0, rows.to(out.device), out=out)


class RelabelledView:
    """The replay buffer with one learner's reward. ``seed`` fixes the order of its samples.

    ``newest`` is (share, count): this share of a batch is drawn from the newest ``count`` rows only. ``cached`` says
    whether rewards are kept: then they depend on their rows only.
    """

    def __init__(self, store: ReplayBuffer, seed: int, newest: tuple[float, int] = (0.0, 1)) -> None:
        self.store, self._newest = store, newest
        self._rng = np.random.RandomState(seed)  # SB3's generator and calls: equal seeds give equal rows
        self._row_reward: RowReward = store.true_reward
        self.cached = True
        self._reward = torch.zeros(len(store.env_reward))
        self._cached = torch.zeros(len(store.env_reward), dtype=torch.bool)

    def set_reward(self, reward: RowReward, cache: bool = True) -> None:
        """Sets the reward of rows. ``cache=False`` if its values change by themselves, and must not be kept."""
        self._row_reward, self.cached = reward, cache
        self._cached[:] = False

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` random rows (N,), with replacement, and their rewards (N,)."""
        size, (share, rows_there) = self.store.size, self._newest
        newest = round(share * count)
        rows = self._rng.randint(0, size, size=count - newest)
        if newest:
            rows = np.concatenate([rows, self._rng.randint(max(0, size - rows_there), size, size=newest)])
        drawn, computed, reward = torch.from_numpy(rows), self._cached.numpy(), self._reward.numpy()
        if not self.cached:
            return drawn, self._row_reward(drawn)
        stale = rows[~computed[rows]]
        if len(stale):
            reward[stale] = self._row_reward(torch.from_numpy(stale)).numpy()
            computed[stale] = True
        return drawn, torch.from_numpy(reward[rows])  # numpy's indexing takes a tenth of torch's time

    def reward(self, rows: Tensor) -> Tensor:
        """The rewards of rows (N,) under the current reward function."""
        return self._row_reward(rows)

    def state_dict(self) -> Tree:
        """Its random numbers and the rewards that it keeps."""
        computed = self._cached.nonzero().squeeze(-1)
        # Rewards too: computed again in other batches, their last bits would differ
        return {"rng": random_state(self._rng), "cached": computed.int(), "reward": self._reward[computed]}

    def load_state_dict(self, state: Tree) -> None:
        """Continues from ``state``, whose reward function must be the current one."""
        self._rng.set_state(state["rng"])
        computed = state["cached"].long()
        self._cached[computed], self._reward[computed] = True, state["reward"]
