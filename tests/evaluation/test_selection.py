"""A tournament of sequential tests: its stated errors hold, it counts its labels, and it ends within its budget."""

import math
import random
import warnings
from collections.abc import Sequence

import pytest

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.selection import (
    ERROR,
    MARGIN,
    SILENT,
    Match,
    challengers_of,
    error_of,
    lead_of,
    select,
)


def teacher(quality: Sequence[float], rng: random.Random, scale: float = 60.0):  # type: ignore[no-untyped-def]
    """Prefers by the quality of each policy, with the odds of a logistic curve."""

    def ask(challenger: int, incumbent: int) -> float:
        return float(rng.random() < 1 / (1 + math.exp((quality[incumbent] - quality[challenger]) / scale)))

    return ask


@pytest.mark.parametrize(("margin", "error"), [(0.2, 0.1), (0.1, 0.05), (0.3, 0.01), (0.4, 0.3)])
def test_who_is_ahead_by_the_lead_is_decided_where_wald_s_test_is(margin: float, error: float) -> None:
    bound, odds = math.log((1 - error) / error), math.log((0.5 + margin) / (0.5 - margin))
    lead = lead_of(margin, error)
    assert (lead - 1) * odds < bound <= lead * odds + 1e-9
    assert error_of(margin, lead) <= error + 1e-9


@pytest.mark.parametrize("margin", [0.1, 0.2, 0.3])
def test_the_worse_policy_wins_with_the_probability_that_is_stated(margin: float) -> None:
    rng, lead, wrong, count = random.Random(0), lead_of(margin, 0.1), 0, 4000
    for _ in range(count):
        match = Match(0, 1, lead)
        match.play(10_000, lambda *_: float(rng.random() < 0.5 - margin))
        assert match.decided
        wrong += match.winner == 0
    stated = error_of(margin, lead)
    assert abs(wrong / count - stated) < 4 * math.sqrt(stated / count)
    assert wrong / count < 0.1


@pytest.mark.parametrize("labels", [3, 7, 20, 64, 1000])
def test_labels_are_counted_and_never_more_than_the_budget(labels: int) -> None:
    rng = random.Random(labels)
    for _ in range(50):
        given: list[float] = []

        def ask(*_: int, given: list[float] = given) -> float | None:
            label = rng.choice((0.0, 0.25, 0.5, 0.75, 1.0, None))
            given += [] if label is None else [label]
            return label

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matches = select(10, labels, MARGIN, ERROR, ask)
        assert sum(match.labels for match in matches) == len(given) <= labels
        assert sum(match.ties for match in matches) == given.count(0.5)
        assert sum(match.wins for match in matches) == sum(label > 0.5 for label in given)


def test_an_incumbent_stays_unless_a_challenger_is_ahead_by_the_lead() -> None:
    assert {match.winner for match in select(10, 100, MARGIN, ERROR, lambda *_: 0.5)} == {9}
    answers = iter([1.0, 1.0, 0.0] * 100)
    assert select(2, 3, MARGIN, ERROR, lambda *_: next(answers))[0].winner == 1
    assert select(2, 3, MARGIN, ERROR, lambda *_: 0.9)[0].winner == 0


def test_a_teacher_that_never_answers_is_asked_so_many_times_and_the_last_policy_stays() -> None:
    asked: list[int] = []
    with pytest.warns(UserWarning, match="got no answer"):
        matches = select(4, 20, MARGIN, ERROR, lambda *both: asked.extend(both))
    assert len(asked) == 2 * SILENT * 3
    assert matches[-1].winner == 3


def test_challengers_are_as_many_as_labels_decide_and_evenly_spaced_the_newest_first() -> None:
    assert challengers_of(10, 100, 3) == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert challengers_of(10, 9, 3) == [8, 5, 2]
    assert challengers_of(2, 100, 3) == [0]
    with pytest.raises(UserError, match="labels=2: one policy must be 3 labels ahead"):
        challengers_of(10, 2, 3)
    for count in range(2, 30):
        for labels in range(3, 60):
            chosen = challengers_of(count, labels, 3)
            assert chosen == sorted(set(chosen), reverse=True)
            assert chosen[0] == count - 2 and min(chosen) >= 0 and 3 * len(chosen) <= labels


COLLAPSED = [35.0, 192, 118, 549, 616, 623, 552, 243, 220, 228]
HEALTHY = [35.0, 104, 289, 662, 753, 959, 947, 971, 972, 974]


@pytest.mark.parametrize(("labels", "most"), [(20, 20), (40, 36)])
def test_a_collapsed_run_is_rolled_back_and_a_healthy_one_keeps_about_what_it_has(labels: int, most: int) -> None:
    rng, count = random.Random(1), 300
    for quality, least in ((COLLAPSED, 560), (HEALTHY, 950)):
        chosen, used = 0.0, 0
        for _ in range(count):
            matches = select(len(quality), labels, MARGIN, ERROR, teacher(quality, rng))
            chosen += quality[matches[-1].winner] / count
            used += sum(match.labels for match in matches)
        assert chosen > least
        assert used / count <= most


@pytest.mark.parametrize(("margin", "error"), [(0, 0.1), (0.5, 0.1), (math.nan, 0.1), (0.2, 0), (0.2, 0.5), (-1, 0.1)])
def test_margin_and_error_must_be_shares_below_a_half(margin: float, error: float) -> None:
    with pytest.raises(UserError, match="must lie between"):
        lead_of(margin, error)
