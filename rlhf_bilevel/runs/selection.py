"""The policy of a run that a teacher prefers: fresh episodes of the policies that it kept, compared in pairs.

Both policies of a pair see the same start, and their segments begin at the same step, random among those that both
episodes reach. Each pair is of an episode that was not used before, so that the labels of a test are independent. The
true reward is used by simulated teachers alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import flatdim

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.config.schema import POLICIES
from rlhf_bilevel.data.answers import ask_teacher
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs.actions import scaled
from rlhf_bilevel.envs.interface import FAULT
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.selection import (
    ERROR,
    LABELS,
    MARGIN,
    SILENT,
    Match,
    challengers_of,
    error_of,
    lead_of,
    select,
)
from rlhf_bilevel.feedback.recorded import Replayed
from rlhf_bilevel.feedback.teacher_spec import OURS, teacher_settings
from rlhf_bilevel.runs.environments import SELECTION, make_env, recorded_envs
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.runs.teacher import make_teacher
from rlhf_bilevel.types import Queries, Segments, Teacher
from rlhf_bilevel.utils.files import check_memory

TRIES = 10  # episodes in a row that are too short for a segment


class NoChoiceError(UserError):
    """Only one policy was kept, or episodes are shorter than a segment: no two policies can be compared."""


@dataclass(frozen=True)
class Selection:
    """The policies of a run, as the steps at which it kept them, and the matches among them, by their numbers."""

    steps: Sequence[int]
    matches: Sequence[Match]
    margin: float

    @property
    def chosen(self) -> int:
        """Step of the policy that was chosen."""
        return self.steps[self.matches[-1].winner]

    @property
    def labels(self) -> int:
        """How many labels it took."""
        return sum(match.labels for match in self.matches)

    @property
    def error(self) -> float:
        """Probability that the worse of two policies wins, if the better one is preferred with 1/2 + margin."""
        return error_of(self.margin, self.matches[0].lead)

    def record(self) -> dict[str, Any]:
        """All of it, as content for JSON."""
        return {
            "chosen": self.chosen,
            "steps": list(self.steps),
            "labels": self.labels,
            "margin": self.margin,
            "error": self.error,
            "matches": [
                asdict(match)
                | {
                    "challenger": self.steps[match.challenger],
                    "incumbent": self.steps[match.incumbent],
                    "decided": match.decided,
                    "winner": self.steps[match.winner],
                }
                for match in self.matches
            ],
        }

    def __str__(self) -> str:
        """For people: a line for each match, and one for the result."""
        lines = []
        for match in self.matches:
            challenger, incumbent = self.steps[match.challenger], self.steps[match.incumbent]
            result = f"{self.steps[match.winner]:,} " + ("wins" if match.decided else "stays, as none is ahead enough")
            lines.append(
                f"policy of step {challenger:,} against {incumbent:,}: {match.wins} won, {match.losses} lost, "
                f"{match.ties} ties: {result}"
            )
        return "\n".join(
            [
                *lines,
                f"chosen: the policy of step {self.chosen:,} of {self.steps[-1]:,}, with {self.labels} labels",
                f"A policy that is preferred {0.5 + self.margin:.0%} of the time or more loses a match with a "
                f"probability of at most {self.error:.2g}.",
            ]
        )


def selection_config(
    config: Config, labels: int, segment_length: int | None = None, teacher: str | None = None, seed: int | None = None
) -> Config:
    """The settings of a selection in a run with settings ``config``; None: as in the run."""
    changes: dict[str, Any] = {"reward": "", "reward_sha256": "", "select_labels": 0, "labels": labels}
    changes |= {"learning_starts": 0, "pretrain_steps": 0}  # B-Pref's teacher counts from there
    changes |= {} if segment_length is None else {"segment_length": segment_length}
    changes |= {} if seed is None else {"seed": seed}
    changes |= {} if teacher is None else teacher_settings(teacher)
    changes |= {"teacher_pending_share": 0.0}  # each answer is waited for
    return validate(config.model_dump(mode="json") | changes)


def check_teacher(folder: RunFolder, parts: Parts, config: Config, asked: bool, out: bool) -> None:
    """UserError if the teacher, the run's own unless ``asked`` for, cannot answer new pairs."""
    record = folder.read_config()
    if not asked and parts.teacher is None and record.get("teacher") not in OURS:
        raise UserError(f"{folder} was taught by a teacher of your own, {record.get('teacher')}: give another")
    if parts.teacher is None and (config.teacher_replay or config.teacher_rerun):
        raise UserError(f"{folder}: recorded answers cannot tell of new pairs: give another teacher")
    if isinstance(parts.teacher, Replayed):
        raise UserError("recorded answers cannot tell of new pairs: give another teacher")
    if parts.teacher is None and config.teacher_human and not out:
        raise UserError("teacher 'human': people are asked through files, give a new folder as out= (--out)")


