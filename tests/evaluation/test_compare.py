"""Methods are compared at equal steps, on one scale, and what cannot be compared is refused in one line."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml

from rlhf_bilevel.__main__ import main
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.compare import rows_by_task, rows_over_all, table
from rlhf_bilevel.evaluation.records import EvaluationRecord, write_table
from rlhf_bilevel.evaluation.scores import scores, scores_by_step
from rlhf_bilevel.evaluation.statistics import improvement, iqm
from rlhf_bilevel.evaluation.tasks import (
    bounds,
    budget_warnings,
    early_sentence,
    final_score,
    group_by_task,
    minutes_warnings,
)
from rlhf_bilevel.runs.report import print_result
from rlhf_bilevel.studies import results
from tests.cli.test_cli import fails

WALKER, DOOR = "dm_control/walker-walk-v0", "Meta-World/door-open-v3"


def runs(
    method: str,
    env: str = WALKER,
    value: Callable[[int, int], float] = lambda seed, step: step + seed,
    seeds: int = 3,
    steps: tuple[int, ...] = (100, 200, 300, 400),
    labels: int = 20,
    success: bool = False,
) -> list[EvaluationRecord]:
    """Evaluations of an agent and, worth nothing, of the run's other learner."""
    return [
        EvaluationRecord(
            method, env, seed, step, labels, learner, learner == 0, reached, reached if success else None, 5, ""
        )
        for seed in range(seeds)
        for step in steps
        for learner, reached in enumerate((value(seed, step), -1e6))
    ]


def test_a_run_counts_with_its_agents_last_three_evaluations() -> None:
    (task,) = group_by_task(runs("pebble"), together=True)
    np.testing.assert_array_equal(task.ends()["pebble"], [300, 301, 302])


def test_runs_are_compared_at_steps_that_all_share_and_unequal_steps_are_told() -> None:
    rows = runs("pebble", steps=(100, 200, 300, 400)) + runs("surf", steps=(150, 200, 300))
    (task,) = group_by_task(rows, together=True)
    np.testing.assert_array_equal(task.steps, [200, 300])
    np.testing.assert_array_equal(task.ends()["pebble"], task.ends()["surf"])
    (told,) = budget_warnings([task])
    assert told == f"budgets differ on {WALKER}: runs end at step: pebble 400, surf 300; compared at 300"
    assert group_by_task(rows, together=False)[0].groups["pebble"].steps.tolist() == [100, 200, 300, 400]


def test_unequal_labels_are_told_but_not_of_a_method_without_any() -> None:
    assert not budget_warnings(group_by_task(runs("pebble") + runs("sac", labels=0), together=True))
    (told,) = budget_warnings(group_by_task(runs("pebble") + runs("surf", labels=50), together=True))
    assert "labels at step 400: pebble 20, surf 50" in told
    uneven = runs("pebble", seeds=2) + [row._replace(seed=2, labels=10) for row in runs("pebble", seeds=1)]
    assert "pebble 10 to 20" in budget_warnings(group_by_task(uneven, together=True))[0]


