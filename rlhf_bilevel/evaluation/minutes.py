"""Runs by labelling minutes: what they had reached before they used more.

Minutes differ from run to run, and grow only when labels are asked. So a run has, at any number of minutes, the value
of its newest evaluation that had used no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord

UNKNOWN = "its labelling minutes are not known: its teacher does not tell how long answers take, or it is an older run"


def until(run: Sequence[EvaluationRecord], minutes: float) -> list[EvaluationRecord]:
    """The evaluations of a run, which are in order, before it used more labelling minutes than these.

    UserError if there is none, or if its minutes are not known.
    """
    within = []
    for row in run:
        if row.minutes is None or not isfinite(row.minutes):
            raise UserError(f"{row.run}: {UNKNOWN}")
        if row.minutes > minutes:
            break
        within.append(row)
    if not within:
        used = f"has used {row.minutes:.4g} labelling minutes at its first evaluation"
        raise UserError(f"minutes={minutes:g} are too few: {row.run} {used}")
    return within


def against_minutes(minutes: np.ndarray, values: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Labelling minutes (x,), and the values (seeds, x) that runs have there: as far as all of them have come.

    ``minutes`` and ``values`` are those of the evaluations, each (seeds, evaluations). UserError, about ``method``, if
    minutes are not known.
    """
    if not np.isfinite(minutes).all():
        raise UserError(f"{method}: {UNKNOWN}")
    places = np.unique(minutes)
    places = places[(places >= minutes[:, 0].max()) & (places <= minutes[:, -1].min())]
    if not len(places):
        raise UserError(f"{method}: its runs share no labelling minutes, and no curve against them can be drawn")
    newest = [np.searchsorted(row, places, side="right") - 1 for row in minutes]
    return places, np.stack([row[at] for row, at in zip(values, newest, strict=True)])
