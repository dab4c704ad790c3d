"""What is said of people is what they did, and of those who do well nothing is said."""

import math
import random
from itertools import permutations

import pytest

from rlhf_bilevel.human.agreement import CHANCE, agreed, report, share, too_few
from rlhf_bilevel.human.records import Chosen, Labeller
from rlhf_bilevel.human.tables import BOTH_BAD, CANT_TELL, EQUAL, EXPERT, GOLD, LABEL, LEFT, REPEAT, RIGHT, SKIP

ANN, BOB, EVE = (Labeller(number, name, "labeller") for number, name in enumerate(("Ann", "Bob", "Eve")))
VERA = Labeller(9, "Vera", EXPERT)


class Everything:
    """A store that holds these choices."""

    def __init__(self, *chosen: Chosen) -> None:
        self.chosen = list(chosen)

    def all_chosen(self) -> list[Chosen]:
        return self.chosen

    def labellers(self) -> list[Labeller]:
        return sorted({chosen.labeller for chosen in self.chosen})


def chose(
    who: Labeller, query: object, choice: str, purpose: str = LABEL, left: bool = True, took: float = 5
) -> Chosen:
    return Chosen(str(query), who, purpose, choice, left, 100.0, 100.0 + took)


def prefers_first(who: Labeller, query: object, rng: random.Random, purpose: str = LABEL, took: float = 5) -> Chosen:
    left = rng.random() < 0.5
    return chose(who, query, LEFT if left else RIGHT, purpose, left, took)


