"""Teachers that give answers which were recorded before."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rlhf_bilevel.data.answers import no_answers, select, to_float32
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Preferences, Queries, Segments, Teacher


class Replayed:
    """Labels that were given before, in place of a teacher: whatever is asked, the next ones are the answer.

    ``sessions`` are answers in their order (such as ``labels.sessions`` reads them, None for no answer); as many are
    given as pairs are asked, and none once they are used up. UserError where there are none.
    """

    def __init__(self, sessions: Iterable[Preferences | None]) -> None:
        parts = [to_float32(answers) for answers in sessions if answers is not None]
        if not sum(len(answers.label) for answers in parts):
            raise UserError("there are no labels to replay")
        shapes = {tuple(tuple(column.shape[1:]) for column in side) for answers in parts for side in answers[:2]}
        if len(shapes) > 1:
            raise UserError(
                f"labels to replay must be of segments of one shape (obs, act, truth), not {sorted(shapes)}"
            )
        first, second = (
            Segments(*map(torch.cat, zip(*(answers[side] for answers in parts), strict=True))) for side in (0, 1)
        )
        self._answers = Preferences(first, second, torch.cat([answers.label for answers in parts]))

    def after(self, prefs: PreferenceBuffer) -> Teacher:
        """The teacher of a run with these labels: it goes on after as many as the run has, also when it is resumed."""

        def teacher(queries: Queries) -> Preferences:
            return select(self._answers, slice(len(prefs), len(prefs) + len(queries.first.truth)))

        return teacher


class Rerun:
    """Another run's sessions, each as it was answered: with its seed and settings, the same run once more.

    ``number`` is that of the first session that will be asked.
    """

    def __init__(self, sessions: Iterable[Preferences | None], number: int) -> None:
        self._sessions, self._number = list(sessions), number

    def __call__(self, queries: Queries) -> Preferences:
        number, self._number = self._number, self._number + 1
        answers = self._sessions[number] if number < len(self._sessions) else None
        return no_answers(queries) if answers is None else answers
