"""Answers to queries: their form, checked and copied once, and parts of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from rlhf_bilevel.envs.interface import shown
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Preferences, Queries, Segments, Teacher


def take(answers: Preferences, rows: Tensor | slice) -> Preferences:
    """Some of the pairs."""
    first, second = (Segments(*(column[rows] for column in segments)) for segments in answers[:2])
    return Preferences(first, second, answers.label[rows])


def nothing(queries: Queries) -> Preferences:
    """An answer to none of them."""
    return take(Preferences(*queries, torch.zeros(len(queries.first.env_reward))), slice(0))


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
