"""The teacher of a run: the given object, or the one that its settings describe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from gymnasium.spaces.utils import flatdim

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.label_log import LabelLog, read_seconds, read_sessions
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.request_log import RequestLog
from rlhf_bilevel.envs import registration
from rlhf_bilevel.envs.user_code import faults_as_user_errors
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.http_teacher import HttpTeacher
from rlhf_bilevel.feedback.person import SimulatedPerson
from rlhf_bilevel.feedback.recorded import Replayed, Rerun
from rlhf_bilevel.feedback.teachers import SimulatedTeacher
from rlhf_bilevel.registries import TEACHERS
from rlhf_bilevel.runs import asked_queries
from rlhf_bilevel.runs.environments import make_env
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.types import Preferences, Teacher


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
            number = len(read_seconds(spec.folder.labels))
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
    entries, size = registration.entry_names(env), flatdim(env.observation_space)
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
