"""A reward fitted to a dataset alone, against problems with known answers and other libraries' figures."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from scipy import stats
from sklearn.calibration import calibration_curve
from torch import Tensor

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.config import Config
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.forms import AdditiveReward
from rlhf_bilevel.studies import offline_fit
from rlhf_bilevel.types import Queries, Segments
from rlhf_bilevel.utils.files import load_tensors
from tests.cli.test_cli import fails
from tests.conftest import SMALL

WEIGHT = torch.tensor([0.5, -0.3, 0.4])  # of two observations and an action in [-1, 1]
SETTINGS: dict[str, Any] = {
    "ensemble_size": 2, "reward_net_arch": (32,), "reward_lr": 3e-3, "reward_batch": 64, "n_eval_episodes": 5,
}  # fmt: skip


class Linear(gymnasium.Env):
    """Observations are noise, and the reward is linear in them and in the action, which lies in [-1, 3]."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 3, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._draw(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(WEIGHT.numpy() @ [*self.obs, (action[0] - 1) / 2])
        self.t += 1
        return self._draw(), reward, False, self.t == 40, {}

    def _draw(self) -> np.ndarray:
        self.obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.obs


gymnasium.register("Linear-v0", Linear)


def truth(obs: Tensor, act: Tensor) -> Tensor:
    return torch.cat([obs, act], -1) @ WEIGHT


def boltzmann(count: int, steps: int = 8, seed: int = 0) -> Dataset:
    """Labels drawn from sigmoid of the true returns' difference."""
    rng = torch.Generator().manual_seed(seed)

    def segments() -> Segments:
        obs, act = (2 * torch.rand(count, steps, size, generator=rng) - 1 for size in (2, 1))
        return Segments(obs, act, truth(obs, act))

    queries = Queries(segments(), segments())
    chance = (queries.first.env_reward.sum(-1) - queries.second.env_reward.sum(-1)).sigmoid()
    label = (torch.rand(count, generator=rng) < chance).float()
    return Dataset.of(queries, label, env_id="Linear-v0", labeller="Boltzmann", sampler="uniform")


def test_a_linear_reward_is_found_from_boltzmann_labels() -> None:
    settings = SETTINGS | {"reward_use_action": True, "reward_epochs": 30}
    found = offline_fit.fit_reward(boltzmann(1500), "Linear-v0", **settings).report
    agreement = found["correlation"]["random"]
    assert agreement["step"]["pearson"] > 0.9 and agreement["step"]["spearman"] > 0.9
    assert agreement["return"]["pearson"] > 0.9 and agreement["steps"] == 200
    data = boltzmann(20_000, seed=1)
    margin = torch.stack([data.segments.env_reward[ids].sum(-1) for ids in (data.first, data.second)])
    chance = (margin[0] - margin[1]).sigmoid()
    best = torch.maximum(chance, 1 - chance).mean().item()  # what the true reward itself gets right
    assert best - 0.08 < found["test"]["accuracy"]["mean"] < best + 0.08  # 225 pairs: standard error 0.03
    assert found["test"]["cross_entropy"] < 0.69 and found["test"]["calibration_error"] < 0.15


def test_labels_without_a_pattern_teach_nothing_and_stop_early() -> None:
    data = boltzmann(300)
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(2, (300,), generator=rng).float()
    queries = Queries(*data.preferences()[:2])
    noise = Dataset.of(queries, label, env_id="Linear-v0", labeller="coin", sampler="uniform")
    settings = SETTINGS | {"reward_form": "network", "reward_lr": 0.05, "reward_epochs": 120}
    train, validation, test = offline_fit.split(noise, np.random.default_rng(0))

    def fitted(stopped_by: Tensor) -> tuple[int, float, float]:
        reward = RewardEnsemble(2, 1, 2, (32,), torch.Generator().manual_seed(0))
        config = Config(total_timesteps=100, **settings)
        epochs = offline_fit.descend(reward, noise.store(train), noise.preferences(stopped_by), config)
        held, last = (
            offline_fit.judge(reward, noise.preferences(rows))["cross_entropy"] for rows in (validation, test)
        )
        return epochs, held, last

    epochs, held, last = fitted(validation)
    by_heart_epochs, by_heart, _ = fitted(train)  # the control
    assert epochs < 20 < by_heart_epochs
    assert held < 0.72 and last < 0.8 and by_heart > held + 0.05


def test_labels_that_teach_nothing_are_told() -> None:
    data = boltzmann(60)
    queries = Queries(*data.preferences()[:2])
    label = torch.randint(2, (60,), generator=torch.Generator().manual_seed(0)).float()
    noise = Dataset.of(queries, label, env_id="Linear-v0", labeller="coin", sampler="uniform")
    with pytest.warns(UserWarning, match="no reward was learnt"):
        found = offline_fit.fit_reward(noise, "Linear-v0", **SETTINGS | {"reward_lr": 1.0, "reward_epochs": 1})
    assert found.report["epochs"] == 0


