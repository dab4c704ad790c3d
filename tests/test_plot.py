"""Statistics over seeds, and tables that come back as they went."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_bilevel.plot import Point, draw, iqm, iqm_interval, read_table, write_table


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    assert iqm(np.array([100.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx(np.mean([2, 3, 4, 5]))
    assert iqm(np.array([1.0, 2, 6])) == 3  # fewer than four: the mean


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        _, low, high = iqm_interval(rng.normal(size=20), resamples=400)
        covered += low <= 0 <= high
    assert 0.85 < covered / 200 <= 1
    assert iqm_interval(np.array([3.0])) == (3, 3, 3)


def test_a_table_comes_back_and_is_drawn(tmp_path: Path) -> None:
    rows = [
        Point(method, "Steer-v0", seed, step, 10, 0, True, float(step + seed), success, 5, "abc")
        for method, success in (("pebble", None), ("sac", 0.5))
        for seed in range(3)
        for step in (100, 200)
    ]
    write_table(rows, tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == rows
    picture = draw(rows, tmp_path / "figure.svg").read_text()
    assert "pebble (10 labels, 3 seeds)" in picture and "sac (10 labels, 3 seeds)" in picture
    assert draw(rows, tmp_path / "again.svg").read_text() == picture
