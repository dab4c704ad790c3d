"""The store keeps episodes apart, samples what it says, and a view never serves a stale reward."""

import numpy as np
import pytest
import torch

from rlhf_bilevel.data.replay_buffer import RelabelledView, ReplayBuffer
from rlhf_bilevel.types import Segments


def filled(lengths: tuple[int, ...] = (7, 3, 12, 5), writers: tuple[int, ...] = (0, 1, 0, 1)) -> ReplayBuffer:
    """obs is (episode, step in it), truth the row's number."""
    store = ReplayBuffer(2, 1, capacity=sum(lengths))
    for episode, (length, writer) in enumerate(zip(lengths, writers, strict=True)):
        store.begin(writer)
        for t in range(length):
            store.add(np.array([episode, t]), np.zeros(1), np.array([episode, t + 1]), store.size, t == length - 1)
    return store


def test_segments_never_cross_an_episode_or_a_writer_and_reach_every_start(rng: np.random.Generator) -> None:
    store = filled()
    got = store.sample_segments(store.episodes(), 500, 4, rng)
    episode, step = got.obs[..., 0], got.obs[..., 1]
    assert (episode == episode[:, :1]).all()
    assert (step.diff(dim=1) == 1).all()
    starts = {(int(e), int(t)) for e, t in zip(episode[:, 0], step[:, 0], strict=True)}
    assert starts == {(0, t) for t in range(4)} | {(2, t) for t in range(9)} | {(3, t) for t in range(2)}
    only = store.sample_segments(store.episodes(writer=1), 50, 4, rng)
    assert (only.obs[..., 0] == 3).all()


def test_a_segment_longer_than_every_episode_is_refused_with_both_numbers(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"segment_length=13 .*longest: 12"):
        store = filled()
        store.sample_segments(store.episodes(), 1, 13, rng)


def test_segments_are_found_again_where_they_were_cut_and_the_newest_of_equal_ones(rng: np.random.Generator) -> None:
    store = filled()
    segments = store.sample_segments(store.episodes(), 50, 3, rng)
    rows = store.rows_of(segments)
    assert torch.equal(rows, segments.env_reward[:, 0].long())  # truth is the row's number
    twice = ReplayBuffer(1, 1, 40)
    for start in (0, 0, 3):
        twice.begin(0)
        for t in range(4):
            twice.add(np.array([start + t]), np.zeros(1), np.zeros(1), 0, False)
    cut = torch.arange(2)[:, None] + torch.arange(3)  # rows 0-2 and 1-3 of episode 0, which came twice
    assert twice.rows_of(Segments(twice.obs[cut], twice.act[cut], twice.env_reward[cut])).tolist() == [4, 5]


def test_segments_that_were_cut_elsewhere_or_across_episodes_have_no_rows() -> None:
    store = filled()
    cut = torch.tensor([[0, 1, 2], [5, 6, 7]])  # the second begins in episode 0 and ends in episode 1
    segments = Segments(store.obs[cut], store.act[cut], store.env_reward[cut])
    with pytest.raises(ValueError, match="segment 1 was not cut from this store"):
        store.rows_of(segments)
    own = Segments(*(column[:1] for column in segments))
    assert store.rows_of(own).tolist() == [0]
    for name in Segments._fields:
        other = getattr(own, name).clone()
        other[0, -1] += 1
        with pytest.raises(ValueError, match="segment 0 was not cut"):
            store.rows_of(own._replace(**{name: other}))


def test_episodes_are_cut_at_since_and_include_the_running_one() -> None:
    store = filled()
    assert store.episodes() == [(0, 7), (7, 10), (10, 22), (22, 27)]
    assert store.episodes(writer=0, since=12) == [(12, 22)]
    assert store.episodes(writer=1, since=10) == [(22, 27)]


def test_visits_estimate_the_discounted_sum_without_bias(rng: np.random.Generator) -> None:
    store, gamma = filled(), 0.9
    episodes = store.episodes(writer=0)
    visits = store.sample_visits(episodes, 200_000, gamma, gamma, rng)
    assert torch.isclose(visits.weight.sum(), torch.tensor(1 / (1 - gamma)))
    estimate = (visits.weight * visits.obs[:, 1]).sum().item()
    weights = np.concatenate([gamma ** np.arange(7), gamma ** np.arange(12)])
    steps = np.concatenate([np.arange(7), np.arange(12)])
    exact = (weights * steps).sum() / weights.sum() / (1 - gamma)
    assert abs(estimate / exact - 1) < 0.02


def test_a_view_computes_each_reward_once_until_its_signal_changes() -> None:
    store, asked = filled(), []
    view = RelabelledView(store, seed=0)

    def signal(scale: float):
        def at(rows: torch.Tensor) -> torch.Tensor:
            asked.extend(rows.tolist())
            return scale * store.env_reward[rows]

        return at

    view.set_reward(signal(1.0))
    for _ in range(20):
        rows, reward = view.sample(16)
        assert torch.equal(reward, store.env_reward[rows])
    assert set(asked) == set(range(27))
    computed = len(asked)
    rows, _ = view.sample(16)
    assert len(asked) == computed  # all are known
    view.set_reward(signal(-3.0))
    rows, reward = view.sample(16)
    assert torch.equal(reward, -3 * store.env_reward[rows])
    view.set_reward(signal(2.0), cache=False)
    for _ in range(2):
        asked.clear()
        view.sample(16)
        assert len(asked) == 16  # nothing is kept


def test_the_views_of_two_learners_leave_the_facts_alone() -> None:
    store = filled()
    before = store.env_reward.clone()
    first, second = RelabelledView(store, 0), RelabelledView(store, 1)
    first.set_reward(lambda rows: torch.ones(len(rows)))
    second.set_reward(lambda rows: torch.zeros(len(rows)))
    assert first.sample(4)[1].sum() == 4 and second.sample(4)[1].sum() == 0
    assert torch.equal(store.env_reward, before)


def test_a_view_that_is_loaded_knows_what_was_known_and_samples_on() -> None:
    """Rewards computed anew, in other batches, may differ in their last bits."""
    store = filled()
    asked: list[int] = []

    def signal(rows: torch.Tensor) -> torch.Tensor:
        asked.extend(rows.tolist())
        return rows.float()

    first, second = RelabelledView(store, 0), RelabelledView(store, 0)
    first.set_reward(signal)
    known = set(first.sample(6)[0].tolist())
    second.set_reward(signal)
    second.load_state_dict(first.state_dict())
    asked.clear()
    rows, reward = second.sample(50)
    assert known & set(rows.tolist()) and not known & set(asked)
    assert torch.equal(rows, first.sample(50)[0]) and torch.equal(reward, rows.float())


def test_a_share_of_each_batch_is_drawn_from_the_newest_rows_and_none_by_default() -> None:
    store = filled()
    half, plain, same = RelabelledView(store, 0, (0.5, 4)), RelabelledView(store, 0), RelabelledView(store, 0, (0.0, 4))
    drawn = torch.stack([half.sample(10)[0] for _ in range(400)])
    assert drawn.shape == (400, 10) and set(drawn[:, 5:].flatten().tolist()) == {23, 24, 25, 26}
    assert set(drawn[:, :5].flatten().tolist()) == set(range(27))
    counts = drawn[:, 5:].flatten().bincount()[23:]
    assert (counts / 500 - 1).abs().max() < 0.2  # uniform among them
    assert torch.equal(plain.sample(10)[0], same.sample(10)[0])
    young = RelabelledView(store, 0, (1.0, 1000))
    assert young.sample(10)[0].max() < 27  # there are fewer
