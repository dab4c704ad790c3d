"""A search finds what is best, stops what falls behind, survives its process, and takes no mistake."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from rlhf_bilevel.__main__ import main, parser
from rlhf_bilevel.cli import run_options
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import read_records
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies import tuning
from rlhf_bilevel.studies.search_space import Choice, Range, Space
from rlhf_bilevel.studies.tuning import TrialRuns, best_trial, open_study, search
from rlhf_bilevel.studies.worker import ELSEWHERE, all_settings
from tests.cli.test_cli import QUICK, fails
from tests.support.faults import child, kill

SPACE: Space = {"x": Range(1e-4, 1.0, log=True, integer=False), "n": Range(1, 9, log=False, integer=True),
                "kind": Choice(("good", "bad"))}  # fmt: skip


def height(chosen: Mapping[str, Any]) -> float:
    """Its greatest value, 0, is at x = .01, n = 4, kind = good."""
    import math

    return -((math.log10(chosen["x"]) + 2) ** 2) - (chosen["n"] - 4) ** 2 / 4 - 2 * (chosen["kind"] == "bad")


class Climb:
    """A run that comes to its height in equal steps, all there at the first look."""

    def __init__(self, goal: float, code: int = 0, parts: int = 5) -> None:
        self.goal, self.code, self.parts, self.stopped = goal, code, parts, False

    def poll(self) -> int:
        return self.code

    def reports(self) -> dict[int, float]:
        return {100 * part // self.parts: self.goal - (self.parts - part) for part in range(1, self.parts + 1)}

    def stop(self) -> None:
        self.stopped = True

    def why(self) -> str:
        return "because"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "TICK", 0.0)


def found(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.state, trial.params, trial.value) for trial in study.trials]


def test_a_search_that_another_process_begins_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from filelock import FileLock

    def late(folder: RunFolder) -> FileLock:
        (folder.path / "tune.yaml").write_text("method: sac\n")
        return FileLock(tmp_path / "lock")

    monkeypatch.setattr(RunFolder, "claim", late)
    command = f"tune pebble --env Pendulum-v1 --steps 400 --tune gamma=0.9..0.99 --out {tmp_path / 'out'}"
    assert "holds a search with method sac, not pebble" in fails(capsys, *command.split())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tune.yaml"]


@pytest.mark.slow
def test_the_best_settings_of_a_known_function_are_found(tmp_path: Path) -> None:
    study = open_study(tmp_path / "tune.db", "none", 100)
    assert search(study, SPACE, 30, lambda _, chosen: Climb(height(chosen), parts=1), report=lambda _: None) == 0
    values = [trial.value for trial in study.trials]
    assert len(values) == 30 and best_trial(study).value == max(values) > -0.02  # type: ignore[type-var]
    assert best_trial(study).value == height(best_trial(study).params)
    assert best_trial(study).params["kind"] == "good" and best_trial(study).params["n"] == 4
    late = [trial.value for trial in study.trials[15:]]
    assert sum(late) / 15 > sum(values[:10]) / 10  # type: ignore[arg-type, operator]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_what_falls_behind_is_stopped_and_what_leads_is_not(tmp_path: Path, pruner: str) -> None:
    study, begun = open_study(tmp_path / "tune.db", pruner, 100), {}

    def begin(number: int, chosen: dict[str, Any]) -> Climb:
        begun[number] = Climb(height(chosen))
        return begun[number]

    search(study, SPACE, 20, begin, report=lambda _: None)
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    assert len(study.trials) == 20 and 3 < len(pruned) < 17
    assert {number for number, climb in begun.items() if climb.stopped} == {trial.number for trial in pruned}
    for trial in pruned if pruner == "median" else []:
        step = max(trial.intermediate_values)
        before = sorted(
            other.intermediate_values[step]
            for other in study.trials[: trial.number]
            if other.state == TrialState.COMPLETE
        )
        assert trial.intermediate_values[step] < before[len(before) // 2] and step > 25


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_to_the_end_that_it_would_have_had(tmp_path: Path) -> None:
    """It is killed before a trial's run begins, and in the middle of another; the two are taken up again."""
    whole = open_study(tmp_path / "whole.db", "median", 100)
    search(whole, SPACE, 12, lambda _, chosen: Climb(height(chosen)), report=lambda _: None)

    def die(at: int, in_the_middle: bool) -> None:
        def begin(number: int, chosen: dict[str, Any]) -> Climb:
            class Doomed(Climb):
                def reports(self) -> dict[int, float]:
                    return dict(list(super().reports().items())[:2])

                def poll(self) -> int:
                    if self.stopped:
                        kill()
                    self.stopped = True  # at the second look
                    return None  # type: ignore[return-value]

            if number == at and not in_the_middle:
                kill()
            return Doomed(height(chosen)) if number == at else Climb(height(chosen))

        study = open_study(tmp_path / "killed.db", "median", 100)
        search(study, SPACE, 12, begin, report=lambda _: None)

    assert child(lambda: die(3, True)) == signal.SIGKILL
    assert child(lambda: die(4, False)) == signal.SIGKILL
    study = open_study(tmp_path / "killed.db", "median", 100)
    assert [trial.state for trial in study.trials][3:] == [TrialState.COMPLETE, TrialState.RUNNING]
    search(study, SPACE, 12, lambda _, chosen: Climb(height(chosen)), report=lambda _: None)
    assert found(study) == found(whole)
    assert search(study, SPACE, 12, lambda *_: pytest.fail("there is nothing left to try")) == 0  # type: ignore[arg-type]


