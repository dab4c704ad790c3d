"""Learners that are improved together are, each, what SB3's own update makes of them."""

import io
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC, TD3
from torch import Tensor

from benchmarks.performance.ours import Plain
from rlhf_bilevel.data.replay_buffer import DeviceCopy, ReplayBuffer
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.batched_sac import BatchedSAC, stackable
from rlhf_bilevel.learners.normed_policy import NormedPolicy
from rlhf_bilevel.learners.off_policy import SB3Learner
from rlhf_bilevel.learners.sb3_tools import on_its_own
from rlhf_bilevel.learners.together import Together
from rlhf_bilevel.training.loop import train
from tests.conftest import build, small_config


def filled(rows: int = 200) -> ReplayBuffer:
    store, rng = ReplayBuffer(3, 1, rows), np.random.default_rng(0)
    store.begin(0)
    for row in range(rows):
        store.add(rng.normal(size=3), rng.uniform(-1, 1, 1), rng.normal(size=3), rng.normal(), row % 7 == 0)
    return store


def learners(count: int, algorithm: type = SAC, numbers: Sequence[int] | None = None, **own: Any) -> list[SB3Learner]:
    """They meet the same rows and noise whatever the algorithm."""
    env, store = registration.make("Pendulum-v1", 0), filled()
    config = small_config(net_arch=own.pop("net_arch", (16, 12)), ent_coef="auto_0.3")
    return [SB3Learner(env, config, store, number, algorithm, **own) for number in numbers or range(count)]


def stack(several: Sequence[SB3Learner], batched: bool) -> BatchedSAC:
    """``batched``: as on a GPU."""
    views, rngs = [learner._view for learner in several], [learner._rng for learner in several]
    return BatchedSAC([learner.model for learner in several], views, rngs, several[0]._config.batch_size, batched)


def everything(learner: SB3Learner) -> dict[str, Tensor]:
    """Weights, targets, temperature and Adam's moments."""
    model = learner.model
    found = dict(model.policy.state_dict())
    optimizers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer, "alpha": model.ent_coef_optimizer}
    for name, optimizer in optimizers.items():
        for i, entry in optimizer.state_dict()["state"].items() if optimizer else ():
            found |= {f"{name}/{i}/{key}": value for key, value in entry.items()}
    if model.log_ent_coef is not None:
        found["log_ent_coef"] = model.log_ent_coef.detach()
    return {key: value.clone() for key, value in found.items()}


