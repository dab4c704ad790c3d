"""Bradley-Terry against its definition, and the store of answers."""

import math

import numpy as np
import pytest
import torch

from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.feedback.teachers import OracleTeacher
from rlhf_bilevel.rewards.bradley_terry import accuracy, cross_entropy, logits
from rlhf_bilevel.types import Preferences, Queries, Segments


def segments(count: int, length: int = 4, seed: int = 0) -> Segments:
    rng = torch.Generator().manual_seed(seed)
    return Segments(*(torch.randn(count, length, *last, generator=rng) for last in ((2,), (1,), ())))


def pairs(count: int, seed: int = 0) -> Queries:
    return Queries(segments(count, seed=seed), segments(count, seed=seed + 1000))


def test_cross_entropy_is_bradley_terrys_log_likelihood() -> None:
    for logit in (-3.0, 0.0, 2.0):
        for label in (0.0, 0.5, 1.0):
            first = math.exp(logit) / (1 + math.exp(logit))
            expected = -(label * math.log(first) + (1 - label) * math.log(1 - first))
            assert math.isclose(
                cross_entropy(torch.tensor([logit]), torch.tensor([label])).item(), expected, rel_tol=1e-5
            )


def test_logits_are_differences_of_returns_for_each_member() -> None:
    queries = pairs(5)

    def members(obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
        return torch.stack([obs.sum(-1), 2 * act.sum(-1)])

    got = logits(members, queries)
    assert got.shape == (2, 5)
    first, second = queries
    assert torch.allclose(got[0], first.obs.sum((1, 2)) - second.obs.sum((1, 2)), atol=1e-5)
    assert torch.allclose(got[1], 2 * (first.act.sum((1, 2)) - second.act.sum((1, 2))), atol=1e-5)


def test_accuracy_leaves_ties_out() -> None:
    label = torch.tensor([1.0, 0.0, 0.5, 1.0])
    assert accuracy(torch.tensor([2.0, 3.0, -1.0, 1.0]), label).item() == torch.tensor(2 / 3)
    assert accuracy(torch.tensor([1.0]), torch.tensor([0.5])).item() == 1


def test_the_oracle_prefers_the_higher_true_return_and_ties_equal_ones() -> None:
    first, second = segments(3), segments(3, seed=7)
    second.env_reward[2] = first.env_reward[2]
    expected = (first.env_reward.sum(1) > second.env_reward.sum(1)).float()
    expected[2] = 0.5
    assert torch.equal(OracleTeacher()(Queries(first, second)).label, expected)


def test_the_store_gives_back_what_came_in_order_and_each_epoch_holds_all_once() -> None:
    store = PreferenceBuffer()
    for seed, count in ((0, 3), (1, 4)):
        answers = Preferences(*pairs(count, seed), torch.full((count,), float(seed)))
        store.add(answers, torch.arange(count) / 10)
    assert len(store) == 7
    assert torch.equal(store[3:].second.obs, segments(4, seed=1001).obs)
    assert torch.equal(store.fresh_loss, torch.tensor([0, 0.1, 0.2, 0, 0.1, 0.2, 0.3]))
    seen = [store[rows] for rows in store.batches(2, np.random.default_rng(0))]
    assert [len(batch.label) for batch in seen] == [2, 2, 2, 1]
    everything = torch.cat([batch.first.env_reward for batch in seen])
    assert torch.equal(everything.sum(1).sort().values, store[:].first.env_reward.sum(1).sort().values)


def test_a_store_without_answers_comes_back_without_any() -> None:
    store = PreferenceBuffer()
    store.load([None], torch.zeros(0))
    assert len(store) == 0 and store.sessions == [0]


def test_a_store_comes_back_from_its_sessions_and_their_losses() -> None:
    store, again = PreferenceBuffer(), PreferenceBuffer()
    sessions = [Preferences(*pairs(3), torch.ones(3)), None, Preferences(*pairs(2, 1), torch.zeros(2))]
    for answers in sessions:
        store.add(answers or select(sessions[0], slice(0)), torch.rand(0 if answers is None else len(answers.label)))
    again.load(sessions, store.fresh_loss)
    assert again.sessions == store.sessions == [3, 0, 2] and torch.equal(again.fresh_loss, store.fresh_loss)
    for column, known in zip([*again[:].first, *again[:].second], [*store[:].first, *store[:].second], strict=True):
        assert torch.equal(column, known)
    assert torch.equal(again[:].label, store[:].label)
    with pytest.raises(ValueError, match="5 answers have 4 losses"):
        again.load(sessions, store.fresh_loss[:4])
