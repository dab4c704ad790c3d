"""A reward that was learnt from preferences, used elsewhere: rebuilt from one file, in the environment's units."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from numpy.typing import ArrayLike

from rlhf_bilevel.data.run_folder import REWARD_LIMIT, RunFolder
from rlhf_bilevel.envs.actions import scaled
from rlhf_bilevel.envs.interface import NotFiniteError, space_problem
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards import reward_file
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.reward_file import RewardInfo
from rlhf_bilevel.utils.files import read, reserve_new_file, write


class LearnedReward:
    """What a learner was rewarded with for each step, as a function of observations and actions.

        reward = LearnedReward.load("runs/walker")     # a run's folder, or a reward.safetensors
        reward(obs, act)                               # of one step, or of many

    Units, scaling, clipping and pessimism are inside. ``info`` tells what it is of, ``ensemble`` is the model itself,
    a torch module of flat float32 observations and actions scaled to [-1, 1].
    """

    def __init__(self, ensemble: RewardEnsemble, info: RewardInfo) -> None:
        self.ensemble, self.info = ensemble, info

    @classmethod
    def load(cls, path: Path | str) -> LearnedReward:
        """From a reward.safetensors, or a folder that has one: of a run, of ``fit-reward --out``. Runs no code of it.

        UserError where there is none, where a run has not come to its end, and where it has learnt no reward;
        CorruptFileError where a file is not as it was written.
        """
        path = Path(path)
        if path.is_dir():
            run = RunFolder(path)
            if not run.begun and run.reward.is_file():
                return cls.load(run.reward)
            if not run.examine().ended:
                resume = f"rlhf-bilevel resume {shlex.quote(str(path))}"
                raise UserError(f"{path} has not come to its end: {resume} goes on with it")
            path, data = run.reward, run.read_reward()
        else:
            data = read(path, REWARD_LIMIT)
        ensemble, info = reward_file.from_bytes(data, path)
        if not info.labels:
            raise UserError(f"{path} was fitted to no label: it is no reward yet")
        return cls(ensemble, info)

    def save(self, path: Path | str) -> None:
        """One file, for ``load`` and ``train --reward``. UserError where there is one already."""
        with reserve_new_file(Path(path)) as file:
            write(file, reward_file.to_bytes(self.ensemble, self.info.model_copy(update={"version": 2})))

    def __call__(self, obs: ArrayLike, act: ArrayLike, members: bool = False) -> np.ndarray:
        """Reward per step, float32: obs (..., *shape) and act (..., a) to (...), or each member's to (M, ...).

        They are as the environment has them: observations of any shape with so many numbers, actions within its bounds;
        one outside counts as the nearest inside. UserError where they do not fit, or are not finite.
        """
        x, a, batch = self._inputs(obs, act)
        with torch.no_grad():
            found = self.ensemble.members(x, a) if members else self.ensemble(x, a)
        if not found.isfinite().all():
            raise NotFiniteError(f"an observation is too large for the reward: {float(x.abs().max()):.3g}")
        return found.reshape((*found.shape[:-1], *batch)).numpy()

    def std(self, obs: ArrayLike, act: ArrayLike) -> np.ndarray:
        """How far the members are apart: their standard deviation per step, (...)."""
        return self(obs, act, members=True).std(0)

    def check(self, obs: Space[Any], act: Space[Any]) -> None:
        """UserError unless it is a reward of such observations and of exactly these actions."""
        if fault := space_problem(obs, act, discrete=True):
            raise UserError(f"no learnt reward is of such spaces: {fault}")
        of, has, size = f"the reward is of {self.info.env}", self.info.action_space, math.prod(obs.shape or ())
        if size not in self.sizes:
            raise UserError(f"{of}, with observations of {self.sizes[-1]} numbers, and these have {size}")
        if isinstance(act, Box) and isinstance(has, Box):
            same = act.shape == has.shape and np.allclose(act.low, has.low) and np.allclose(act.high, has.high)
        else:
            same = act == has
        if not same:
            raise UserError(f"{of}, with actions {_shown(has)}, and these are {_shown(act)}")

    def _inputs(self, obs: ArrayLike, act: ArrayLike) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        """As the replay buffer stores them, (N, o) and (N, a); and the axes that stand for N."""
        size, action, x = self.info.observations, scaled(self.info.action_space, act), np.asarray(obs)
        batch = action.shape[:-1]
        rows, shape = math.prod(batch), x.shape
        here = x.size // rows if rows else size
        if x.dtype.kind not in "fiub" or shape[: len(batch)] != batch or here not in self.sizes:
            must = " or ".join(map(str, self.sizes))
            raise UserError(f"observations of {must} numbers belong to these actions, not an array of shape {shape}")
        with np.errstate(over="ignore"):
            x = x.reshape(rows, here).astype(np.float32)
        if here < size:
            x = np.concatenate([x, np.zeros((rows, 1), np.float32)], -1)
        for name, values in (("observation", x), ("action", action)):
            if not np.isfinite(values).all():
                raise NotFiniteError(f"the {name} holds {values[~np.isfinite(values)][0]}")
        return torch.from_numpy(x), torch.from_numpy(action.reshape(rows, self.info.act_size)), batch

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers that an observation may have: the entry for an absorbing state is 0 where it is left out."""
        size = self.info.observations
        return (size - 1, size) if self.info.termination == "absorb" else (size,)


def _shown(space: Space[Any]) -> str:
    return " ".join(str(space).split())[:120]  # a long one prints on many lines
