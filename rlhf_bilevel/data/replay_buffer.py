"""One store of facts for all learners, and each learner's view of it.

No learned reward is ever written over a fact: a view computes the reward of a row when the row is sampled, and keeps
it until the learner's signal changes.
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
    """Transitions in the order in which they happened, in whole episodes, one writer (learner) an episode.

    ``table`` has ``capacity`` rows, of which the first ``size`` are filled. Its columns, as views: obs (., o),
    act (., a) in [-1, 1], next_obs (., o), env_reward (.,) the environment's own, terminated (.,) 1 where the episode
    ended for good (not by a time limit).
    """

    COLUMNS = ("obs", "act", "next_obs", "env_reward", "terminated")

    def __init__(self, obs_size: int, act_size: int, capacity: int) -> None:
        self.table = torch.zeros(capacity, 2 * obs_size + act_size + 2)  # one gather a batch, not one a column
        self.obs, self.act, self.next_obs, ends = self.table.split([obs_size, act_size, obs_size, 2], dim=-1)
        self.env_reward, self.terminated = ends.unbind(-1)
        self.size = 0
        self._starts: list[int] = []  # first row of each episode
        self._writers: list[int] = []  # who acted in it
        # numpy views of the same memory: writing one row through them is far cheaper than through torch
        self._rows = [getattr(self, name).numpy() for name in self.COLUMNS]

    def columns(self) -> dict[str, Tensor]:
        """The filled rows."""
        return {name: getattr(self, name)[: self.size] for name in self.COLUMNS}

    def index(self) -> dict[str, Tensor]:
        """First row and writer of each episode."""
        return {"starts": torch.tensor(self._starts), "writers": torch.tensor(self._writers)}

    def load(self, columns: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> None:
        self.size = len(columns["env_reward"])
        for name in self.COLUMNS:
            getattr(self, name)[: self.size] = columns[name]
        self._starts, self._writers = index["starts"].tolist(), index["writers"].tolist()

    def begin(self, writer: int) -> None:
        """The rows that follow are one episode of ``writer``."""
        self._starts.append(self.size)
        self._writers.append(writer)

    def add(self, obs: np.ndarray, act: np.ndarray, next_obs: np.ndarray, env_reward: float, terminated: bool) -> None:
        for column, value in zip(self._rows, (obs, act, next_obs, env_reward, terminated), strict=True):
            column[self.size] = value
        self.size += 1

    def episodes(self, writer: int | None = None, since: int = 0, least: int = 1) -> list[tuple[int, int]]:
        """(start, end) rows of each episode in order, the running one included, cut to the rows from ``since`` on,
        with at least so many rows then."""
        ends = [*self._starts[1:], self.size]
        return [
            (max(start, since), end)
            for start, end, who in zip(self._starts, ends, self._writers, strict=True)
            if (writer is None or who == writer) and end - max(start, since) >= least
        ]

    def sample_segments(
        self, episodes: Sequence[tuple[int, int]], count: int, length: int, rng: np.random.Generator
    ) -> Segments:
        """``count`` runs of ``length`` steps, uniform over all that lie within one of ``episodes``.

        Raises UserError where no episode is that long.
        """
        starts = np.concatenate([np.arange(start, end - length + 1) for start, end in episodes] or [np.zeros(0, int)])
        if not len(starts):
            longest = max((end - start for start, end in self.episodes()), default=0)
            raise UserError(f"segment_length={length} is longer than every episode so far (longest: {longest} steps)")
        rows = torch.from_numpy(rng.choice(starts, count)[:, None] + np.arange(length))  # (B, T)
        return Segments(self.obs[rows], self.act[rows], self.env_reward[rows])

    def rows_of(self, segments: Segments) -> Tensor:
        """First rows (B,) of segments that were cut from here: the newest where equal steps occur more than once.

        Raises ValueError where a segment was cut elsewhere.
        """
        starts, length, found = torch.tensor(self._starts), segments.env_reward.shape[1], list[int]()
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
            found.append(int(rows.max()))
        return torch.tensor(found)

    def sample_visits(
        self, episodes: Sequence[tuple[int, int]], count: int, discount: float, gamma: float, rng: np.random.Generator
    ) -> Occupancy:
        """``count`` steps of ``episodes``, step t of each drawn with probability proportional to discount^t.

        The weights are equal and sum to 1 / (1 - gamma). With discount = gamma this is an unbiased sample of the
        discounted occupancy; with discount = 1, of the occupancy from where episodes have been, on average.
        """
        rows = np.concatenate([np.arange(start, end) for start, end in episodes])
        weight = np.concatenate([discount ** np.arange(end - start) for start, end in episodes])
        drawn = torch.from_numpy(rng.choice(rows, count, p=weight / weight.sum()))
        return Occupancy(self.obs[drawn], self.act[drawn], torch.full((count,), 1 / (1 - gamma) / count))

    def learned(self, reward: RewardFn) -> RowReward:
        """``reward`` at rows of this store."""

        def signal(rows: Tensor) -> Tensor:
            with torch.no_grad():
                return reward(self.obs[rows], self.act[rows])

        return signal

    def true_reward(self, rows: Tensor) -> Tensor:
        return self.env_reward[rows]


class Mirror:
    """The rows of a store on a learner's device; those that are new there are copied when they are asked for."""

    def __init__(self, store: ReplayBuffer, device: torch.device) -> None:
        self._store, self._size = store, 0
        self._table = store.table if device.type == "cpu" else torch.empty_like(store.table, device=device)

    def take(self, rows: Tensor, out: Tensor) -> None:
        """Rows (N,) of the store's table to ``out`` (N, width)."""
        store = self._store
        if self._table is not store.table:
            self._table[self._size : store.size] = store.table[self._size : store.size]
            self._size = store.size
        torch.index_select(self._table, 0, rows.to(out.device), out=out)


