"""From a spec to a run: environments, learners, teacher and reward model. Nothing is written here."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gymnasium.spaces.utils import flatdim
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.memory import memory_needed
from rlhf_bilevel.data.label_log import LabelLog, count_sessions, read_sessions
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.request_log import RequestLog
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registry
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.envs.interface import space_problem
from rlhf_bilevel.envs.subprocess import SubprocessEnv
from rlhf_bilevel.envs.user_code import faults_as_user_errors
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.http_teacher import HttpTeacher
from rlhf_bilevel.feedback.person import SimulatedPerson
from rlhf_bilevel.feedback.recorded import Replayed, Rerun
from rlhf_bilevel.feedback.teacher_spec import BY_SETTINGS
from rlhf_bilevel.feedback.teachers import SimulatedTeacher
from rlhf_bilevel.learners.off_policy import SB3Learner, Together
from rlhf_bilevel.learners.ppo import PPOLearner
from rlhf_bilevel.registries import LEARNERS, METHODS, QUERY_RULES, TEACHERS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.reward_file import read_info
from rlhf_bilevel.runs import asked_queries, given_reward
from rlhf_bilevel.runs.process import default_torch, preserved_generators
from rlhf_bilevel.runs.spec import RunSpec, method_by_name
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Learner, Preferences, Teacher
from rlhf_bilevel.utils.files import check_memory

SAC_ONLY = {"score_products", "temperature"}  # of ``types.Learner``
ANY_LEARNER = [part for part in vars(Learner) if hasattr(PPOLearner, part)]  # what each must have
TRAINING, EVALUATION, TEST, SELECTION = range(4)  # streams of episodes; both learners meet the same training episodes


class Parts(NamedTuple):
    """What a spec cannot hold, as it may be a user's own object."""

    method: Method
    algorithm: type[Any]  # of all learners: an algorithm of SB3, or a class of ``types.Learner``
    algorithm_settings: Mapping[str, Any] = {}  # its arguments; they take precedence over the settings
    teacher: Teacher | type[Teacher] | Replayed | None = None  # None: as the settings say

    @classmethod
    def of(
        cls,
        method: str | Method,
        algorithm: str | type[Any] | None = None,
        algorithm_settings: Mapping[str, Any] | None = None,
        teacher: Teacher | type[Teacher] | Replayed | None = None,
    ) -> Parts:
        """``method`` and ``algorithm`` may be names; the default ``algorithm`` is the method's.

        UserError if one cannot be used.
        """
        if not isinstance(method, str | Method):
            raise UserError(f"method={method!r}: give a name of {', '.join(METHODS)}, or a Method of your own")
        method = method_by_name(method) if isinstance(method, str) else method
        kind = teacher if isinstance(teacher, type) else type(teacher)
        if not (
            teacher is None or issubclass(kind, Replayed) or any("__call__" in vars(base) for base in kind.__mro__)
        ):
            raise UserError(f"teacher={teacher!r}: give an object that can be called with queries, or words")
        return cls(method, _algorithm_of(method, algorithm), algorithm_settings or {}, teacher)

    @property
    def teacher_name(self) -> str:
        """The teacher in a run's config.yaml."""
        kind = self.teacher if isinstance(self.teacher, type) else type(self.teacher)
        return BY_SETTINGS if self.teacher is None else kind.__name__

    @property
    def algorithm_name(self) -> str:
        """The algorithm's name in a run's config.yaml."""
        name = LEARNERS.name_of(self.algorithm) or self.algorithm.__name__
        return name if LEARNERS.get(name, self.algorithm) is self.algorithm else f"another {name}"