def choose(
    spec: RunSpec,
    parts: Parts,
    config: Config,
    model: Any,
    folder: RunFolder,
    labels: int = LABELS,
    margin: float = MARGIN,
    error: float = ERROR,
    recorded: Callable[[Teacher], Teacher] = lambda teacher: teacher,
) -> Selection:
    """Chooses among the policies of the run in ``folder``; ``model`` acts by the chosen one afterwards.

    ``config`` is that of ``selection_config``; ``spec.out`` is where the teacher writes, None: nowhere. The teacher is
    asked through ``recorded``. UserError if something cannot be used.
    """
    steps = list(folder.kept_policies())
    if len(steps) < 2:
        found = f"only that of step {steps[0]}" if steps else "none"
        raise NoChoiceError(
            f"{folder}: there is no policy to choose, it kept {found}: a run keeps {POLICIES}, evenly spaced, from the "
            "end of pre-training on; runs of earlier versions kept none"
        )
    number = len(challengers_of(len(steps), labels, lead_of(margin, error)))
    before = {name: weights.clone() for name, weights in model.policy.state_dict().items()}

    def play_as(policy: int) -> None:
        folder.read_policy(steps[policy], model.policy)

    try:
        for policy in range(len(steps)):  # one that is damaged is found before the first label
            play_as(policy)
        with _asking(spec, parts, config, number, recorded) as (env, store, teacher):
            pairs = _Pairs(env, model, play_as, store, config)
            matches = select(len(steps), labels, margin, error, lambda *both: pairs.ask(teacher, *both))
        play_as(matches[-1].winner)
    except BaseException:
        model.policy.load_state_dict(before)
        raise
    return Selection(steps, matches, margin)


@contextmanager
def _asking(
    spec: RunSpec, parts: Parts, config: Config, matches: int, recorded: Callable[[Teacher], Teacher]
) -> Iterator[tuple[Any, ReplayBuffer, Teacher]]:
    """The environment, the buffer for all pairs of segments of so many ``matches``, and the teacher of them."""
    with ExitStack() as stack:
        env: Any = make_env(spec.env, config, SELECTION)
        stack.callback(lambda: env.close())
        limit = math.inf if env.limit is None else math.ceil(env.limit / config.action_repeat)
        if config.segment_length > limit:
            raise UserError(f"segment_length={config.segment_length}: an episode has at most {limit} steps")
        sizes = flatdim(env.observation_space), flatdim(env.action_space)
        rows = (config.labels + SILENT * matches) * 2 * config.segment_length
        check_memory("this selection", 4 * rows * (2 * sizes[0] + sizes[1] + 2))
        store, recorder = ReplayBuffer(*sizes, rows), None
        people = parts.teacher is None and config.teacher_human
        if people or (parts.teacher is None and config.teacher_url and config.teacher_frames):
            place = spec.out if people else Path(stack.enter_context(TemporaryDirectory()))
            try:
                (env,), recorder = recorded_envs(replace(spec, out=place), config, [env], store, SELECTION)
                stack.enter_context(closing(recorder))
            except UserError as problem:
                if people:
                    raise
                warnings.warn(f"the teacher gets states and actions alone: {problem}", stacklevel=2)
        teacher: Any = make_teacher(spec, parts, config, store, PreferenceBuffer(), recorder, 0)
        if people:
            teacher.resume, teacher.policies = "The same rlhf-bilevel select command", matches + 1
            stack.enter_context(teacher)
        yield env, store, recorded(teacher)


class _Pairs:
    """Pairs of segments of two policies. ``play_as`` makes ``model`` act as the policy of a number."""

    def __init__(
        self, env: Any, model: Any, play_as: Callable[[int], None], store: ReplayBuffer, config: Config
    ) -> None:
        self._env, self._model, self._play_as, self._store = env, model, play_as, store
        self._length, self._episode = config.segment_length, 0
        self._rng = np.random.default_rng(config.seed)

    def ask(self, teacher: Teacher, challenger: int, incumbent: int) -> float | None:
        """As ``evaluation.selection.Ask``. Which of the two is shown first is drawn."""
        pair, turned = self._pair(challenger, incumbent), bool(self._rng.integers(2))
        queries = Queries(*reversed(pair)) if turned else Queries(*pair)
        first, second, label = ask_teacher(teacher, queries)
        if not len(label):
            return None
        same = torch.equal(first.obs, queries.first.obs) and torch.equal(second.obs, queries.second.obs)
        if len(label) > 1 or not same:
            raise UserError("a teacher that was asked about one pair has answered about others")
        return 1 - float(label) if turned else float(label)

    def _pair(self, *policies: int) -> list[Segments]:
        """A segment of each policy."""
        shortest = 0
        for _ in range(TRIES):
            episode, self._episode = self._episode, self._episode + 1
            shortest = min(sum(1 for _ in self._episode_of(who, episode)) for who in policies)
            if shortest < self._length:
                continue
            at, before = int(self._rng.integers(shortest - self._length + 1)), self._store.size
            for who in policies:
                self._store.begin(who)
                for step in islice(self._episode_of(who, episode), at, at + self._length):
                    self._store.add(*step)
            if self._store.size == before + 2 * self._length:
                return [self._segment(start) for start in (before, before + self._length)]
            self._store.size = before  # the environment failed, or its episodes are no function of their seed
        raise NoChoiceError(
            f"segment_length={self._length}: the last {TRIES} episodes were shorter (the last: {shortest} steps)"
        )

    def _episode_of(self, policy: int, number: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float, bool]]:
        """The steps of an episode, as ``ReplayBuffer.add`` takes them. Each time it is played anew: what is shown to
        people is recorded while the buffer stands at its row.
        """
        env, over = self._env, False
        self._play_as(policy)
        env.episode = number
        obs, _ = env.reset()
        while not over:
            action = self._model.predict(obs, deterministic=True)[0]
            next_obs, reward, terminated, truncated, info = env.step(action)
            if FAULT in info:
                return
            yield obs, scaled(env.action_space, action), next_obs, reward, terminated
            obs, over = next_obs, terminated or truncated

    def _segment(self, start: int) -> Segments:
        rows, store = slice(start, start + self._length), self._store
        return Segments(store.obs[rows][None], store.act[rows][None], store.env_reward[rows][None])
