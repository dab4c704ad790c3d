"""What a figure shows: lines, bands, whiskers and names; and tables that come back as they went."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation import plot
from rlhf_bilevel.evaluation.plot import KINDS, draw
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_table, write_table
from rlhf_bilevel.evaluation.statistics import improvement_interval, interval, iqm, mean
from rlhf_bilevel.evaluation.tasks import group_by_task

ROOT = Path(__file__).parents[2]
ENVS = ("dm_control/walker-walk-v0", "dm_control/cartpole-balance-v0")
SEEDS, STEPS = {"pebble": 4, "surf": 3, "sac": 1}, (100, 200, 300)


def value(method: str, env: str, seed: int, step: int) -> float:
    return (step + 7 * seed**2) * (1 + 0.1 * len(method)) + 20 * ENVS.index(env)


ROWS = [
    EvaluationRecord(
        method, env, seed, step, 0 if method == "sac" else step // 10, learner, learner == 0, reached, None, 5, "abc"
    )
    for env in ENVS
    for method, seeds in SEEDS.items()
    for seed in range(seeds)
    for step in STEPS
    for learner, reached in enumerate((value(method, env, seed, step), -1e6))
]
NAMES = ["pebble (30 labels, 4 seeds)", "surf (30 labels, 3 seeds)", "sac (0 labels, 1 seed: no interval)"]


def values(method: str) -> np.ndarray:
    """(steps, tasks, seeds), true returns."""
    return np.array(
        [[[value(method, env, seed, step) for seed in range(SEEDS[method])] for env in ENVS] for step in STEPS]
    )


REFERENCE = values("sac").mean(0)  # (tasks, 1): the mean of its last three evaluations


def test_a_table_comes_back(tmp_path: Path) -> None:
    rows = [row._replace(true_return=round(row.true_return, 2)) for row in ROWS]
    rows[0] = rows[0]._replace(success=0.5, minutes=1.25)
    write_table(rows, tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv") == rows


@pytest.mark.parametrize("kind", KINDS)
def test_equal_runs_give_an_equal_file(tmp_path: Path, kind: str) -> None:
    picture = draw(ROWS, tmp_path / "figure.svg", kind).read_text()
    assert draw(ROWS, tmp_path / "again.svg", kind).read_text() == picture
    assert all(name in picture for name in (NAMES[1:] if kind == "improvement" else NAMES))


def legend(axis) -> list[str]:  # type: ignore[no-untyped-def]
    return [text.get_text() for text in axis.get_legend().get_texts()]


def drawn(draws: Callable[..., None], *more: Any, rows: Sequence[EvaluationRecord] = ROWS) -> list[Any]:
    """The axes of a figure of these rows."""
    figure = Figure()
    draws(figure, group_by_task(rows, together=draws is not plot.draw_curves), *more)
    return figure.axes


def test_curves_have_a_panel_an_environment_a_line_a_method_and_a_band_where_there_are_seeds() -> None:
    axes = drawn(plot.draw_curves)
    assert [axis.get_title() for axis in axes] == list(ENVS)
    for number, axis in enumerate(axes):
        assert legend(axis) == NAMES and len(axis.lines) == 3 and len(axis.collections) == 2  # none for one seed
        assert axis.get_xlabel() == "environment steps (all learners)"
        expected = interval(iqm, values("pebble")[:, [number]], within=(0, 1000))
        assert axis.lines[0].get_xdata().tolist() == list(STEPS)
        np.testing.assert_allclose(axis.lines[0].get_ydata(), expected.value)
        corners = axis.collections[0].get_paths()[0].vertices
        for step, low, high in zip(STEPS, expected.low, expected.high, strict=True):
            here = corners[corners[:, 0] == step, 1]
            assert (here.min(), here.max()) == pytest.approx((low, high))


def test_efficiency_is_the_iqm_of_scores_over_environments_at_each_step() -> None:
    (axis,) = drawn(plot.draw_efficiency)
    assert legend(axis) == NAMES and len(axis.lines) == 3 and len(axis.collections) == 2
    np.testing.assert_allclose(axis.lines[1].get_ydata(), iqm(values("surf") / REFERENCE))
    assert "SAC" in axis.get_ylabel() and axis.get_title() == "2 environments"


def test_profiles_fall_from_one_to_none_where_the_runs_are() -> None:
    (axis,) = drawn(plot.draw_profiles)
    assert legend(axis) == NAMES and len(axis.lines) == 3 and len(axis.collections) == 2
    scores = values("pebble").mean(0) / REFERENCE
    thresholds, shares = axis.lines[0].get_data()
    np.testing.assert_allclose(shares, [(scores > threshold).mean() for threshold in thresholds])
    assert shares[0] == 1 and thresholds[-1] >= scores.max() and shares[-1] == 0


def test_improvement_has_a_whisker_a_method_but_the_baseline() -> None:
    (axis,) = drawn(plot.draw_improvements, "pebble")
    assert [text.get_text() for text in axis.get_yticklabels()] == NAMES[1:]
    surf, sac, even = axis.lines
    expected = improvement_interval(values("surf").mean(0), values("pebble").mean(0))
    assert not axis.patches and axis.collections[0].get_offsets()[0][0] == pytest.approx(expected.value)
    np.testing.assert_allclose(surf.get_xdata(), [expected.low, expected.high])
    assert np.isnan(sac.get_xdata()).all()  # one seed
    assert list(even.get_xdata()) == [0.5, 0.5] and NAMES[0] in axis.get_xlabel()


DRAWS: dict[str, tuple[Any, ...]] = {
    "curves": (plot.draw_curves,), "efficiency": (plot.draw_efficiency,), "profile": (plot.draw_profiles,),
    "improvement": (plot.draw_improvements, None), "aggregate": (plot.draw_aggregates,),
}  # fmt: skip
"""What draws a kind of figure, and its last argument."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [(100,), (100, 200)])
def test_one_seed_is_seen_in_every_kind_of_figure(kind: str, steps: tuple[int, ...]) -> None:
    """Also where its number is 0, and where there is one evaluation, which is no line."""
    row = ROWS[0]._replace(true_return=0.0)
    rows = [row._replace(method=method, step=step) for method in ("pebble", "surf") for step in steps]
    rows = [row._replace(true_return=1.0) if row.method == "pebble" else row for row in rows]
    for axis in drawn(*DRAWS[kind], rows=rows):
        dots = [tuple(point) for dots in axis.collections for point in np.asarray(dots.get_offsets())]
        if kind in ("improvement", "aggregate"):
            expected = 1 if axis.get_title() == "optimality gap" else 0
            assert (expected, len(dots) - 1) in dots and len(dots) == (1 if kind == "improvement" else 2)
        else:
            assert len(axis.lines) == 2 and not dots
            for line in axis.lines:
                assert len(line.get_xdata()) > 1 or line.get_marker() == "o"