def alpha(ratings: list[list[float]]) -> float:
    """Krippendorff's alpha written out pair by pair, a list a query."""
    units = [unit for unit in ratings if len(unit) > 1]
    every = [value for unit in units for value in unit]
    observed = sum(sum((a - b) ** 2 for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    expected = sum((a - b) ** 2 for a, b in permutations(every, 2)) / (len(every) - 1)
    return 1 - observed / expected


def test_agreement_is_krippendorffs_alpha_with_an_interval_around_it() -> None:
    rng, value = random.Random(0), {LEFT: 1.0, RIGHT: 0.0, EQUAL: 0.5}
    chosen, ratings = [], []
    for query in range(60):
        truth, unit = rng.choice([LEFT, RIGHT, EQUAL]), list[float]()
        for who in (ANN, BOB, EVE):
            choice = truth if rng.random() < 0.8 else rng.choice([LEFT, RIGHT, EQUAL, CANT_TELL, SKIP])
            chosen.append(chose(who, query, choice))
            unit += [value[choice]] if choice in value else []
        ratings.append(unit)
    chosen.append(chose(ANN, 0, RIGHT, REPEAT, left=False))  # one person twice is no agreement
    found = agreed(chosen)
    assert found is not None and found.alpha == pytest.approx(alpha(ratings))
    assert found.low < found.alpha < found.high < 1 and 0.1 < found.high - found.low < 0.5
    several = [len(unit) for unit in ratings if len(unit) > 1]
    assert (found.queries, found.ratings) == (len(several), sum(several))


def test_sides_do_not_count_for_agreement() -> None:
    same = [chose(who, q, LEFT if first == (q % 2 == 0) else RIGHT, left=first) for q in range(20)
            for who, first in ((ANN, True), (BOB, False))]  # fmt: skip
    found = agreed(same)
    assert found is not None and (found.alpha, found.low, found.high) == (1, 1, 1)
    assert agreed([]) is None and agreed([chose(ANN, 0, LEFT)]) is None
    assert agreed([chose(ANN, 0, LEFT), chose(BOB, 0, LEFT)]) is None  # all alike: nothing to compare chance with


def test_who_labels_well_is_left_alone() -> None:
    rng = random.Random(0)
    labels = [prefers_first(who, query, rng) for query in range(40) for who in (VERA, ANN)]
    again = [prefers_first(ANN, query, rng, REPEAT) for query in range(10)]
    gold = [prefers_first(BOB, query, rng, GOLD) for query in range(10)]
    other = [chose(ANN, 99, RIGHT), chose(VERA, 99, RIGHT)]
    told = report(Everything(*labels, *again, *gold, *other))  # type: ignore[arg-type]
    ann, bob, vera = told.labellers
    assert told.flags == [] and told.shared > 40 and [figures.flags for figures in told.labellers] == [[], [], []]
    assert ann.repeats == share(10, 10) and bob.gold == share(10, 10) and ann.gold is None
    assert (ann.answers, bob.answers, vera.role, ann.median_seconds) == (51, 10, EXPERT, 5.0)
    assert told.overall.answers == 51 + 10 + 41 and told.agreement is not None and told.agreement.alpha == 1


def test_what_looks_wrong_is_said_in_words_and_named() -> None:
    rng = random.Random(0)
    chosen = [prefers_first(VERA, query, rng) for query in range(40)]
    for query in range(40):
        left = rng.random() < 0.5
        chosen.append(chose(ANN, query, LEFT, LABEL, left, took=0.4))  # always left, at once
        chosen += [chose(ANN, query, LEFT, REPEAT, not left, took=0.4)] if query < 15 else []
        chosen.append(chose(BOB, query, RIGHT if left else LEFT, GOLD, left))  # the opposite
        chosen.append(chose(EVE, query, SKIP if query % 2 else CANT_TELL))
    told = report(Everything(*chosen))  # type: ignore[arg-type]
    ann, bob, eve, vera = told.labellers
    assert ann.left is not None and ann.left.value == 1 and ann.repeats is not None and ann.repeats.value == 0
    assert ann.flags == [
        "chose the left side 55 of 55 times; half is expected",
        "0 of 15 pairs that came twice got the same answer; at least 80 % are expected",
        "takes 0.4 seconds for an answer (median): too short to see both clips",
    ]
    assert bob.flags == ["0 of 40 pairs got the answer of the expert; at least 80 % are expected"]
    assert eve.flags == ["skipped, or could not tell, 40 of 40 pairs"] and vera.flags == []
    assert (eve.answers, eve.skips, eve.cant_tell) == (20, 20, 20)
    assert len(told.flags) == 1 and told.flags[0].startswith("people agree little")


def test_how_strong_a_preference_is_matters_for_agreement_and_not_for_checks() -> None:
    chosen = [chose(ANN, q, LEFT if q % 2 else "slightly_right") for q in range(20)]
    chosen += [chose(ANN, q, "slightly_left" if q % 2 else RIGHT, REPEAT) for q in range(20)]
    chosen += [chose(BOB, q, LEFT if q % 2 else RIGHT) for q in range(20)]
    chosen.append(chose(ANN, 20, BOTH_BAD))
    found = report(Everything(*chosen))  # type: ignore[arg-type]
    ann = found.labellers[0]
    assert ann.repeats == share(20, 20) and ann.left == share(20, 40) and ann.ties == 1
    expected = alpha([[1.0, 1.0] if q % 2 else [0.25, 0.0] for q in range(20)])
    assert found.agreement and found.agreement.alpha == pytest.approx(expected) and expected < 1


def test_few_answers_are_no_habit() -> None:
    chosen = [chose(ANN, query, LEFT, took=0.1) for query in range(9)]
    told = report(Everything(*chosen, *(chose(BOB, query, RIGHT) for query in range(8))))  # type: ignore[arg-type]
    assert [row.flags for row in told.labellers] == [[], []] and told.shared == 8 and told.flags == []
    chosen = [chose(ANN, query, LEFT if query % 2 else RIGHT) for query in range(9)]
    chosen += [chose(ANN, query, LEFT if query % 2 else RIGHT, REPEAT, left=False) for query in range(4)]
    for count in (10, 13):  # one, and four, that came twice and were answered differently
        ann = report(Everything(*chosen[:count])).labellers[0]  # type: ignore[arg-type]
        assert ann.repeats == share(0, count - 9) and ann.flags == []
    assert report(Everything(chose(EVE, 0, SKIP))).labellers[0].flags == []  # type: ignore[arg-type]


@pytest.mark.parametrize("of", [1, 4, 5, 20, 200])
def test_a_share_is_flagged_where_chance_seldom_makes_it_so_low(of: int) -> None:
    """Of labellers who do as well as is tolerated, one in 700 at most is flagged: the binomial, term by term."""

    def chance(up_to: int) -> float:
        return sum(math.comb(of, k) * 0.8**k * 0.2 ** (of - k) for k in range(up_to + 1))

    flagged = [count for count in range(of + 1) if too_few(count, of, 0.8)]
    assert flagged == [count for count in range(of + 1) if chance(count) < CHANCE]
    assert (flagged == []) == (of < 5) and all(count < 0.8 * of for count in flagged)


def test_a_check_is_compared_only_once_it_is_final_where_its_labeller_may_look() -> None:
    first, again, gold = chose(ANN, 0, LEFT), chose(ANN, 0, RIGHT, REPEAT, left=False), chose(ANN, 1, LEFT, GOLD)
    expert = chose(VERA, 1, LEFT), chose(VERA, 2, RIGHT), chose(ANN, 2, LEFT)
    for final, shared in ((False, 1), (True, 2)):
        checks = [check._replace(final=final) for check in (again, gold)]
        seen = report(Everything(first, *expert, *checks), hide_new_checks=True)  # type: ignore[arg-type]
        ann = next(row for row in seen.labellers if row.name == "Ann")
        assert (ann.repeats is not None, ann.gold is not None, seen.shared, ann.answers) == (final, final, shared, 4)
        everything = report(Everything(first, *expert, *checks))  # type: ignore[arg-type]
        assert everything.shared == 2 and everything.overall.repeats


def test_wilsons_interval() -> None:
    """The published example of 81 of 263: .2553 to .3662 [Newcombe 1998, table I]."""
    found = share(81, 263)
    assert found is not None and (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert share(0, 0) is None
