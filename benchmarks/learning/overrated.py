"""Is a reward followed to where no label has been? The policy of each ended run beside the best that was asked about.

    python -m benchmarks.learning.overrated runs/evidence/walker-long/*

All by segment, of as many steps as the run's queries: ``truth`` and ``learned`` return, means over five episodes of the
deterministic policy and over the tenth of the asked segments that is truly best; and how many of the pairs of asked
segments that truly differ by a tenth of the range the reward orders rightly, whether they were asked or not: pairs
from within ten queries of one another, and from thirty or more apart.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rlhf_bilevel import Agent
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.studies.offline_fit import play


class Rated(NamedTuple):
    run: str
    truth: float
    learned: float
    best_truth: float
    best_learned: float
    near_right: float
    far_right: float


def right(truth: np.ndarray, learned: np.ndarray, number: np.ndarray, least: int, most: float) -> float:
    """Share of the pairs of segments (n,) in true order whose queries' numbers differ by least to most; nan: none."""
    one, other = np.triu_indices(len(truth), 1)
    apart = abs(number[one] - number[other])
    told = (abs(truth[one] - truth[other]) > np.ptp(truth) / 10) & (apart >= least) & (apart <= most)
    agree = (truth[one] > truth[other]) == (learned[one] > learned[other])
    return float(agree[told].mean()) if told.any() else float("nan")


def rated(folder: Path, episodes: int = 5) -> Rated:
    agent = Agent.load(folder)
    assert agent.reward is not None
    asked = Dataset.read(folder / "preferences.parquet").preferences()
    length = asked.first.env_reward.shape[1]
    with torch.no_grad():
        parts = [
            (part.env_reward.sum(-1).numpy(), agent.reward(part.obs, part.act).sum(-1).numpy()) for part in asked[:2]
        ]
        truth, learned = (np.concatenate(column) for column in zip(*parts, strict=True))
        number = np.tile(np.arange(len(asked.label)), 2)
        env = agent.make_env()
        played = [play(env, lambda obs: agent.predict(obs, deterministic=True)[0], n) for n in range(episodes)]
        now = [(true.mean() * length, float(agent.reward(obs, act).mean()) * length) for obs, act, true in played]
    best = truth.argsort()[-len(truth) // 10 :]
    policy_truth, policy_learned = np.mean(now, 0).tolist()
    name = f"{folder.parent.name}/{folder.name}"
    near, far = (right(truth, learned, number, *apart) for apart in ((0, 10), (30, np.inf)))
    return Rated(name, policy_truth, policy_learned, truth[best].mean(), learned[best].mean(), near, far)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of ended runs that asked about truth")
    torch.set_num_threads(1)
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(Rated._fields)
    for folder in parser.parse_args(argv).runs:
        name, *values = rated(folder)
        out.writerow([name, *(f"{value:.3g}" for value in values)])


if __name__ == "__main__":
    main()
