"""A run as it was at a moment of its training: its agent and its reward. Nothing in its folder is written or locked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.base_class import BaseAlgorithm

from rlhf_bilevel.config import Config, settle
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.runs import fork, session
from rlhf_bilevel.runs.build import Parts, learner, learnt, make_env, weigh
from rlhf_bilevel.runs.checkpoint import Checkpoints, Loaded
from rlhf_bilevel.runs.checkpoint_manager import compatible
from rlhf_bilevel.runs.process import generators_kept, ordinary_torch
from rlhf_bilevel.runs.spec import RunSpec


class Moment(NamedTuple):
    folder: Path
    spec: RunSpec
    config: Config
    step: int
    model: BaseAlgorithm  # the agent's
    reward: RewardEnsemble | None  # None where none was learnt until then

    @classmethod
    def of(cls, folder: Path, at: int | None = None, trust: bool = False, own: Mapping[str, Any] = {}) -> Moment:
        """The end of a run that has come to it, else its newest checkpoint; or the newest at step ``at`` or before.

        ``trust`` and ``own`` are as in ``session.read``. UserError where there is no checkpoint, CorruptFileError where
        a file is not as it was written.
        """
        spec, parts, _ = session.read(folder, trust, {"teacher": None} | own)  # it will not be asked
        config, run = settle(spec.settings), RunFolder(folder)
        if at is None and run.ended:
            step = max(Checkpoints(run.checkpoints, "").steps(), default=run.last_step())
            model, reward = learnt(folder, spec, parts, config)
            known = config.labels > 0
        else:
            loaded = fork.load(folder, at)
            step, known = loaded.step, sum(loaded.tree["sessions"]) > 0
            model, reward = saved(spec, parts, config, loaded)
        return cls(folder, spec, config, step, model, reward if parts.method.upper and known else None)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The action (a,) that the agent has learnt to take, without exploring, where it observes ``obs`` (o,)."""
        return self.model.predict(obs, deterministic=True)[0]

    def learnt_rewards(self, obs: np.ndarray, act: np.ndarray) -> np.ndarray | None:
        """Of steps with obs (T, o) and the environment's act (T, a): (T,); None where none was learnt until then."""
        if self.reward is None:
            return None
        scaled = self.model.policy.scale_action(act)
        with torch.no_grad():
            return self.reward(torch.from_numpy(obs), torch.from_numpy(scaled).to(torch.float32)).numpy()


def saved(spec: RunSpec, parts: Parts, config: Config, loaded: Loaded) -> tuple[BaseAlgorithm, RewardEnsemble]:
    """The agent's SB3 model and the reward of a checkpoint. CorruptFileError where it does not fit the settings."""
    env = make_env(spec.env, config)
    sizes = flatdim(env.observation_space), flatdim(env.action_space)
    weigh(parts, config.model_copy(update={"steps": 1}), [env])  # its networks: what was stored is not needed
    number = int(parts.method.agent(parts.method.options_of(config)))
    with ordinary_torch(), generators_kept():
        agent = learner(parts, config, env, ReplayBuffer(*sizes, capacity=1))
        reward = RewardEnsemble.of(config, *sizes, torch.Generator())
        with compatible(spec.folder.checkpoints, loaded.step):
            agent.load_policy(loaded.tree["run"]["learners"][number])
            reward.load_state_dict(loaded.tree["run"]["reward"])
    reward.pessimism = config.pessimism
    return agent.model, reward