def assert_alike(left: SB3Learner, right: SB3Learner, within: float) -> None:
    ours, theirs = everything(left), everything(right)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.allclose(value, theirs[key], rtol=within, atol=within), key


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"net_arch": (24,)},
        {"net_arch": (8, 8, 8)},
        {"ent_coef": 0.2},
        {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [12, 12]}, "n_critics": 3}},
        {"gamma": 0.5, "tau": 0.3, "target_entropy": -3.0},
        {"policy": NormedPolicy},
        {"policy": NormedPolicy, "policy_kwargs": {"net_arch": {"pi": [8], "qf": [12, 10, 12]}, "n_critics": 3}},
    ],
)
@pytest.mark.parametrize(("updates", "batched"), [(1, False), (20, False), (20, True)])
def test_an_update_is_sb3s_own(own: dict[str, Any], updates: int, batched: bool) -> None:
    ours, theirs = learners(3, **own), learners(3, Plain, **own)
    before = everything(ours[2])
    told = stack(ours, batched).improve(updates, 5)
    expected = Together(theirs)(updates, 5)
    for left, right, metrics, reference in zip(ours, theirs, told, expected, strict=True):
        assert_alike(left, right, 1e-5)
        for key, value in reference.items():
            assert metrics[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    moved = [key for key, value in everything(ours[2]).items() if key in before and not torch.equal(value, before[key])]
    assert len([key for key in moved if "target" not in key]) >= 10


@pytest.mark.parametrize("batched", [False, True])
def test_some_may_be_updated_and_the_others_stay_to_the_bit(batched: bool) -> None:
    several, whole = learners(3), learners(3)
    improve = stack(several, batched).improve
    before = [everything(learner) for learner in several]
    assert len(improve(2, 5, slice(1, 2))) == 1
    Together(whole)(2, 5)
    for number in (0, 2):
        after = everything(several[number])
        assert all(torch.equal(after[key], value) for key, value in before[number].items())
    assert_alike(several[1], whole[1], 1e-6)


def test_only_what_is_sb3s_plain_sac_is_stacked() -> None:
    assert stackable(learners(1)[0].model)
    plain: list[dict[str, Any]] = [
        {"algorithm": Plain},
        {"algorithm": TD3},
        {"use_sde": True},
        {"learning_rate": lambda left: 1e-3 * left},
        {"target_update_interval": 2},
        {"policy_kwargs": {"net_arch": [8], "activation_fn": torch.nn.Tanh}},
        {"policy_kwargs": {"net_arch": [8], "optimizer_class": torch.optim.SGD}},
        {"policy_kwargs": {"net_arch": [8], "optimizer_kwargs": {"weight_decay": 0.1}}},
    ]
    for own in plain:
        improve = Together(learners(1, **own))
        assert improve.stack is None, own
        assert improve(1, 5)[0]["train/n_updates"] == 1


def test_an_exported_file_is_plain_sb3_and_holds_one_learner() -> None:
    ours, theirs = learners(2), learners(2, Plain)
    Together(ours)(3, 5), Together(theirs)(3, 5)
    files = []
    for learner in (ours[1], theirs[1]):
        file = io.BytesIO()
        with on_its_own(learner.model):
            learner.model.save(file, exclude=["replay_buffer", "_last_obs"])
        files.append(file)
    assert len(files[0].getvalue()) == pytest.approx(len(files[1].getvalue()), rel=0.02)
    Together(ours)(1, 5)  # the learner still learns
    before = everything(ours[1])
    Together(ours)(1, 5)
    assert any(not torch.equal(value, before[key]) for key, value in everything(ours[1]).items())
    files[0].seek(0)
    loaded = SAC.load(files[0])
    obs = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    theirs_act = theirs[1].model.predict(obs, deterministic=True)[0]
    assert np.allclose(loaded.predict(obs, deterministic=True)[0], theirs_act, atol=1e-5)
    moments = loaded.critic.optimizer.state_dict()["state"][0]
    assert moments["step"] == 3 and moments["exp_avg"].abs().sum() > 0


def test_a_run_is_plain_sb3s_but_for_rounding() -> None:
    settings: dict[str, Any] = {"total_timesteps": 90, "learning_starts": 40, "net_arch": (32, 32), "seed": 3}
    ours, theirs = (build("sac", "Pendulum-v1", own, **settings) for own in ({}, {"algorithm": Plain}))
    for run in (ours, theirs):
        list(train(run))
    assert torch.allclose(ours.store.table, theirs.store.table, rtol=1e-3, atol=1e-3)
    assert_alike(ours.learners[0], theirs.learners[0], 1e-3)  # type: ignore[arg-type]


def test_a_learner_draws_and_learns_alike_alone_and_beside_others() -> None:
    """Nothing that another learner or torch's global generator does moves its draws."""
    alone, beside = [learners(1, numbers=[number])[0] for number in range(3)], learners(3)
    for several in (alone, beside):
        several[1].act(np.zeros(3), 500)
    Together(beside)(5, 5)
    obs = np.ones(3, dtype=np.float32)
    for single, learner in zip(alone, beside, strict=True):
        torch.rand(17)
        Together([single])(5, 5)
        assert_alike(single, learner, 1e-6)
        torch.manual_seed(123)
        first = single.act(obs, 500)[1]
        torch.manual_seed(321)
        assert np.allclose(first, learner.act(obs, 500)[1], atol=1e-6)


def test_clamped_deviations_and_actions_at_the_border_have_sb3s_derivatives() -> None:
    """Where log_std is clamped nothing flows through it, and tanh is flat at its ends."""
    ours, theirs = learners(1), learners(1, Plain)
    for learner in (*ours, *theirs):
        with torch.no_grad():
            learner.model.actor.log_std.bias.fill_(2.0)
            learner.model.actor.log_std.weight.normal_(std=1.0, generator=torch.Generator().manual_seed(0))
            learner.model.actor.mu.bias.fill_(3.0)
    Together(ours)(3, 5), Together(theirs)(3, 5)
    assert_alike(ours[0], theirs[0], 1e-5)


def test_a_mirror_has_every_row_as_it_comes() -> None:
    store = filled(20)
    mirror = DeviceCopy(store, torch.device("cpu"))
    mirror._table = torch.zeros_like(store.table)  # as on another device
    store.size, out = 10, torch.zeros(3, store.table.shape[1])
    for size in (10, 11, 20):
        store.size = size
        rows = torch.tensor([0, size - 1, size // 2])
        mirror.take(rows, out)
        assert torch.equal(out, store.table[rows])
    assert not torch.equal(store.table[0], store.table[1])


def test_learners_side_by_side_learn_what_they_learn_one_after_another() -> None:
    """Also where a reward draws random numbers, where Adam's rate is changed, and after a reset and a loaded state."""

    def learnt(processes: int) -> list[dict[str, Tensor]]:
        several, rng, told = learners(3), np.random.default_rng(0), []
        improve = Together(several)
        with improve.stack.side_by_side(processes) if processes and improve.stack else nullcontext():
            told += improve(3, 5)
            for learner in several:
                learner.set_reward(lambda rows: torch.from_numpy(rng.normal(size=len(rows))).float(), cache=False)
            told += improve(2, 5)
            for learner in several:
                learner.set_reward(lambda rows: (rows % 7).float())
                learner.reset_critic()
            several[2].model.critic.optimizer.param_groups[0]["lr"] = 0.02
            several[0].model.critic.optimizer.param_groups[0]["lr"] = 0.02
            several[2].follow(several[1])
            told += improve(2, 5)
        told += improve(1, 5)  # in this process again
        return [*map(everything, several), *({k: torch.tensor(v) for k, v in metrics.items()} for metrics in told)]

    alone, beside = learnt(0), learnt(2)
    assert len(alone) == len(beside) == 3 + 4 * 3
    for left, right in zip(alone, beside, strict=True):
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_too_little_memory_for_processes_to_share_is_told_before_anything_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = learners(2)
    improve = Together(several)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**20, 2**20, 10))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"need 0 MiB in /dev/shm, and 0 are free: .* --threads 1$"):
        improve.stack.side_by_side(2).__enter__()  # type: ignore[union-attr]
    assert not several[0].model.actor.mu.weight.is_shared()
    assert improve(1, 5)[1]["train/n_updates"] == 1
