"""A reward model from a preference dataset alone: fitted to some of the queries, judged by the others and by the truth.

No segment is used for both. Some queries are trained on, some decide when to stop, and the rest are used once, to test.
There, with P = sigmoid(sum_t r(first_t) - sum_t r(second_t)),

    confidence = max(P, 1 - P),    right = label if P >= 1/2, else 1 - label    (a tie is half right)
    ECE = sum_b n_b / n |mean_b right - mean_b confidence|    over BINS equal bins b of [1/2, 1]    [Guo et al. 2017]

How well the learnt reward agrees with the environment's is measured by their correlation over steps, and over episodes'
returns, in episodes that are not in the dataset. The true reward is not learnt from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from scipy.stats import rankdata
from torch import Tensor

from rlhf_bilevel.agent import Agent
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registration
from rlhf_bilevel.envs.interface import scale_action
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.rollout import interval_text as shown_with_interval
from rlhf_bilevel.evaluation.rollout import mean_interval
from rlhf_bilevel.rewards.bradley_terry import bootstrap, cross_entropy, logits, smoothed, weighed
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.learned_reward import LearnedReward
from rlhf_bilevel.rewards.reward_file import RewardInfo, to_bytes
from rlhf_bilevel.runs.asked_queries import load
from rlhf_bilevel.runs.environments import TEST
from rlhf_bilevel.types import Preferences
from rlhf_bilevel.utils.files import reserve_new_file, write
from rlhf_bilevel.utils.json_yaml import to_json

REPORT = "report.json"
BINS = 10
HELD_OUT = 0.15  # share of the labelled queries for validation, and again for the test
EPOCHS, PATIENCE = 200, 20  # most epochs; epochs without a lower validation loss
EPISODES = 10  # on which a reward is validated

Policy = Callable[[np.ndarray], np.ndarray]
"""obs (o,) to an action (a,) of the environment."""


@dataclass(frozen=True)
class RewardFit:
    """A fitted reward model, and a report on it."""

    learned: LearnedReward
    report: dict[str, Any]  # plain values, None for what is undefined

    @property
    def reward(self) -> RewardEnsemble:
        """The fitted reward, for use elsewhere."""
        return self.learned.ensemble

    def write(self, folder: Path | str) -> None:
        """Writes the reward as safetensors and the report as JSON. UserError if these files exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with reserve_new_file(RunFolder(folder).reward) as reward, reserve_new_file(folder / REPORT) as report:
            write(reward, to_bytes(self.reward, self.learned.info))
            write(report, to_json(self.report, indent=1).encode())


def fit_reward(
    data: Dataset | Path | str, env_id: str, *, seed: int = 0, trust: bool = False, **settings: Any
) -> RewardFit:
    """Fits a reward model to a dataset, a Parquet file or a run's folder, and validates it on ``env_id``.

    The episodes have uniform random actions and, if a folder holds a run on this environment, also its policy.
    ``settings`` are fields of ``Config``; used are those of the reward, ``n_eval_episodes``, ``action_repeat`` and
    ``protocol`` (default: the dataset's). ``trust`` is as in ``Agent.load``. UserError if a setting is wrong, if the
    environment's sizes are not the dataset's, and if there are too few labels to hold some out.
    """
    env_id = registration.resolve(env_id)
    source, data = (None, data) if isinstance(data, Dataset) else (Path(data), load(Path(data), trust))
    defaults = {
        "total_timesteps": 1000,
        "reward_epochs": EPOCHS,
        "n_eval_episodes": EPISODES,
        "action_repeat": data.action_repeat,
        "protocol": data.protocol,
    }
    config = validate(defaults | {"seed": seed} | settings)
    kind: dict[str, Any] = {"action_repeat": config.action_repeat, "absorb": config.termination == "absorb"}
    kind |= {"kwargs": config.env_kwargs, "flatten": config.flatten}
    env = registration.make(env_id, config.seed, TEST, config.protocol, **kind)
    sizes = _sizes(data, env, env_id)
    train, validation, test = split(data, np.random.default_rng([config.seed, 0]))
    answers = data.store(train)
    reward = RewardEnsemble.of(config, *sizes, torch.Generator().manual_seed(config.seed))
    if config.reward_units == "measured":
        reward.measure(*answers.steps())
    if config.reward_clip:
        reward.clip(*answers.steps())
    reward.labels = len(train)
    epochs = descend(reward, answers, data.preferences(validation), config)
    if not epochs:
        warnings.warn(
            "no reward was learnt: none predicted the labels to stop by better than the random start", stacklevel=2
        )
    reward.pessimism = config.pessimism
    policies: dict[str, Policy] = {"random": uniform_policy(env, np.random.default_rng([config.seed, 2]))}
    if source and (policy := _policy_of(source, env_id, trust)):
        policies["agent"] = policy
    labels = {"train": len(train), "validation": len(validation), "test": len(test)}
    labels["dropped"] = len(data.labelled) - sum(labels.values())
    report = {
        "env": env_id,
        "labels": labels | {"none": len(data) - len(data.labelled)},
        "dataset_sha256": data.sha256(),
        "epochs": epochs,
        **{name: judge(reward, data.preferences(rows)) for name, rows in (("train", train), ("test", test))},
        "correlation": {
            name: correlations(reward, env, policy, config.n_eval_episodes) for name, policy in policies.items()
        },
        "settings": config.model_dump(mode="json"),
    }
    info = RewardInfo.of(reward, env_id, config, env.observation_space, env.action_space)
    return RewardFit(LearnedReward(reward, info), report)