def _algorithm_of(method: Method, algorithm: str | type[Any] | None) -> type[Any]:
    default = LEARNERS[method.algorithm]
    chosen = LEARNERS[algorithm] if isinstance(algorithm, str) and algorithm else algorithm or default
    if not isinstance(chosen, type):
        raise UserError(f"algorithm={algorithm!r} is no class: stable_baselines3.TD3 is one")
    name = algorithm if isinstance(algorithm, str) and algorithm else chosen.__name__
    if not issubclass(chosen, BaseAlgorithm):
        if lacking := [part for part in ANY_LEARNER if not hasattr(chosen, part)]:
            raise UserError(f"algorithm={name}: it is no algorithm of SB3, and no types.Learner: no {lacking[0]}")
        if lacking := [part for part in method.learner_needs if not hasattr(chosen, part)]:
            raise UserError(f"algorithm={name}: the method {method.name} needs its {lacking[0]} (types.Learner)")
    elif not issubclass(chosen, OffPolicyAlgorithm | PPO):
        raise UserError(f"algorithm={name}: of SB3's algorithms, the off-policy ones and PPO can be learners")
    if chosen is default:
        return chosen
    if default is not SAC or issubclass(chosen, PPO):
        takes = "any off-policy algorithm" if default is SAC else default.__name__
        raise UserError(f"algorithm={name}: the method {method.name} takes {takes}")
    if SAC_ONLY & set(method.learner_needs) and issubclass(chosen, BaseAlgorithm) and not issubclass(chosen, SAC):
        reason = f"the method {method.name} needs probabilities of actions, which only SAC has"
        raise UserError(f"algorithm={name}: {reason}")
    return chosen


def make_env(env_id: str, config: Config, stream: int = TEST, render_mode: str | None = None) -> FaultTolerantEnv:
    """The environment as a run with these settings sees it. Each ``stream`` has its own episodes. Raises as
    ``registry.make``.
    """
    c = config
    make = partial(registry.make, env_id, c.seed, stream, c.protocol, render_mode, c.action_repeat, **env_arguments(c))
    return _fault_tolerant(make, env_id, c.env_timeout if render_mode is None else 0.0)


def env_arguments(config: Config) -> dict[str, Any]:
    """Arguments of ``registry.make``. ``check_memory_for_run`` checks whether the learner takes Discrete actions."""
    absorbs = config.termination == "absorb"
    return {"absorb": absorbs, "kwargs": config.env_kwargs, "flatten": config.flatten, "discrete": True}


def _fault_tolerant(make: Callable[[], Any], env_id: str, timeout: float) -> FaultTolerantEnv:
    return FaultTolerantEnv(partial(SubprocessEnv, make, env_id, timeout) if timeout else make)


def training_envs(spec: RunSpec, config: Config, method: Method) -> list[Any]:
    """A training environment for each learner."""
    return [make_env(spec.env, config, TRAINING) for _ in range(method.learners)]


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
    """The sizes of an observation and of an action. UserError if the run needs more memory than there is, and if its
    learner cannot choose such actions.
    """
    spaces = training[0].observation_space, training[0].action_space
    if problem := space_problem(*spaces, discrete=takes_discrete(parts.algorithm)):
        raise UserError(problem)
    sizes = flatdim(spaces[0]), flatdim(spaces[1])
    options = parts.method.options_of(config)
    check_memory("this run", memory_needed(config, options, *sizes, len(training), arguments_of(parts, config)))
    return sizes


def takes_discrete(algorithm: type[BaseAlgorithm]) -> bool:
    """Whether its learner can choose among Discrete actions."""
    return issubclass(algorithm, PPO)


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


def recorded_envs(
    spec: RunSpec, config: Config, training: list[Any], store: ReplayBuffer, stream: int = TRAINING
) -> tuple[list[Any], Any]:
    """The same environments, recorded so that people can watch segments, and the ``ClipRecorder``."""
    from rlhf_bilevel.human.clips.recorder import ClipRecorder, RecordedEnv

    assert spec.out is not None
    recorder = ClipRecorder(spec.out)
    recorded = [RecordedEnv(make_posed_env(spec.env, config, stream), store, recorder) for _ in training]
    for env in training:
        env.close()
    return recorded, recorder


