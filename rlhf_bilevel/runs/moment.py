"""A run as it was at a moment of its training: its agent and its reward. Nothing in its folder is written or locked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs.actions import scaled
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.runs import fork, start
from rlhf_bilevel.runs.build import check_memory_for_run, load_learnt, make_learner
from rlhf_bilevel.runs.checkpoint import Checkpoint, Checkpoints
from rlhf_bilevel.runs.checkpoint_manager import restoring
from rlhf_bilevel.runs.environments import make_env
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.process import default_torch, preserved_generators
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.utils.json_yaml import read_json


class Moment(NamedTuple):
    """The agent and the learned reward of a run at environment step ``step``."""

    folder: Path
    spec: RunSpec
    config: Config
    step: int
    model: Any  # the agent's, as ``types.Learner.model``
    action_space: Box | Discrete
    reward: RewardEnsemble | None  # None if the run had learned no reward by then

    @property
    def method(self) -> str:
        """The method's name; for ``module:NAME`` its own."""
        return METHODS[self.spec.method].name if ":" in self.spec.method else self.spec.method

    @classmethod
    def of(cls, folder: Path, at: int | None = None, trust: bool = False, custom: Mapping[str, Any] = {}) -> Moment:
        """The newest checkpoint at step ``at`` or before. Default: the end of a run that has ended, or else the newest.

        ``trust`` and ``custom`` are as in ``start.read_folder``. UserError if there is no such checkpoint,
        CorruptFileError if a file is not as it was written.
        """
        spec, parts, _ = start.read_folder(folder, trust, {"teacher": None, **custom})  # no teacher is asked
        config, run = validate(spec.settings), RunFolder(folder)
        env = make_env(spec.env, config)
        if at is None and run.ended:
            step = _selected_step(run) or max(Checkpoints(run.checkpoints, "").steps(), default=run.last_step())
            step = step or config.total_timesteps  # of an agent that was saved
            model, reward = load_learnt(folder, spec, parts, config)
        else:
            loaded = fork.load_checkpoint(folder, at)
            step = loaded.step
            model, reward = _load_from_checkpoint(spec, parts, config, loaded, env)
        space: Any = env.action_space
        env.close()
        learned = bool(config.reward) or (parts.method.reward_loss is not None and reward.labels > 0)
        return cls(folder, spec, config, step, model, space, reward if learned else None)

    def act(self, obs: np.ndarray) -> np.ndarray:
        """The agent's action (a,) for obs (o,), without exploration."""
        return self.model.predict(obs, deterministic=True)[0]

    def learned_rewards(self, obs: np.ndarray, act: np.ndarray) -> np.ndarray | None:
        """The learned reward of T steps: obs (T, o) and the environment's act (T, a) to (T,). None if there is none."""
        if self.reward is None:
            return None
        with torch.no_grad():
            return self.reward(torch.from_numpy(obs), torch.from_numpy(scaled(self.action_space, act))).numpy()


def _load_from_checkpoint(
    spec: RunSpec, parts: Parts, config: Config, loaded: Checkpoint, env: Any
) -> tuple[Any, RewardEnsemble]:
    """The agent's model and the reward model of a checkpoint. CorruptFileError if they do not fit the settings."""
    sizes = check_memory_for_run(parts, config.model_copy(update={"total_timesteps": 1}), [env])  # no stored steps
    number = int(parts.method.agent(parts.method.options_of(config)))
    with default_torch(), preserved_generators():
        learner = make_learner(parts, config, env, ReplayBuffer(*sizes, capacity=1))
        reward = RewardEnsemble.of(config, *sizes, torch.Generator())
        with restoring(spec.folder.checkpoints, loaded.step):
            # a learner of the user's own may have no ``load_policy``: it gets all of its state
            load = getattr(learner, "load_policy", learner.load_state_dict)
            load(loaded.tree["run"]["learners"][number])
            reward.load_state_dict(loaded.tree["run"]["reward"])
    reward.labels = sum(loaded.tree["sessions"])
    careful = config.pessimism_from == "start" or reward.labels >= config.training_labels
    reward.pessimism = config.pessimism if careful else 0.0
    return learner.model, reward


def _selected_step(run: RunFolder) -> int:
    """The step of the policy that was chosen in the run, or in a selection that wrote the folder; 0 if none was."""
    told = read_json(run.selection) if run.selection.is_file() else None
    step = told.get("chosen") if isinstance(told, dict) else 0
    return step if isinstance(step, int) else 0
