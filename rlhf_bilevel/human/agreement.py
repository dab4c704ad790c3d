"""How reliable the answers are: of each labeller, and of all together. Problems are described; no answer is dropped.

Krippendorff's alpha = 1 - D_o / D_e compares the observed disagreement D_o of people on the same pair with D_e, the
disagreement of answers that are put together at random. It is 1 if all agree, and 0 if they agree as by chance. The
distance of two labels (from 0 to 1) is their squared difference.

All intervals are 95 % intervals: Wilson's for shares, the bootstrap over queries for alpha.

A share is flagged if it is too bad to be bad luck: a labeller who is just good enough has such a share, or a worse one,
with a probability below CHANCE (exact binomial test). So one bad answer is never flagged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

import krippendorff
import numpy as np
from pydantic import BaseModel
from scipy.stats import binomtest

from rlhf_bilevel.human.records import Chosen, first_better
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import CANT_TELL, DECIDED, EXPERT, GOLD, LABEL, LEFTS, REPEAT, RIGHTS, SKIP, TIES

LABELS = (0.0, 0.25, 0.5, 0.75, 1.0)
RESAMPLES = 500  # of the bootstrap
MIN_COUNT = 10  # answers before their speed is judged, and shared pairs before agreement is judged
CHANCE = 0.00135  # three standard deviations: one labeller in 700 is flagged without a reason
MIN_SECONDS = 1.0  # nobody sees two clips in less
MIN_SAME = 0.8  # the share of repeated and gold pairs that should get the same answer
MAX_UNDECIDED = 0.5  # the share of skips and "can't tell" that is accepted
MIN_ALPHA = 0.667  # Krippendorff's bound: below it, draw no conclusions


class Share(BaseModel):
    """A share in [0, 1], with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int  # the number of answers of which it is a share


class Figures(BaseModel):
    """What one labeller did, or all together."""

    name: str
    role: str
    answers: int  # all choices except skips, for any purpose
    skips: int
    cant_tell: int
    ties: int  # equally good, or both bad
    median_seconds: float | None  # from the moment the pair was shown to the answer
    left: Share | None  # share of the left side among all choices of a side
    repeats: Share | None  # share of repeated pairs for which the same side, or a tie, was chosen
    gold: Share | None  # the same share, compared with the answer of an expert
    flags: list[str]  # sentences about what stands out


class Agreement(BaseModel):
    """Krippendorff's alpha, with its 95 % interval."""

    alpha: float
    low: float
    high: float
    queries: int  # with two answers or more
    ratings: int  # answers to these queries


class Report(BaseModel):
    """What ``report`` says."""

    labellers: list[Figures]
    overall: Figures
    shared: int  # queries that two people or more decided
    agreement: Agreement | None  # None if nobody answered the same query, or if all answers are the same
    flags: list[str]  # about all people together; those about one person are in their Figures


def report(store: LabelStore, *, hide_new_checks: bool = False) -> Report:
    """How reliable the answers in a label store are.

    With ``hide_new_checks``, answers to repeated and gold pairs are compared only once they are final
    (``Chosen.final``). Otherwise a labeller who looks after each answer would see which pair was a check.
    """
    everything = store.all_chosen()
    compared = [chosen for chosen in everything if chosen.purpose == LABEL or chosen.final or not hide_new_checks]
    decided = [chosen for chosen in everything if chosen.purpose == LABEL and chosen.choice in DECIDED]
    labels = {(chosen.query_id, chosen.labeller.id): _label(chosen) for chosen in decided}
    by_experts = [chosen for chosen in decided if chosen.labeller.role == EXPERT]
    expert_labels = {chosen.query_id: _label(chosen) for chosen in reversed(by_experts)}  # of several the first
    labellers = []
    for labeller in store.labellers():
        theirs = [chosen for chosen in everything if chosen.labeller.id == labeller.id]
        checks = [chosen for chosen in compared if chosen.labeller.id == labeller.id]
        labellers.append(_figures(labeller.name, labeller.role, theirs, checks, labels, expert_labels))
    agreement, flags = agreed(compared), []
    if agreement and agreement.queries >= MIN_COUNT and agreement.high < MIN_ALPHA:
        flags.append(
            f"people agree little: Krippendorff's alpha is {agreement.alpha:.2f} "
            f"({agreement.low:.2f} to {agreement.high:.2f}); below {MIN_ALPHA:.2f}, answers differ too much to rely on"
        )
    return Report(
        labellers=labellers,
        overall=_figures("everybody", "", everything, compared, labels, expert_labels),
        shared=len(_label_counts(compared)),
        agreement=agreement,
        flags=flags,
    )