def split(data: Dataset, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to train on, to validate with and to test with: random queries with a label, no segment in two parts.

    A query that shares a segment with a held-out one is dropped. Parts may still share steps if segments overlap.
    UserError if nothing is left to train on.
    """
    rows = data.labelled[torch.from_numpy(rng.permutation(len(data.labelled)))]
    labelled, held_out = len(rows), max(1, round(HELD_OUT * len(rows)))
    parts = []
    for count in (held_out, held_out, labelled):
        part, rows = rows[:count].sort().values, rows[count:]
        used = torch.cat([data.first[part], data.second[part]])
        rows = rows[~(torch.isin(data.first[rows], used) | torch.isin(data.second[rows], used))]
        parts.append(part)
    test, validation, train = parts
    if not len(train):
        raise UserError(f"{labelled} labelled queries are too few, or share too many segments, for any to be held out")
    return train, validation, test


def descend(reward: RewardEnsemble, store: PreferenceBuffer, validation: Preferences, config: Config) -> int:
    """Adam on the members' mean cross-entropy with damping. Returns the number of epochs until the best reward.

    The best reward has the lowest cross-entropy of the mean reward on ``validation``; its weights are kept.
    """
    optimizer = torch.optim.Adam(reward.parameters(), config.reward_lr)
    rng = np.random.default_rng([config.seed, 1])
    weights = bootstrap(len(store), config.ensemble_size, config.seed) if config.member_weights == "bootstrap" else None
    best, lowest = 0, _loss(reward, validation)
    kept = {name: value.clone() for name, value in reward.state_dict().items()}
    for epoch in range(1, config.reward_epochs + 1):
        for rows in store.batches(config.reward_batch, rng):
            batch = store[rows]
            output, size = reward.compare(batch)
            if weights is not None:
                output = weighed(output, weights[:, rows])
            optimizer.zero_grad()
            loss = cross_entropy(output, smoothed(batch.label, config.label_smoothing)).mean()
            (loss + config.reward_damping * size + config.reward_lasso * reward.lasso()).backward()
            optimizer.step()
        if (now := _loss(reward, validation)) < lowest:
            best, lowest = epoch, now
            kept = {name: value.clone() for name, value in reward.state_dict().items()}
        if epoch - best >= PATIENCE:
            break
    reward.load_state_dict(kept)
    return best


@torch.no_grad()
def judge(reward: RewardEnsemble, answers: Preferences) -> dict[str, Any]:
    """Cross-entropy in nats, accuracy with its interval (without ties), and calibration, for B >= 1 pairs."""
    output = logits(reward, answers)
    decided = answers.label != 0.5
    right = ((output > 0) == (answers.label > 0.5))[decided].double().numpy()
    return {
        "cross_entropy": cross_entropy(output, answers.label).mean().item(),
        "accuracy": mean_interval(right, (0, 1)) if len(right) else None,
        **calibration(output, answers.label),
    }


def calibration(output: Tensor, label: Tensor) -> dict[str, Any]:
    """The expected calibration error of logits (B,) for labels (B,), and the bins that have pairs."""
    first_better = output.double().sigmoid()
    confidence = torch.maximum(first_better, 1 - first_better).numpy()
    right = torch.where(first_better >= 0.5, label, 1 - label).double().numpy()
    place = np.minimum((2 * BINS * (confidence - 0.5)).astype(int), BINS - 1)
    rows = [
        {
            "low": 0.5 + number / (2 * BINS),
            "high": 0.5 + (number + 1) / (2 * BINS),
            "pairs": int((place == number).sum()),
            "confidence": float(confidence[place == number].mean()),
            "right": float(right[place == number].mean()),
        }
        for number in np.unique(place).tolist()
    ]
    error = sum(row["pairs"] * abs(row["right"] - row["confidence"]) for row in rows) / len(label)
    return {"calibration_error": error, "reliability": rows}


@torch.no_grad()
def correlations(
    reward: RewardEnsemble, env: gymnasium.Env[np.ndarray, np.ndarray], policy: Policy, episodes: int
) -> dict[str, Any]:
    """Correlation of learnt and true reward, by steps and by episodes' returns. Every policy sees the same episodes."""
    played = [play(env, policy, number) for number in range(episodes)]
    learned = [reward(obs, act).double().numpy() for obs, act, _ in played]
    true = [truth for *_, truth in played]
    returns = (np.array([episode.sum() for episode in column]) for column in (learned, true))
    return {
        "episodes": episodes,
        "steps": sum(map(len, true)),
        "step": correlation(np.concatenate(learned), np.concatenate(true)),
        "return": correlation(*returns),
    }


def play(env: gymnasium.Env[np.ndarray, np.ndarray], policy: Policy, number: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Episode ``number`` of the environment: obs (T, o), actions (T, a) scaled to [-1, 1], true rewards (T,)."""
    env.set_wrapper_attr("episode", number)
    space = env.action_space
    assert isinstance(space, Box)
    obs, _ = env.reset()
    observations, acts, truth, over = list[np.ndarray](), list[np.ndarray](), list[float](), False
    while not over:
        act = policy(obs)
        observations.append(obs)
        acts.append(scale_action(act, space))
        obs, value, terminated, truncated, _ = env.step(act)
        truth.append(float(value))
        over = terminated or truncated
    rows = [torch.from_numpy(np.stack(column).astype(np.float32)) for column in (observations, acts)]
    return rows[0], rows[1], np.array(truth)


def correlation(learned: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """Pearson's r and Spearman's rho of two samples (n,); None if one is constant."""

    def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
        return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0 else None

    return {"pearson": pearson(learned, true), "spearman": pearson(rankdata(learned), rankdata(true))}


def table(report: dict[str, Any]) -> str:
    """A report as text."""

    def shown(value: float | None) -> str:
        return f"{value:.3f}" if value is not None else "undefined"

    labels, test = report["labels"], report["test"]
    accuracy = "undefined (ties only)"
    if test["accuracy"]:
        accuracy = shown_with_interval(test["accuracy"], ".3f")
    lines = [
        "labels: {train} to train, {validation} to stop by, {test} held out, {dropped} dropped (a segment is held out "
        "with another); {none} queries without".format(**labels),
        f"epochs: {report['epochs']}",
        f"held-out accuracy: {accuracy}",
        f"held-out cross-entropy: {test['cross_entropy']:.3f} nats (a coin: 0.693; training: "
        f"{report['train']['cross_entropy']:.3f})",
        f"held-out calibration error: {test['calibration_error']:.3f}",
    ]
    for name, agreement in report["correlation"].items():
        for unit in ("step", "return"):
            lines.append(
                f"correlation with the true reward, {name}, by {unit}: Pearson {shown(agreement[unit]['pearson'])}, "
                f"Spearman {shown(agreement[unit]['spearman'])} ({agreement['episodes']} episodes, "
                f"{agreement['steps']} steps)"
            )
    return "\n".join(lines)


def _sizes(data: Dataset, env: gymnasium.Env[Any, Any], env_id: str) -> tuple[int, int]:
    """Sizes of observations and actions. UserError if the environment's differ."""
    dataset_sizes = data.segments.obs.shape[-1], data.segments.act.shape[-1]
    env_sizes = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    if dataset_sizes != env_sizes:
        raise UserError(
            f"{env_id} has observations of {env_sizes[0]} and actions of {env_sizes[1]} numbers, the dataset's have "
            f"{dataset_sizes[0]} and {dataset_sizes[1]} ({', '.join(sorted(set(data.env_id)))[:200]})"
        )
    if other_envs := set(data.env_id) - {env_id}:
        warnings.warn(f"the dataset is of {', '.join(sorted(other_envs))[:200]}, not of {env_id}", stacklevel=3)
    return dataset_sizes


def _policy_of(folder: Path, env_id: str, trust: bool) -> Policy | None:
    """The policy of a run that has ended on this environment; None if there is none."""
    if not RunFolder(folder).ended:
        return None
    try:
        agent = Agent.load(folder, trust=trust)
    except UserError as error:
        warnings.warn(f"no episodes of the run's policy: {error}", stacklevel=3)
        return None
    return (lambda obs: agent.predict(obs)[0]) if agent.env_id == env_id else None


def uniform_policy(env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> Policy:
    """Uniform random actions in the environment's bounds."""
    space = env.action_space
    assert isinstance(space, Box)
    return lambda obs: rng.uniform(space.low, space.high).astype(space.dtype)


@torch.no_grad()
def _loss(reward: RewardEnsemble, answers: Preferences) -> float:
    return cross_entropy(logits(reward, answers), answers.label).mean().item()
