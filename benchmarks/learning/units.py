"""Does a reward learn more of what it has not seen if its inputs are scaled, or standardised? On a run's labels.

    python -m benchmarks.learning.units RUN [RUN ...] [--labels 40 80] [--seeds 2]

Session by session, as in training, a reward is fitted to the first labels of a run and judged on all that came
later: accuracy on their pairs, and the correlation of learnt with true reward by their steps and by their segments.
``raw`` inputs are as the environment gives them, ``scaled`` ones are divided by their standard deviation, ``measured``
ones, as in training, are counted from their mean, too.
Later pairs were chosen where the rewards of that run disagreed, which is hard on a reward of their kind; the
correlations are less so.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.rewards.bradley_terry import accuracy, cross_entropy, logits
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.runs.asked_queries import read_run
from rlhf_bilevel.types import Preferences
from rlhf_bilevel.utils.json_yaml import read_yaml

UNITS = "raw", "scaled", "measured"
NETWORK: dict[str, Any] = {"reward_form": "network", "reward_lr": 3e-4, "reward_lasso": 0.0}


def fitted(answers: Preferences, count: int, config: Config, units: str) -> RewardEnsemble:
    """By the sessions of ``config``, until ``reward_accuracy`` each time."""
    sizes = answers.first.obs.shape[-1], answers.first.act.shape[-1]
    reward = RewardEnsemble.of(config, *sizes, torch.Generator().manual_seed(config.seed))
    optimizer = torch.optim.Adam(reward.parameters(), config.reward_lr)
    store, rng = PreferenceBuffer(), np.random.default_rng(config.seed)
    for start in range(0, count, config.queries_per_session):
        new = select(answers, slice(start, min(count, start + config.queries_per_session)))
        store.add(new, torch.zeros(len(new.label)))
        if not start and units != "raw":
            reward.measure(*store.steps())
            if units == "scaled":
                reward.center.zero_()
        for _ in range(config.reward_epochs):
            right = 0.0
            for rows in store.batches(config.reward_batch, rng):
                batch = store[rows]
                output, size = reward.compare(batch)
                optimizer.zero_grad()
                (cross_entropy(output, batch.label).mean() + config.reward_damping * size).backward()
                optimizer.step()
                right += accuracy(output, batch.label).mean().item() * len(batch.label) / len(store)
            if right >= config.reward_accuracy:
                break
    return reward


@torch.no_grad()
def judged(reward: RewardEnsemble, answers: Preferences) -> tuple[float, float, float]:
    """Accuracy where there is no tie; correlation with the truth by steps, and by segments."""
    decided = answers.label != 0.5
    right = (logits(reward, answers) > 0) == (answers.label > 0.5)
    learnt = torch.cat([reward(part.obs, part.act) for part in answers[:2]])
    truth = torch.cat([part.env_reward for part in answers[:2]])

    def correlation(one: Tensor, other: Tensor) -> float:
        return float(np.corrcoef(one.flatten(), other.flatten())[0, 1])

    return right[decided].float().mean().item(), correlation(learnt, truth), correlation(learnt.sum(1), truth.sum(1))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--labels", nargs="+", type=int, default=[40, 80])
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| run | labels | units | accuracy on later pairs | correlation by step | by segment |")
    print("|---|---|---|---|---|---|")
    for run in args.runs:
        asked = read_run(run)
        if asked is None:
            raise SystemExit(f"{run} holds no labels")
        answers, own = asked.preferences(asked.labelled), read_yaml(run / "config.yaml")["settings"]
        for count in args.labels:
            if not 0 < count < len(answers.label):
                raise SystemExit(f"--labels {count}: {run} has {len(answers.label)}, some of which must come later")
            for units in UNITS:
                found = [
                    judged(fitted(answers, count, Config(**own | NETWORK | {"seed": seed}), units),
                           select(answers, slice(count, None)))
                    for seed in range(args.seeds)
                ]  # fmt: skip
                told = " | ".join(f"{value:.2f}" for value in np.mean(found, axis=0))
                print(f"| {run.name} | {count} | {units} | {told} |", flush=True)


if __name__ == "__main__":
    main()
