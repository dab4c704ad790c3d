"""Teachers that answer queries. Any object with this one method serves: see ``types.Teacher``.

With r the true reward of a segment of T steps, R = sum_t r_t and R' = sum_t discount^(T - 1 - t) r_t, B-Pref's teacher
says nothing where both R are low, calls a tie where they are close, and else

    P(first better) = (1 - mistake) p + mistake (1 - p),    p = sigmoid(beta (R'_first - R'_second))

Lee et al., "B-Pref: Benchmarking Preference-Based Reinforcement Learning", NeurIPS 2021, section 3 and its code.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.interface import shown
from rlhf_bilevel.preference import PreferenceStore, take
from rlhf_bilevel.replay import Store
from rlhf_bilevel.types import Preferences, Queries, Segments, Teacher

EPISODES = 10  # B-Pref's: newest ones, by whose return skip and equal measure
STREAM = 4  # of random numbers; a run's own generators have 0 to 3


class OracleTeacher:
    """Prefers the segment with the higher true return, without noise; equal returns are a tie."""

    def __call__(self, queries: Queries) -> Preferences:
        return Preferences(*queries, label=rational(margin(queries)))


class SimulatedTeacher:
    """B-Pref's teacher with the settings ``teacher_*`` of its run: any combination of its five irrationalities.

    With A the recent average return of a segment (the newest ten episodes' reward per step, times T), in B-Pref's
    order: a pair is left out unless max R > ``skip`` A; its label is drawn by R', ``beta`` and then ``mistake``; it is
    a tie, whatever was drawn, where |R_first - R_second| < ``equal`` A. Without a positive A, neither skip nor equal
    does anything. For an infinite ``beta`` the higher R' is better, and equal ones are a tie.

    What it draws is a function of the seed and of how many steps the run has stored when it asks, and so is A: a run
    that is resumed, and takes the answers that it has from its log, draws the others as if it had asked for all.
    """

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store

    def __call__(self, queries: Queries) -> Preferences:
        c, count = self._config, len(queries.first.truth)
        noise = torch.from_numpy(np.random.default_rng([c.seed, STREAM, self._store.size]).random((2, count)))
        better = margin(queries, c.teacher_discount)
        if c.teacher_beta < math.inf:
            label = (noise[0] < torch.sigmoid(c.teacher_beta * better.double())).float()
        else:
            label = (better >= 0).float() if c.teacher_bpref_compat else rational(better)
        label = torch.where(noise[1] < c.teacher_mistake, 1 - label, label)
        skip, equal = self._thresholds(queries.first.truth.shape[1])
        label = torch.where(margin(queries).abs() < equal, 0.5, label)
        good = torch.maximum(*(segments.truth.sum(-1) for segments in queries)) > skip
        return take(Preferences(*queries, label), good if skip > 0 else slice(None))

    def _thresholds(self, length: int) -> tuple[float, float]:
        """Of skip and equal, in return of a segment of that many steps."""
        c, store = self._config, self._store
        if not (c.teacher_skip or c.teacher_equal):
            return 0.0, 0.0
        start = store.episodes()[-EPISODES:][0][0]  # an episode that is not over counts by the steps it has
        average = length * store.truth[start : store.size].double().mean().item()
        if average <= 0:
            warnings.warn("skip and equal do nothing: recent episodes have no positive return", stacklevel=3)
        later = store.size > c.learning_starts + c.pretrain_steps  # B-Pref's code: epsilon twice from then on
        power = 2 if c.teacher_bpref_compat and later else 1
        return c.teacher_skip**power * average, c.teacher_equal**power * average


class Replayed:
    """Labels that were given before, in place of a teacher: whatever is asked, the next ones are the answer.

    ``sessions`` are answers in their order (such as ``labels.sessions`` reads them, None for no answer); as many are
    given as pairs are asked, and none once they are used up. UserError where there are none.
    """

    def __init__(self, sessions: Iterable[Preferences | None]) -> None:
        parts = [plain(answers) for answers in sessions if answers is not None]
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

    def after(self, prefs: PreferenceStore) -> Teacher:
        """The teacher of a run with these labels: it goes on after as many as the run has, also when it is resumed."""

        def teacher(queries: Queries) -> Preferences:
            return take(self._answers, slice(len(prefs), len(prefs) + len(queries.first.truth)))

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
        return nothing(queries) if answers is None else answers


def nothing(queries: Queries) -> Preferences:
    """An answer to none of them."""
    return take(Preferences(*queries, torch.zeros(len(queries.first.truth))), slice(0))


def margin(queries: Queries, discount: float = 1.0) -> Tensor:
    """R'_first - R'_second (B,): true returns in which the step t before a segment's last weighs discount^t."""
    weight = discount ** torch.arange(queries.first.truth.shape[1]).flip(0)
    first, second = ((segments.truth * weight).sum(-1) for segments in queries)
    return first - second


def rational(margin: Tensor) -> Tensor:
    """The label of whoever always prefers more: 1, 0, or 0.5 where the margin is none."""
    return (margin.sign() + 1) / 2


def answered(teacher: Teacher, queries: Queries) -> Preferences:
    """What ``teacher`` answers, checked. It gets segments of its own: UserError where it changes them."""
    own = Queries(*(Segments(*(column.clone() for column in segments)) for segments in queries))
    answers = checked(teacher(own), queries)
    for given, asked in zip(own, queries, strict=True):
        for name, column, before in zip(asked._fields, given, asked, strict=True):
            if column.shape != before.shape or not torch.allclose(column, before, rtol=0, atol=0, equal_nan=True):
                raise UserError(
                    f"a teacher must not change the segments that it is asked about, and changed their {name}"
                )
    return answers


def checked(answers: Preferences, queries: Queries) -> Preferences:
    """The answers that can be learnt from, float32 and in memory of their own; each other one is named in a warning.

    UserError where they are no ``Preferences`` of so many numbers as the segments of ``queries`` have.
    """
    answers = plain(answers)
    count = len(answers.label)
    for side, segments in zip(answers._fields, answers[:2], strict=False):
        for name, column, asked in zip(segments._fields, segments, queries.first, strict=True):
            if column.shape != (count, *asked.shape[1:]):
                told = f"{(count, *asked.shape[1:])} for {count} label{'s' * (count != 1)}, not {tuple(column.shape)}"
                raise UserError(f"a teacher's {side}.{name} must have the shape {told}")
    finite = [column.flatten(1).isfinite().all(1) for segments in answers[:2] for column in segments]
    usable = torch.stack([*finite, (answers.label >= 0) & (answers.label <= 1)]).all(0)
    if faulty := answers.label[~usable].tolist():
        which = "all" if len(faulty) == count else f"{len(faulty)} of"
        values = ", ".join(f"label={value:g}" for value in faulty[:3]) + (", ..." if len(faulty) > 3 else "")
        told = f"{which} {count} answers are left out ({values}): a label must lie in [0, 1], and segments be finite"
        warnings.warn(told, stacklevel=2)
    return take(answers, usable)


def plain(answers: Any) -> Preferences:
    """Answers as float32 tensors that are nobody else's. UserError where they are no ``Preferences`` of numbers."""
    if not isinstance(answers, Preferences):
        raise UserError(f"a teacher must return Preferences, not {shown(answers)}")
    for side, segments in zip(answers._fields, answers[:2], strict=False):
        if not isinstance(segments, Segments):
            raise UserError(f"a teacher's {side} must be Segments, not {shown(segments)}")
    first, second = (
        Segments(*(_float32(f"{side}.{name}", column) for name, column in segments._asdict().items()))
        for side, segments in zip(answers._fields, answers[:2], strict=False)
    )
    label = _float32("label", answers.label)
    if label.dim() != 1:
        raise UserError(f"a teacher's labels must have one axis, not the shape {tuple(label.shape)}")
    return Preferences(first, second, label)


def _float32(name: str, column: Any) -> Tensor:
    try:
        found = torch.as_tensor(column).detach()
        if not found.is_complex():
            return found.to("cpu", torch.float32, copy=True)
    except Exception:  # whatever it is, it is no tensor
        pass
    raise UserError(f"a teacher's {name} must be numbers, not {shown(column)}")
