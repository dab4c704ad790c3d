"""The batched ensemble against one network at a time, and state entropy against a plain search."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlhf_bilevel.config import Config
from rlhf_bilevel.registries import REWARD_FORMS
from rlhf_bilevel.rewards.bradley_terry import accuracy, cross_entropy, logits
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.state_entropy import state_entropy
from rlhf_bilevel.types import Preferences, Queries, Segments


def ensemble(seed: int = 0, form: str = "network", **more: Any) -> RewardEnsemble:
    return REWARD_FORMS[form](3, 2, members=4, hidden=(8, 6), rng=torch.Generator().manual_seed(seed), **more)


def test_members_equal_separate_networks() -> None:
    reward, obs, act = ensemble(), torch.randn(5, 7, 3), torch.randn(5, 7, 2)
    got = reward.members(obs, act)
    assert got.shape == (4, 5, 7)
    for m in range(4):
        layers: list[nn.Module] = []
        for weight, bias in zip(reward.weights, reward.biases, strict=True):
            linear = nn.Linear(*weight.shape[1:])
            linear.weight.data, linear.bias.data = weight[m].T.clone(), bias[m, 0].clone()
            layers += [linear, nn.LeakyReLU()]
        network = nn.Sequential(*layers[:-1], nn.Tanh())
        assert torch.allclose(got[m], network(torch.cat([obs, act], -1)).squeeze(-1), atol=1e-6)
    assert torch.allclose(reward(obs, act), got.mean(0))


def test_rewards_that_can_be_read_are_their_weights_times_their_features() -> None:
    obs, act = torch.randn(7, 3), torch.randn(7, 2)
    x = torch.cat([obs, act], -1)
    products = [x[:, i] * x[:, j] for i in range(5) for j in range(i, 5)]
    for form, features in (("linear", x), ("quadratic", torch.cat([x, torch.stack(products, -1)], -1))):
        reward = ensemble(form=form)
        (weight,), (bias,) = reward.weights, reward.biases
        expected = torch.tanh(torch.einsum("nf,mf->mn", features, weight[..., 0]) + bias[:, 0])
        assert torch.allclose(reward.members(obs, act), expected, atol=1e-6)


def test_an_additive_reward_is_a_sum_of_functions_of_one_entry_each() -> None:
    reward = ensemble(form="additive")
    obs, act = torch.randn(50, 3), torch.randn(50, 2)
    reward.measure(obs, act)
    x = torch.cat([obs, act], -1)
    z = (x - x.mean(0)) / x.std(0)
    for m, (weight, bias) in enumerate(zip(reward.weights[0][..., 0], reward.biases[0][:, 0, 0], strict=True)):
        slopes = weight.reshape(6, 5)  # of the entries themselves, and what each bend adds
        f = bias.expand(50).clone()
        for entry in range(5):
            f += slopes[0, entry] * z[:, entry]
            for bend, change in zip((-1.5, -0.75, 0.0, 0.75, 1.5), slopes[1:, entry], strict=True):
                f += change * (z[:, entry] - bend).clamp(min=0)
        assert torch.allclose(reward.members(obs, act)[m], torch.tanh(f), atol=1e-5)


@pytest.mark.parametrize("form", REWARD_FORMS.ours)
def test_the_lasso_is_the_summed_norms_of_the_first_weights(form: str) -> None:
    reward = ensemble(form=form)
    reward.weights[0].data.mul_(100)  # far from 0, where the norm has no slope
    expected = [sum(row.norm().item() for row in member) for member in reward.weights[0]]
    assert reward.lasso().item() == pytest.approx(np.mean(expected), rel=1e-4)
    reward.lasso().backward()
    slope = torch.autograd.functional.jacobian(lambda w: w.norm(dim=-1).sum(1).mean(), reward.weights[0].detach())
    assert reward.weights[0].grad is not None and torch.allclose(reward.weights[0].grad, slope, atol=1e-4)


def test_with_the_lasso_few_entries_count() -> None:
    """Of thirteen entries one makes the labels: its share of all weights, with and without."""
    rng = torch.Generator().manual_seed(0)
    obs, act = torch.randn(120, 5, 13, generator=rng), torch.zeros(120, 5, 1)
    first, second = (Segments(obs[half::2], act[half::2], torch.zeros(60, 5)) for half in (0, 1))
    label = (first.obs[..., 0].abs().sum(1) > second.obs[..., 0].abs().sum(1)).float()
    shares = []
    for lasso in (0.0, 0.05):
        reward = REWARD_FORMS["additive"](13, 1, 1, (), torch.Generator().manual_seed(0))
        reward.measure(obs, act)
        optimizer = torch.optim.Adam(reward.parameters(), 0.02)
        for _ in range(500):
            logits, square = reward.compare(Preferences(first, second, label))
            loss = cross_entropy(logits, label).mean() + 0.1 * square + lasso * reward.lasso()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights = reward.weights[0].detach().abs().reshape(6, 14)
        shares.append((weights[:, 0].sum() / weights.sum()).item())
        assert accuracy(logits, label).mean() > 0.9
    assert shares[0] < 0.2 and shares[1] > 0.6


@pytest.mark.parametrize("form", ["network", "linear", "quadratic", "additive"])
def test_measured_rewards_do_not_depend_on_the_units_of_what_they_see(form: Any) -> None:
    # Not .001: its square's spread would be at the 1e-6 below which a feature counts as one that does not vary
    obs, act, scale = torch.randn(50, 3), torch.randn(50, 2), torch.tensor([1000.0, 1.0, 0.01])
    plain, scaled = ensemble(form=form), ensemble(form=form)
    moved = obs * scale + torch.tensor([-500.0, 0.0, 7.0])  # as if there were another origin, too
    assert not torch.allclose(plain(moved, act), plain(obs, act), atol=0.01)
    plain.measure(obs, act)
    scaled.measure(moved, act)
    if form == "quadratic":  # its products depend on the origin
        moved = obs * scale
        scaled.measure(moved, act)
    assert torch.allclose(scaled(moved, act), plain(obs, act), atol=2e-5)


def test_a_measured_reward_learns_from_a_position_that_hardly_varies() -> None:
    """As Meta-World's handles: their mean is up to 8,000 times their standard deviation."""
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(200, 10, 3, generator=rng) * 1e-4 + torch.tensor([0.8, 0.1, -0.4])
    act = torch.zeros(200, 10, 2)
    first, second = (Segments(obs[half::2], act[half::2], torch.zeros(100, 10)) for half in (0, 1))
    label = (first.obs[..., 0].sum(1) > second.obs[..., 0].sum(1)).float()
    reward = ensemble()
    reward.measure(obs, act)
    optimizer = torch.optim.Adam(reward.parameters(), 1e-3)
    for _ in range(300):
        logits, _ = reward.compare(Preferences(first, second, label))
        loss = cross_entropy(logits, label).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy(logits, label).mean() > 0.9  # .5 to .6 without the means


