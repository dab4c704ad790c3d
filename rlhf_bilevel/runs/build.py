"""From a spec to a run: its environments, learners, teacher, reward and cost. Nothing is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium.spaces.utils import flatdim
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlhf_bilevel.config import Config, footprint
from rlhf_bilevel.data.label_log import count, sessions
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registry
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.envs.subprocess import SubprocessEnv
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.recorded import Replayed, Rerun
from rlhf_bilevel.feedback.teachers import SimulatedTeacher
from rlhf_bilevel.learners.off_policy import SB3Learner, together
from rlhf_bilevel.learners.ppo import PPOLearner
from rlhf_bilevel.learners.random import RandomPolicy
from rlhf_bilevel.methods.registry import METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.runs import asked_queries
from rlhf_bilevel.runs.process import generators_kept, ordinary_torch
from rlhf_bilevel.runs.spec import RunSpec, method_named
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Learner, Preferences, Teacher
from rlhf_bilevel.utils.files import enough_memory

TRAINING, EVALUATION, TEST = range(3)  # streams of episodes; both learners meet the same training episodes
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {cls.__name__: cls for cls in (SAC, TD3, DDPG, PPO, RandomPolicy)}


class Parts(NamedTuple):
    """What a run is made of that no spec can hold, as it may be an object of the user's own."""

    method: Method
    algorithm: type[BaseAlgorithm]  # of SB3, of all learners
    algorithm_settings: Mapping[str, Any] = {}  # its arguments, which go before those that follow from the settings
    teacher: Teacher | Replayed | None = None  # None: as the settings say

    @classmethod
    def of(
        cls,
        method: str | Method,
        algorithm: type[BaseAlgorithm] | None = None,
        algorithm_settings: Mapping[str, Any] | None = None,
        teacher: Teacher | Replayed | None = None,
    ) -> Parts:
        """``method`` may be a name; without an ``algorithm`` it is the method's. UserError where one does not do."""
        if not isinstance(method, str | Method):
            raise UserError(f"method={method!r}: give a name of {', '.join(METHODS)}, or a Method of your own")
        method = method_named(method) if isinstance(method, str) else method
        if isinstance(teacher, type) or not (teacher is None or isinstance(teacher, Replayed) or callable(teacher)):
            raise UserError(f"teacher={teacher!r}: give an object that can be called with queries, or words")
        return cls(method, _algorithm_of(method, algorithm), algorithm_settings or {}, teacher)


def _algorithm_of(method: Method, algorithm: type[BaseAlgorithm] | None) -> type[BaseAlgorithm]:
    own = ALGORITHMS[method.algorithm]
    if algorithm is None or algorithm is own:
        return own
    if not isinstance(algorithm, type):
        raise UserError(f"algorithm={algorithm!r} is no class: stable_baselines3.TD3 is one")
    if own is not SAC or not issubclass(algorithm, OffPolicyAlgorithm):
        takes = "any off-policy algorithm" if own is SAC else own.__name__
        raise UserError(f"algorithm={algorithm.__name__}: the method {method.name} takes {takes}")
    if method.densities and not issubclass(algorithm, SAC):
        told = f"the method {method.name} needs probabilities of actions, which only SAC has"
        raise UserError(f"algorithm={algorithm.__name__}: {told}")
    return algorithm


def make_env(env_id: str, config: Config, stream: int = TEST, render_mode: str | None = None) -> FaultTolerantEnv:
    """The environment as a run with these settings meets it; ``stream`` sets its episodes apart from other streams'.

    Raises as ``envs.make``.
    """
    c, absorbs = config, config.termination == "absorb"
    make = partial(registry.make, env_id, c.seed, stream, c.protocol, render_mode, c.action_repeat, absorbs)
    return _guarded(make, env_id, c.env_timeout if render_mode is None else 0.0)


def _guarded(make: Callable[[], Any], env_id: str, timeout: float) -> FaultTolerantEnv:
    return FaultTolerantEnv(partial(SubprocessEnv, make, env_id, timeout) if timeout else make)


def training_envs(spec: RunSpec, config: Config, method: Method) -> list[Any]:
    """One for each learner."""
    return [make_env(spec.env, config, TRAINING) for _ in range(method.learners)]


def build(
    spec: RunSpec, parts: Parts, config: Config, training: list[Any] | None = None, used_sessions: int = 0
) -> Run:
    """A run at its first step, with all ``config`` of the spec.

    ``training`` are its environments where they have been made. ``used_sessions`` are the query sessions that a run
    without a folder has used already. UserError where the machine's memory cannot hold the run, and where its teacher
    cannot answer.
    """
    training = training_envs(spec, config, parts.method) if training is None else training
    sizes = weigh(parts, config, training)
    store, prefs, film = ReplayBuffer(*sizes, config.steps), PreferenceBuffer(), None
    if config.teacher_human and parts.teacher is None:
        if spec.out is None:
            raise UserError("teacher 'human': people are asked through files of the run, give its folder as out=")
        training, film = filmed(spec, config, training, store)
    teacher = _teacher(spec, parts, config, store, prefs, film, used_sessions)
    learners = [learner(parts, config, env, store, number, spec.device) for number, env in enumerate(training)]
    rng = torch.Generator().manual_seed(config.seed)
    reward = RewardEnsemble.of(config, *sizes, rng)
    return Run(parts.method, config, training, learners, teacher, store, reward, rng, together(learners), prefs)