def test_what_an_axis_says_is_not_cut_off_at_the_edge_of_the_figure(tmp_path: Path) -> None:
    rows = [row._replace(env=row.env.replace("dm_control", "mine")) for row in ROWS]
    rows += [row._replace(method="random", true_return=0.0) for row in rows if row.method == "pebble"]
    tasks = group_by_task(rows, together=True)
    for kind in KINDS[1:]:
        figure = Figure(layout="constrained")
        draws, *more = DRAWS[kind]
        draws(figure, tasks, *more)
        plot.save_figure(figure, tmp_path / "figure.png")
        for axis in figure.axes:
            for name in [name for name in (axis.xaxis.label, axis.yaxis.label) if name.get_text()]:
                box = name.get_window_extent()
                assert box.x0 >= 0 and box.y0 >= 0, name.get_text()
                assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, name.get_text()


def test_a_legend_hides_nothing_however_many_methods_there_are(tmp_path: Path) -> None:
    rows = [row._replace(method=f"{row.method}-{copy}") for row in ROWS for copy in range(6) if row.method != "sac"]
    rows += [row for row in ROWS if row.method == "sac"]
    for together, draws in ((False, plot.draw_curves), (True, plot.draw_efficiency), (True, plot.draw_profiles)):
        figure = Figure(layout="constrained")
        draws(figure, group_by_task(rows, together=together))
        plot.save_figure(figure, tmp_path / "figure.png")
        for axis in figure.axes:
            box, axes_box = axis.get_legend().get_window_extent(), axis.get_window_extent()
            assert len(legend(axis)) == 13 and box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.width
            assert box.y1 <= axis.xaxis.label.get_window_extent().y0 + 1 < axes_box.y0
            assert axes_box.height > 1.5 * figure.dpi  # inches