def test_what_does_not_vary_keeps_its_units_and_older_networks_are_read() -> None:
    reward, old = ensemble(), ensemble(seed=1)
    reward.measure(torch.tensor([[1.0, 2.0, 0.0], [1.0, 4.0, 0.0]]), torch.zeros(2, 2))
    reward.clip(torch.zeros(1, 3), torch.zeros(1, 2))
    assert reward.unit.tolist() == pytest.approx([1.0, 2**0.5, 1.0, 1.0, 1.0])
    state = old.state_dict()
    for name in ("center", "unit", "low", "high"):
        del state[name]
    reward.load_state_dict(state)
    obs, act = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(reward(obs, act), old(obs, act))
    with pytest.raises(RuntimeError, match="Missing key"):
        reward.load_state_dict({})


def test_what_labels_have_not_shown_counts_as_the_nearest_that_they_have() -> None:
    reward = ensemble()
    reward.clip(torch.tensor([[-1.0, 0.0, 2.0], [1.0, 0.0, 3.0]]), torch.tensor([[-1.0, 0.5], [1.0, 0.5]]))
    inside, beyond = torch.tensor([[0.5, 0.0, 3.0]]), torch.tensor([[0.5, 7.0, 9.0]])
    assert torch.equal(reward(inside, torch.tensor([[1.0, 0.5]])), reward(beyond, torch.tensor([[4.0, -2.0]])))
    assert not torch.equal(reward(inside, torch.zeros(1, 2)), reward(inside, torch.ones(1, 2)))
    reward.clip(beyond, torch.zeros(1, 2))
    assert reward.high[:3].tolist() == beyond[0].tolist()


def test_rewards_stay_within_their_bound_whatever_the_weights() -> None:
    reward = ensemble(bound=0.5)
    with torch.no_grad():
        for weight in reward.weights:
            weight *= 1000
    assert reward.members(torch.randn(100, 3), torch.randn(100, 2)).abs().max() <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_a_reward_that_has_drifted_to_its_bound_still_learns_if_it_is_damped(damping: float) -> None:
    """Float32's tanh(12) is 1: labels alone move nothing there, which is what the damping is for."""
    reward = ensemble()
    reward.biases[-1].data += 12
    rng = torch.Generator().manual_seed(1)
    obs, act = torch.randn(2, 200, 10, 3, generator=rng), torch.randn(2, 200, 10, 2, generator=rng)
    truth = obs[..., 0]
    label = (truth[0].sum(-1) > truth[1].sum(-1)).float()
    pairs = Preferences(*(Segments(*segment) for segment in zip(obs, act, truth, strict=True)), label)
    optimizer = torch.optim.Adam(reward.parameters(), 3e-3)
    for _ in range(1000):
        output, size = reward.compare(pairs)
        optimizer.zero_grad()
        (cross_entropy(output, label).mean() + damping * size).backward()
        optimizer.step()
    right = accuracy(reward.compare(pairs)[0], label).mean()
    assert right > 0.95 if damping else right < 0.7


