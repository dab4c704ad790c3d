"""Methods are compared at equal steps, on one scale, and what cannot be compared is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlhf_bilevel.__main__ import main
from rlhf_bilevel.compare import bounds, budgets, compared, efficiency, grouped, overall, scores, table
from rlhf_bilevel.files import Refused
from rlhf_bilevel.points import Point, write_table
from rlhf_bilevel.statistics import improvement, iqm

WALKER, DOOR = "dm_control/walker-walk-v0", "Meta-World/door-open-v3"


def runs(
    method: str,
    env: str = WALKER,
    value: Callable[[int, int], float] = lambda seed, step: step + seed,
    seeds: int = 3,
    steps: tuple[int, ...] = (100, 200, 300, 400),
    labels: int = 20,
    success: bool = False,
) -> list[Point]:
    """Evaluations of an agent and, worth nothing, of the run's other learner."""
    return [
        Point(method, env, seed, step, labels, learner, learner == 0, reached, reached if success else None, 5, "")
        for seed in range(seeds)
        for step in steps
        for learner, reached in enumerate((value(seed, step), -1e6))
    ]


def test_a_run_counts_with_its_agents_last_three_evaluations() -> None:
    (task,) = grouped(runs("pebble"), together=True)
    np.testing.assert_array_equal(task.ends()["pebble"], [300, 301, 302])


def test_runs_are_compared_at_steps_that_all_share_and_unequal_steps_are_told() -> None:
    rows = runs("pebble", steps=(100, 200, 300, 400)) + runs("surf", steps=(150, 200, 300))
    (task,) = grouped(rows, together=True)
    np.testing.assert_array_equal(task.steps, [200, 300])
    np.testing.assert_array_equal(task.ends()["pebble"], task.ends()["surf"])
    (told,) = budgets([task])
    assert told == f"budgets differ on {WALKER}: runs end at step: pebble 400, surf 300; compared at 300"
    assert grouped(rows, together=False)[0].groups["pebble"].steps.tolist() == [100, 200, 300, 400]


def test_unequal_labels_are_told_but_not_of_a_method_without_any() -> None:
    assert not budgets(grouped(runs("pebble") + runs("sac", labels=0), together=True))
    (told,) = budgets(grouped(runs("pebble") + runs("surf", labels=50), together=True))
    assert "labels at step 400: pebble 20, surf 50" in told
    uneven = runs("pebble", seeds=2) + [row._replace(seed=2, labels=10) for row in runs("pebble", seeds=1)]
    assert "pebble 10 to 20" in budgets(grouped(uneven, together=True))[0]


def test_scores_are_success_or_shares_of_sac_or_of_what_can_be_had() -> None:
    found = scores(grouped(runs("pebble"), together=True))
    np.testing.assert_allclose(found.values["pebble"], [[0.3, 0.301, 0.302]])
    assert found.rule == "true return / 1000" and found.within == (0, 1)

    found = scores(grouped(runs("pebble") + runs("sac", value=lambda *_: 600), together=True))
    np.testing.assert_allclose(found.values["pebble"], [[0.5, 301 / 600, 302 / 600]])
    assert "SAC" in found.rule and found.within == pytest.approx((0, 1000 / 600))

    door = runs("pebble", DOOR, value=lambda seed, _: 0.1 * seed, success=True)
    found = scores(grouped(door, together=True))
    np.testing.assert_allclose(found.values["pebble"], [[0, 0.1, 0.2]])
    assert found.rule == "success" and found.within == (0, 1)
    assert bounds("dm_control/lqr-lqr_2_1-v0", "true_return") == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (runs("pebble", "Pendulum-v1"), "Pendulum-v1: what its true return can reach is not known"),
        (runs("pebble", "Pendulum-v1") + runs("sac", "Pendulum-v1", lambda *_: -150), "SAC's true return is -150"),
        (runs("pebble") + runs("pebble"), "pebble with seed 0 on dm_control/walker-walk-v0 was given twice"),
        (runs("pebble") + runs("surf", steps=(7,)), "no step at which all runs were evaluated"),
        (runs("pebble") + runs("pebble", DOOR, success=True, seeds=2), f"has 3 on {WALKER}, 2 on {DOOR}"),
        (runs("pebble") + runs("surf", DOOR, success=True), f"has 3 on {WALKER}, 0 on {DOOR}"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows: list[Point], told: str) -> None:
    with pytest.raises(Refused, match=told) as error:
        scores(grouped(rows, together=True))
    assert "\n" not in str(error.value)


