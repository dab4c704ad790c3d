"""From a spec to a run: environments, teacher, learners and reward model together. Nothing is written here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium.spaces.utils import flatdim
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.memory import memory_needed
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs.interface import space_problem
from rlhf_bilevel.envs.user_code import faults_as_user_errors
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.off_policy import SB3Learner
from rlhf_bilevel.learners.ppo import PPOLearner
from rlhf_bilevel.learners.together import Together
from rlhf_bilevel.registries import QUERY_RULES
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.reward_file import read_info
from rlhf_bilevel.runs import given_reward
from rlhf_bilevel.runs.environments import make_env, recorded_envs, training_envs
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.process import default_torch, preserved_generators
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.runs.teacher import make_teacher
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Learner
from rlhf_bilevel.utils.files import check_memory


def build(
    spec: RunSpec, parts: Parts, config: Config, training: list[Any] | None = None, used_sessions: int = 0
) -> Run:
    """A run at its first step. ``config`` has all settings of the spec.

    ``training`` are its environments if they exist already. ``used_sessions`` is the number of query sessions that a
    run without a folder has used before. UserError if memory is too small, or if the teacher cannot answer.
    """
    _ = QUERY_RULES[config.query]  # if it is wrong, the error comes now and not in the first session
    training = training_envs(spec, config, parts.method) if training is None else training
    sizes = check_memory_for_run(parts, config, training)
    store, prefs, recorder = ReplayBuffer(*sizes, config.total_timesteps), PreferenceBuffer(), None
    if config.teacher_human and parts.teacher is None:
        if spec.out is None:
            raise UserError("teacher 'human': people are asked through files of the run, give its folder as out=")
        training, recorder = recorded_envs(spec, config, training, store)
    if config.teacher_url and config.teacher_frames and spec.out and parts.teacher is None:
        try:
            training, recorder = recorded_envs(spec, config, training, store)
        except UserError as error:
            warnings.warn(f"the teacher gets states and actions alone: {error}", stacklevel=3)
    teacher = make_teacher(spec, parts, config, store, prefs, recorder, used_sessions)
    learners = [make_learner(parts, config, env, store, number, spec.device) for number, env in enumerate(training)]
    rng = torch.Generator().manual_seed(config.seed)
    reward = RewardEnsemble.of(config, *sizes, rng)
    if config.reward:
        given_reward.fill(reward, config, spec.env, training[0].observation_space, training[0].action_space)
    return Run(parts.method, config, training, learners, teacher, store, reward, rng, Together(learners), prefs)


def check_memory_for_run(parts: Parts, config: Config, training: list[Any]) -> tuple[int, int]:
    """Sizes of observation and action. UserError if memory is too small, or the learner cannot choose such actions."""
    spaces = training[0].observation_space, training[0].action_space
    if problem := space_problem(*spaces, discrete=issubclass(parts.algorithm, PPO)):
        raise UserError(problem)
    sizes = flatdim(spaces[0]), flatdim(spaces[1])
    options = parts.method.options_of(config)
    check_memory("this run", memory_needed(config, options, *sizes, len(training), arguments_of(parts, config)))
    return sizes


def arguments_of(parts: Parts, config: Config) -> dict[str, Any]:
    """Arguments of the SB3 algorithm, in addition to those from ``config``."""
    arguments = {**parts.method.arguments(parts.method.options_of(config)), **parts.algorithm_settings}
    policy_kwargs = arguments.get("policy_kwargs")
    if isinstance(policy_kwargs, Mapping):
        arguments["policy_kwargs"] = dict(policy_kwargs)  # a copy: SB3 writes into it
    return arguments


def make_learner(
    parts: Parts, config: Config, env: Any, store: ReplayBuffer, number: int = 0, device: str = "cpu"
) -> Learner:
    """Learner ``number`` of a run. The seed of the run fixes its first weights, also of one that is not SB3's."""
    arguments = arguments_of(parts, config)
    if issubclass(parts.algorithm, BaseAlgorithm):
        kind: Any = PPOLearner if issubclass(parts.algorithm, PPO) else SB3Learner
        return kind(env, config, store, number, parts.algorithm, device, **arguments)
    with faults_as_user_errors(f"learner {parts.algorithm_name} cannot be made"), preserved_generators():
        set_random_seed(config.seed + number)
        return parts.algorithm(env, config, store, number=number, device=device, **arguments)


def load_learnt(folder: Path, spec: RunSpec, parts: Parts, config: Config) -> tuple[BaseAlgorithm, RewardEnsemble]:
    """The agent's SB3 model and the reward model that a run left in its ``folder``. No code from the folder is run.

    CorruptFileError if a file has changed, or does not belong to such a run.
    """
    env = make_env(spec.env, config)
    sizes = flatdim(env.observation_space), flatdim(env.action_space)
    # Nothing is known here about the networks of a learner that is not SB3's
    arguments = arguments_of(parts, config) if issubclass(parts.algorithm, BaseAlgorithm) else {"policy_kwargs": {}}
    RunFolder(folder).check_sizes(config, arguments, *sizes)
    with default_torch(), preserved_generators():
        model = make_learner(parts, config, env, ReplayBuffer(*sizes, capacity=1)).model
        reward = RewardEnsemble.of(config, *sizes, torch.Generator())
        RunFolder(folder).read_models(model, reward)
    info = read_info(RunFolder(folder).read_reward(), RunFolder(folder).reward)
    if info is None:  # a file of an older version
        reward.pessimism, reward.labels = config.pessimism, config.labels if parts.method.reward_loss else 0
    else:
        reward.pessimism, reward.labels = info.pessimism, info.labels
    model.num_timesteps = config.total_timesteps
    return model, reward