def test_units_and_ranges_are_those_of_what_is_trained_on_and_pessimism_is_the_files() -> None:
    data, settings = boltzmann(60), SETTINGS | {"reward_epochs": 1, "reward_clip": True, "pessimism": 0.5}
    reward = offline_fit.fit_reward(data, "Linear-v0", **settings).learned
    train, *_ = offline_fit.split(data, np.random.default_rng([0, 0]))
    obs, _ = data.store(train).steps()
    seen = reward.ensemble.unit[:2], reward.ensemble.low[:2], reward.ensemble.high[:2]
    expected = obs.flatten(0, 1).std(0), obs.flatten(0, 1).amin(0), obs.flatten(0, 1).amax(0)
    for got, here in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, here)
    assert reward.info.pessimism == reward.ensemble.pessimism == 0.5


def test_the_calibration_error_is_that_of_another_library() -> None:
    rng = np.random.default_rng(0)
    output = torch.from_numpy(rng.normal(0, 2, 5000))
    label = torch.from_numpy(rng.integers(2, size=5000)).double()
    found = offline_fit.calibration(output, label)
    chance = 1 / (1 + np.exp(-output.numpy()))
    confidence, right = np.maximum(chance, 1 - chance), np.where(chance >= 0.5, label.numpy(), 1 - label.numpy())
    # Its bins are of [0, 1]
    theirs_right, theirs_confidence = calibration_curve(right, confidence, n_bins=2 * offline_fit.BINS)
    assert np.allclose([row["right"] for row in found["reliability"]], theirs_right)
    assert np.allclose([row["confidence"] for row in found["reliability"]], theirs_confidence)
    weights = np.histogram(confidence, np.linspace(0.5, 1, offline_fit.BINS + 1))[0] / 5000
    assert found["calibration_error"] == pytest.approx(weights @ np.abs(theirs_right - theirs_confidence))
    assert offline_fit.calibration(-output, 1 - label)["calibration_error"] == pytest.approx(found["calibration_error"])
    ties = offline_fit.calibration(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.5]))
    assert ties["calibration_error"] == 0 and ties["reliability"][0]["pairs"] == 2
    assert offline_fit.calibration(torch.tensor([40.0]), torch.tensor([1.0]))["reliability"][0]["high"] == 1


def test_a_bradley_terry_true_reward_is_calibrated_and_an_overconfident_one_is_not() -> None:
    data = boltzmann(20_000)
    answers = data.preferences()
    output = answers.first.env_reward.sum(-1) - answers.second.env_reward.sum(-1)
    true, sharp, flat = (offline_fit.calibration(k * output, answers.label)["calibration_error"] for k in (1, 4, 0.25))
    assert true < 0.015 and sharp > 0.1 and flat > 0.1  # 10 bins of 2,000: .01 by chance


def test_no_segment_is_in_two_parts_and_no_label_is_dropped_without_need() -> None:
    rng = np.random.default_rng(0)
    base = boltzmann(200)
    for _ in range(20):
        pairs = torch.from_numpy(rng.integers(200, size=(120, 2)))
        queries = Queries(*(Segments(*(column[pairs[:, side]] for column in base.segments)) for side in (0, 1)))
        label = torch.from_numpy(rng.choice([0, 1, 0.5, np.nan], 120)).float()
        data = Dataset.of(queries, label, env_id="e", labeller="l", sampler="s")
        train, validation, test = parts = offline_fit.split(data, np.random.default_rng(1))
        used = [set(data.first[rows].tolist()) | set(data.second[rows].tolist()) for rows in parts]
        assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]
        assert len(validation) == len(test) == round(offline_fit.HELD_OUT * len(data.labelled))
        dropped = set(data.labelled.tolist()) - set(torch.cat(parts).tolist())
        assert len(dropped) == len(data.labelled) - sum(map(len, parts))
        assert all({int(data.first[row]), int(data.second[row])} & (used[1] | used[2]) for row in dropped)
        assert set(train.tolist()) <= set(data.labelled.tolist())
    assert sum(map(len, offline_fit.split(base, rng))) == 200  # each segment in one query
    star = Queries(
        *(Segments(*(column[[0] * 9 if side else range(1, 10)] for column in base.segments)) for side in (0, 1))
    )
    with pytest.raises(UserError, match="9 labelled queries are too few, or share too many"):
        offline_fit.split(Dataset.of(star, torch.ones(9), env_id="e", labeller="l", sampler="s"), rng)


def test_correlations_are_those_of_scipy_and_undefined_without_variation() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=50).round(1)  # with ties
    other = one**3 + rng.normal(size=50).round(1)
    found = offline_fit.correlation(one, other)
    assert found["pearson"] == pytest.approx(stats.pearsonr(one, other)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(one, other)[0])
    assert offline_fit.correlation(one, np.ones(50)) == {"pearson": None, "spearman": None}


def test_the_true_reward_agrees_with_itself_on_the_environment() -> None:
    """So observations, scaled actions and rewards of a step belong together."""
    env = registration.make("Linear-v0", 0)
    found = offline_fit.correlations(truth, env, offline_fit.uniform_policy(env, np.random.default_rng(0)), 3)  # type: ignore[arg-type]
    assert found["step"]["pearson"] > 1 - 1e-6 and found["return"]["pearson"] > 1 - 1e-6