def test_logits_are_those_of_the_members_and_the_size_is_of_what_tanh_bounds() -> None:
    reward = ensemble(bound=2)
    part = [Segments(torch.randn(6, 10, 3), torch.randn(6, 10, 2), torch.zeros(6, 10)) for _ in range(2)]
    output, size = reward.compare(Queries(*part))
    assert torch.allclose(output, logits(reward.members, Queries(*part)), atol=1e-5)
    f = torch.stack([torch.atanh(reward.members(p.obs, p.act) / 2) for p in part])
    assert torch.allclose(size, f.square().mean(), atol=1e-5)


@pytest.mark.parametrize("form", ["network", "additive"])
def test_no_more_rows_are_computed_at_once_than_a_cache_holds(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, rng = ensemble(form=form), torch.Generator().manual_seed(0)
    obs, act = torch.randn(5000, 3, generator=rng), torch.randn(5000, 2, generator=rng)
    rows, terms, alive = list[int](), reward.terms, list[weakref.ref[torch.Tensor]]()

    def counted(o: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        rows.append(len(o))
        assert sum(ref() is not None for ref in alive) <= 1  # what was computed before is not kept
        alive.append(weakref.ref(x := terms(o, a)))
        return x

    monkeypatch.setattr(reward, "terms", counted)
    with torch.no_grad():
        whole = reward.members(obs, act)
    assert max(rows) <= 2048 and sum(rows) == 5000
    torch.testing.assert_close(whole[:, 4000:], reward.members(obs[4000:], act[4000:]), rtol=0, atol=0)


def test_initial_weights_follow_their_generator_and_spare_the_global_one() -> None:
    before = torch.get_rng_state()
    first, again, other = ensemble(), ensemble(), ensemble(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.weights[0], again.weights[0]) and not torch.equal(first.weights[0], other.weights[0])
    bound = 1 / np.sqrt(8)  # fan-in of the second layer, as in nn.Linear
    assert 0.9 * bound < first.weights[1].abs().max() <= bound


def test_state_entropy_is_the_log_distance_to_the_kth_neighbour() -> None:
    states, visited = torch.randn(6, 3), torch.randn(30, 3)
    distances = np.linalg.norm(states.numpy()[:, None] - visited.numpy(), axis=-1)
    expected = np.log1p(np.sort(distances, axis=1)[:, 4])
    assert np.allclose(state_entropy(states, visited, 5).numpy(), expected, atol=1e-4)
    assert state_entropy(states, visited[:2], 5).shape == (6,)


def test_a_reward_that_is_never_negative_differs_by_its_level_alone() -> None:
    """So that pairs, and what is learnt from them, stay as they are."""
    settings = {"total_timesteps": 100, "reward_net_arch": (8,)}
    plain, lifted = (
        RewardEnsemble.of(Config(**settings, termination=way), 3, 2, torch.Generator().manual_seed(0))
        for way in ("as_is", "nonnegative")
    )
    rng = torch.Generator().manual_seed(1)
    first, second = ([5 * torch.randn(20, 7, size, generator=rng) for size in (3, 2)] for _ in range(2))
    assert torch.allclose(lifted.members(*first), 1 + plain.members(*first))
    assert 0 <= lifted.members(*first).min() < 1 < lifted.members(*first).max() <= 2
    pairs = Queries(*(Segments(*steps, torch.zeros(20, 7)) for steps in (first, second)))
    assert torch.allclose(lifted.compare(pairs)[0], plain.compare(pairs)[0], atol=1e-5)
    assert torch.allclose(logits(lifted.members, pairs), lifted.compare(pairs)[0], atol=1e-4)


@pytest.mark.parametrize("form", REWARD_FORMS.ours)
@pytest.mark.parametrize("clipped", [False, True])
def test_without_actions_a_reward_depends_on_the_observation_alone(form: str, clipped: bool) -> None:
    config = Config(total_timesteps=100, reward_net_arch=(8,), reward_form=form, reward_use_action=False)
    reward = RewardEnsemble.of(config, 3, 2, torch.Generator().manual_seed(0))
    obs, act, other = torch.randn(20, 7, 3), torch.randn(20, 7, 2), torch.randn(20, 7, 2)
    if clipped:
        reward.clip(obs, act)
    reward.measure(obs, act)
    assert torch.equal(reward(obs, act), reward(obs, other))
    assert not torch.allclose(reward(obs, act), reward(obs.roll(1, 0), act))
    again = REWARD_FORMS[form](3, 2, 3, (8,), torch.Generator())
    again.load_state_dict(reward.state_dict())  # a file of it needs no word more
    assert torch.equal(again(obs, other), reward(obs, act))


@pytest.mark.parametrize("name", REWARD_FORMS.ours)
def test_each_form_of_our_own_says_how_many_features_it_has(name: str) -> None:
    form = REWARD_FORMS[name]
    reward = form(3, 2, 1, (4,), torch.Generator())
    assert form.num_features(5) == reward.features(torch.zeros(1, 5)).shape[1] == len(reward.unit)
