"""Teachers that repeat recorded answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from rlhf_bilevel.data.answers import no_answers, select, to_float32
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.pairs import joined
from rlhf_bilevel.types import Preferences, Queries, Teacher


class Replayed:
    """Recorded answers in place of a teacher: whatever is asked, the next ones are given, with their own segments.

    ``sessions`` are the answers of each query session in order, None for a session without answers, as
    ``label_log.read_sessions`` reads them. As many are given as pairs are asked about, until they are used up.
    UserError if there are none, or if their segments differ in shape.
    """

    def __init__(self, sessions: Iterable[Preferences | None]) -> None:
        parts = [to_float32(answers) for answers in sessions if answers is not None]
        if not sum(len(answers.label) for answers in parts):
            raise UserError("there are no labels to replay")
        shapes = {tuple(tuple(column.shape[1:]) for column in side) for answers in parts for side in answers[:2]}
        if len(shapes) > 1:
            raise UserError(
                f"labels to replay must be of segments of one shape (obs, act, env_reward), not {sorted(shapes)}"
            )
        self._answers = Preferences(*joined(parts), torch.cat([answers.label for answers in parts]))

    def after(self, prefs: PreferenceBuffer) -> Teacher:
        """The teacher of a run with the labels ``prefs``: it goes on after as many answers as the run has.

        So a run that is resumed gets the answers that it would have got.
        """

        def teacher(queries: Queries) -> Preferences:
            return select(self._answers, slice(len(prefs), len(prefs) + len(queries.first.env_reward)))

        return teacher


class Rerun:
    """The answers of another run, session by session. With that run's seed and settings it is the same run once more.

    ``number`` is the number of the session that will be asked first, from 0; ``times`` are the labelling times of the
    sessions in seconds.
    """

    def __init__(self, sessions: Iterable[Preferences | None], number: int, times: Sequence[float | None] = ()) -> None:
        self._sessions, self._number, self._times = list(sessions), number, times
        self.seconds: float | None = None

    def __call__(self, queries: Queries) -> Preferences:
        """The answers of the next session."""
        number, self._number = self._number, self._number + 1
        answers = self._sessions[number] if number < len(self._sessions) else None
        self.seconds = self._times[number] if number < len(self._times) else None
        return no_answers(queries) if answers is None else answers