def test_scores_are_success_or_shares_of_sac_or_of_what_can_be_had() -> None:
    found = scores(group_by_task(runs("pebble"), together=True))
    np.testing.assert_allclose(found.values["pebble"], [[0.3, 0.301, 0.302]])
    assert found.rule == "true return / 1000" and found.within == (0, 1)

    found = scores(group_by_task(runs("pebble") + runs("sac", value=lambda *_: 600), together=True))
    np.testing.assert_allclose(found.values["pebble"], [[0.5, 301 / 600, 302 / 600]])
    assert "SAC" in found.rule and found.within == pytest.approx((0, 1000 / 600))

    door = runs("pebble", DOOR, value=lambda seed, _: 0.1 * seed, success=True)
    found = scores(group_by_task(door, together=True))
    np.testing.assert_allclose(found.values["pebble"], [[0, 0.1, 0.2]])
    assert found.rule == "success" and found.within == (0, 1)
    assert bounds("dm_control/lqr-lqr_2_1-v0", "true_return") == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (runs("pebble", "Pendulum-v1"), "Pendulum-v1: nothing says .* add runs of sac and random"),
        (runs("pebble", "Pendulum-v1") + runs("random", "Pendulum-v1"), "add runs of sac$"),
        (
            runs("pebble") + runs("sac", "Pendulum-v1", lambda *_: -150),
            "SAC's true return is -150.* add runs of random",
        ),
        (
            runs("sac", "Pendulum-v1", lambda *_: -1200) + runs("random", "Pendulum-v1", lambda *_: -1100),
            "-1200, is not above that of random actions, -1100",
        ),
        ([], "there is no evaluation of an agent"),
        ([row._replace(is_agent=False) for row in runs("pebble")], "there is no evaluation of an agent"),
        (runs("pebble", value=lambda *_: math.nan), "pebble with seed 0 on .*: its true_return at step 100 is nan"),
        (runs("pebble") + runs("pebble"), "pebble with seed 0 on dm_control/walker-walk-v0 was given twice"),
        (runs("pebble") + runs("surf", steps=(7,)), "no step at which all runs were evaluated"),
        (runs("pebble") + runs("pebble", DOOR, success=True, seeds=2), f"has 3 on {WALKER}, 2 on {DOOR}"),
        (runs("pebble") + runs("surf", DOOR, success=True), f"has 3 on {WALKER}, 0 on {DOOR}"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows: list[EvaluationRecord], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        scores(group_by_task(rows, together=True))
    assert "\n" not in str(error.value)


def test_efficiency_is_of_the_steps_that_all_environments_share() -> None:
    rows = runs("pebble") + runs("pebble", DOOR, lambda seed, step: step / 1000, steps=(200, 400, 600), success=True)
    steps, values = scores_by_step(group_by_task(rows, together=True))
    assert steps.tolist() == [200, 400]
    np.testing.assert_allclose(values["pebble"], [[[0.2, 0.201, 0.202], [0.2] * 3], [[0.4, 0.401, 0.402], [0.4] * 3]])
    rows = runs("pebble") + runs("pebble", DOOR, steps=(77,), success=True)
    with pytest.raises(UserError, match="no step"):
        scores_by_step(group_by_task(rows, together=True))


def test_the_table_says_iqm_and_improvement_over_the_baseline() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(400, 50, 6), rng.normal(350, 50, 5)
    rows = runs("surf", value=lambda seed, _: ours[seed], seeds=6)
    rows += runs("pebble", value=lambda seed, _: theirs[seed], seeds=5)
    surf, pebble = rows_by_task(group_by_task(rows, together=True), "pebble")
    assert surf[:6] == ("surf", WALKER, "true_return", 6, 20, 400) and pebble.seeds == 5
    assert surf.iqm == pytest.approx(iqm(ours[None])) and surf.low < surf.iqm < surf.high  # type: ignore[operator]
    assert surf.improvement == pytest.approx(improvement(ours[None], theirs[None]))
    assert pebble.baseline is None and pebble.improvement is None
    text = table([surf, pebble]).splitlines()
    assert "P(better than pebble)" in text[0] and f"{surf.iqm:.0f} [{surf.low:.0f}, {surf.high:.0f}]" in text[1]


def test_one_seed_is_said_and_gets_no_interval() -> None:
    rows = rows_by_task(group_by_task(runs("surf", seeds=1) + runs("pebble"), together=True), "pebble")
    assert rows[0].low is None and rows[0].high is None and rows[0].improvement_low is None
    assert table(rows).splitlines()[1].count("(one seed, no interval)") == 2
    assert "no interval" not in table(rows).splitlines()[2]


def test_lines_over_all_environments_are_of_scores() -> None:
    rows = runs("surf", value=lambda seed, _: 500 + seed) + runs("pebble", value=lambda seed, _: 400)
    rows += [
        row
        for method, share in (("surf", 0.2), ("pebble", 0.4))
        for row in runs(method, DOOR, lambda seed, _, share=share: share, success=True)
    ]
    surf, _ = rows_over_all(group_by_task(rows, together=True), "pebble")
    assert surf.env == "all 2" and surf.measure == "score" and surf.improvement == 0.5  # won on one, lost on the other
    assert surf.iqm == pytest.approx(iqm(np.array([[0.5, 0.501, 0.502], [0.2] * 3])))


def test_the_commands_print_the_table_or_draw_warn_and_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(runs("pebble") + runs("surf", labels=50), Path("a.csv"))
    write_table(runs("pebble", "Pendulum-v1"), Path("b.csv"))
    lines, err = said(capsys, "compare", "a.csv", "b.csv")
    assert [line.split()[0] for line in lines[:4]] == ["method", "pebble", "surf", "pebble"]
    assert lines[4:] == [
        "IQM: the interquartile mean, the mean of the middle half of the runs.",
        "Each run counts with the mean of its agent's last 3 evaluations (15 episodes), at steps that all runs share.",
        "P(better than pebble): how probably a run of the method is better than one of pebble.",
        "On dm_control/walker-walk-v0, surf: not known to differ from pebble (the interval includes 0.5).",
        "An interval over 3 seeds says almost nothing: 10 seeds are enough.",
        "Pendulum-v1: bounds not known: intervals may pass them.",  # its runs have passed what is known
    ]
    assert "warning: budgets differ on dm_control/walker-walk-v0: labels" in err[0]
    assert "warning: no lines over all environments: Pendulum-v1" in err[1] and len(err) == 2
    _, (warned,) = said(capsys, "plot", "a.csv", "--kind", "improvement", "--out", "drawn.svg")
    assert "budgets differ on dm_control/walker-walk-v0: labels" in warned and Path("drawn.svg").is_file()
    told = json.loads("".join(said(capsys, "compare", "a.csv", "--baseline", "surf", "--json")[0]))
    assert told[0]["baseline"] == "surf" and told[0]["improvement"] == 0.5 and told[1]["improvement"] is None
    Path("c.csv").write_text("step,true_return\n1,2\n")
    write_table([], Path("d.csv"))
    for command, told in (
        ("compare a.csv --baseline suft", "no runs of the baseline 'suft'; did you mean 'surf'?"),
        ("compare c.csv", "c.csv is no table of evaluations: it has no column 'method'"),
        ("compare none.csv", "none.csv: no such file"),
        ("plot a.csv --kind improvement --baseline sac --out x.svg", "no runs of the baseline 'sac'"),
        ("plot b.csv --kind profile --out x.svg", "Pendulum-v1: nothing says which true return is a good one"),
        ("plot b.csv --kind improvement --out x.svg", "no runs but those of the baseline pebble"),
        ("compare d.csv", "there is no evaluation of an agent"),
        ("plot d.csv --out x.svg", "there is no evaluation of an agent"),
        ("plot a.csv --kind profil --out x.svg", "unknown kind 'profil'; did you mean 'profile'?"),
        ("plot a.csv --baseline surf --out x.svg", "only --kind improvement"),
    ):
        assert told in fails(capsys, *command.split())
    assert not Path("x.svg").exists()


def timed(method: str, rate: float, **more: Any) -> list[EvaluationRecord]:
    """Runs that use ``rate`` labelling minutes in 100 steps; their number of labels grows as their steps."""
    return [row._replace(minutes=rate * row.step / 100, labels=row.step // 10) for row in runs(method, **more)]


def test_at_equal_minutes_each_run_ends_before_it_uses_more() -> None:
    rows = timed("quick", 1) + timed("slow", 2)
    (task,) = group_by_task(rows, together=True, minutes=4.5)
    np.testing.assert_array_equal(task.ends()["quick"], [350, 351, 352])  # steps 300 and 400
    np.testing.assert_array_equal(task.ends()["slow"], [150, 151, 152])
    assert task.groups["quick"].labels == (40, 40) and task.groups["slow"].labels == (20, 20)
    lines = rows_by_task([task], "slow", 4.5)
    assert [(line.method, line.steps, line.labels, line.evaluations, line.minutes) for line in lines] == [
        ("quick", 400, 40, 2, 4.5), ("slow", 400, 20, 2, 4.5)
    ]  # fmt: skip
    told = "the mean of its agent's last 2 evaluations (10 episodes), before it used more than 4.5 labelling minutes."
    assert told in table(lines)
    assert not minutes_warnings([task], 4.1)
    (told,) = minutes_warnings([task], 8.0)
    assert told.endswith("fewer than 8 labelling minutes: quick 4 to 4, slow 4 to 4")
    (most,) = group_by_task(rows, together=True, minutes=100)
    np.testing.assert_array_equal(most.ends()["slow"], most.ends()["quick"])
    (uneven,) = group_by_task(timed("quick", 1) + [row._replace(seed=5) for row in timed("quick", 4, seeds=1)], True, 4)
    np.testing.assert_array_equal(uneven.ends()["quick"], [400, 401, 402, 100])  # one evaluation each, of any step
    assert uneven.groups["quick"].labels == (10, 40)


def test_compare_at_minutes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(timed("quick", 1) + timed("slow", 2), Path("a.csv"))
    write_table(runs("pebble"), Path("old.csv"))
    text = Path("old.csv").read_text().splitlines()
    Path("old.csv").write_text("\n".join(line.rpartition(",")[0] for line in text) + "\n")  # without minutes
    assert "minutes" not in Path("old.csv").read_text()
    out, err = said(capsys, "compare", "a.csv", "--at-minutes", "4")
    assert [line.split()[:5] for line in out[1:3]] == [
        ["quick", WALKER, "3", "40", "400"],
        ["slow", WALKER, "3", "20", "400"],
    ]
    assert not err
    out, (warned,) = said(capsys, "compare", "a.csv", "--at-minutes", "20", "--json")
    assert {row["minutes"] for row in json.loads("".join(out))} == {20}
    assert "fewer than 20 labelling minutes: quick 4 to 4, slow 8 to 8" in warned
    assert said(capsys, "compare", "old.csv")[0][1].startswith("pebble")
    for command, told in (
        ("compare old.csv --at-minutes 4", "pebble with seed 0 on dm_control/walker-walk-v0: its labelling minutes"),
        ("compare a.csv --at-minutes 0.5", "minutes=0.5 are too few: quick with seed 0 on .* has used 1 labelling"),
        ("compare a.csv --at-minutes 0", "--at-minutes: '0' is not a positive number"),
        ("compare a.csv --at-minutes nan", "--at-minutes: 'nan' is not a positive number"),
        ("compare a.csv --at-minutes ten", "--at-minutes: 'ten' is not a positive number"),
        ("plot old.csv --x minutes --out x.svg", "pebble: its labelling minutes are not known"),
        ("plot a.csv --x minute --out x.svg", "unknown x 'minute'; did you mean 'minutes'"),
        ("plot a.csv --x minutes --kind profile --out x.svg", "--x minutes: only --kind curves has it, not profile"),
    ):
        assert re.search(told, fails(capsys, *command.split()))
    assert not Path("x.svg").exists()


PENDULUM = "Pendulum-v1"


def written(
    out: Path, rows: list[EvaluationRecord], ended: bool = True, method_name: str | None = None, **settings: Any
) -> Path:
    """A run's folder as its end leaves it, with all that is read of it here. Each evaluation is one episode."""
    first = rows[0]
    out.mkdir(parents=True)
    told = {"method": first.method, "env": first.env, "commit": "abc", "settings": {"seed": first.seed} | settings}
    told |= {} if method_name is None else {"method_name": method_name}
    (out / "config.yaml").write_text(yaml.safe_dump(told))
    lines = [f"{row.step},{row.labels},{row.learner},{int(row.is_agent)},0,{row.true_return}," for row in rows]
    header = "step,labels,learner,is_agent,episode,true_return,success"
    (out / "evaluations.csv").write_text("\n".join([header, *lines]) + "\n")
    if ended:
        (out / "SHA256SUMS").touch()
    return out


def one(method: str, seed: int = 0, **more: Any) -> list[EvaluationRecord]:
    return [row._replace(seed=seed) for row in runs(method, seeds=1, **more)]


def said(capsys: pytest.CaptureFixture, *command: object) -> tuple[list[str], list[str]]:
    main([str(word) for word in command])
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def test_train_sweep_and_compare_count_a_run_alike_and_say_how(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The last evaluation alone would put them the other way round."""
    steady, lucky = (lambda *_: 500.0), (lambda _, step: 600.0 if step == 400 else 300.0)
    rows = one("pebble", value=steady), one("surf", value=lucky)
    write_table(one("sac", value=lucky) + one("sac", seed=1, value=lambda *_: 300.0), tmp_path / "sac.csv")
    for own in rows:
        written(tmp_path / own[0].method, own)
        print_result(tmp_path / own[0].method, tmp_path / "sac.csv")
    told = [line for line in capsys.readouterr().out.splitlines() if "reached" in line]
    assert "reached a true return of 500 (mean of the last 3 evaluations, 3 episodes)" in told[0]
    assert "reached a true return of 400 (mean of the last 3 evaluations, 3 episodes)" in told[1]
    assert all("SAC on the true reward reaches 350 at the same steps (mean of 2 seeds)" in line for line in told)

    swept = results.table(results.collect(tmp_path)).splitlines()
    assert [line.split()[3] for line in swept[1:3]] == ["500.0", "400.0"]
    counted = "Each run counts with the mean of its agent's last 3 evaluations (3 episodes)"
    assert counted in swept[3]
    out, _ = said(capsys, "compare", tmp_path / "pebble", tmp_path / "surf")
    assert "500 (one seed" in out[1] and "400 (one seed" in out[2]
    assert counted in out[4]
    assert final_score([1, 2, 3, 4]) == 3 and final_score([5, 7]) == 6


def test_compare_says_which_method_is_better_only_where_the_runs_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [
        row
        for method, value in (("pebble", 500.0), ("surf", 700.0), ("rune", 300.0), ("rime", 500.0))
        for seed in range(10)
        for row in one(method, seed=seed, value=lambda _, __, value=value, seed=seed: value + seed)
    ]
    write_table(rows, tmp_path / "a.csv")
    out, _ = said(capsys, "compare", tmp_path / "a.csv")
    told = "surf: better than pebble; rune: worse than pebble; rime: not known to differ from pebble"
    assert f"On dm_control/walker-walk-v0, {told} (the interval includes 0.5)." in out
    out, _ = said(capsys, "compare", tmp_path / "a.csv", "--baseline", "rune")
    assert "On dm_control/walker-walk-v0, pebble, surf, rime: better than rune." in out


def test_evaluations_that_begin_early_in_a_run_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    told = "the evaluations that count begin at step 100 of 300, while much is still learnt: evaluate more often"
    written(tmp_path / "run", one("pebble", steps=(100, 200, 300)))
    print_result(tmp_path / "run", None)
    assert f"Note: {told} with --set eval_freq=30." in capsys.readouterr().out
    write_table(one("pebble", steps=(100, 200, 300)) + one("surf", steps=(100, 200, 300)), tmp_path / "a.csv")
    _, err = said(capsys, "compare", tmp_path / "a.csv")
    assert any(told in line for line in err)
    assert not early_sentence([100, 200, 300, 400]) and not early_sentence([10])


def test_people_are_told_how_to_see_what_they_taught_before_the_true_return(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = written(tmp_path / "run", one("pebble"), teacher_human=True)
    print_result(out, None)
    first, second, third = capsys.readouterr().out.splitlines()[:3]
    assert first.endswith(f"answers of people. Look at it: rlhf-bilevel watch {out}")
    assert "about something else than the question" in second and "reached a true return" in third


def test_train_says_where_the_reference_has_nothing_to_compare_with(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = written(tmp_path / "run", one("pebble"))
    write_table(one("sac", steps=(100, 200, 400)), tmp_path / "sac.csv")
    print_result(out, tmp_path / "sac.csv")
    told = capsys.readouterr().out
    assert "has no run of sac on dm_control/walker-walk-v0 that was evaluated at the same steps (200, 300, 400)" in told


def test_train_says_success_where_the_environment_knows_it_and_nothing_where_no_one_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = written(tmp_path / "run", one("pebble", env=DOOR))
    text = (out / "evaluations.csv").read_text().splitlines()
    (out / "evaluations.csv").write_text("\n".join([text[0], *(line + "1" for line in text[1:])]) + "\n")
    print_result(out, None)
    assert "reached a true return of 300 and a success of 1.00 (mean of the last 3" in capsys.readouterr().out
    (out / "evaluations.csv").unlink()
    print_result(out, None)
    assert capsys.readouterr().out == f"The agent was not evaluated: there is no learning curve.\nRun: {out}\n"


def test_a_sweeps_table_is_by_what_compare_goes_by_and_says_when_runs_have_fewer_evaluations() -> None:
    door = runs("pebble", DOOR, lambda seed, _: 0.1 * seed, seeds=4, success=True)
    lines = results.table(door + one("surf", steps=(100, 200))).splitlines()
    assert "IQM worst seed  best seed" in lines[0] and "least" not in lines[0]  # no interval
    assert lines[1].split() == ["pebble", DOOR, "success", "0.15", "0.00", "0.30", "4"]
    assert lines[2].split() == ["surf", WALKER, "true_return", "150.0", "150.0", "150.0", "1"]
    assert lines[3] == "Each run counts with the mean of its agent's last 2 evaluations (10 to 15 episodes)."
    (mean,) = rows_by_task(group_by_task(runs("pebble", DOOR, lambda seed, _: seed**2, seeds=4), together=True), None)
    swept = results.table(runs("pebble", DOOR, lambda seed, _: seed**2, seeds=4)).splitlines()[1]
    assert mean.iqm == pytest.approx(2.5) == float(swept.split()[3])  # IQM in both
    assert results.table([]) == "No run has ended."


def test_an_interval_stays_within_known_bounds_and_says_where_they_are_not_known() -> None:
    low = {0: -1600.0, 1: -100.0, 2: -100.0}
    rows = runs("pebble", PENDULUM, lambda seed, _: low[seed])
    (row,) = rows_by_task(group_by_task(rows, together=True), None)
    assert row.high == 0 and row.most == 0 and row.low >= row.least and PENDULUM + ":" not in table([row])  # type: ignore[operator]
    (row,) = rows_by_task(group_by_task([row._replace(env="Mine-v0") for row in rows], together=True), None)
    assert row.high > 0 and row.most is None and row.least is None  # type: ignore[operator]
    assert table([row]).splitlines()[-1] == "Mine-v0: bounds not known: intervals may pass them."
    (row,) = rows_by_task(group_by_task([row._replace(env="Reacher-v5") for row in rows], together=True), None)
    assert row.high == 0 and "Reacher-v5: bounds not known" in table([row])  # one of them is not
    (alone,) = rows_by_task(group_by_task(one("pebble", env="Mine-v0"), together=True), None)
    assert "Mine-v0:" not in table([alone])  # it has no interval


@pytest.mark.parametrize("env", ["Pendulum-v1", "MountainCarContinuous-v0", "InvertedPendulum-v5", "Reacher-v5"])
def test_known_bounds_hold_what_an_environment_pays(env: str) -> None:
    low, high = bounds(env, "true_return")
    made = gymnasium.make(env)
    for extreme in (False, True):
        made.reset(seed=0)
        made.action_space.seed(0)
        paid, over = 0.0, False
        while not over:
            action = made.action_space.high if extreme else made.action_space.sample()  # type: ignore[attr-defined]
            _, reward, terminated, truncated, _ = made.step(action)
            paid, over = paid + float(reward), terminated or truncated
        assert low <= paid <= high


def test_scores_lie_between_random_and_sac_where_both_were_run() -> None:
    rows = runs("pebble", PENDULUM, lambda *_: -600) + runs("sac", PENDULUM, lambda *_: -200)
    rows += runs("random", PENDULUM, lambda *_: -1200)
    found = scores(group_by_task(rows, together=True))
    np.testing.assert_allclose(found.values["pebble"], [[0.6] * 3])
    assert found.values["random"].max() == 0 and found.values["sac"].min() == 1
    assert found.rule == "(true return - random's) / (SAC's on the true reward - random's)"
    assert found.within == pytest.approx(((bounds(PENDULUM, "true_return")[0] + 1200) / 1000, 1.2))
    _, values = scores_by_step(group_by_task(rows, together=True))
    np.testing.assert_allclose(values["pebble"], 0.6)

    both = rows + [row for method in ("pebble", "sac", "random") for row in runs(method, DOOR, success=True)]
    lines = rows_over_all(group_by_task(both, together=True), "pebble")
    assert {line.rule for line in lines} == {f"{found.rule}; success"}
    assert f"A score is {found.rule}; success." in table(lines)


def test_json_is_valid_and_says_evaluations_episodes_and_bounds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_table(one("surf", env="Mine-v0", steps=(100, 200)) + runs("pebble", "Mine-v0"), tmp_path / "a.csv")
    out, _ = said(capsys, "compare", tmp_path / "a.csv", "--json")
    surf, pebble = json.loads("".join(out), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert surf["low"] is None and pebble["low"] is not None and surf["improvement_low"] is None
    assert surf["evaluations"] == 2 and surf["episodes"] == 10 and surf["least"] is None and surf["most"] is None


def test_a_folder_of_runs_stands_for_those_that_have_ended(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed in (0, 1):
        written(tmp_path / f"sweep/pebble-{seed}", one("pebble", seed))
        written(tmp_path / f"sweep/more/surf-{seed}", one("surf", seed))
    written(tmp_path / "sweep/pebble-2", one("pebble", 2, steps=(100,)), ended=False)
    (written(tmp_path / "sweep/pebble-3", one("pebble", 3)) / "evaluations.csv").unlink()
    (tmp_path / "sweep/pebble-0/checkpoints").mkdir()
    (tmp_path / "sweep/pebble-0/checkpoints/config.yaml").write_text("a: 1\n")  # no run, whatever it is
    out, err = said(capsys, "compare", tmp_path / "sweep")
    assert [line.split()[:3] for line in out[1:3]] == [["surf", WALKER, "2"], ["pebble", WALKER, "2"]]
    assert err == [
        f"warning: {tmp_path}/sweep: left out 1 of 6 runs, not ended: pebble-2",
        f"warning: {tmp_path}/sweep: left out 1 of 6 runs, never evaluated: pebble-3",
    ]
    figure = tmp_path / "figure.svg"
    assert said(capsys, "plot", tmp_path / "sweep", "--out", figure)[0] == [
        str(figure),
        "Each point is the IQM over seeds of one evaluation, and the band its 95 % interval.",
        "An interval over 2 seeds says almost nothing: 10 seeds are enough.",
    ]
    assert figure.is_file()

    with pytest.warns(UserWarning, match=r"pebble-3 is left out of results.csv"):
        results.collect(tmp_path / "sweep")
    (tmp_path / "kept").mkdir()
    (tmp_path / "sweep/results.csv").rename(tmp_path / "kept/results.csv")  # its runs are gone
    assert said(capsys, "compare", tmp_path / "kept")[0][1].split()[:3] == ["pebble", WALKER, "2"]

    written(tmp_path / "going/pebble", one("pebble"), ended=False)
    assert "holds no run that has ended and was evaluated (of 1)" in fails(capsys, "compare", tmp_path / "going")
    (tmp_path / "empty").mkdir()
    assert "neither a run's folder nor one that holds runs" in fails(capsys, "compare", tmp_path / "empty")
    assert "neither a run's folder nor one that holds runs" in fails(capsys, "plot", "nowhere", "--out", "x.svg")


def test_runs_of_one_method_with_other_settings_are_not_pooled_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a = written(tmp_path / "a", one("pebble"), batch_size=64, total_timesteps=400, options={"x": 1})
    b = written(tmp_path / "b", one("pebble", 1), batch_size=128, total_timesteps=400, options={"x": 2})
    c = written(tmp_path / "c", one("pebble", 2), batch_size=64, total_timesteps=400, options={"x": 1})
    assert said(capsys, "compare", a, c)[1] == []  # they differ in the seed alone
    _, err = said(capsys, "compare", a, b)
    how = "batch_size (64, 128), pebble.x (1, 2)"
    assert err == [f"warning: pebble on {WALKER}: runs count as seeds of one method, but differ in {how}"]
    d = written(tmp_path / "d", one("pebble"), batch_size=128, total_timesteps=400, options={"x": 1})
    twice = fails(capsys, "compare", a, d)
    assert f"pebble with seed 0 on {WALKER} was given twice: {a} and {d}, which differ in batch_size (64, 128)" in twice
    assert f"was given twice: {a} and {a}\n" in fails(capsys, "compare", a, a)


def test_a_name_tells_runs_of_one_method_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed in (0, 1):
        written(tmp_path / f"small/{seed}", one("pebble", seed, value=lambda *_: 300), batch=64)
        written(tmp_path / f"large/{seed}", one("pebble", seed, value=lambda *_: 400), batch=256)
    out, err = said(
        capsys, "compare", f"64={tmp_path}/small", f"256={tmp_path}/large/0", f"256={tmp_path}/large/1",
        "--baseline", "64",
    )  # fmt: skip
    assert [line.split()[0] for line in out[1:3]] == ["64", "256"] and "1.00 [" in out[2] and not err
    written(tmp_path / "small/surf", one("surf"))
    assert "these are of pebble, surf" in fails(capsys, "compare", f"64={tmp_path}/small")
    assert "neither a run's folder" in fails(capsys, "compare", f"64={tmp_path}/none")


def test_a_method_of_the_users_own_is_called_by_its_own_name_where_no_other_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tempered, named = tmp_path / "tempered", "mine:METHOD"
    for seed in range(2):
        written(tempered / str(seed), one(named, seed), method_name="tempered")
        written(tmp_path / f"pebble/{seed}", one("pebble", seed))
    print_result(tempered / "0", None)
    assert capsys.readouterr().out.startswith("tempered reached a true return of 300 ")
    assert results.table(results.collect(tempered)).splitlines()[1].startswith("tempered ")
    assert "mine:METHOD" in (tempered / "results.csv").read_text()  # the table keeps what tells methods apart
    for baseline in ("tempered", named):
        out, _ = said(capsys, "compare", tempered, tmp_path / "pebble", "--baseline", baseline)
        assert "P(better than tempered)" in out[0]
        assert [line.split()[0] for line in out[1:3]] == ["tempered", "pebble"]
    figure = tmp_path / "x.svg"
    said(capsys, "plot", tempered, tmp_path / "pebble", "--kind", "improvement", "--baseline", named, "--out", figure)
    assert "tempered (20 labels, 2 seeds)" in figure.read_text() and "mine" not in figure.read_text()

    written(tmp_path / "other", one("theirs:METHOD"), method_name="tempered")
    written(tmp_path / "like ours", one("mine:LIKE_OURS"), method_name="pebble")
    out, _ = said(capsys, "compare", tempered, tmp_path / "other", tmp_path / "pebble", tmp_path / "like ours")
    assert [line.split()[0] for line in out[1:5]] == [named, "theirs:METHOD", "pebble", "mine:LIKE_OURS"]
    out, _ = said(capsys, "compare", f"my pebble={tmp_path / 'like ours'}", tempered)
    assert [line.split("  ")[0] for line in out[1:3]] == ["my pebble", "tempered"]


def test_few_seeds_are_told_but_neither_one_nor_many(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def told(*counts: int) -> list[str]:
        methods = ("pebble", "surf", "sac")
        rows = [row for method, seeds in zip(methods, counts, strict=False) for row in runs(method, seeds=seeds)]
        return [line for line in table(rows_by_task(group_by_task(rows, True), None)).splitlines() if "nothing" in line]

    assert told(1, 4, 10) == []
    assert told(2, 4, 3) == ["An interval over 2 or 3 seeds says almost nothing: 10 seeds are enough."]
    write_table(runs("pebble", seeds=2) + runs("surf", seeds=5), tmp_path / "a.csv")
    out, _ = said(capsys, "plot", tmp_path / "a.csv", "--kind", "profile", "--out", tmp_path / "x.svg")
    assert out[1:] == [
        "Each run counts with the mean of its agent's last 3 evaluations (15 episodes).",
        "An interval over 2 seeds says almost nothing: 10 seeds are enough.",
    ]


def test_runs_on_another_environment_than_its_name_says_or_with_another_teacher_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pebble = written(tmp_path / "pebble", one("pebble"), action_repeat=2, teacher_mistake=0.1)
    surf = written(tmp_path / "surf", one("surf"), action_repeat=4, teacher_mistake=0.0)
    sac = written(tmp_path / "sac", one("sac", labels=0), action_repeat=4, teacher_mistake=0.0)
    _, err = said(capsys, "compare", pebble, surf, sac)
    assert err == [
        f"warning: runs on {WALKER} differ in action_repeat, pebble 2, surf 4, sac 4:"
        " equal steps are not equal simulator steps",
        f"warning: runs on {WALKER} differ in teacher_mistake, pebble 0.1, surf 0.0: they learnt from other answers",
    ]
    assert said(capsys, "compare", surf, sac)[1] == []