def too_few(count: int, of: int, expected: float) -> bool:
    """Whether the share ``count / of`` is lower than the ``expected`` share by more than chance explains."""
    return of > 0 and binomtest(count, of, expected, alternative="less").pvalue < CHANCE


def share(count: int, of: int) -> Share | None:
    """The share ``count / of`` with Wilson's interval; None if ``of`` is 0."""
    if not of:
        return None
    interval = binomtest(count, of).proportion_ci(method="wilson")
    return Share(value=count / of, low=interval.low, high=interval.high, count=of)


def agreed(everything: Sequence[Chosen]) -> Agreement | None:
    """How much people agree, by all decided choices except repetitions; None if alpha is not defined."""
    counts = _label_counts(everything)
    if (alpha := _alpha(counts)) is None:
        return None
    rng = np.random.default_rng(0)
    resampled = [_alpha(counts[rng.integers(len(counts), size=len(counts))]) for _ in range(RESAMPLES)]
    # A resample in which all answers are the same shows no disagreement
    low, high = np.quantile([1.0 if value is None else value for value in resampled], [0.025, 0.975])
    return Agreement(alpha=alpha, low=low, high=high, queries=len(counts), ratings=int(counts.sum()))


def _label_counts(everything: Sequence[Chosen]) -> np.ndarray:
    """How often each label was given to each query that several people decided: (queries, labels)."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * len(LABELS))
    for chosen in everything:
        if chosen.purpose != REPEAT and chosen.choice in DECIDED:
            counts[chosen.query_id][LABELS.index(_label(chosen))] += 1
    return np.array([row for row in counts.values() if sum(row) > 1]).reshape(-1, len(LABELS))


def _alpha(counts: np.ndarray) -> float | None:
    """Krippendorff's alpha of the counts (queries, labels); None if it is not defined."""
    if (counts.sum(0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, value_domain=LABELS, level_of_measurement="interval"))


def _label(chosen: Chosen) -> float:
    return first_better(chosen.choice, chosen.left_is_first)


def _figures(
    name: str,
    role: str,
    choices: Sequence[Chosen],
    checks: Sequence[Chosen],
    labels: Mapping[tuple[str, int], float],
    expert_labels: Mapping[str, float],
) -> Figures:
    """Of these ``choices``; repeated and gold pairs are compared among the ``checks``, which are some of them.

    ``labels`` are what each person gave, by the ids of query and labeller; ``expert_labels`` by that of the query.
    """
    counts = Counter(chosen.choice for chosen in choices)
    lefts, rights, ties = (sum(counts[choice] for choice in kind) for kind in (LEFTS, RIGHTS, TIES))
    seconds = [c.answered_at - c.shown_at for c in choices if c.shown_at is not None and c.choice != SKIP]

    def share_of_same(purpose: str, expected: Sequence[float | None]) -> Share | None:
        """The share of the checks with this purpose that prefer what the ``expected`` labels prefer.

        There is one expected label for each check, or None. How strong a preference is does not matter.
        """
        compared = [
            (label, c)
            for label, c in zip(expected, checks, strict=True)
            if label is not None and c.purpose == purpose and c.choice in DECIDED
        ]
        return share(sum(np.sign(label - 0.5) == np.sign(_label(c) - 0.5) for label, c in compared), len(compared))

    figures = Figures(
        name=name,
        role=role,
        answers=len(choices) - counts[SKIP],
        skips=counts[SKIP],
        cant_tell=counts[CANT_TELL],
        ties=ties,
        median_seconds=median(seconds) if seconds else None,
        left=share(lefts, lefts + rights),
        repeats=share_of_same(REPEAT, [labels.get((c.query_id, c.labeller.id)) for c in checks]),
        gold=share_of_same(GOLD, [expert_labels.get(c.query_id) for c in checks]),
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
    for description, same in (
        ("pairs that came twice got the same answer", figures.repeats),
        ("pairs got the answer of the expert", figures.gold),
    ):
        if same and too_few(count := round(same.value * same.count), same.count, MIN_SAME):
            flags.append(f"{count} of {same.count} {description}; at least {100 * MIN_SAME:.0f} % are expected")
    seconds, undecided = figures.median_seconds, figures.skips + figures.cant_tell
    all_choices = figures.answers + figures.skips
    if seconds is not None and figures.answers >= MIN_COUNT and seconds < MIN_SECONDS:
        flags.append(f"takes {seconds:.1f} seconds for an answer (median): too short to see both clips")
    if too_few(all_choices - undecided, all_choices, 1 - MAX_UNDECIDED):
        flags.append(f"skipped, or could not tell, {undecided} of {all_choices} pairs")
    return flags
