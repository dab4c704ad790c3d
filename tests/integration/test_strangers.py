"""A stranger's run is data: whatever its files hold, no code of theirs runs, and nothing absurd is unfolded."""

import contextlib
import json
import os
import pickle
import shutil
import sqlite3
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.data.label_log import LabelLog, RecordedTeacher
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.evaluation.records import read_records
from rlhf_bilevel.runs.checkpoint import Checkpoints
from rlhf_bilevel.utils.files import load_tensors, read_verified, write_sums
from rlhf_bilevel.utils.json_yaml import read_json, read_yaml
from tests.conftest import SMALL
from tests.data.test_label_log import Never, answers, queries
from tests.runs.test_checkpoint import saved


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    Agent("pebble", "Steer-v0", out=out, **SMALL).learn(60)
    return out


class Canary:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.nest),)


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "it-ran")


def test_the_canary_sings(canary: Canary) -> None:
    pickle.loads(pickle.dumps(canary))
    assert canary.nest.exists()


FILES = ("policy.safetensors", "reward.safetensors", "model.zip", "config.yaml", "evaluations.csv", "SHA256SUMS")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_pickle_in_place_of_a_runs_file_does_not_run(
    run: Path, tmp_path: Path, canary: Canary, name: str, sealed: bool
) -> None:
    folder = shutil.copytree(run, tmp_path / "theirs")
    (folder / name).write_bytes(pickle.dumps(canary))
    if sealed and name != "SHA256SUMS":  # a stranger can compute a hash too
        write_sums(folder, [path.name for path in folder.iterdir() if path.name in FILES[:4]])
    for work in (lambda: Agent.load(folder), lambda: Agent.resume(folder), lambda: read_records(folder)):
        with contextlib.suppress(ValueError, KeyError, StopIteration):
            work()
    assert not canary.nest.exists()


def test_no_sb3_file_is_ever_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are pickles: ``model.zip`` is written for others, and what ``export`` writes is made of the weights."""
    from stable_baselines3.common import base_class, save_util

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an SB3 file was read")

    monkeypatch.setattr(base_class, "load_from_zip_file", refuse)
    monkeypatch.setattr(save_util, "load_from_zip_file", refuse)
    folder = shutil.copytree(run, tmp_path / "theirs")
    (folder / "model.zip").write_bytes(b"PK")
    write_sums(folder, FILES[:4])
    main(["evaluate", str(folder), "--episodes", "1"])
    main(["export", str(folder), "--sb3", str(tmp_path / "safe.zip")])
    assert (tmp_path / "safe.zip").stat().st_size > 1000


def test_yaml_makes_no_object(tmp_path: Path, canary: Canary) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"method: !!python/object/apply:os.mkdir ['{canary.nest}']\n")
    with pytest.raises(CorruptFileError, match="could not determine a constructor"):
        read_yaml(file)
    assert not canary.nest.exists()


def test_a_module_is_imported_only_with_explicit_trust(
    run: Path, tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text(f"import os, gymnasium\nos.mkdir({str(canary.nest)!r})\n"
                                          "gymnasium.register('Theirs-v0', 'tests.conftest:Steer')\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    folder = shutil.copytree(run, tmp_path / "theirs")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("env: Steer-v0", "env: stranger:Theirs-v0"))
    write_sums(folder, FILES[:4])
    for command in (["evaluate", str(folder)], ["export", str(folder), "--sb3", str(tmp_path / "x.zip")]):
        with pytest.raises(SystemExit):
            main(command)
    with pytest.raises(UserError, match="would import the module 'stranger'"):
        Agent.load(folder)
    assert not canary.nest.exists() and "stranger" not in sys.modules
    Agent.load(folder, trust=True)
    assert canary.nest.exists()  # the control: it would have


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "manifest.json", "rows-0-4.safetensors"])
def test_a_pickle_in_a_checkpoint_does_not_run(tmp_path: Path, canary: Canary, name: str) -> None:
    saved(tmp_path, 1)
    path = tmp_path / name if name.startswith("rows") else tmp_path / "step-000000001" / name
    path.write_bytes(pickle.dumps(canary))
    with pytest.warns(UserWarning), pytest.raises(CorruptFileError):
        Checkpoints(tmp_path, "same").load()
    assert not canary.nest.exists()


def test_checksums_of_other_files_count_for_none(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n")
    with pytest.raises(CorruptFileError, match="does not name policy"):
        read_verified(tmp_path, "policy.safetensors", 100)


def test_a_pickle_among_the_labels_does_not_run(tmp_path: Path, canary: Canary) -> None:
    from rlhf_bilevel.data.label_log import _sha256

    LabelLog(tmp_path / "labels.sqlite").append(1, answers(1))
    blob = pickle.dumps(canary)
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        connection.execute("UPDATE answers SET first = ?", (blob,))
        second = connection.execute("SELECT second FROM answers").fetchone()[0]
        label = connection.execute("SELECT label FROM answers").fetchone()[0]
        connection.execute("UPDATE sessions SET sha256 = ?", (_sha256([(label, blob, second)], []),))
    with pytest.raises(CorruptFileError, match="a segment is damaged"):
        RecordedTeacher(Never(), LabelLog(tmp_path / "labels.sqlite"))(queries(1))
    assert not canary.nest.exists()


def unfolds(work: Callable[[], object]) -> int:
    """Most bytes that Python held while refusing."""
    tracemalloc.start()
    with pytest.raises(CorruptFileError):
        work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_absurd_files_are_refused_before_they_unfold(tmp_path: Path) -> None:
    laughs = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    (tmp_path / "laughs.yaml").write_text(laughs)
    (tmp_path / "deep.yaml").write_text("[" * 10_000)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert unfolds(lambda: read_yaml(tmp_path / "laughs.yaml")) < 50e6
    with pytest.raises(CorruptFileError):  # measured, this one takes half a minute
        read_yaml(tmp_path / "deep.yaml")
    assert unfolds(lambda: read_json(tmp_path / "deep.json")) < 50e6
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**40)  # a terabyte of nothing
    assert unfolds(lambda: read_json(tmp_path / "large.json")) < 1e6
    absurd = {"w": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    header = json.dumps(absurd).encode()
    for data in (struct.pack("<Q", 2**60), struct.pack("<Q", len(header)) + header, b"", b"PK\x03\x04"):
        assert unfolds(lambda data=data: load_tensors(data, "theirs")) < 1e6