def test_efficiency_is_of_the_steps_that_all_environments_share() -> None:
    rows = runs("pebble") + runs("pebble", DOOR, lambda seed, step: step / 1000, steps=(200, 400, 600), success=True)
    steps, values = efficiency(grouped(rows, together=True))
    assert steps.tolist() == [200, 400]
    np.testing.assert_allclose(values["pebble"], [[[0.2, 0.201, 0.202], [0.2] * 3], [[0.4, 0.401, 0.402], [0.4] * 3]])
    rows = runs("pebble") + runs("pebble", DOOR, steps=(77,), success=True)
    with pytest.raises(Refused, match="no step"):
        efficiency(grouped(rows, together=True))


def test_the_table_says_iqm_and_improvement_over_the_baseline() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(400, 50, 6), rng.normal(350, 50, 5)
    rows = runs("surf", value=lambda seed, _: ours[seed], seeds=6)
    rows += runs("pebble", value=lambda seed, _: theirs[seed], seeds=5)
    surf, pebble = compared(grouped(rows, together=True), "pebble")
    assert surf[:6] == ("surf", WALKER, "true_return", 6, 20, 400) and pebble.seeds == 5
    assert surf.iqm == pytest.approx(iqm(ours[None])) and surf.low < surf.iqm < surf.high  # type: ignore[operator]
    assert surf.improvement == pytest.approx(improvement(ours[None], theirs[None]))
    assert pebble.baseline is None and pebble.improvement is None
    text = table([surf, pebble]).splitlines()
    assert "P(better than pebble)" in text[0] and f"{surf.iqm:.0f} [{surf.low:.0f}, {surf.high:.0f}]" in text[1]


def test_one_seed_is_said_and_gets_no_interval() -> None:
    rows = compared(grouped(runs("surf", seeds=1) + runs("pebble"), together=True), "pebble")
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
    surf, _ = overall(grouped(rows, together=True), "pebble")
    assert surf.env == "all 2" and surf.measure == "score" and surf.improvement == 0.5  # won on one, lost on the other
    assert surf.iqm == pytest.approx(iqm(np.array([[0.5, 0.501, 0.502], [0.2] * 3])))


def test_the_command_prints_the_table_warns_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(runs("pebble") + runs("surf", labels=50), Path("a.csv"))
    write_table(runs("pebble", "Pendulum-v1"), Path("b.csv"))
    main(["compare", "a.csv", "b.csv"])
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["method", "pebble", "surf", "pebble"]
    assert "warning: budgets differ on dm_control/walker-walk-v0: labels" in captured.err
    assert "warning: no lines over all environments: Pendulum-v1" in captured.err and captured.err.count("\n") == 2
    main(["compare", "a.csv", "--baseline", "surf", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told[0]["baseline"] == "surf" and told[0]["improvement"] == 0.5 and told[1]["improvement"] is None
    Path("c.csv").write_text("step,true_return\n1,2\n")
    for command, told in (
        ("compare a.csv --baseline suft", "no runs of the baseline 'suft'; did you mean 'surf'?"),
        ("compare c.csv", "c.csv is no table of evaluations: it has no column 'method'"),
        ("compare none.csv", "none.csv: no such file"),
        ("plot a.csv --kind improvement --baseline sac --out x.svg", "no runs of the baseline 'sac'"),
        ("plot b.csv --kind profile --out x.svg", "Pendulum-v1: what its true return can reach is not known"),
        ("plot a.csv --kind profil --out x.svg", "unknown kind 'profil'; did you mean 'profile'?"),
        ("plot a.csv --baseline surf --out x.svg", "only --kind improvement"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(command.split())
        captured = capsys.readouterr()
        assert stop.value.code == 2 and told in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not Path("x.svg").exists()
