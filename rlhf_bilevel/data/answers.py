"""Answers to queries: checked and copied once, and parts of them."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rlhf_bilevel.envs.interface import value_text
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Preferences, Queries, Segments, Teacher


def select(answers: Preferences, rows: Tensor | slice) -> Preferences:
    """Some of the answers: those at ``rows``."""
    first, second = (Segments(*(column[rows] for column in segments)) for segments in answers[:2])
    return Preferences(first, second, answers.label[rows])


def no_answers(queries: Queries) -> Preferences:
    """Zero answers, with segments of the shape of ``queries``."""
    return select(Preferences(*queries, torch.zeros(len(queries.first.env_reward))), slice(0))


def ask_teacher(teacher: Teacher, queries: Queries) -> Preferences:
    """The answers of ``teacher``, checked. UserError if it changes the segments; it gets a copy of them."""
    copies = Queries(*(Segments(*(column.clone() for column in segments)) for segments in queries))
    answers = check_answers(teacher(copies), queries)
    for copied_side, original in zip(copies, queries, strict=True):
        for name, column, before in zip(original._fields, copied_side, original, strict=True):
            if column.shape != before.shape or not torch.allclose(column, before, rtol=0, atol=0, equal_nan=True):
                raise UserError(
                    f"a teacher must not change the segments that it is asked about, and changed their {name}"
                )
    return answers


def seconds_of(teacher: Teacher) -> float | None:
    """Labelling time of a teacher's newest call in seconds; None if it does not tell. UserError if it is no time."""
    seconds = getattr(teacher, "seconds", None)
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 <= float(seconds) < math.inf:
        raise UserError(f"a teacher's seconds must be None or a number of seconds, not {value_text(seconds)}")
    return float(seconds)


def check_answers(answers: Preferences, queries: Queries) -> Preferences:
    """The answers that can be learnt from, as float32 copies. Each other answer is named in a warning.

    UserError unless they are ``Preferences`` whose segments have the shape of those in ``queries``.
    """
    answers = to_float32(answers)
    count = len(answers.label)
    for side, segments in zip(answers._fields, answers[:2], strict=False):
        for name, column, query_column in zip(segments._fields, segments, queries.first, strict=True):
            if column.shape != (count, *query_column.shape[1:]):
                expected = f"{(count, *query_column.shape[1:])} for {count} label{'s' * (count != 1)}"
                raise UserError(f"a teacher's {side}.{name} must have the shape {expected}, not {tuple(column.shape)}")
    finite = [column.flatten(1).isfinite().all(1) for segments in answers[:2] for column in segments]
    usable = torch.stack([*finite, (answers.label >= 0) & (answers.label <= 1)]).all(0)
    if faulty := answers.label[~usable].tolist():
        which = "all" if len(faulty) == count else f"{len(faulty)} of"
        values = ", ".join(f"label={value:g}" for value in faulty[:3]) + (", ..." if len(faulty) > 3 else "")
        reason = f"{which} {count} answers are left out ({values}): a label must lie in [0, 1], and segments be finite"
        warnings.warn(reason, stacklevel=2)
    return select(answers, usable)


def to_float32(answers: Any) -> Preferences:
    """Answers as float32 copies. UserError unless they are ``Preferences`` of numbers."""
    if not isinstance(answers, Preferences):
        raise UserError(f"a teacher must return Preferences, not {value_text(answers)}")
    for side, segments in zip(answers._fields, answers[:2], strict=False):
        if not isinstance(segments, Segments):
            raise UserError(f"a teacher's {side} must be Segments, not {value_text(segments)}")
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
        tensor = torch.as_tensor(column).detach()
        if not tensor.is_complex():
            return tensor.to("cpu", torch.float32, copy=True)
    except Exception:  # not a tensor, whatever it is
        pass
    raise UserError(f"a teacher's {name} must be numbers, not {value_text(column)}")
