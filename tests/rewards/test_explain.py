"""A reward that can be read: what it learns of known features, and what the command tells of it."""

import json
from pathlib import Path

import pytest
import torch

from rlhf_bilevel.__main__ import main
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import REWARD_FORMS
from rlhf_bilevel.rewards.bradley_terry import cross_entropy, logits
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.explain import weights_of
from rlhf_bilevel.types import Preferences, Segments


def learnt(form: str, truth: torch.Tensor, obs: torch.Tensor) -> RewardEnsemble:
    """Fitted to an oracle's labels of pairs (2 B, T, o), whose rewards per step are ``truth`` (2 B, T)."""
    reward = REWARD_FORMS[form](obs.shape[-1], 1, 2, (8,), torch.Generator().manual_seed(0))
    act = torch.zeros(*obs.shape[:2], 1)
    first, second = (Segments(obs[i::2], act[i::2], truth[i::2]) for i in (0, 1))
    pairs = Preferences(first, second, (first.env_reward.sum(-1) > second.env_reward.sum(-1)).float())
    reward.measure(obs, act)
    optimizer = torch.optim.Adam(reward.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        cross_entropy(logits(reward.members, pairs), pairs.label).mean().backward()
        optimizer.step()
    return reward


@pytest.mark.parametrize(
    ("form", "expected"),
    [("linear", ["speed", "height"]), ("quadratic", ["height * height", "speed"]), ("additive", ["height", "speed"])],
)
def test_the_features_that_made_the_labels_come_first_with_their_signs(form: str, expected: list[str]) -> None:
    obs = torch.randn(400, 10, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 10.0, 1.0])
    height, speed, _ = obs.unbind(-1)  # speed in a unit ten times as small
    if form == "additive":
        truth = 2 * height.clamp(max=0) - 0.05 * speed
    else:
        truth = height - 0.2 * speed if form == "linear" else height**2 - 0.1 * speed
    found = weights_of(learnt(form, truth, obs), ["height", "speed", "noise", "push"], obs, torch.zeros(400, 10, 1))
    assert [weight.feature for weight in found[:2]] == expected
    sign = {weight.feature: weight.weight > 0 for weight in found}
    assert sign[expected[0]] == (form != "linear") and not sign["speed"]
    assert all(abs(found[0].effect) > 3 * abs(weight.effect) for weight in found[2:])
    assert next(weight for weight in found if weight.feature == "push").effect == 0  # it never moved


def test_a_network_cannot_be_read() -> None:
    reward = RewardEnsemble(3, 1, 2, (8,), torch.Generator())
    with pytest.raises(UserError, match="reward_form=additive"):
        weights_of(reward, list("abcd"), torch.zeros(2, 3), torch.zeros(2, 1))


@pytest.mark.parametrize("form", ["linear", "additive"])
def test_an_entry_that_never_changes_has_no_weight(form: str) -> None:
    rng = torch.Generator().manual_seed(0)
    obs = torch.randn(80, 10, 3, generator=rng)
    obs[..., 1], obs[..., 2] = 0.1, 7.3
    reward = learnt(form, obs[..., 0], obs)
    found = {weight.feature: weight for weight in weights_of(reward, list("abcd"), obs, torch.zeros(80, 10, 1))}
    assert found["a"].weight > 0.1
    for name in "bcd":
        assert found[name][1:3] == (0, 0) and abs(found[name].effect) < 1e-5


def test_features_have_the_suites_names() -> None:
    names = registration.entry_names(registration.make("walker_walk", 0))
    assert names[:1] + names[14:16] + names[24:26] == [
        "orientations[0]", "height", "velocity[0]", "right_hip", "right_knee"
    ]  # fmt: skip
    assert len(names) == 30
    assert registration.entry_names(registration.make("Pendulum-v1", 0)) == ["obs[0]", "obs[1]", "obs[2]", "act[0]"]


def test_the_command_tells_a_runs_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    quick = "--preset quick --set reward_form=quadratic --set segment_length=20 --set n_eval_episodes=1 --steps 120"
    main(f"train pebble --env Pendulum-v1 --labels 4 {quick} --out {tmp_path / 'run'}".split())
    capsys.readouterr()
    main(["explain", str(tmp_path / "run"), "--top", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    main(["explain", str(tmp_path / "run"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert len(told) == 4 + 10 and "obs[0] * act[0]" in {weight["feature"] for weight in told}
