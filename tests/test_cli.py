"""The command line: it works from start to end, and a mistake costs one line and two seconds."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.points import read_table
from tests.faults import child, kill

QUICK = [
    "--preset",
    "quick",
    "--set",
    "eval_episodes=1",
    "--set",
    "segment_length=20",
    "--set",
    "cost_steps=5",
    "--set",
    "reward_epochs=5",
]


def fails(capsys: pytest.CaptureFixture, *command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(command)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and not captured.out
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("trian pebble", "unknown command 'trian'; did you mean 'train'?"),
        ("train pebbel --env Pendulum-v1 --steps 9", "unknown method 'pebbel'; did you mean 'pebble'?"),
        ("train pebble --env Pendulm-v1 --steps 9", "Pendulum-v1"),
        ("train pebble --env walker_wlak --steps 9", "dm_control/walker-walk-v0"),
        ("train pebble --env Meta-World/door-opn-v3 --steps 9", "Meta-World/door-open-v3"),
        ("train pebble --env CartPole-v1 --steps 9", "Discrete(2)"),
        ("train pebble --env Pendulum-v1 --steps ten", "'ten'"),
        ("train pebble --env Pendulum-v1 --steps 0", "'0'"),
        ("train pebble --env Pendulum-v1 --steps 9 --labels -1", "labels=-1"),
        (
            "train pebble --env Pendulum-v1 --steps 9 --lables 5",
            "unknown argument '--lables'; did you mean '--labels'?",
        ),
        ("compare runs --baselin pebble", "unknown argument '--baselin'; did you mean '--baseline'?"),
        ("compare runs --reference twin", "unknown argument '--reference'; known are --baseline, --help, --json, -h"),
        ("sweep pebble pebbel --env Pendulum-v1 --steps 9", "unknown method 'pebbel'; did you mean 'pebble'?"),
        ("sweep pebble --env Pendulm-v1 --steps 9", "Pendulum-v1"),
        ("sweep pebble --env Pendulum-v1 --steps 9 --teacher human", "people label one run at a time"),
        ("tune pebble --env Pendulum-v1 --steps 9 --teacher human", "people label one run at a time"),
        ("train pebble --env Pendulum-v1 --steps 9 --labels-db postgresql://h/d", "only --teacher human has it"),
        ("train pebble --env Pendulum-v1 --steps 9 --max-pending-share 0", "only --teacher human has it"),
        ("train pebble --env Pendulum-v1 --steps 9 --teacher human --max-pending-share 2", "teacher_pending_share=2"),
        (
            "train pebble --env Pendulum-v1 --steps 9 --teacher human --labels-db postgresql://ann:pw@h/d",
            "has a password in it, which config.yaml would hold: set PGPASSWORD or write it to ~/.pgpass",
        ),
        (
            "train pebble --env Pendulum-v1 --steps 9 --teacher human --labels-db postgresql:///d?host=/nowhere",
            "postgresql+psycopg:///d?host=%2Fnowhere cannot be opened",
        ),
        ("sweep pebble --env Pendulum-v1 --steps 9 --seeds 0", "'0'"),
        ("sweep pebble --env Pendulum-v1 --steps 9 --seed -1", "seed=-1"),
        ("sweep pebble --env Pendulum-v1 --steps 9 --device cuda", "no NVIDIA GPU"),
        (
            "sweep pebble --env Pendulum-v1 --env Pendulum-v1 --steps 9",
            "share the folder runs/sweep/pebble-Pendulum-v1-0",
        ),
        ("sweep pebble --env Pendulum-v1 --steps 9 --engine rai", "unknown engine 'rai'; did you mean 'ray'?"),
        ("sweep pebble --env Pendulum-v1 --steps 9 --engine ray --jobs 2", "--jobs is for --engine local"),
        ("train pebble --env Pendulum-v1 --steps 9 --set sigm=1", "unknown setting 'sigm'; did you mean 'sigma'?"),
        ("train pebble --env Pendulum-v1 --steps 9 --set sigma=-1", "sigma=-1"),
        ("train pebble --env Pendulum-v1 --steps 9 --set sigma=big", "sigma='big'"),
        ("train pebble --env Pendulum-v1 --steps 9 --set query=uniformly", "query='uniformly'"),
        ("train pebble --env Pendulum-v1 --steps 9 --set learning_starts=9", "learning_starts=9"),
        ("train pebble --env Pendulum-v1 --steps 9 --set sigma", "key=value"),
        ("train surf --env Pendulum-v1 --steps 9 --set surf.treshold=1", "did you mean 'surf.threshold'?"),
        ("train surf --env Pendulum-v1 --steps 9 --set surf.threshold=2", "surf.threshold=2: "),
        (
            "train surf --env Pendulum-v1 --steps 9 --set srf.threshold=1",
            "no method is called 'srf'; did you mean 'surf'?",
        ),
        ("train pebble --env Pendulum-v1 --steps 9 --preset quik", "unknown preset 'quik'; did you mean 'quick'?"),
        ("train pebble --env Pendulum-v1 --steps 9 --teacher oracel", "did you mean 'oracle'?"),
        ("sweep pebble --env Pendulum-v1 --steps 9 --teacher mistake=2", "teacher_mistake=2"),
        ("train pebble --env Pendulum-v1 --steps 9 --reference none.csv", "none.csv"),
        ("train pebble --env Pendulum-v1 --steps 9 --checkpoint-every soon", "'soon' is no interval"),
        ("train pebble --env Pendulum-v1 --steps 9 --config none.yaml", "none.yaml"),
        ("train pebble --env Pendulum-v1", "--steps is missing"),
        ("train pebble --env Pendulum-v1 --steps 99999999999", "at most 1,000,000,000"),
        ("resume nowhere", "nowhere is not a run's folder"),
        ("evaluate nowhere", "nowhere"),
        ("plot nowhere --out curve.svg", "nowhere"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_the_nearest_right_name(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in fails(capsys, *command.split())
    assert not list(tmp_path.iterdir())  # nothing was written


def test_a_mistake_is_found_without_loading_torch() -> None:
    code = "import sys; from rlhf_bilevel.__main__ import main\ntry: main(sys.argv[1:])\n"
    code += "except SystemExit: print('torch' in sys.modules, 'mujoco' in sys.modules)"
    command = [sys.executable, "-c", code, *["train", "pebble", "--env", "walker_wlak", "--steps", "9"]]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def test_train_evaluate_and_plot(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = "method,env,seed,step,labels,learner,is_agent,true_return,success,episodes,commit\n"
    Path("earlier.csv").write_text(table + "sac,Pendulum-v1,0,450,0,0,1,-150,,5,\n")
    train = [
        "train",
        "penalty",
        "--env",
        "Pendulum-v1",
        "--steps",
        "450",
        "--labels",
        "20",
        "--out",
        "run",
        "--reference",
        "earlier.csv",
    ]
    main([*train, *QUICK])
    told = capsys.readouterr().out
    assert "penalty reached a true return of -" in told and "450 steps with 20 labels" in told
    assert "SAC on the true reward reaches -150" in told and "(mean of 1 seeds)" in told
    assert Path("run/learning_curve.png").stat().st_size > 5000
    main(["evaluate", "run", "--episodes", "2", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["episodes"] == 2 and summary["success"] is None and summary["true_return"]["mean"] < 0
    assert "exists already" in fails(capsys, *train)
    main(["plot", "run", "--out", "curve.svg"])
    assert Path("curve.svg").read_text().startswith("<?xml")


def test_the_doctor_says_what_works_here() -> None:
    # in a process of its own: drawing a picture settles the renderer for a whole process
    report = subprocess.run([sys.executable, "-m", "rlhf_bilevel", "doctor"], capture_output=True, text=True).stdout
    for line in ("gymnasium          ok", "dm_control         ok", "Meta-World         ok", "torch", "pictures"):
        assert line in report


def test_a_run_that_has_not_ended_is_named(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: pebble\n")
    assert f"rlhf-bilevel resume {tmp_path}" in fails(capsys, "evaluate", str(tmp_path))
    assert "no evaluations.csv" in fails(capsys, "plot", str(tmp_path), "--out", "curve.svg")


def test_settings_come_from_a_file_and_options_go_before_it(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "steps: 120\nlabels: 8\nhidden: [16, 16]\nsegment_length: 10\neval_episodes: 1\nreward_hidden: [8]\n"
    )
    train = ["train", "pebble", "--env", "Steer-v0", "--config", str(file)]
    main([*train, "--labels", "6", "--out", str(tmp_path / "run")])
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["settings"]
    assert (settings["steps"], settings["labels"], settings["hidden"]) == (120, 6, [16, 16])
    main(["train", "pebble", "--env", "Steer-v0", "--config", str(tmp_path / "run" / "config.yaml"),
          "--out", str(tmp_path / "again")])  # fmt: skip
    for name in ("policy.safetensors", "evaluations.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    capsys.readouterr()
    file.write_text("steps: 120\nlables: 8\n")
    assert "unknown setting 'lables'; did you mean 'labels'?" in fails(capsys, *train, "--out", str(tmp_path / "new"))
    file.write_text("steps: &a [1, 2]\nlabels: *a\n")
    assert "aliases" in fails(capsys, *train, "--out", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_python_refuses_what_the_command_line_refuses_in_the_same_words() -> None:
    for wrong, told in (
        ({"lables": 5}, "unknown setting 'lables'; did you mean 'labels'?"),
        ({"sigma": -1}, "sigma=-1"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)) as error:
            Agent("pebble", "Pendulum-v1", **wrong).learn(100)
        assert "\n" not in str(error.value)


def test_a_killed_run_is_resumed_and_tells_its_end(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    train = ["train", "pebble", "--env", "Pendulum-v1", "--steps", "700", "--labels", "10", "--checkpoint-every", "1"]
    arguments = [*train, *QUICK, "--set", "update_every=10"]
    main([*arguments, "--out", str(tmp_path / "whole")])
    told = capsys.readouterr().out

    def interrupted() -> None:
        def stop(agent: Agent, run: Any, *rest: Any) -> Any:
            if run.step > 450:
                kill()
            return evaluated(agent, run, *rest)

        evaluated = Agent._evaluate
        Agent._evaluate = stop  # type: ignore[method-assign]
        main([*arguments, "--out", str(tmp_path / "run")])

    assert child(interrupted) == 9
    assert "resume" in fails(capsys, "evaluate", str(tmp_path / "run"))
    main(["resume", str(tmp_path / "run")])
    assert capsys.readouterr().out == told.replace("whole", "run")
    assert "nothing to resume" in fails(capsys, "resume", str(tmp_path / "run"))


def test_the_keyboard_ends_a_run_with_the_command_that_goes_on(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Agent, "_evaluate", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["train", "pebble", "--env", "Pendulum-v1", "--steps", "250", "--out", str(tmp_path / "run"), *QUICK])
    assert stop.value.code == 130
    assert f"interrupted; rlhf-bilevel resume {tmp_path / 'run'} goes on" in capsys.readouterr().err


@pytest.mark.parametrize("size", [["--steps", "999999999"], ["--steps", "9", "--set", "hidden=65536,65536"]])
def test_what_no_memory_holds_is_refused_at_once(
    capsys: pytest.CaptureFixture, tmp_path: Path, size: list[str]
) -> None:
    train = ["train", "penalty", "--env", "dm_control/humanoid-walk-v0", "--out", str(tmp_path / "run")]
    assert "GiB of memory" in fails(capsys, *train, *size)
    assert not (tmp_path / "run").exists()


def test_a_sweep_runs_what_is_missing_alone_or_as_a_cohort(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["sweep", "pebble", "--env", "Pendulum-v1", "--steps", "400", "--labels", "20", "--out", str(tmp_path)]
    main([*command, *QUICK, "--seeds", "2", "--cohort"])
    folders = sorted(path.parent.name for path in tmp_path.glob("*/SHA256SUMS"))
    assert folders == ["pebble-Pendulum-v1-0", "pebble-Pendulum-v1-1"]
    assert capsys.readouterr().out.splitlines()[-2].split()[:2] == ["pebble", "Pendulum-v1"]
    before = (tmp_path / folders[0] / "SHA256SUMS").stat().st_mtime_ns
    main([*command, *QUICK, "--seeds", "3"])
    assert (tmp_path / "pebble-Pendulum-v1-2/SHA256SUMS").is_file()
    assert (tmp_path / folders[0] / "SHA256SUMS").stat().st_mtime_ns == before
    assert capsys.readouterr().out.splitlines()[-2].split()[-1] == "3"
    rows = read_table(tmp_path / "results.csv")
    assert [(row.seed, row.step) for row in rows] == [(0, 400), (1, 400), (2, 400)]
    with pytest.raises(SystemExit):
        main([*command, *QUICK, "--set", "batch=9"])
    assert "is a run with batch=128, not 9: choose another --out" in capsys.readouterr().err


def test_a_sweep_tells_which_runs_failed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = tmp_path / "pebble-Pendulum-v1-0"
    broken.mkdir()
    (broken / "stranger").touch()  # not empty, and not a run's folder
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "pebble", "--env", "Pendulum-v1", "--steps", "400", "--seeds", "1", "--out", str(tmp_path)])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and "1 of 1 runs" in captured.err
    assert f"{broken} failed: rlhf-bilevel: {broken} exists already" in captured.out
    assert f"(all of it: {broken}.log)" in captured.out and Path(f"{broken}.log").is_file()
