"""The command line: it works from start to end, and a mistake costs one line and two seconds."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rlhf_bilevel.__main__ import COMMANDS, main, parser
from rlhf_bilevel.cli.run_options import assigned, spec
from rlhf_bilevel.config.reading import parse_checkpoint_every, validate
from rlhf_bilevel.data.label_log import LabelLog
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_table, write_table
from rlhf_bilevel.runs import evaluations
from rlhf_bilevel.training.query_session import labelling_minutes
from rlhf_bilevel.types import Preferences, Segments
from rlhf_bilevel.utils.files import one_line, write
from rlhf_bilevel.utils.json_yaml import read_yaml, to_json
from tests.support.faults import child, kill

QUICK = ["--preset", "quick", "--set", "n_eval_episodes=1", "--set", "segment_length=20", "--set", "reward_epochs=5"]


def exits(*command: object) -> Any:
    """The code with which the command line ends."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in command])
    return stop.value.code


def fails(capsys: pytest.CaptureFixture, *command: object) -> str:
    """The one line with which the command line refuses."""
    code, captured = exits(*command), capsys.readouterr()
    assert code == 2 and not captured.out
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


LONG = "x" * 300
TRAIN, SWEEP = "train pebble --env Pendulum-v1 --steps 300", "sweep pebble --env Pendulum-v1 --steps 300"
SURF = "train surf --env Pendulum-v1 --steps 9"
TUNE = "tune pebble --env Pendulum-v1 --steps 300 --tune reward_damping=1..5"
FILES = {
    "file": "text",
    "empty.sqlite": "",
    "number.yaml": "total_timesteps: 300\n5: 1\n",
    "null.yaml": "total_timesteps: 300\n~: 1\n",
    "date.yaml": "total_timesteps: 300\n2020-01-01: 1\n",
    "twice.yaml": "total_timesteps: 300\nlabels: 4\ntotal_timesteps: 400\n",
    "list.yaml": "[steps, 300]\n",
    "later.yaml": "version: 99\nsettings: {total_timesteps: 300}\n",
    "unsettled.yaml": "method: pebble\nsettings: [300]\n",
    "teacher.yaml": "teacher: [1]\nsettings: {total_timesteps: 300}\n",
    "raises.py": "raise KeyError('no key')\n",
    "exits.py": "raise SystemExit(3)\n",
    "makes.py": """
import gymnasium
class Raises(gymnasium.Env):
    def __init__(self):
        raise FileNotFoundError(2, "No such file", "robot.xml")
class Asks(gymnasium.Env):
    def __init__(self, size): ...
gymnasium.register("Raises-v0", Raises)
gymnasium.register("Asks-v0", Asks)
gymnasium.register("Bare-v0", gymnasium.Env)
gymnasium.register("Needs-v0", "package_that_is_not_here:Env")
""",
    "other.csv": "a,b\n1,2\n",
    "words.csv": f"{','.join(EvaluationRecord._fields)}\nsac,Pendulum-v1,zero,450,0,0,1,-150,,5,\n",
    "short.csv": f"{','.join(EvaluationRecord._fields)}\nsac,Pendulum-v1\n",
}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("trian pebble", "unknown command 'trian'; did you mean 'train'?"),
        ("train pebbel --env Pendulum-v1 --steps 9", "unknown method 'pebbel'; did you mean 'pebble'?"),
        ("TRAIN pebble --env Pendulum-v1 --steps 9", "unknown command 'TRAIN'; did you mean 'train'?"),
        ("train PEBBLE --env Pendulum-v1 --steps 9", "unknown method 'PEBBLE'; did you mean 'pebble'?"),
        (f"{TRAIN} --batch 3", "batch_size is a setting: --set batch_size=VALUE"),
        (f"{TRAIN} --learning-rate=3", "--set learning_rate=VALUE"),
        (f"{TRAIN} --set env=3", "unknown setting 'env'; rlhf-bilevel settings lists"),
        (f"{TRAIN} --set surf.threshold=.9", "surf alone has it, and this is pebble"),
        (f"{TUNE} --tune surf.threshold=.5...9", "surf alone has it"),
        (f"{TRAIN} --teacher replay=.", ".: is a folder; a run's labels are in labels.s"),
        ("train pebble --env Pendulm-v1 --steps 9", "Pendulum-v1"),
        ("train pebble --env walker_wlak --steps 9", "dm_control/walker-walk-v0"),
        ("train pebble --env Meta-World/door-opn-v3 --steps 9", "Meta-World/door-open-v3"),
        ("train pebble --env CartPole-v1 --steps 9", "Discrete(2)"),
        (f"{TRAIN} --steps ten", "'ten'"),
        (f"{TRAIN} --steps 0", "'0'"),
        (f"{TRAIN} --labels -1", "labels=-1"),
        (f"{TRAIN} --lables 5", "unknown argument '--lables'; did you mean '--labels'?"),
        ("compare runs --baselin pebble", "unknown argument '--baselin'; did you mean '--baseline'?"),
        (
            "compare runs --reference twin",
            "unknown argument '--reference'; known are --at-minutes, --baseline, --help, --json, -h",
        ),
        ("sweep pebble pebbel --env Pendulum-v1 --steps 9", "unknown method 'pebbel'; did you mean 'pebble'?"),
        ("sweep pebble --env Pendulm-v1 --steps 9", "Pendulum-v1"),
        (f"{SWEEP} --teacher human", "people label one run at a time"),
        (f"{TUNE} --teacher human", "people label one run at a time"),
        (f"{TRAIN} --labels-db postgresql://h/d", "only --teacher human has it"),
        (f"{TRAIN} --max-pending-share 0", "only --teacher human has it"),
        (f"{TRAIN} --teacher human --max-pending-share 2", "teacher_pending_share=2"),
        (
            f"{TRAIN} --teacher human --labels-db postgresql://ann:pw@h/d",
            "has a password in it, which config.yaml would hold: set PGPASSWORD or write it to ~/.pgpass",
        ),
        (
            f"{TRAIN} --teacher human --labels-db postgresql:///d?host=/nowhere",
            "postgresql+psycopg:///d?host=%2Fnowhere cannot be opened",
        ),
        (f"{SWEEP} --seeds 0", "'0'"),
        (f"{SWEEP} --seed -1", "seed=-1"),
        (f"{SWEEP} --device cuda", "no NVIDIA GPU"),
        (f"{SWEEP} --env Pendulum-v1", "share the folder runs/sweep/pebble-Pendulum-v1-0"),
        (f"{SWEEP} --engine rai", "unknown engine 'rai'; did you mean 'ray'?"),
        (f"{SWEEP} --engine ray --jobs 2", "--jobs is for --engine local"),
        (f"{TRAIN} --set sigm=1", "unknown setting 'sigm'; did you mean 'penalty.sigma'?"),
        (f"{TRAIN} --set reward_damping=-1", "reward_damping=-1"),
        (f"{TRAIN} --set query=uniformly", "query='uniformly'"),
        (f"{TRAIN} --steps 9 --set learning_starts=9", "learning_starts=9"),
        (f"{TRAIN} --set sigma", "key=value"),
        (f"{SURF} --set surf.treshold=1", "did you mean 'surf.threshold'?"),
        (f"{SURF} --set surf.threshold=2", "surf.threshold=2: "),
        (f"{SURF} --set surf.shortest=0.95", "shortest=0.95 is above longest=0.92"),
        (f"{SURF} --set srf.threshold=1", "no method is called 'srf'; did you mean 'surf'?"),
        (f"{TRAIN} --set reward.learning_rat=1", "no method is called 'reward'; did you mean 'reward_lr'?"),
        ("train mine.py:METHOD --env Pendulum-v1 --steps 9", "a module is named without .py: mine:METHOD"),
        (f"{TRAIN} --preset quik", "unknown preset 'quik'; did you mean 'quick'?"),
        (f"{TRAIN} --teacher oracel", "did you mean 'oracle'?"),
        (f"{SWEEP} --teacher mistake=2", "teacher_mistake=2"),
        (f"{TRAIN} --reference none.csv", "none.csv"),
        (f"{TRAIN} --checkpoint-every soon", "'soon' is no interval"),
        (f"{TRAIN} --config none.yaml", "none.yaml"),
        ("train pebble --env Pendulum-v1", "--steps is missing"),
        ("train pebble --env Pendulum-v1 --set lables=5", "unknown setting 'lables'; did you mean 'labels'?"),
        (f"{SURF} --set threshold=1", "unknown setting 'threshold'; did you mean 'surf.threshold'?"),
        (f"{TRAIN} --steps 99999999999", "at most 1,000,000,000"),
        (f"{TRAIN} --set reward_lr=1.0e+308", "less than or equal to 1"),
        (f"{TRAIN} --set learning_rate=2", "learning_rate=2: "),
        (f"{TRAIN} --set n_eval_episodes=1000000000", "less than or equal to 10000"),
        (f"{TRAIN} --set gradient_steps=1000000000", "less than or equal to 100000"),
        (f"{TRAIN} --set action_repeat=1000000000", "less than or equal to 1000"),
        (f"{TRAIN} --steps 2000 --labels 500 --set queries_per_session=1", "queries_per_session=27 or"),
        ("train prefppo --env Pendulum-v1 --steps 9 --set prefppo.learning_rate=9", "prefppo.learning_rate=9: "),
        ("resume nowhere", "nowhere is not a run's folder"),
        ("evaluate nowhere", "nowhere"),
        ("plot nowhere --out curve.svg", "nowhere"),
        (f"{TRAIN} --set reward_damping=*a", "reward_damping='*a': must be a number"),
        (f"{TRAIN} --set reward_damping=!!python/name:os.system", "must be a number"),
        (f"{TRAIN} --set reward_damping=", "--set takes key=value, not 'reward_damping='"),
        (f"{TRAIN} --set =1", "--set takes key=value, not '=1'"),
        (f"{TRAIN} --set batch_size=true", "batch_size='true': must be a whole number"),
        (f"{TRAIN} --set batch_size=1.5", "batch_size='1.5': must be a whole number"),
        (f"{TRAIN} --set net_arch=64,1.5", "net_arch='64,1.5': must be a whole number"),
        (f"{TRAIN} --set options={{a:", "--set options='{a:'"),
        (f"{TRAIN} --set options=[1]", "options=[1]"),
        (f"{TRAIN} --config number.yaml", "number.yaml: 5 is no name of a setting"),
        (f"{TRAIN} --config null.yaml", "null.yaml: None is no name of a setting"),
        (f"{TRAIN} --config date.yaml", "date.yaml: datetime.date(2020, 1, 1) is no name of a setting"),
        (f"{TRAIN} --config twice.yaml", "twice.yaml cannot be read: 'total_timesteps' is given twice"),
        (f"{TRAIN} --config list.yaml", "list.yaml holds no mapping"),
        (f"{TRAIN} --config later.yaml", "later.yaml has version 99"),
        (f"{TRAIN} --config unsettled.yaml", "unsettled.yaml: settings=[300]"),
        (f"{TRAIN} --config teacher.yaml", "teacher.yaml: teacher=[1]"),
        (f"{TRAIN} --config .", ". is a folder and no plain file"),
        (f"{TRAIN} --set batch_size=1000000000", "GiB of memory"),
        (f"{TRAIN} --set large_batch=1000000000", "GiB of memory"),
        (f"{TRAIN} --set entropy_states=1000000000", "GiB of memory"),
        (f"{TRAIN} --set ensemble_size=1000000000", "GiB of memory"),
        (f"{TRAIN} --set net_arch=65536,65536", "GiB of memory"),
        ("train penalty --env dm_control/humanoid-walk-v0 --steps 999999999", "GiB of memory"),
        (f"{TRAIN} --threads 99999999", "'99999999' is too large: at most 1,024"),
        (f"{TRAIN} --steps 1.5", "'1.5' is not a whole number"),
        (f"{TRAIN} --seed 0.5", "'0.5' is not a whole number"),
        (f"{TRAIN} --reference other.csv", "other.csv is no table of evaluations: it has no column 'method'"),
        (f"{TRAIN} --reference words.csv", "words.csv is no table of evaluations"),
        (f"{TRAIN} --reference short.csv", "short.csv is no table of evaluations"),
        (f"{TRAIN} --out file", "file exists already"),
        (f"{TRAIN} --out file/run", "file is not a folder"),
        (f"{TRAIN} --out {LONG}", "has 300 letters"),
        (f"{TRAIN} --out new/{LONG}/run", "has 300 letters"),
        (f"{TRAIN} --teacher replay=other.csv", "other.csv is damaged"),
        ("train pebble --steps 300 --env ..:X", "unknown environment '..:X'"),
        ("train pebble --steps 300 --env mod:", "unknown environment 'mod:'"),
        ("train pebble --steps 300 --env a:b:c", "unknown environment 'a:b:c'"),
        ("train pebble --steps 300 --env nowhere:X-v0", "No module named 'nowhere'"),
        ("train pebble --steps 300 --env raises:X-v0", "the module raises cannot be imported: KeyError: 'no key' ("),
        ("train pebble --steps 300 --env exits:X-v0", "the module exits cannot be imported: SystemExit: 3 ("),
        ("train pebble --steps 300 --env makes:Raises-v0", "FileNotFoundError: robot.xml: No such file ("),
        ("train pebble --steps 300 --env makes:Asks-v0", "missing 1 required positional argument: 'size'"),
        ("train pebble --steps 300 --env makes:Bare-v0", "observations must be a Box"),
        ("train pebble --steps 300 --env makes:Needs-v0", "pip install package_that_is_not_here"),
        ("train pebble --steps 300 --env LunarLander-v3", "LunarLander-v3 cannot be made: "),
        (f"{SWEEP} --seeds 1000000000", "'1000000000' is too large: at most 10,000"),
        (f"{SWEEP} --jobs 1000000", "'1000000' is too large: at most 1,024"),
        (f"{SWEEP} --out file", "file: is not a folder"),
        (f"{SWEEP} --out file/runs", "file is not a folder"),
        (f"{TRAIN} --teacher replay=empty.sqlite", "empty.sqlite: there are no labels in it"),
        ("fit-reward file --env Pendulum-v1 --set total_timesteps=9", "steps means nothing to this command"),
        (f"{SWEEP} --out {LONG}", "has 300 letters"),
        (f"{SWEEP} --config number.yaml", "number.yaml: 5 is no name of a setting"),
        ("sweep pebble --steps 300 --env makes:Raises-v0", "robot.xml"),
        (f"{TUNE} --trials 1e12", "'1e12' is too large: at most 100,000"),
        (f"{TUNE} --jobs 1e6", "'1e6' is too large: at most 1,024"),
        (f"{TUNE} --out file", "file: is not a folder"),
        (f"{TUNE} --out {LONG}", "has 300 letters"),
        (f"{TUNE} --storage .", ". is a folder and no plain file"),
        (f"{TUNE} --storage file", "--storage file: exists already, and is no SQLite file"),
        (f"{TUNE} --space list.yaml", "list.yaml holds no mapping"),
        (f"{TUNE} --space number.yaml", "number.yaml: 5 is no name"),
        ("resume file", "file is not a run's folder"),
        (f"resume {LONG}", "File name too long"),
        ("label file", "file is not a run's folder"),
        (f"label {LONG}", "File name too long"),
        ("evaluate . --episodes 1e9", "'1e9' is too large: at most 100,000"),
        ("evaluate . --episodes 0", "'0' is not a whole number of at least 1"),
        ("explain file", "file is not a run's folder"),
        ("explain . --top many", "'many' is not a whole number"),
        ("export . --sb3 agent.zip", "not a run's folder"),
        ("export .", "export what?"),
        ("fit-reward nowhere --env Pendulum-v1", "nowhere: no such file or folder"),
        ("fit-reward file --env Pendulum-v1", "file is damaged or no Parquet file"),
        ("fit-reward file --env makes:Raises-v0", "robot.xml"),
        ("fit-reward file --env Pendulum-v1 --out file/fit", "file is not a folder"),
        ("fit-reward file --env Pendulum-v1 --set reward_damping=*a", "reward_damping='*a'"),
        ("import-minari x --pairs 1e12 --out x.parquet", "'1e12' is too large"),
        ("import-minari x --pairs 9 --out x.csv", "x.csv: must end in .parquet"),
        ("import-minari x --pairs 9 --out file/x.parquet", "file is not a folder"),
        ("import-minari no/set-v9 --pairs 9 --out x.parquet", "unknown Minari dataset 'no/set-v9'"),
        ("plot other.csv --out x.svg", "other.csv is no table of evaluations"),
        ("plot other.csv --out x.svg --kind curve", "unknown kind 'curve'; did you mean 'curves'?"),
        ("compare other.csv", "other.csv is no table of evaluations"),
        ("doctor now", "unknown argument 'now'"),
        ("it's", 'unknown command "it\'s"; known are train, '),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_right_name_and_nothing_is_written(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    assert told in fails(capsys, *command.split())
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == FILES.keys()
    assert all(Path(name).read_text() == text for name, text in FILES.items())


RUN: dict[str, Any] = {
    "version": 1, "method": "pebble", "env": "Pendulum-v1", "teacher": "settings", "algorithm": "SAC",
    "algorithm_settings": {}, "device": "cpu", "threads": 1, "settings": {"total_timesteps": 300},
    "versions": {}, "commit": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": 99}, "config.yaml has version 99 of the format"),
        ({"threads": "many"}, "config.yaml: threads='many'"),
        ({"threads": 0}, "config.yaml: threads=0"),
        ({"device": "gpu"}, "config.yaml: device='gpu'"),
        ({"device": 1}, "config.yaml: device=1"),
        ({"versions": ["torch"]}, "config.yaml: versions=['torch']"),
        ({"method": ["pebble"]}, "config.yaml: method=['pebble']"),
        ({"method": "pebbel"}, "pebbel"),
        ({"algorithm": "SAQ"}, "SAQ"),
        ({"algorithm_settings": None}, "config.yaml: algorithm_settings=None"),
        ({"env": "Pendulm-v1"}, "unknown environment 'Pendulm-v1'"),
        ({"env": None}, "config.yaml: env=None"),
        ({"settings": [300]}, "config.yaml: settings=[300]"),
        ({"settings": {"total_timesteps": 300, "reward_damping": -1}}, "config.yaml: reward_damping=-1"),
        ({"settings": {"total_timesteps": 300, "batch_size": True}}, "config.yaml: batch_size=True"),
        ({"settings": {"total_timesteps": 300, "sigm": 1}}, "config.yaml: unknown setting 'sigm'"),
        ({"settings": {"total_timesteps": 300, "options": [1]}}, "config.yaml: options=[1]"),
        ({"settings": {"total_timesteps": 300, 5: 1}}, "config.yaml: settings="),
    ],
)
def test_a_config_that_no_run_has_written_is_told_by_all_who_read_it(
    capsys: pytest.CaptureFixture, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    run, text = tmp_path / "run", yaml.safe_dump(RUN | changes)
    run.mkdir()
    (run / "config.yaml").write_text(text)
    assert told in fails(capsys, "resume", str(run))
    (run / "SHA256SUMS").touch()
    for command in ("evaluate", "explain", "export --sb3 x.zip"):
        assert told in fails(capsys, *command.split(), str(run))
    if "settings" in changes or "version" in changes:
        config = ["--env", "Pendulum-v1", "--config", str(run / "config.yaml")]
        assert told.removeprefix("config.yaml: ") in fails(capsys, "train", "pebble", *config)
    assert sorted(path.name for path in run.iterdir()) == ["SHA256SUMS", "config.yaml"]


def test_a_run_that_people_label_is_read_as_strictly(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("version: 3\nsettings: {teacher_human: true}\n")
    assert "has version 3 of the format" in fails(capsys, "label", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("teacher", ["replay", "rerun"])
def test_labels_of_other_segments_are_refused_before_a_folder_is_made(
    capsys: pytest.CaptureFixture, tmp_path: Path, teacher: str
) -> None:
    file, out = tmp_path / "labels.sqlite", tmp_path / "run"
    segments = Segments(torch.zeros(1, 7, 3), torch.zeros(1, 7, 1), torch.zeros(1, 7))
    with closing(LabelLog(file)) as log:
        log.append(1, Preferences(segments, segments, torch.ones(1)))
    told = fails(capsys, *TRAIN.split(), "--teacher", f"{teacher}={file}", "--out", str(out))
    theirs = "segments of 7 steps, observations of 3 and actions of 1 numbers"
    assert f"has {theirs}, and this run has segments of 50" in told
    assert not out.exists()


def test_numbers_are_taken_as_people_write_them() -> None:
    args = parser().parse_args(f"{TRAIN} --steps 1e5 --labels 1e3 --seed 5.0 --threads 1_0".split())
    assert (args.steps, args.labels, args.seed, args.threads) == (100_000, 1_000, 5, 10)
    given = assigned(["net_arch=[64,64]", "reward_net_arch=(64, 32)", "batch_size=1e2", "num_interact=2_0.0"])
    settings = validate({"total_timesteps": "1e5", "learning_starts": 100.0, "tau": "1e-3"} | given)
    assert (settings.net_arch, settings.reward_net_arch) == ((64, 64), (64, 32))
    assert (settings.total_timesteps, settings.learning_starts) == (100_000, 100)
    assert (settings.batch_size, settings.num_interact) == (100, 20)
    assert settings.tau == 1e-3 and type(settings.batch_size) is int
    of_numpy = {"net_arch": np.array([8, 9]), "seed": np.int64(3), "reward_damping": np.float32(1.5)}
    settings = validate({"total_timesteps": 300} | of_numpy)
    assert (settings.net_arch, settings.reward_damping) == ((8, 9), 1.5)
    assert parse_checkpoint_every("5_000") == parse_checkpoint_every("5e3") == parse_checkpoint_every("5000")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_page_can_be_read(capsys: pytest.CaptureFixture, command: str) -> None:
    code, told = exits(*command.split(), "--help"), capsys.readouterr().out
    assert code == 0 and told.startswith("usage: rlhf-bilevel") and "%%" not in told
    assert ("human" in told) == (command in ("train", "label", "select"))  # people label one run at a time
    if command == "tune":
        assert "at first" not in told and "(default: 20)" in told and "(default: median)" in told
    if command == "fit-reward":
        assert told.count("(default: 0)") == 1  # a default of 0 is one


def test_without_a_command_the_help_is_shown_and_the_version_is_told(capsys: pytest.CaptureFixture) -> None:
    code, captured = exits(), capsys.readouterr()
    assert code == 2 and not captured.out and captured.err.startswith("usage: rlhf-bilevel")
    assert exits("--version") == 0 and re.fullmatch(r"rlhf-bilevel \d+\.\d+\.\d+\n", capsys.readouterr().out)


def python(*words: str, code: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-c", code) if code else ("-m", "rlhf_bilevel")), *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, text=True, **streams | more)


def test_a_worker_without_a_run_says_how_it_is_called() -> None:
    command = [sys.executable, "-m", "rlhf_bilevel.studies.worker"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and told.stderr.startswith("usage: python -m rlhf_bilevel.studies.worker SPEC")


@pytest.mark.parametrize("number", [1, 2])
def test_a_closed_stream_hurts_nobody(number: int) -> None:
    told = python("compare", "nowhere", preexec_fn=lambda: os.close(number))
    assert told.returncode == 2 and "Traceback" not in told.stderr


def test_whoever_reads_the_output_may_leave_early() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    told = python("--help", stdout=writing, env=buffered)
    os.close(writing)
    assert told.returncode == 141 and not told.stderr


POINT = EvaluationRecord("sac", "Pendulum-v1", 0, 450, 0, 0, True, -150.0, None, 5, "")


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    write_table([POINT], tmp_path / "earlier.csv")
    with open("/dev/full", "w") as full:
        told = python("compare", str(tmp_path / "earlier.csv"), stdout=full)
    assert told.returncode == 2 and told.stderr == "rlhf-bilevel: No space left on device\n"


@pytest.mark.parametrize(
    "command",
    [
        f"{TRAIN} --out shut/run",
        f"{SWEEP} --out shut/runs",
        f"{SWEEP} --out shut",
        f"{TUNE} --out shut/search",
        f"{TUNE} --storage shut/tune.db",
        "fit-reward file --env Pendulum-v1 --out shut/fit",
        "import-minari x --pairs 9 --out shut/x.parquet",
        "plot earlier.csv --out shut/x.svg",
        "plot earlier.csv --out shut/new/x.svg",
        "export . --preferences shut/x.parquet",
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shut").mkdir()
    Path("file").touch()
    Path("config.yaml").touch()
    write_table([POINT], Path("earlier.csv"))
    before = sorted(tmp_path.rglob("*"))
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and may(path, mode))
    assert f"{tmp_path / 'shut'} is read-only here" in fails(capsys, *command.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    file = tmp_path / "file"
    file.write_text("x")
    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", denied)
    for read in (read_yaml, Dataset.read):
        with pytest.raises(UserError, match=r"^.*/file cannot be read: Permission denied$") as error:
            read(file)
        assert not isinstance(error.value, CorruptFileError)


def test_a_write_that_fails_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        write(tmp_path / "file", b"x")
    assert one_line(error.value) == f"{tmp_path / 'file'} cannot be written: No space left on device"
    assert not list(tmp_path.iterdir())


def test_the_keyboard_may_stop_what_is_no_training_and_what_has_not_begun(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registration, "make", interrupt)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for command in (TRAIN, "fit-reward file --env Pendulum-v1"):
        assert exits(*command.split()) == 130 and capsys.readouterr().err == "rlhf-bilevel: interrupted\n"


def test_the_keyboard_may_stop_the_loading_of_libraries() -> None:
    code = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "rlhf_bilevel.cli.arguments":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("as numpy says it") from None
sys.meta_path.insert(0, Interrupts())
import rlhf_bilevel.__main__
"""
    told = python(code=code)
    assert told.returncode == 130 and not told.stderr


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]
)
def test_memory_that_runs_out_is_one_line_and_our_own_faults_keep_their_traceback(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fault(raised: Exception) -> Any:
        def report() -> str:
            raise raised

        return report

    monkeypatch.setattr("rlhf_bilevel.cli.doctor.report", fault(error))
    assert "there is not enough memory" in fails(capsys, "doctor")
    monkeypatch.setattr("rlhf_bilevel.cli.doctor.report", fault(FloatingPointError("a learner diverged at step 9")))
    assert "a learner diverged at step 9" in fails(capsys, "doctor")
    for ours in (RuntimeError("shapes differ"), ValueError("no mean of nothing"), KeyError("x")):
        monkeypatch.setattr("rlhf_bilevel.cli.doctor.report", fault(ours))
        with pytest.raises(type(ours)):
            main(["doctor"])


@pytest.mark.slow
def test_a_fault_of_our_own_in_a_check_shows_its_traceback_and_no_usage_error(tmp_path: Path) -> None:
    code = f"""
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.envs.episodes import SeededEpisodes
def fault(*_):
    raise ValueError("shapes differ")
SeededEpisodes.__init__ = fault
main({[*TRAIN.split(), "--out", str(tmp_path / "run")]})
"""
    told = python(code=code)
    assert told.returncode == 1 and told.stderr.startswith("Traceback")
    assert told.stderr.endswith("ValueError: shapes differ\n") and "in fault" in told.stderr
    assert not (tmp_path / "run").exists()


def test_an_environment_in_the_current_folder_is_found(tmp_path: Path) -> None:
    module = "import gymnasium\ngymnasium.register('Here-v0', 'gymnasium.envs.classic_control:PendulumEnv')\n"
    (tmp_path / "here_only.py").write_text(module)
    code = "import sys; sys.path.remove(''); before = list(sys.path)\n"
    code += "from rlhf_bilevel.envs import registration\n"
    code += "registration.make('here_only:Here-v0', 0); assert sys.path == before"
    told = python(code=code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert told.returncode == 0, told.stderr


def test_json_has_neither_nan_nor_infinity() -> None:
    told = to_json({"a": [math.nan, (math.inf, 1.5)], "b": None})
    assert json.loads(told, parse_constant=pytest.fail) == {"a": [None, [None, 1.5]], "b": None}


def test_a_mistake_is_found_without_loading_torch() -> None:
    code = "import sys; from rlhf_bilevel.__main__ import main\ntry: main(sys.argv[1:])\n"
    code += "except SystemExit: print('torch' in sys.modules, 'mujoco' in sys.modules)"
    told = python("train", "pebble", "--env", "walker_wlak", "--steps", "9", code=code, check=True)
    assert told.stdout.split() == ["False", "False"]


def test_train_evaluate_and_plot(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = "method,env,seed,step,labels,learner,is_agent,true_return,success,episodes,commit\n"
    Path("earlier.csv").write_text(table + "sac,Pendulum-v1,0,300,0,0,1,-150,,5,\n")
    train = "train penalty --env Pendulum-v1 --steps 300 --labels 20 --out run --reference earlier.csv"
    main([*train.split(), *QUICK, "--set", "penalty.cost_steps=5"])
    told = capsys.readouterr().out
    assert "penalty reached a true return of -" in told and "300 steps with 20 labels" in told
    assert "SAC on the true reward reaches -150" in told and "at the same steps (one seed)" in told
    assert Path("run/learning_curve.png").stat().st_size > 5000
    main(["evaluate", "run", "--episodes", "2", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["episodes"] == 2 and summary["success"] is None and summary["true_return"]["mean"] < 0
    assert "exists already" in fails(capsys, *train.split())
    main(["plot", "run", "--out", "curve.svg"])
    assert Path("curve.svg").read_text().startswith("<?xml")


def test_the_doctor_says_what_works_here() -> None:
    # in a process of its own: drawing a picture settles the renderer for a whole process
    report = python("doctor").stdout
    for works in ("gymnasium", "dm_control", "Meta-World"):
        assert f"{works:18} ok" in report
    assert all(f"\n{named}" in report for named in ("torch", "pictures", "gymnasium pictures"))


def test_a_run_that_has_not_ended_is_named(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: pebble\n")
    assert f"rlhf-bilevel resume {tmp_path}" in fails(capsys, "evaluate", str(tmp_path))
    assert "no evaluations.csv" in fails(capsys, "plot", str(tmp_path), "--out", "curve.svg")


def test_settings_come_from_a_file_and_options_go_before_it(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    nets = "net_arch: [16, 16]\nreward_net_arch: [8]\n"
    file.write_text(f"total_timesteps: 120\nlabels: 8\nsegment_length: 10\nn_eval_episodes: 1\n{nets}")
    train = ["train", "pebble", "--env", "Steer-v0", "--config", str(file)]
    main([*train, "--labels", "6", "--out", str(tmp_path / "run")])
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["settings"]
    assert (settings["total_timesteps"], settings["labels"], settings["net_arch"]) == (120, 6, [16, 16])
    main(["train", "pebble", "--env", "Steer-v0", "--config", str(tmp_path / "run" / "config.yaml"),
          "--out", str(tmp_path / "again")])  # fmt: skip
    for name in ("policy.safetensors", "evaluations.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    capsys.readouterr()
    file.write_text("total_timesteps: 120\nlables: 8\n")
    assert "unknown setting 'lables'; did you mean 'labels'?" in fails(capsys, *train, "--out", str(tmp_path / "new"))
    file.write_text("total_timesteps: &a [1, 2]\nlabels: *a\n")
    assert "aliases" in fails(capsys, *train, "--out", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_warning_has_a_line_of_its_own_beside_the_progress_bar(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    main(["train", "pebble", "--env", "Pendulum-v1", "--steps", "60", "--labels", "2", "--out", str(tmp_path / "run"),
          *QUICK, "--set", "learning_starts=5"])  # fmt: skip
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    assert any("warning: " in line for line in lines)
    assert all(line.startswith("warning: ") for line in lines if "warning: " in line)


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_tells_its_end(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    train = ["train", "pebble", "--env", "Pendulum-v1", "--steps", "700", "--labels", "10", "--checkpoint-every", "1"]
    arguments = [*train, *QUICK, "--set", "train_freq=10"]
    main([*arguments, "--out", str(tmp_path / "whole")])
    told = capsys.readouterr().out

    def interrupted() -> None:
        def stop(run: Any, *rest: Any) -> Any:
            if run.step > 450:
                kill()
            return labelling_minutes(run, *rest)

        evaluations.labelling_minutes = stop  # at every evaluation
        main([*arguments, "--out", str(tmp_path / "run")])

    assert child(interrupted) == 9
    assert "resume" in fails(capsys, "evaluate", str(tmp_path / "run"))
    main(["resume", str(tmp_path / "run")])
    resumed = capsys.readouterr()
    assert resumed.out == told.replace("whole", "run")
    assert " 650/700 " in resumed.err and " 700/700 " in resumed.err  # a progress bar, as of train
    assert "nothing to resume" in fails(capsys, "resume", str(tmp_path / "run"))


def test_the_keyboard_ends_a_run_with_the_command_that_goes_on(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "labelling_minutes", interrupt)
    assert exits(*TRAIN.split(), "--out", tmp_path / "run", *QUICK) == 130
    assert f"interrupted; rlhf-bilevel resume {tmp_path / 'run'} goes on" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_runs_what_is_missing_alone_or_as_a_cohort(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["sweep", "pebble", "--env", "Pendulum-v1", "--steps", "400", "--labels", "20", "--out", str(tmp_path)]
    main([*command, *QUICK, "--seeds", "2", "--cohort"])
    folders = sorted(path.parent.name for path in tmp_path.glob("*/SHA256SUMS"))
    assert folders == ["pebble-Pendulum-v1-0", "pebble-Pendulum-v1-1"]
    assert re.search(r"^pebble +Pendulum-v1 .* 2$", capsys.readouterr().out, re.MULTILINE)
    before = (tmp_path / folders[0] / "SHA256SUMS").stat().st_mtime_ns
    main([*command, *QUICK, "--seeds", "3"])
    assert (tmp_path / "pebble-Pendulum-v1-2/SHA256SUMS").is_file()
    assert (tmp_path / folders[0] / "SHA256SUMS").stat().st_mtime_ns == before
    assert re.search(r"^pebble +Pendulum-v1 .* 3$", capsys.readouterr().out, re.MULTILINE)
    rows = read_table(tmp_path / "results.csv")
    assert [(row.seed, row.step) for row in rows] == [(0, 400), (1, 400), (2, 400)]
    exits(*command, *QUICK, "--set", "batch_size=9")
    assert "is a run with batch_size=128, not 9: choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        f"{TRAIN} --out run/new",
        f"{SWEEP} --out run",
        f"{SWEEP} --out run/new",
        f"{TUNE} --out run",
        "fork run --out run/new",
    ],
)
def test_no_run_begins_in_the_folder_of_another(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump(RUN))
    Path("run/SHA256SUMS").touch()
    assert f"{tmp_path / 'run'} is a run's folder, and holds no other run" in fails(capsys, *command.split())
    assert sorted(path.name for path in Path("run").iterdir()) == ["SHA256SUMS", "config.yaml"]


@pytest.mark.slow
def test_a_sweep_tells_which_runs_failed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = tmp_path / "pebble-Pendulum-v1-0"
    broken.mkdir()
    (broken / "stranger").touch()  # not empty, and not a run's folder
    code, captured = exits(*SWEEP.split(), "--seeds", 1, "--out", tmp_path), capsys.readouterr()
    assert code == 2 and "1 of 1 runs" in captured.err
    assert f"{broken} failed: rlhf-bilevel: {broken} exists already" in captured.out
    assert f"(all of it: {broken}.log)" in captured.out and Path(f"{broken}.log").is_file()


def test_a_default_may_be_given_and_a_file_may_hold_several_methods_settings(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text("total_timesteps: 300\nsurf.threshold: 0.9\nrime.warm_updates: 3\n")
    words = ["train", "surf", "--env", "Pendulum-v1", "--config", str(tmp_path / "both.yaml"), "--keep-every", "0"]
    args = parser().parse_args(words)
    assert args.keep_every == 0
    assert spec(args, "surf", "Pendulum-v1").resolve().options["threshold"] == 0.9


def test_a_cohort_of_another_learner_is_refused_before_a_folder_is_made(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    sweep = f"sweep pebble prefppo --env Pendulum-v1 --steps 300 --cohort --out {tmp_path / 'runs'}".split()
    assert "--cohort takes learners of plain SAC: prefppo learns by PPO" in fails(capsys, *sweep)
    assert not (tmp_path / "runs").exists()


def test_another_reward_form_than_a_files_has_values_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "total_timesteps: 300\nreward_form: additive\nreward_lr: 0.01\nreward_lasso: 0.3\n"
    )
    for words, form, rate, lasso in (
        ([], "additive", 0.01, 0.3),
        (["--set", "reward_form=additive"], "additive", 0.01, 0.3),
        (["--set", "reward_form=network"], "network", 3e-4, 0.0),
        (["--set", "reward_form=network", "--set", "reward_lr=.5"], "network", 0.5, 0.0),
    ):
        args = parser().parse_args(
            ["train", "pebble", "--env", "Pendulum-v1", "--config", str(tmp_path / "run.yaml"), *words]
        )
        config = spec(args, "pebble", "Pendulum-v1").resolve()
        assert (config.reward_form, config.reward_lr, config.reward_lasso) == (form, rate, lasso)


@pytest.mark.parametrize("name", ["mine", "./mine.py"])
def test_a_method_in_a_file_of_the_folder_is_told_by_its_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    told = fails(capsys, "train", name, "--env", "Pendulum-v1", "--steps", 9)
    assert "for the one in mine.py write mine:NAME" in told


def test_a_folder_of_runs_in_place_of_a_run_names_one_of_them(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    run = tmp_path / "study" / "pebble-0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("method: pebble\n")
    for command in ("evaluate", "explain", "resume"):
        assert f"it holds 1 run: choose one, such as {run}" in fails(capsys, command, str(run.parent))
