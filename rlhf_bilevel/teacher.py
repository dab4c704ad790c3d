"""Teachers that answer queries. Any object with this one method serves: see ``types.Teacher``."""

from __future__ import annotations

import warnings

import torch

from rlhf_bilevel.preference import take
from rlhf_bilevel.types import Preferences, Queries


class OracleTeacher:
    """Prefers the segment with the higher true return, without noise; equal returns are a tie."""

    def __call__(self, queries: Queries) -> Preferences:
        margin = queries.first.truth.sum(-1) - queries.second.truth.sum(-1)  # (B,)
        return Preferences(*queries, label=(margin.sign() + 1) / 2)


def checked(answers: Preferences, queries: Queries) -> Preferences:
    """The answers that can be learnt from; each other one is named in a warning. What is no Preferences is an error."""
    if not isinstance(answers, Preferences):
        raise TypeError(f"a teacher must return Preferences, not {type(answers).__name__}")
    if answers.label.dim() != 1:
        raise ValueError(f"a teacher's labels must have one axis, not the shape {tuple(answers.label.shape)}")
    answers, count = answers._replace(label=answers.label.float()), len(answers.label)
    for segments in answers[:2]:
        for name, column, asked in zip(segments._fields, segments, queries.first, strict=True):
            if column.shape != (count, *asked.shape[1:]):
                raise ValueError(
                    f"a teacher's {name} must have the shape {(count, *asked.shape[1:])}, not {tuple(column.shape)}"
                )
    finite = [column.flatten(1).isfinite().all(1) for segments in answers[:2] for column in segments]
    usable = torch.stack([*finite, (answers.label >= 0) & (answers.label <= 1)]).all(0)
    for i in (~usable).nonzero().flatten().tolist():
        value = answers.label[i].item()
        warnings.warn(
            f"an answer is left out: label={value:g} must lie in [0, 1], and its segments be finite", stacklevel=2
        )
    return take(answers, usable)