def weigh(parts: Parts, config: Config, training: list[Any]) -> tuple[int, int]:
    """The sizes of an observation and of an action. UserError where the run needs more memory than there is."""
    sizes = flatdim(training[0].observation_space), flatdim(training[0].action_space)
    options = parts.method.options_of(config)
    enough_memory("this run", footprint(config, options, *sizes, len(training), arguments_of(parts, config)))
    return sizes


def arguments_of(parts: Parts, config: Config) -> dict[str, Any]:
    """Arguments of the SB3 algorithm, beside those that ``config`` says."""
    found = {**parts.method.arguments(parts.method.options_of(config)), **parts.algorithm_settings}
    kwargs = found.get("policy_kwargs")
    return found | ({"policy_kwargs": dict(kwargs)} if isinstance(kwargs, Mapping) else {})  # SB3 writes into it


def learner(
    parts: Parts, config: Config, env: Any, store: ReplayBuffer, number: int = 0, device: str = "cpu"
) -> Learner:
    """Learner ``number`` of a run."""
    kind: Any = PPOLearner if issubclass(parts.algorithm, PPO) else SB3Learner
    return kind(env, config, store, number, parts.algorithm, device, **arguments_of(parts, config))


def learnt(folder: Path, spec: RunSpec, parts: Parts, config: Config) -> tuple[BaseAlgorithm, RewardEnsemble]:
    """The agent's SB3 model and the reward that a run has left in its ``folder``; no code of the folder's runs.

    CorruptFileError where a file is not as it was written, or not of such a run.
    """
    env = make_env(spec.env, config)
    sizes = flatdim(env.observation_space), flatdim(env.action_space)
    RunFolder(folder).check_sizes(config, arguments_of(parts, config), *sizes)
    with ordinary_torch(), generators_kept():
        model = learner(parts, config, env, ReplayBuffer(*sizes, capacity=1)).model
        reward = RewardEnsemble.of(config, *sizes, torch.Generator())
        reward.pessimism = config.pessimism
        RunFolder(folder).read_models(model, reward)
    model.num_timesteps = config.steps
    return model, reward


def filmed(spec: RunSpec, config: Config, training: list[Any], store: ReplayBuffer) -> tuple[list[Any], Any]:
    """The same environments, filmed as people will see them, and the ``human.film.Film``."""
    from rlhf_bilevel.human.clips import recorder

    assert spec.out is not None
    record = recorder.ClipRecorder(spec.out)
    for env in training:
        env.close()
    return [recorder.RecordedEnv(posed_env(spec.env, config, TRAINING), store, record) for _ in training], record


def posed_env(env_id: str, config: Config, stream: int = TEST) -> FaultTolerantEnv:
    """As ``make_env``, of ``recorder.make``: it tells how things stand."""
    from rlhf_bilevel.human.clips import recorder

    return _guarded(_as_set(recorder.make, env_id, config, stream), env_id, config.env_timeout)


def drawn_env(env_id: str, config: Config, stream: int = TEST) -> FaultTolerantEnv:
    """As ``make_env``, of ``recorder.make_drawn``: it draws pictures."""
    from rlhf_bilevel.human.clips import recorder

    return _guarded(_as_set(recorder.make_drawn, env_id, config, stream), env_id, timeout=0.0)


def _as_set(make: Callable[..., Any], env_id: str, config: Config, stream: int) -> Callable[[], Any]:
    c = config
    return partial(make, env_id, c.seed, stream, c.protocol, c.action_repeat, c.termination == "absorb")


def _teacher(
    spec: RunSpec,
    parts: Parts,
    config: Config,
    store: ReplayBuffer,
    prefs: PreferenceBuffer,
    film: Any,
    used_sessions: int,
) -> Teacher:
    if parts.teacher is not None:
        return parts.teacher.after(prefs) if isinstance(parts.teacher, Replayed) else parts.teacher
    if config.teacher_human:
        from rlhf_bilevel.human.teacher import HumanTeacher

        assert spec.out is not None
        return HumanTeacher(config, store, film, spec.out)
    if config.teacher_rerun:
        given = _answers(Path(config.teacher_rerun), config, store)
        return Rerun(given, count(spec.folder.labels) if spec.out else used_sessions)
    if config.teacher_replay:
        given = _answers(Path(config.teacher_replay), config, store)
        if not any(len(answers.label) for answers in given if answers is not None):
            raise UserError(f"teacher replay={config.teacher_replay}: there are no labels in it")
        return Replayed(given).after(prefs)
    return SimulatedTeacher(config, store)


def _answers(path: Path, config: Config, store: ReplayBuffer) -> list[Preferences | None]:
    """Those in a file, session by session. UserError where their segments are not as this run's."""
    given: list[Preferences | None] = []
    given += [asked_queries.load(path).preferences()] if path.suffix == ".parquet" else sessions(path)
    must = config.segment_length, store.obs.shape[-1], store.act.shape[-1]
    for first in (answers.first for answers in given if answers is not None):
        has = *first.obs.shape[1:], first.act.shape[-1]
        if has != must:
            said = "segments of {} steps, observations of {} and actions of {} numbers"
            raise UserError(f"{path} has {said.format(*has)}, and this run has {said.format(*must)}")
    return given