def make_posed_env(env_id: str, config: Config, stream: int = TEST) -> FaultTolerantEnv:
    """Like ``make_env``, but made by ``recorder.make``: its info has poses."""
    from rlhf_bilevel.human.clips import recorder

    return _fault_tolerant(_with_settings(recorder.make, env_id, config, stream), env_id, config.env_timeout)


def make_drawn_env(env_id: str, config: Config, stream: int = TEST) -> FaultTolerantEnv:
    """Like ``make_env``, but made by ``recorder.make_drawn``: it draws pictures."""
    from rlhf_bilevel.human.clips import recorder

    return _fault_tolerant(_with_settings(recorder.make_drawn, env_id, config, stream), env_id, timeout=0.0)


def _with_settings(make: Callable[..., Any], env_id: str, config: Config, stream: int) -> Callable[[], Any]:
    c = config
    return partial(make, env_id, c.seed, stream, c.protocol, c.action_repeat, **env_arguments(c))


def make_teacher(
    spec: RunSpec,
    parts: Parts,
    config: Config,
    store: ReplayBuffer,
    prefs: PreferenceBuffer,
    recorder: Any,
    used_sessions: int,
) -> Teacher:
    """The teacher object of ``parts``; if there is none, the teacher that the settings describe.

    It is asked about segments of ``store``; ``prefs`` are the answers so far.
    """
    own: Any = TEACHERS[config.teacher_object] if parts.teacher is None and config.teacher_object else parts.teacher
    if isinstance(own, Replayed):
        return own.after(prefs)
    if isinstance(own, type):
        with faults_as_user_errors(f"teacher {config.teacher_object or own.__name__} cannot be made"):
            return own(config, store)
    if own is not None:
        return own
    if config.teacher_human:
        from rlhf_bilevel.human.teacher import HumanTeacher

        assert spec.out is not None
        return HumanTeacher(config, store, recorder, spec.out)
    if config.teacher_url:
        return _make_http_teacher(spec, config, store, recorder)
    if config.teacher_rerun:
        path = Path(config.teacher_rerun)
        recorded, number = _read_answers(path, config, store), used_sessions
        if spec.out:
            number = count_sessions(spec.folder.labels)
        with LabelLog.copy(path) as log:
            return Rerun(recorded, number, log.seconds())
    if config.teacher_replay:
        recorded = _read_answers(Path(config.teacher_replay), config, store)
        if not any(len(answers.label) for answers in recorded if answers is not None):
            raise UserError(f"teacher replay={config.teacher_replay}: there are no labels in it")
        return Replayed(recorded).after(prefs)
    return SimulatedPerson(config, store) if config.teacher_person else SimulatedTeacher(config, store)


def _make_http_teacher(spec: RunSpec, config: Config, store: ReplayBuffer, recorder: Any) -> HttpTeacher:
    """The teacher at the URL of ``config``. Entries of observations and actions have the environment's names."""
    env = make_env(spec.env, config.model_copy(update={"env_timeout": 0.0}))
    entries, size = registry.entry_names(env), flatdim(env.observation_space)
    env.close()
    return HttpTeacher(
        config,
        spec.env,
        {"obs": entries[:size], "act": entries[size:]},
        RequestLog(spec.folder.requests if spec.out else None),
        store,
        recorder,
        f"rlhf-bilevel resume {shlex.quote(str(spec.out))} --trust" if spec.out else "",
    )


def _read_answers(path: Path, config: Config, store: ReplayBuffer) -> list[Preferences | None]:
    """The answers in a file, session by session. UserError if their segments are not like this run's."""
    recorded: list[Preferences | None] = []
    recorded += [asked_queries.load(path).preferences()] if path.suffix == ".parquet" else read_sessions(path)
    expected = config.segment_length, store.obs.shape[-1], store.act.shape[-1]
    for first in (answers.first for answers in recorded if answers is not None):
        sizes = *first.obs.shape[1:], first.act.shape[-1]
        if sizes != expected:
            template = "segments of {} steps, observations of {} and actions of {} numbers"
            raise UserError(f"{path} has {template.format(*sizes)}, and this run has {template.format(*expected)}")
    return recorded
