"""Does a reward prefer the policy that it was learnt beside? Rewards of one run's labels rank the policies of others.

    python -m benchmarks.learning.self_preference RUN RUN ... --out benchmarks/results/self-preference.csv

Takes three or more ended runs on the same environment, with a simulated teacher. For each run and each way of fitting a
new reward to ``LABELS`` of its labels, segments of the run's own policy after the last label meet those of the other
runs' policies, and the table has the shares of pairs that the reward orders as the true return does:

    better      pairs in which the other run's segment is truly better
    worse       pairs in which it is truly worse
    policies    the same, of means over whole policies that are truly better than the run's own

A reward that prefers what it was learnt beside has a small share of ``better`` and a large one of ``worse``. A way of
fitting is a set of settings, and where its labels come from: the run's own queries, partly pairs of its pre-training
(what ``initial_comparison_frac`` asks about), or partly the queries of other runs.
"""

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from rlhf_bilevel import Agent
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.rewards.bradley_terry import accuracy, cross_entropy
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.types import Preferences, Segments

LABELS, SEGMENTS = 100, 80  # for each reward; of each policy
EXTRA_EPOCHS, MOST_EPOCHS = 15, 600  # after the first epoch that orders 97 % of the pairs rightly; of all
APART = 0.08  # two segments' true returns differ if they do by this much of a step's largest reward
NETWORK: dict[str, Any] = {"reward_form": "network", "reward_net_arch": (64, 64), "reward_lr": 3e-4, "reward_lasso": 0}


class Way(NamedTuple):
    """How a reward is fitted: with which settings, and to how many of its labels from elsewhere."""

    settings: Mapping[str, Any] = {}
    pretraining: int = 0
    wrong: float = 0.0  # so many of these labels are turned
    other_runs: int = 1  # so many runs give equal parts of the labels, this one among them


STATES = {"reward_use_action": False}
ADDITIVE = {"reward_form": "additive", "reward_lr": 0.01}
WAYS = {
    "as asked": Way(),
    "as asked, networks of 3 x 256": Way({"reward_net_arch": (256, 256, 256)}),
    "ten members": Way({"ensemble_size": 10}),
    "damping 3": Way({"reward_damping": 3.0}),
    "quadratic": Way({"reward_form": "quadratic"}),
    "observations alone": Way(STATES),
    "25 of pre-training": Way(pretraining=25),
    "50 of pre-training": Way(pretraining=50),
    "50 of pre-training, one in five wrong": Way(pretraining=50, wrong=0.2),
    "observations alone, 25 of pre-training": Way(STATES, pretraining=25),
    "observations alone, 50 of pre-training": Way(STATES, pretraining=50),
    "additive": Way(STATES | ADDITIVE, pretraining=50),
    "additive, lasso": Way(STATES | ADDITIVE | {"reward_lasso": 0.1}, pretraining=50),
    "labels of two runs": Way(other_runs=2),
    "labels of four runs": Way(other_runs=4),
}


class Behaviour(NamedTuple):
    """What a run leaves behind: its labels, and segments of three times."""

    name: str
    config: Config
    labels: Preferences
    pretraining: Segments
    after: Segments  # of the tenth of the run that follows the last label
    end: Segments  # of its last tenth


def rows(folder: Path) -> dict[str, torch.Tensor]:
    """All that a run has stored, row by row."""
    files = {int(file.stem.split("-")[1]): file for file in (folder / "checkpoints").glob("rows-*.safetensors")}
    pieces = [load_file(file) for _, file in sorted(files.items())]
    return {key: torch.cat([piece[key] for piece in pieces]) for key in ("obs", "act", "env_reward")}


def cut(table: Mapping[str, torch.Tensor], start: int, end: int, count: int, length: int, seed: int) -> Segments:
    """``count`` random segments of the rows from ``start`` to ``end``."""
    begins = torch.from_numpy(np.random.default_rng(seed).integers(start, end - length, count))
    index = begins[:, None] + torch.arange(length)
    return Segments(*(table[key][index] for key in ("obs", "act", "env_reward")))


def behaviour(folder: Path) -> Behaviour:
    c, table = Agent.load(folder).config, rows(folder)
    assert c and len(table["obs"]) == c.total_timesteps, f"{folder} has not all of its rows"
    later_labels = c.training_labels - (c.initial_labels or c.queries_per_session)
    last_label = c.first_session + math.ceil(later_labels / c.queries_per_session) * c.num_interact
    tenth, pretraining = c.total_timesteps // 10, c.learning_starts + c.pretrain_steps
    spans = (0, pretraining), (last_label, last_label + tenth), (c.total_timesteps - tenth, c.total_timesteps)
    counts = 2 * LABELS, SEGMENTS, SEGMENTS
    wanted = enumerate(zip(spans, counts, strict=True))
    parts = [cut(table, *span, count, c.segment_length, seed) for seed, (span, count) in wanted]
    return Behaviour(folder.name, c, Dataset.read(RunFolder(folder).preferences).preferences(), *parts)


