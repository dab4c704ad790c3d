"""How far the answers can be trusted: of each labeller and of all. It flags in words, and drops nothing.

Krippendorff's alpha = 1 - D_o / D_e compares the disagreement D_o of people on the same pair with D_e, that of answers
put together at random: 1 where all agree, 0 as by chance. Distances are squared differences of labels 1, .5 and 0.
Intervals are of 95 %: Wilson's for shares, the bootstrap over queries for alpha.

A share is flagged where somebody whose true share is the one that is tolerated would be as far off with a probability
below CHANCE (exact binomial test), so that one bad answer is no flag.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import krippendorff
import numpy as np
from pydantic import BaseModel
from scipy.stats import binomtest

from rlhf_bilevel.human.records import Chosen, first_better
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import CANT_TELL, DECIDED, EQUAL, EXPERT, GOLD, LABEL, LEFT, REPEAT, RIGHT, SKIP

LABELS = (0.0, 0.5, 1.0)
RESAMPLES = 500
NORMAL = 1.96  # standard deviations on either side that hold 95 %
ENOUGH = 10  # answers before anything is said of how fast they come, and shared pairs before anything of agreement
CHANCE = 0.00135  # three standard deviations: one labeller in 700 is flagged for nothing
HASTE = 1.0  # seconds in which nobody has seen two clips
AGREES = 0.8  # share of repetitions and of gold that is tolerated: below it, an answer is worth little
UNDECIDED = 0.5  # share of skips and of "can't tell" that is tolerated
TENTATIVE = 0.667  # Krippendorff's: below that, draw no conclusion


class Share(BaseModel):
    value: float
    low: float
    high: float
    count: int  # of what it is a share


class Figures(BaseModel):
    name: str
    role: str
    answers: int  # all but skips, whatever they were asked for
    skips: int
    cant_tell: int
    ties: int
    median_seconds: float | None  # from the screen to the answer
    left: Share | None  # of the choices between left and right
    repeats: Share | None  # of the pairs that they were asked again: the same answer
    gold: Share | None  # of the pairs that an expert decided: the same answer
    flags: list[str]


class Agreement(BaseModel):
    alpha: float
    low: float
    high: float
    queries: int  # with two answers or more
    ratings: int


class Report(BaseModel):
    labellers: list[Figures]
    overall: Figures
    shared: int  # queries that two people or more decided
    agreement: Agreement | None  # None where no two people have answered the same, or all answers are alike
    flags: list[str]  # of all together; those of a labeller are with their figures


def report(book: LabelStore) -> Report:
    everything = book.all_chosen()
    own, experts = _first_answers(everything), _experts(everything)
    each = []
    for who in book.everybody():
        theirs = [chosen for chosen in everything if chosen.labeller.id == who.id]
        each.append(_figures(who.name, who.role, theirs, own, experts))
    overall, agreement = _figures("everybody", "", everything, own, experts), agreed(everything)
    flags = []
    if agreement and agreement.queries >= ENOUGH and agreement.high < TENTATIVE:
        flags.append(
            f"people agree little: Krippendorff's alpha is {agreement.alpha:.2f} "
            f"({agreement.low:.2f} to {agreement.high:.2f}); below {TENTATIVE:.2f}, draw no conclusions"
        )
    shared = len(_shared(everything))
    return Report(labellers=each, overall=overall, shared=shared, agreement=agreement, flags=flags)


def too_few(count: int, of: int, tolerated: float) -> bool:
    """Whether a share is below the ``tolerated`` one by more than chance."""
    return of > 0 and binomtest(count, of, tolerated, alternative="less").pvalue < CHANCE


def share(count: int, of: int) -> Share | None:
    """With Wilson's interval; None of nothing."""
    if not of:
        return None
    p, z = count / of, NORMAL**2 / of
    middle, half = (p + z / 2) / (1 + z), NORMAL * math.sqrt(p * (1 - p) / of + z / of / 4) / (1 + z)
    return Share(value=p, low=max(0.0, middle - half), high=min(1.0, middle + half), count=of)