class RelabelledView:
    """The store as one learner is rewarded for it. Randomness is its own: ``seed`` fixes the order of sampling.

    ``newest`` is the share of a batch that is drawn from the newest rows alone, and how many those are.
    """

    def __init__(self, store: ReplayBuffer, seed: int, newest: tuple[float, int] = (0.0, 1)) -> None:
        self.store, self._newest = store, newest
        self._rng = np.random.RandomState(seed)  # generator and call are those of SB3's buffer: equal runs, equal rows
        self._row_reward: RowReward = store.true_reward
        self._cache = True
        self._reward = torch.zeros(len(store.env_reward))
        self._cached = torch.zeros(len(store.env_reward), dtype=torch.bool)

    def set_reward(self, reward: RowReward, cache: bool = True) -> None:
        """From now on rows are rewarded by ``reward``; ``cache=False`` where it changes by itself."""
        self._row_reward, self._cache = reward, cache
        self._cached[:] = False

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows (N,) with replacement, uniform but for the share of the newest, and their rewards (N,)."""
        size, (share, rows_there) = self.store.size, self._newest
        newest = round(share * count)
        rows = self._rng.randint(0, size, size=count - newest)
        if newest:
            rows = np.concatenate([rows, self._rng.randint(max(0, size - rows_there), size, size=newest)])
        drawn, cached, reward = torch.from_numpy(rows), self._cached.numpy(), self._reward.numpy()
        if not self._cache:
            return drawn, self._row_reward(drawn)
        stale = rows[~cached[rows]]
        if len(stale):
            reward[stale] = self._row_reward(torch.from_numpy(stale)).numpy()
            cached[stale] = True
        return drawn, torch.from_numpy(reward[rows])  # numpy's indexing costs a tenth of torch's

    def reward(self, rows: Tensor) -> Tensor:
        """What rows (N,) are rewarded with as the signal is now."""
        return self._row_reward(rows)

    def state_dict(self) -> Tree:
        rows = self._cached.nonzero().squeeze(-1)
        # The rewards too, although they follow from the signal: computed in other batches, their last bits would differ
        return {"rng": random_state(self._rng), "cached": rows.int(), "reward": self._reward[rows]}

    def load_state_dict(self, state: Tree) -> None:
        """Go on from ``state``, whose signal is the one that is seen now."""
        self._rng.set_state(state["rng"])
        rows = state["cached"].long()
        self._cached[rows], self._reward[rows] = True, state["reward"]
