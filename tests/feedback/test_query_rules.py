"""Each rule of which pairs are asked, against its definition by enumeration."""

import math
import warnings
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_bilevel.config import Config
from rlhf_bilevel.feedback import query_rules
from rlhf_bilevel.feedback.pairs import AskedPairs, differences, joined
from rlhf_bilevel.feedback.query_rules import best, k_center
from rlhf_bilevel.registries import QUERY_RULES
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.types import Preferences, Queries, Segments
from tests.conftest import build
from tests.rewards.test_bradley_terry import pairs


def members(obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
    """Three opinions on the same steps."""
    return torch.stack([obs[..., 0], -obs[..., 0] + act[..., 0], 0.5 * obs[..., 1]])


def probabilities(queries: Queries) -> np.ndarray:
    """P(first better) by each member, (M, B), by the definition of Bradley-Terry in float64."""
    first, second = (members(s.obs.double(), s.act.double()).sum(-1).exp() for s in queries)
    return (first / (first + second)).numpy()


def entropy(distribution: np.ndarray) -> np.ndarray:
    return -(distribution * np.log(distribution)).sum(0)


def rows(chosen: Queries, candidates: Queries) -> list[int]:
    """Which of the candidates were chosen, in order."""
    both = zip(candidates, chosen, strict=True)
    first, second = ((every.obs == some.obs[:, None]).flatten(2).all(2) for every, some in both)  # (chosen, candidates)
    return (first & second).int().argmax(1).tolist()


def test_entropy_is_the_mean_of_the_members_entropies() -> None:
    candidates = pairs(30)
    expected = [np.mean([entropy(np.array([p, 1 - p])) for p in column]) for column in probabilities(candidates).T]
    assert query_rules.entropy(members, candidates).numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_information_gain_is_the_mutual_information_of_member_and_answer() -> None:
    """By its definition: sum over members m (each 1 / M) and answers y of P(m, y) ln(P(m, y) / P(m) P(y))."""
    candidates = pairs(30)
    for number, column in enumerate(probabilities(candidates).T):
        joint = np.stack([column, 1 - column], 1) / len(column)  # (members, answers)
        independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        expected = (joint * np.log(joint / independent)).sum()
        got = query_rules.information_gain(members, candidates)[number].item()
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_members_that_are_sure_and_split_tell_most_and_members_that_agree_nothing() -> None:
    def opinions(*returns: float) -> tuple[float, float]:
        lone = Queries(*(Segments(torch.full((1, 1, 1), x), torch.zeros(1, 1, 1), torch.zeros(1, 1)) for x in (1.0, 0)))

        def own(obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
            return torch.stack([value * obs[..., 0] for value in returns])

        return query_rules.information_gain(own, lone).item(), query_rules.entropy(own, lone).item()

    assert opinions(200, -200) == (pytest.approx(math.log(2)), 0)  # both are sure of an answer, and not of the same
    assert opinions(0, 0) == (pytest.approx(0, abs=1e-7), pytest.approx(math.log(2)))  # a coin, and all know it
    assert opinions(200, 200) == (0, 0)
    # Far from even odds p rounds to 1 in float32, but its complement does not round to 0
    assert opinions(20, 20)[1] == pytest.approx(20 * math.exp(-20), rel=1e-2)


def greedy(points: torch.Tensor, before: torch.Tensor, count: int) -> list[int]:
    """k-center by its definition."""
    picks: list[int] = []
    for _ in range(count):
        centers = torch.cat([before, points[picks]])
        gaps = [-1.0 if i in picks else min((x - y).norm().item() for y in centers) for i, x in enumerate(points)]
        picks.append(int(np.argmax(gaps)))
    return picks


def test_k_center_picks_the_furthest_from_what_is_chosen_and_was_asked() -> None:
    """Against greedy k-center by its definition, and its guarantee: at most twice the best cover's radius."""
    rng = torch.Generator().manual_seed(0)

    def pairs(count: int) -> Queries:
        obs = torch.randn(2, count, 2, 3, generator=rng)
        return Queries(*(Segments(side, torch.zeros(count, 2, 1), torch.arange(count)[:, None]) for side in obs))

    candidates, asked = pairs(9), pairs(3)
    points, before = (torch.cat([s.obs.flatten(1) for s in queries], 1) for queries in (candidates, asked))
    expected = [0, *greedy(points, points[:1], 3)]
    assert k_center(candidates, asked, 4).first.env_reward[:, 0].tolist() == greedy(points, before, 4)
    assert k_center(candidates, None, 4).first.env_reward[:, 0].tolist() == expected
    radius = torch.cdist(points, points[expected]).amin(1).max()
    best_radius = min(torch.cdist(points, points[list(four)]).amin(1).max() for four in combinations(range(9), 4))
    assert best_radius <= radius <= 2 * best_radius


def test_k_center_never_asks_one_candidate_twice() -> None:
    same = Segments(torch.zeros(5, 2, 3), torch.zeros(5, 2, 1), torch.arange(5)[:, None])
    chosen = k_center(Queries(same, same), None, 9)
    assert sorted(chosen.first.env_reward[:, 0].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("score", ["disagreement", "entropy", "information_gain"])
def test_a_hybrid_is_k_center_among_the_half_that_scores_highest(score: str) -> None:
    candidates, asked = pairs(40), Preferences(*pairs(5, seed=9), torch.ones(5))
    p = probabilities(candidates)
    each = entropy(np.stack([p, 1 - p])).mean(0)
    mean = entropy(np.stack([p.mean(0), 1 - p.mean(0)]))
    scores = {"disagreement": p.std(0), "entropy": each, "information_gain": mean - each}[score]
    kept = np.argsort(-scores)[:20]
    points, before = (torch.cat([s.obs.flatten(1) for s in q[:2]], 1) for q in (candidates, asked))
    expected = [int(kept[i]) for i in greedy(points[kept.copy()], before, 15)]
    of_all = greedy(points, before, 15)
    assert expected != of_all
    for name, chosen in ((f"k_center+{score}", expected), (score, list(kept[:15])), ("k_center", of_all)):
        assert rows(query_rules.choose(name, members, candidates, asked, 15), candidates) == chosen


@pytest.mark.parametrize("name", QUERY_RULES)
def test_before_the_first_labels_every_rule_is_uniform(name: str) -> None:
    """Candidates come in random order, so the first ones are a uniform draw."""

    def untrained(obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
        raise AssertionError("an untrained reward was asked")

    candidates = pairs(40)
    assert rows(query_rules.choose(name, untrained, candidates, None, 7), candidates) == list(range(7))
    asked = Preferences(*pairs(5, seed=9), torch.ones(5))
    assert len(query_rules.choose(name, members, candidates, asked, 7).first.obs) == 7
    assert len(query_rules.choose(name, members, candidates, asked, 99).first.obs) == 40


def test_a_run_asks_uniformly_first_and_by_its_rule_after() -> None:
    settings = {"total_timesteps": 120, "pretrain_steps": 20, "labels": 20, "queries_per_session": 10}
    run, calls = build("pebble", query="k_center+entropy", anchor_share=0, **settings), []

    def spy(name: str, members, candidates: Queries, asked: Preferences | None, count: int) -> Queries:
        chosen = choose(name, members, candidates, asked, count)
        uniform = torch.equal(chosen.first.obs, candidates.first.obs[:count])
        calls.append((name, None if asked is None else len(asked.label), uniform))
        return chosen

    choose = query_rules.choose
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_rules, "choose", spy)
        list(train(run))
    assert calls == [("k_center+entropy", None, True), ("k_center+entropy", 10, False)]


def test_no_pair_is_asked_that_a_label_would_tell_nothing_of() -> None:
    """Neither a segment against itself, nor a pair again, in whatever order; the others stay as they are."""
    distinct = pairs(6)
    again = Queries(distinct.second, distinct.first)
    itself = Queries(distinct.first, distinct.first)
    asked = AskedPairs()
    assert asked.new(distinct) is distinct
    mixed = joined([itself, distinct, again, distinct])
    assert rows(asked.new(mixed), mixed) == list(range(6, 12))
    asked.add(best(distinct, torch.zeros(6), 2))
    assert rows(asked.new(mixed), mixed) == list(range(8, 12)) and len(asked) == 2
    copy = AskedPairs()
    copy.load_state_dict(asked.state_dict())
    assert torch.equal(copy.state_dict(), asked.state_dict()) and rows(copy.new(mixed), mixed) == list(range(8, 12))
    copy.add(again)
    assert len(copy) == 6 and len(copy.new(mixed).first.obs) == 0


@pytest.mark.parametrize("name", ["uniform", "disagreement", "k_center"])
def test_segments_as_long_as_episodes_are_never_asked_twice(name: str) -> None:
    """Each episode is one segment: few pairs, and each session asks as many as are new."""
    run = build("pebble", total_timesteps=400, segment_length=50, labels=30, query=name, recent_episodes=4)
    seen, oracle = list[Queries](), run.teacher

    def spy(queries: Queries) -> Preferences:
        seen.append(queries)
        return oracle(queries)

    run.teacher = spy
    with pytest.warns(UserWarning, match=r"[12] of \d+ queries at step \d+: there are no more pairs"):
        list(train(run))
    asked = joined(seen)
    sides = ([obs.numpy().tobytes() for obs in segments.obs] for segments in asked)
    keys = set(map(frozenset, zip(*sides, strict=True)))
    assert len(keys) == len(asked.first.obs) == len(run.prefs) == len(run.asked) > 10
    assert all(len(key) == 2 for key in keys)


def test_filtering_moves_no_draw_where_nothing_is_left_out() -> None:
    settings = {"total_timesteps": 400, "pretrain_steps": 200, "large_batch": 1, "train_freq": 100}
    first, second = (build("pebble", **settings) for _ in range(2))
    second.asked.new = lambda candidates: candidates  # type: ignore[method-assign]
    for run in (first, second):
        list(train(run))
    assert len(first.prefs) == len(second.asked) == 40  # no pair was drawn twice
    assert torch.equal(first.prefs[:].first.obs, second.prefs[:].first.obs)
    assert first.rng["query"].bit_generator.state == second.rng["query"].bit_generator.state


def test_the_difference_of_a_pair_is_that_of_its_observations_step_by_step() -> None:
    asked, unit = pairs(20), torch.tensor([0.5, 2.0])
    expected = [
        np.sqrt(np.mean([((one - other) / unit.numpy()) ** 2 for one, other in zip(a, b, strict=True)]))
        for a, b in zip(asked.first.obs.numpy(), asked.second.obs.numpy(), strict=True)
    ]
    assert differences(asked, unit).numpy() == pytest.approx(np.array(expected), rel=1e-5)
    itself = Queries(asked.first, asked.first)
    assert not differences(itself, unit).any()
    drawn = torch.randn(2, 500, 50, 3) * 7
    random = Queries(*(Segments(side, side, side[..., 0]) for side in drawn))
    assert differences(random, torch.full((3,), 7.0)).mean().item() == pytest.approx(2**0.5, rel=0.01)


def watched(**settings: Any) -> tuple[list[float], list[dict[str, float]]]:
    """The differences of all asked pairs, in units of each session, and the sessions' metrics."""
    own = {"query": "uniform", "policy_aligned": False, "anchor_share": 0.0, "newest_share": 0.0} | settings
    own |= {"total_timesteps": 400, "labels": 30, "train_freq": 100, "critic_layer_norm": False}
    run, found = build("pebble", **own), list[torch.Tensor]()
    oracle = run.teacher

    def spy(asked: Queries) -> Preferences:
        found.append(differences(asked, run.store.obs[: run.store.size].std(0)))
        return oracle(asked)

    run.teacher = spy
    told = [row for row in train(run) if "query/difference" in row]
    assert [row["query/difference"] for row in told] == pytest.approx([part.median().item() for part in found])
    assert len(run.prefs) == 30 and len(told) == len(found) and "teacher/minutes" not in told[0]
    return torch.cat(found).tolist(), told


def test_pairs_that_look_alike_are_not_asked_unless_there_are_too_few_others() -> None:
    least = 1.0
    assert min(watched()[0]) < least
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert min(watched(least_difference=least)[0]) >= least
    with pytest.warns(UserWarning, match=r"0 of \d+ candidates have least_difference=100, and 3 are asked"):
        most = watched(least_difference=100)[0]
    assert np.median(most) > 2  # those that differ most


def test_policy_aligned_candidates_are_of_the_newest_episodes_whatever_the_rule() -> None:
    run = build("pebble", total_timesteps=1000, aligned_episodes=2, recent_episodes=3, initial_comparison_frac=0)
    for episode in range(5):
        run.store.begin(0)
        for _ in range(20):
            run.store.add(*(np.full(1, episode, np.float32) for _ in range(3)), float(episode), False)
    for settings, expected in (
        ({"policy_aligned": False}, {2, 3, 4}),
        ({"policy_aligned": True}, {3, 4}),
        ({"policy_aligned": True, "query": "k_center+entropy"}, {3, 4}),
        ({"query": "policy_aligned"}, {3, 4}),
    ):
        run.config = Config(**(run.config.model_dump() | settings))
        assert set(run.sample_pairs(200).first.env_reward.flatten().tolist()) == expected
    assert (run.config.query, run.config.policy_aligned) == ("uniform", True)
