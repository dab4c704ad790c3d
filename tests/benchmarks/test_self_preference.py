"""Rewards of one run's labels rank the policies of others."""

import csv
import math
from pathlib import Path

import pytest
import torch

from benchmarks.learning import self_preference
from rlhf_bilevel import Agent
from rlhf_bilevel.rewards.forms import LinearReward
from rlhf_bilevel.types import Segments
from tests.conftest import SMALL


def segments(*levels: float) -> Segments:
    """A segment of two steps for each level, which is its observation and its true reward."""
    value = torch.tensor(levels)[:, None].expand(-1, 2).clone()
    return Segments(value[..., None], torch.zeros(len(levels), 2, 1), value)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, (1.0, 1.0, 1.0)), (-1.0, (0.0, 0.0, 0.0))])
def test_shares_are_of_pairs_that_truly_differ(sign: float, expected: tuple[float, float, float]) -> None:
    reward = LinearReward(1, 1, 1, (), torch.Generator())
    with torch.no_grad():
        reward.weights[0].copy_(torch.tensor([[[sign], [0.0]]]))
    own, worse, better = segments(0.3, 0.5), segments(0.1, 0.51), segments(0.9, 1.0)
    assert self_preference.judged(reward, own, [worse, better]) == expected
    assert all(math.isnan(share) for share in self_preference.judged(reward, own, [own]))


@pytest.mark.slow
def test_each_run_is_ranked_by_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LABELS": 20, "SEGMENTS": 6, "MOST_EPOCHS": 2}.items():
        monkeypatch.setattr(self_preference, name, value)
    folders = [tmp_path / f"run{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        Agent("pebble", "Steer-v0", out=folder, **SMALL | {"seed": seed}).learn(400)
    ways = ["as asked", "observations alone, 50 of pre-training", "labels of two runs"]
    monkeypatch.setitem(self_preference.WAYS, ways[1], self_preference.Way(self_preference.STATES, pretraining=8))
    out = tmp_path / "table.csv"
    self_preference.main([*map(str, folders), "--out", str(out), "--ways", *ways])
    rows = list(csv.DictReader(out.open()))
    assert [(row["way"], row["run"]) for row in rows] == [(way, folder.name) for way in ways for folder in folders]
    shares = [float(row[key]) for row in rows for key in ("better", "worse")]
    assert all(math.isnan(share) or 0 <= share <= 1 for share in shares) and not all(map(math.isnan, shares))