def agreed(everything: Sequence[Chosen]) -> Agreement | None:
    """Of all decided answers to what somebody was asked for the first time."""
    table = _shared(everything)
    if (alpha := _alpha(table)) is None:
        return None
    rng = np.random.default_rng(0)
    resampled = [_alpha(table[rng.integers(len(table), size=len(table))]) for _ in range(RESAMPLES)]
    # A resample whose answers are all alike shows no disagreement
    low, high = np.quantile([1.0 if value is None else value for value in resampled], [0.025, 0.975])
    return Agreement(alpha=alpha, low=low, high=high, queries=len(table), ratings=int(table.sum()))


def _shared(everything: Sequence[Chosen]) -> np.ndarray:
    """How often each label was given to each query that several people decided (queries, labels)."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * len(LABELS))
    for chosen in everything:
        if chosen.purpose != REPEAT and chosen.choice in DECIDED:
            counts[chosen.query_id][LABELS.index(_label(chosen))] += 1
    return np.array([row for row in counts.values() if sum(row) > 1]).reshape(-1, len(LABELS))


def _alpha(counts: np.ndarray) -> float | None:
    """Of the number of answers (queries, labels); None where it is not defined."""
    if (counts.sum(0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, value_domain=LABELS, level_of_measurement="interval"))


def _label(chosen: Chosen) -> float:
    return first_better(chosen.choice, chosen.left_is_first)


def _first_answers(everything: Sequence[Chosen]) -> dict[tuple[str, int], float]:
    """By query and labeller."""
    return {
        (chosen.query_id, chosen.labeller.id): _label(chosen)
        for chosen in everything
        if chosen.purpose == LABEL and chosen.choice in DECIDED
    }


def _experts(everything: Sequence[Chosen]) -> dict[str, float]:
    """By query: of several experts the first."""
    found: dict[str, float] = {}
    for chosen in everything:
        if chosen.labeller.role == EXPERT and chosen.purpose == LABEL and chosen.choice in DECIDED:
            found.setdefault(chosen.query_id, _label(chosen))
    return found


def _figures(
    name: str,
    role: str,
    theirs: Sequence[Chosen],
    own: dict[tuple[str, int], float],
    experts: dict[str, float],
) -> Figures:
    made = {word: sum(chosen.choice == word for chosen in theirs) for word in (LEFT, RIGHT, EQUAL, CANT_TELL, SKIP)}
    answers = len(theirs) - made[SKIP]
    seconds = [c.answered_at - c.shown_at for c in theirs if c.shown_at is not None and c.choice != SKIP]

    def same(purpose: str, expected: list[tuple[float | None, Chosen]]) -> Share | None:
        known = [(was, c) for was, c in expected if was is not None and c.purpose == purpose and c.choice in DECIDED]
        return share(sum(was == _label(c) for was, c in known), len(known))

    figures = Figures(
        name=name,
        role=role,
        answers=answers,
        skips=made[SKIP],
        cant_tell=made[CANT_TELL],
        ties=made[EQUAL],
        median_seconds=median(seconds) if seconds else None,
        left=share(made[LEFT], made[LEFT] + made[RIGHT]),
        repeats=same(REPEAT, [(own.get((c.query_id, c.labeller.id)), c) for c in theirs]),
        gold=same(GOLD, [(experts.get(c.query_id), c) for c in theirs]),
        flags=[],
    )
    return figures.model_copy(update={"flags": _flags(figures)})


def _flags(figures: Figures) -> list[str]:
    flags = []
    if left := figures.left:
        lefts = round(left.value * left.count)
        for side, count in (("left", lefts), ("right", left.count - lefts)):
            if too_few(left.count - count, left.count, 0.5):
                flags.append(f"chose the {side} side {count} of {left.count} times; half is expected")
    for name, found in (
        ("pairs that came twice got the same answer", figures.repeats),
        ("pairs got the answer of the expert", figures.gold),
    ):
        if found and too_few(same := round(found.value * found.count), found.count, AGREES):
            flags.append(f"{same} of {found.count} {name}; at least {100 * AGREES:.0f} % are expected")
    seconds, met, undecided = figures.median_seconds, figures.answers + figures.skips, figures.skips + figures.cant_tell
    if seconds is not None and figures.answers >= ENOUGH and seconds < HASTE:
        flags.append(f"takes {seconds:.1f} seconds for an answer (median): too short to see both clips")
    if too_few(met - undecided, met, 1 - UNDECIDED):
        flags.append(f"skipped, or could not tell, {undecided} of {met} pairs")
    return flags