def test_curves_against_minutes_show_the_newest_evaluation_as_far_as_all_runs_have_come() -> None:
    rates = {0: 1.0, 1: 2.0}  # minutes in 100 steps, of each seed
    rows = [
        EvaluationRecord("pebble", ENVS[0], seed, step, 0, 0, True, step + seed, None, 5, "", rates[seed] * step / 100)
        for seed in rates
        for step in (0, *STEPS)
    ]
    (axis,) = drawn(plot.draw_curves, "minutes", rows=rows)
    assert axis.get_xlabel() == "labelling minutes"
    assert axis.lines[0].get_xdata().tolist() == [0, 1, 2, 3]
    seeds = np.array([[0, 1], [100, 1], [200, 101], [300, 101]])
    np.testing.assert_allclose(axis.lines[0].get_ydata(), interval(iqm, seeds[:, None], within=(0, 1000)).value)


def test_runs_that_share_no_minutes_are_told() -> None:
    rows = [
        EvaluationRecord("pebble", ENVS[0], seed, 100, 0, 0, True, 1.0, None, 5, "", 2.0 + seed) for seed in range(2)
    ]
    with pytest.raises(UserError, match="pebble: its runs share no labelling minutes"):
        drawn(plot.draw_curves, "minutes", rows=rows)


@pytest.mark.parametrize("name", [r"$\bad$", "_mine"])
def test_a_methods_name_is_shown_as_it_is(name: str, tmp_path: Path) -> None:
    rows = [EvaluationRecord(name, ENVS[0], 0, step, 0, 0, True, 1.0, None, 5, "") for step in STEPS]
    (axis,) = drawn(plot.draw_curves, rows=rows)
    axis.figure.savefig(tmp_path / "figure.svg")
    assert len(axis.legend().get_texts()) == 1


def test_a_table_that_a_spreadsheet_has_written_is_read(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path / "rows.csv")
    rows = read_table(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "rows.csv").read_bytes())
    assert read_table(tmp_path / "rows.csv") == rows


def test_one_evaluation_of_some_seeds_is_a_dot_with_a_whisker() -> None:
    for axis in drawn(plot.draw_curves, rows=[row for row in ROWS if row.step == 100]):
        assert [line.get_marker() for line in axis.lines] == ["o"] * 3
        whiskers = [np.ptp(part.get_segments()[0][:, 1]) for part in axis.collections]
        assert len(whiskers) == 2 and min(whiskers) > 0


def test_an_axis_says_where_an_interval_may_pass_what_is_possible() -> None:
    mine = [row._replace(env=row.env.replace("dm_control", "mine")) for row in ROWS]
    for rows, told in ((ROWS, False), (mine, True), ([row for row in mine if row.seed == 0], False)):
        for draws in (plot.draw_curves, plot.draw_efficiency, plot.draw_aggregates):
            names = " ".join(axis.get_xlabel() + axis.get_ylabel() for axis in drawn(draws, rows=rows))
            assert ("bounds not known: intervals may pass them" in " ".join(names.split())) is told


@pytest.mark.slow
def test_drawing_leaves_matplotlib_as_the_program_has_set_it(tmp_path: Path) -> None:
    """In a process of its own: pytest's has no other backend than what can draw without a display."""
    program = f"""
import matplotlib
matplotlib.use("template")
matplotlib.rcParams["lines.linewidth"] = 7
from matplotlib import pyplot
mine, before = pyplot.figure(), dict(matplotlib.rcParams)
from rlhf_bilevel.evaluation.plot import draw
from tests.evaluation.test_plot import ROWS
for kind in ("curves", "improvement"):
    for suffix in ("svg", "png", "pdf"):
        draw(ROWS, __import__("pathlib").Path({str(tmp_path)!r}) / f"{{kind}}.{{suffix}}", kind)
assert matplotlib.get_backend() == "template" and dict(matplotlib.rcParams) == before
assert pyplot.get_fignums() == [mine.number]
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 6


def test_aggregates_have_four_panels_of_dots_with_intervals() -> None:
    axes = drawn(plot.draw_aggregates)
    assert [axis.get_title() for axis in axes] == ["median", "interquartile mean", "mean", "optimality gap"]
    scores = values("surf").mean(0) / REFERENCE
    within = 0, float((1000 / REFERENCE).max())
    for axis, statistic in zip(axes[1:3], (iqm, mean), strict=True):
        expected = interval(statistic, scores, within=within)
        assert len(axis.collections) == len(axis.lines) == 3
        assert axis.collections[1].get_offsets()[0][0] == pytest.approx(expected.value)
        np.testing.assert_allclose(axis.lines[1].get_xdata(), [expected.low, expected.high])
    assert [text.get_text() for text in axes[0].get_yticklabels()] == NAMES