def labels_for(way: Way, runs: Sequence[Behaviour], number: int) -> Preferences:
    """``LABELS`` labelled pairs, the run's newest ones among them."""
    sources = [runs[(number + shift) % len(runs)] for shift in range(way.other_runs)]
    own = (LABELS - way.pretraining) // way.other_runs
    parts = [select(source.labels, slice(-own, None)) for source in sources if own]
    if way.pretraining:
        drawn = runs[number].pretraining
        first, second = (Segments(*(column[half::2][: way.pretraining] for column in drawn)) for half in (0, 1))
        better = first.env_reward.sum(-1) > second.env_reward.sum(-1)
        better ^= torch.from_numpy(np.random.default_rng(number).random(way.pretraining) < way.wrong)
        parts.append(Preferences(first, second, better.float()))
    first, second = (Segments(*map(torch.cat, zip(*(p[side] for p in parts), strict=True))) for side in (0, 1))
    return Preferences(first, second, torch.cat([p.label for p in parts]))


def fitted(way: Way, config: Config, pairs: Preferences) -> RewardEnsemble:
    """A new reward, fitted to the pairs by the loss of PEBBLE and a run's damping."""
    c = validate(config.model_dump() | NETWORK | dict(way.settings))
    sizes = pairs.first.obs.shape[-1], pairs.first.act.shape[-1]
    reward = RewardEnsemble.of(c, *sizes, torch.Generator().manual_seed(c.seed))
    store, rng = PreferenceBuffer(), np.random.default_rng(c.seed)
    store.add(pairs, torch.zeros(len(pairs.label)))
    reward.measure(*store.steps())
    optimizer, extra = torch.optim.Adam(reward.parameters(), c.reward_lr), 0
    for _ in range(MOST_EPOCHS):
        right = 0.0
        for chosen in store.batches(c.reward_batch, rng):
            logits, mean_square = reward.compare(store[chosen])
            loss = cross_entropy(logits, store[chosen].label).mean() + c.reward_damping * mean_square
            loss = loss + c.reward_lasso * reward.lasso()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += accuracy(logits, store[chosen].label).mean().item() * len(chosen) / len(pairs.label)
        extra += right >= c.reward_accuracy
        if extra >= EXTRA_EPOCHS:
            break
    return reward


@torch.no_grad()
def judged(reward: RewardEnsemble, own: Segments, others: Sequence[Segments]) -> tuple[float, float, float]:
    """The shares ``better``, ``worse`` and ``policies``: nan where there is no such pair."""
    mine, true_mine = reward(own.obs, own.act).sum(-1), own.env_reward.sum(-1)
    least = APART * own.obs.shape[1] * float(max(part.env_reward.max() for part in [own, *others]))
    found: dict[str, list[float]] = {"better": [], "worse": [], "policies": []}
    for other in others:
        theirs, true_theirs = reward(other.obs, other.act).sum(-1), other.env_reward.sum(-1)
        for name, told in (("better", true_theirs - true_mine > least), ("worse", true_mine - true_theirs > least)):
            if told.any():
                found[name].append(((theirs > mine) == (name == "better"))[told].float().mean().item())
        if true_theirs.mean() - true_mine.mean() > least:
            found["policies"].append(float(theirs.mean() > mine.mean()))
    better, worse, policies = (float(np.mean(values)) if values else float("nan") for values in found.values())
    return better, worse, policies


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of ended runs that keep their checkpoints")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs = [behaviour(folder) for folder in args.runs]
    with args.out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["way", "run", "better", "worse", "policies"])
        for name in args.ways:
            results = []
            for number, run in enumerate(runs):
                reward = fitted(WAYS[name], run.config, labels_for(WAYS[name], runs, number))
                given = {runs[(number + shift) % len(runs)].name for shift in range(WAYS[name].other_runs)} | {run.name}
                others = [part for other in runs if other.name not in given for part in (other.after, other.end)]
                results.append(judged(reward, run.after, others))
                table.writerow([name, run.name, *(f"{value:.3f}" for value in results[-1])])
            file.flush()
            print(f"{name:45}", *(f"{value:.2f}" for value in np.nanmean(results, 0)), flush=True)


if __name__ == "__main__":
    main()