def test_an_action_beyond_the_bounds_counts_as_what_the_environment_makes_of_it() -> None:
    env = registration.make("Linear-v0", 0)
    _, acts, _ = offline_fit.play(env, lambda obs: np.array([3.0], np.float32), 0)
    assert (acts == 1).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = SMALL | {"labels": 200, "eval_freq": 1000, "reward_epochs": 1, "train_freq": 40}
    Agent("pebble", "Steer-v0", out=out, **settings).learn(1200)
    return out


def test_a_runs_labels_teach_a_reward_that_orders_held_out_pairs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "fit"
    command = ["fit-reward", str(run), "--env", "Steer-v0", "--seed", "3", "--set", "reward_net_arch=16"]
    command += ["--set", "reward_batch=32", "--set", "n_eval_episodes=3"]
    command += ["--set", "reward_epochs=30"]
    main([*command, "--out", str(out), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "report.json").read_text())
    assert told["labels"]["test"] == 30 and told["test"]["accuracy"]["low"] > 0.6  # chance is .5
    assert told["correlation"].keys() == {"random", "agent"}
    assert told["correlation"]["random"]["step"]["spearman"] > 0.5
    reward = AdditiveReward(1, 1, 3, (16,), torch.Generator())
    reward.load_state_dict(load_tensors((out / "reward.safetensors").read_bytes(), "reward"))
    main([*command[:1], str(run / "preferences.parquet"), *command[2:]])
    lines = capsys.readouterr().out
    assert f"held-out accuracy: {told['test']['accuracy']['mean']:.3f}" in lines and "agent" not in lines
    assert "exists already" in fails(capsys, *command, "--out", str(out))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "fit-reward RUN --env Pendulum-v1",
            "Pendulum-v1 has observations of 3 and actions of 1 numbers, the dataset's",
        ),
        ("fit-reward RUN --env Pendulm-v1", "Pendulum-v1"),
        ("fit-reward RUN --env Steer-v0 --set reward_net_arc=3", "did you mean 'reward_net_arch'?"),
        ("fit-reward RUN --env Steer-v0 --seed -1", "seed=-1"),
        ("fit-reward nowhere --env Steer-v0", "nowhere: no such file or folder"),
        ("fit-reward RUN/config.yaml --env Steer-v0", "is damaged or no Parquet file"),
        ("export RUN", "--preferences FILE.parquet"),
    ],
)
def test_a_mistake_is_told_in_one_line(run: Path, capsys: pytest.CaptureFixture, command: str, told: str) -> None:
    assert told in fails(capsys, *command.replace("RUN", str(run)).split())


def test_another_environment_of_the_same_sizes_is_named(run: Path) -> None:
    data = boltzmann(60)
    gymnasium.register("Linear-v1", Linear)
    with pytest.warns(UserWarning, match="is of Linear-v0, not of Linear-v1"):
        offline_fit.fit_reward(data, "Linear-v1", **SETTINGS, reward_epochs=1)


def test_the_same_seed_fits_the_same_reward() -> None:
    data = boltzmann(60)
    one, again, other = (
        offline_fit.fit_reward(data, "Linear-v0", seed=s, **SETTINGS, reward_epochs=2) for s in (0, 0, 1)
    )
    assert one.report == again.report and one.report["test"] != other.report["test"]
    assert all(torch.equal(a, b) for a, b in zip(one.reward.parameters(), again.reward.parameters(), strict=True))


PAGE = Path(__file__).parents[2] / "docs/datasets.md"


def test_the_documents_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(run.parent)
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    with contextlib.redirect_stdout(None):
        exec(example.replace("Pendulum-v1", "Steer-v0").replace("runs/pendulum", "runs/run"), {})
    assert (tmp_path / "fitted/reward.safetensors").is_file()


@pytest.mark.parametrize(("tie", "accuracy"), [(False, r"[01]\.000 \(one sample, no interval\)"), (True, "undefined")])
def test_one_held_out_label_has_no_interval_and_ties_have_no_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture, tie: bool, accuracy: str
) -> None:
    data = boltzmann(6)
    label = torch.full((6,), 0.5) if tie else data.label
    answers = Queries(*data.preferences()[:2])
    file, out = tmp_path / "few.parquet", tmp_path / "fit"
    Dataset.of(answers, label, env_id="Linear-v0", labeller="few", sampler="uniform").write(file)
    quick = ["--set", "reward_epochs=1", "--set", "n_eval_episodes=1", "--set", "reward_net_arch=8"]
    main(["fit-reward", str(file), "--env", "Linear-v0", *quick, "--out", str(out)])
    told = capsys.readouterr().out
    assert "1 held out" in told and re.search(f"held-out accuracy: {accuracy}", told)
    report = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)  # no Infinity in it
    assert report["settings"]["teacher_beta"] is None