def test_a_trial_that_fails_is_told_and_replaced_by_the_next_call(tmp_path: Path) -> None:
    study, told = open_study(tmp_path / "tune.db", "none", 100), []

    def begin(number: int, chosen: dict[str, Any]) -> Climb:
        if number == 0:
            raise UserError("no such setting")
        return Climb(height(chosen), code=int(number == 2))

    assert search(study, SPACE, 4, begin, jobs=2, report=told.append) == 2
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert "trial 0 failed: no such setting" in told and "trial 2 failed: because" in told
    assert search(study, SPACE, 4, begin, report=told.append) == 0 and len(study.trials) == 6


def planned(out: Path, seed: int, steps: int) -> RunSpec:
    return RunSpec("pebble", "Steer-v0", {"total_timesteps": steps, "seed": seed}, out=out / str(seed))


class Recorded:
    """An engine that writes what a run would: its evaluations, ``returns[seed]`` at 10, 20, ..., one a look."""

    room = 1

    def __init__(self, returns: dict[int, list[float]]) -> None:
        self.returns, self.started, self.stopped, self.elsewhere = returns, [], [], True
        self.started: list[int]

    def start(self, run: RunSpec) -> "Recorded":
        self.run, self.seen = run, 0
        self.started.append(run.seed)
        return self

    def poll(self) -> int | None:
        if self.elsewhere:
            self.elsewhere = False
            return ELSEWHERE
        own, self.seen = self.returns[self.run.seed], self.seen + 1
        rows = [f"{10 * (at + 1)},{value}\n{10 * at + 15},\n" for at, value in enumerate(own[: self.seen])]
        self.run.out.mkdir(exist_ok=True)
        (self.run.out / "progress.csv").write_text("time/total_timesteps,eval/true_return\n" + "".join(rows) + "99,1")
        return 0 if self.seen == len(own) else None

    def stop(self) -> None:
        self.stopped.append(self.run.seed)


def test_a_trials_value_is_that_of_its_last_three_evaluations(tmp_path: Path) -> None:
    engine = Recorded({7: [100.0, 1.0, 2.0, 6.0]})
    engine.elsewhere = False
    training = TrialRuns([planned(tmp_path, 7, 40)], engine)
    while training.poll() is None:
        pass
    assert training.reports()[40] == 3.0


def test_a_trial_without_an_evaluation_fails(tmp_path: Path) -> None:
    class Silent(Climb):
        def reports(self) -> dict[int, float]:
            return {}

    told: list[str] = []
    study = open_study(tmp_path / "tune.db", "none", 100)
    assert search(study, SPACE, 1, lambda *_: Silent(0.0), report=told.append) == 1
    assert "trial 0 failed: it has come to its end without an evaluation" in told


def test_reports_are_the_mean_over_the_seeds_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "PATIENCE", 0.0)
    engine = Recorded({7: [1.0, 4.0], 8: [3.0, 8.0]})
    runs = [planned(tmp_path, seed, 20) for seed in (7, 8)]
    training = TrialRuns(runs, engine)
    assert training.poll() is None and training.reports() == {}  # another process has it: it is tried again
    assert training.poll() is None and training.reports() == {10: 1.0}
    assert training.poll() is None and training.reports() == {10: 1.0, 20: 2.5, 30: 2.0}
    training.stop()
    assert training.poll() == 0 and training.reports() == {10: 1.0, 20: 2.5, 30: 2.0, 40: 4.0}
    assert engine.started == [7, 7, 8] and engine.stopped == [8]


