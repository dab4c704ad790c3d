"""The batched ensemble against one network at a time, and state entropy against a plain search."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlhf_bilevel.explore import state_entropy
from rlhf_bilevel.reward import RewardEnsemble


def ensemble(seed: int = 0, **more: Any) -> RewardEnsemble:
    return RewardEnsemble(3, 2, members=4, hidden=(8, 6), rng=torch.Generator().manual_seed(seed), **more)


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


@pytest.mark.parametrize("form", ["network", "linear", "quadratic"])
def test_measured_rewards_do_not_depend_on_the_units_of_what_they_see(form: Any) -> None:
    # Not .001: its square's spread would be at the 1e-6 below which a feature counts as one that does not vary
    obs, act, scale = torch.randn(50, 3), torch.randn(50, 2), torch.tensor([1000.0, 1.0, 0.01])
    plain, scaled = ensemble(form=form), ensemble(form=form)
    assert not torch.allclose(plain(obs * scale, act), plain(obs, act), atol=0.01)
    plain.measure(obs, act)
    scaled.measure(obs * scale, act)
    assert torch.allclose(scaled(obs * scale, act), plain(obs, act), atol=1e-5)


def test_what_does_not_vary_keeps_its_units_and_older_networks_are_read() -> None:
    reward, old = ensemble(), ensemble(seed=1)
    reward.measure(torch.tensor([[1.0, 2.0, 0.0], [1.0, 4.0, 0.0]]), torch.zeros(2, 2))
    assert reward.unit.tolist() == pytest.approx([1.0, 2**0.5, 1.0, 1.0, 1.0])
    state = old.state_dict()
    del state["unit"]
    reward.load_state_dict(state)
    obs, act = torch.randn(5, 3), torch.randn(5, 2)
    assert torch.equal(reward(obs, act), old(obs, act))
    with pytest.raises(RuntimeError, match="Missing key"):
        reward.load_state_dict({})


def test_rewards_stay_within_their_bound_whatever_the_weights() -> None:
    reward = ensemble(bound=0.5)
    with torch.no_grad():
        for weight in reward.weights:
            weight *= 1000
    assert reward.members(torch.randn(100, 3), torch.randn(100, 2)).abs().max() <= 0.5


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
