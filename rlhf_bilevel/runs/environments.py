"""The environments of a run: to train, to evaluate, and to be watched by people."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.envs import registration
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.envs.subprocess import SubprocessEnv
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.training.method import Method

TRAINING, EVALUATION, TEST, SELECTION = range(4)  # streams of episodes; both learners meet the same training episodes


def make_env(env_id: str, config: Config, stream: int = TEST, render_mode: str | None = None) -> FaultTolerantEnv:
    """The environment as such a run sees it. Each ``stream`` has its own episodes. Raises as ``registration.make``."""
    make = partial(registration.make, render_mode=render_mode)
    return _fault_tolerant(make, env_id, config, stream, config.env_timeout if render_mode is None else 0.0)


def env_arguments(config: Config) -> dict[str, Any]:
    """Arguments of ``registration.make``. Whether the learner takes Discrete actions is checked in ``build``."""
    absorbs = config.termination == "absorb"
    return {"absorb": absorbs, "kwargs": config.env_kwargs, "flatten": config.flatten, "discrete": True}


def training_envs(spec: RunSpec, config: Config, method: Method) -> list[Any]:
    """A training environment for each learner."""
    return [make_env(spec.env, config, TRAINING) for _ in range(method.learners)]


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

    return _fault_tolerant(recorder.make, env_id, config, stream, config.env_timeout)


def make_drawn_env(env_id: str, config: Config) -> FaultTolerantEnv:
    """Like ``make_env``, but made by ``recorder.make_drawn``: it draws pictures."""
    from rlhf_bilevel.human.clips import recorder

    return _fault_tolerant(recorder.make_drawn, env_id, config, TEST, timeout=0.0)


def _fault_tolerant(
    make: Callable[..., Any], env_id: str, config: Config, stream: int, timeout: float
) -> FaultTolerantEnv:
    c = config
    made = partial(make, env_id, c.seed, stream, c.protocol, action_repeat=c.action_repeat, **env_arguments(c))
    return FaultTolerantEnv(partial(SubprocessEnv, made, env_id, timeout) if timeout else made)