TUNE = "tune pebble --env Pendulum-v1 --steps 300"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "nothing to tune"),
        ("--tune sigm=1..2", "unknown setting 'sigm'; did you mean 'penalty.sigma'?"),
        ("--tune tau=-1..1", "tau=-1: Input should be greater than 0"),
        ("--tune tau=0.1..2", "tau=2: Input should be less than or equal to 1"),
        ("--tune batch_size=16..64.5", "batch_size='64.5': must be a whole number"),
        ("--tune reward_damping=5..1", "the first number must be the smaller one"),
        ("--tune reward_damping=one..5", "'one' is not a number"),
        ("--tune reward_damping=1..5,lgo", "'lgo' is no scale; did you mean 'log'?"),
        ("--tune reset_updates=0..5,log", "begins above 0"),
        ("--tune query=uniform|disagreemet", "query='disagreemet'"),
        ("--tune reset_critics=0..1", "reset_critics is no number"),
        ("--tune reward_damping=5", "give a range, low..high, or at least two values"),
        ("--tune reward_damping", "key=low..high"),
        ("--tune reward_damping=1..5 --tune reward_damping=1..6", "reward_damping is to be tuned twice"),
        ("--tune reward_damping=1..5 --set reward_damping=3", "reward_damping is both set and to be tuned"),
        ("--tune initial_alpha=0.1..0.2", "initial_alpha is called ent_coef now: its values are auto_NUMBER"),
        ("--tune labels=10..50", "labels has an option of its own: --labels"),
        ("--tune learning_starts=1..400", "learning_starts=400"),
        ("--space none.yaml", "none.yaml"),
        ("--tune reward_damping=1..5 --pruner mediam", "unknown pruner 'mediam'; did you mean 'median'?"),
        ("--tune reward_damping=1..5 --trials 0", "'0'"),
        ("--tune reward_damping=1..5 --storage nowhere/tune.db", "there is no folder nowhere"),
        ("--tune reward_damping=1..5 --seed -1", "seed=-1"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in fails(capsys, *TUNE.split(), *options.split())
    assert not list(tmp_path.iterdir())


def test_old_names_may_be_tuned_with_a_warning_and_are_not_set_twice(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    searched: list[Any] = []
    monkeypatch.setattr("rlhf_bilevel.studies.tuning.search", lambda *given: searched.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*TUNE.split(), "--tune", "batch=16..32"])
    assert "batch is called batch_size now" in capsys.readouterr().err
    assert list(searched[0][1]) == ["batch_size"]
    with pytest.raises(SystemExit):
        main([*TUNE.split(), "--tune", "batch_size=16..32", "--set", "batch=8", "--out", "other"])
    assert "batch_size is both set and to be tuned" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_study_by_the_command_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text("reward_lr: 1e-4..1e-2,log\nnet_arch: [[8, 8], [16]]\nreset_critics: [true, no]\n")
    command = [*TUNE.split(), "--labels", "20", *QUICK, "--set", "eval_freq=100", "--space", "space.yaml", "--tune",
               "batch_size=16..32", "--trials", "2", "--out", "out"]  # fmt: skip
    main(command)
    told = capsys.readouterr().out
    study = open_study(Path("out/tune.db"), "median", 300)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    for trial in study.trials:
        run = Path(f"out/trial-{trial.number:04}-seed-1000")
        values = {point.step: point.true_return for point in read_records(run) if point.is_agent}
        assert list(trial.intermediate_values) == list(values) == [100, 200, 300]
        assert trial.intermediate_values[200] == pytest.approx((values[100] + values[200]) / 2)
        assert trial.value == pytest.approx(sum(values.values()) / 3)  # the last three, as compare has it
        settings = yaml.safe_load((run / "config.yaml").read_text())["settings"]
        assert settings["batch_size"] == trial.params["batch_size"] in range(16, 33)
        assert settings["reward_lr"] == trial.params["reward_lr"]
        assert ",".join(map(str, settings["net_arch"])) == trial.params["net_arch"]

    best_run = Path(f"out/trial-{best_trial(study).number:04}-seed-1000/config.yaml")
    train = ["train", "pebble", "--env", "Pendulum-v1", "--preset", "quick", "--seed", "1000"]

    def settings(*words: str) -> dict[str, Any]:
        return all_settings(run_options.spec(parser().parse_args([*train, *words]), "pebble", "Pendulum-v1"))

    by_file = settings("--config", "out/best.yaml")
    words = next(line for line in told.splitlines() if line.startswith("  --set")).split()
    assert by_file == settings("--config", str(best_run), *words)
    longer = settings("--config", "out/best.yaml", "--steps", "100000")
    assert longer["learning_starts"] == 1000  # phases follow from the steps
    assert longer["batch_size"] == by_file["batch_size"]

    main(command)
    assert "trial 0" not in capsys.readouterr().out.split("Best")[0]  # nothing was left to do
    assert "pruner median, not none: choose another --out" in fails(capsys, *command, "--pruner", "none")
    elsewhere = [*command[:-1], "another", "--storage", "out/tune.db"]
    assert "out/tune.db exists already" in fails(capsys, *elsewhere)
