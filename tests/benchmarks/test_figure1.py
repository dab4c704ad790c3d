"""Figure 1: all that is compared has one budget, and the figure is drawn of whatever has ended."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.learning import evidence, figure1, overrated
from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.agent import Agent
from rlhf_bilevel.cli import run_options
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_table, write_table
from rlhf_bilevel.studies import batched_seeds
from rlhf_bilevel.studies.batched_seeds import learn_together
from rlhf_bilevel.studies.worker import all_settings


@pytest.mark.parametrize("scale", figure1.SCALES)
def test_all_variants_of_a_panel_have_one_budget_and_differ(scale: str) -> None:
    for name, panel in figure1.SCALES[scale].items():
        members = figure1.group(scale, name, panel)
        assert len({one.run.out for one in members}) == len(members) == sum(panel.seeds.values())
        settings = {variant: (run.method, run.settings) for variant, run in members}
        budgets = {(told["total_timesteps"], told["labels"]) for _, told in settings.values()}
        assert budgets == {(panel.steps, panel.labels)}
        without_seed = [(method, {**told, "seed": 0}) for method, told in settings.values()]
        assert all(without_seed.count(one) == 1 for one in without_seed)


def test_a_folder_with_a_run_of_other_settings_is_not_taken_for_the_one_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (one,) = figure1.group("smoke", "walker-100", figure1.SCALES["smoke"]["walker-100"])[:1]
    told = all_settings(one.run)
    one.run.out.mkdir(parents=True)
    (one.run.out / "config.yaml").write_text(
        yaml.safe_dump({"method": one.run.method, "env": one.run.env, "settings": told | {"batch_size": 33}})
    )
    with pytest.raises(SystemExit, match="batch_size=33, not 32"):
        evidence.gather({"some": [one]}, workers=0, results=tmp_path)


@pytest.mark.parametrize(("panel", "env"), [("walker-100", "walker_walk"), ("door-1000", "metaworld_door-open-v2")])
def test_the_preset_on_the_command_line_is_what_the_figure_has(panel: str, env: str) -> None:
    members = figure1.group("cpu", panel, figure1.SCALES["cpu"][panel])
    assert {run.settings["seed"] for _, run in members} == set(range(330, 330 + len(members) // 3))
    for _, run in members:
        words = f"train {run.method} --env {env} --preset figure1 --seed {run.settings['seed']}".split()
        typed = run_options.spec(parser().parse_args(words), run.method, env)
        assert (typed.env, typed.resolve()) == (run.env, run.resolve())


@pytest.mark.slow
def test_a_cohort_has_the_seeds_of_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun = []

    def seen(agents: list[Agent], *rest: Any, **own: Any) -> None:
        begun.append([agent.out.name for agent in agents if agent.out])
        learn_together(agents, *rest, **own)

    monkeypatch.setattr(batched_seeds, "learn_together", seen)
    few = {"preset": "quick", "labels": 20, "eval_freq": 200, "n_eval_episodes": 1}
    members = [
        evidence.named("some", name, "pebble", "Pendulum-v1", seed, 400, few | own)
        for seed in (0, 1)
        for name, own in {"plain": {}, "small": {"batch_size": 32}}.items()
    ]
    evidence.gather({"some": members}, workers=2, results=tmp_path, cohort=True)
    assert begun == [["plain-0", "plain-1"], ["small-0", "small-1"]]
    rows = read_table(tmp_path / "some.csv")
    assert [(row.method, row.seed, row.step) for row in rows] == [
        (one.name, one.run.seed, step) for one in members for step in (200, 400)
    ]
    assert len({row.true_return for row in rows}) == len(rows)


def test_what_has_ended_is_kept_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no run is
    panel = figure1.SCALES["smoke"]["walker-100"]
    members = figure1.group("smoke", "walker-100", panel)
    rows = [
        EvaluationRecord(name, run.env, run.seed, step, step // 100, 0, True, 100.0 * run.seed + step, None, 1, "")
        for name, run in members[:4]
        for step in (1000, panel.steps)
    ]
    table = tmp_path / "walker.csv"
    write_table(rows, table)
    assert [evidence.in_results(table, one) for one in members] == [True] * 4 + [False] * (len(members) - 4)
    evidence.collect(table, members)  # what the table had stays
    assert read_table(table) == rows
    outs = [tmp_path / "figure.svg", tmp_path / "figure.png"]
    figure1.draw({"walker": table, "door": tmp_path / "none.csv"}, {"walker": "walker"}, figure1.MAIN, outs)
    assert all(out.stat().st_size > 10_000 for out in outs)
    drawn = outs[0].read_bytes()
    figure1.draw({"walker": table}, {"walker": "walker"}, figure1.MAIN, outs[:1])
    assert outs[0].read_bytes() == drawn


def test_pairs_rated_rightly_are_told_apart_by_how_far_apart_they_were_asked() -> None:
    truth = np.array([0.0, 10.0, 5.0, 5.2])  # the last two differ by too little to count
    number = np.array([0, 1, 40, 41])
    learned = np.array([0.0, 1.0, 2.0, 2.0])  # right from 0 to 1, and from the first to the later two; wrong of 10 > 5
    assert overrated.right(truth, learned, number, 0, 10) == 1
    assert overrated.right(truth, learned, number, 30, np.inf) == 0.5
    assert np.isnan(overrated.right(truth, learned, number, 60, np.inf))
