"""A checkpoint is whole or absent, whatever happens while it is written and after."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.runs.checkpoint import Checkpoints, FileEntry, Manifest
from rlhf_bilevel.utils.files import sha256
from rlhf_bilevel.utils.serialization import Table, Tree, digest, pack, unpack
from tests.support.faults import at_call, child, corrupted, full_disk, kill


def state(step: int) -> tuple[Tree, dict[str, Table]]:
    """A run's at that step: its rows begin with those of the steps before."""
    rows = torch.arange(20.0)[: 4 * step, None] * torch.tensor([1.0, 0.5])
    weights = torch.full((30, 3), float(step))
    tree = {"weights": weights, "list": [None, {"big": 2**127 + step, "small": 1e-300}, True], "step": step}
    return tree, {"rows": {"obs": rows, "env_reward": rows[:, 0]}, "labels": {"label": torch.zeros(0)}}


def whole(tree: Tree, tables: dict[str, Table]) -> str:
    return digest([tree, {name: dict(columns) for name, columns in tables.items() if name != "labels"}])


def found(folder: Path, settings: str = "same") -> int | None:
    """The step of the checkpoint that is loaded, whose every bit must be as it was saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = Checkpoints(folder, settings).load()
    if loaded is None:
        return None
    assert whole(loaded.tree, loaded.tables) == whole(*state(loaded.step))
    return loaded.step


def saved(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, "same")
    for step in steps:
        checkpoints.save(step, *state(step))
    return checkpoints


def forge(step: Path, state: str) -> None:
    """Puts another state into a checkpoint and seals it again, as a stranger can."""
    manifest, data = Manifest.unseal(step / "manifest.json"), state.encode()
    (step / "state.json").write_bytes(data)
    manifest.files["state.json"] = FileEntry(size=len(data), sha256=sha256(data))
    (step / "manifest.json").write_bytes(manifest.seal())


def test_a_tree_comes_back_from_json_and_tensors() -> None:
    tree, _ = state(3)
    again = unpack(*pack(tree))
    assert digest(again) == digest(tree) and again["list"][1]["big"] == 2**127 + 3
    changed = tree | {"weights": tree["weights"] + torch.finfo(torch.float32).eps * 4}
    assert digest(changed) != digest(tree)


def test_the_newest_two_stay_and_rows_are_written_once(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    first = (tmp_path / "rows-0-4.safetensors").stat()
    for step in (2, 3, 4):
        checkpoints.save(step, *state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rows-0-4.safetensors", "rows-12-16.safetensors", "rows-4-8.safetensors", "rows-8-12.safetensors",
        "step-000000003", "step-000000004",
    ]  # fmt: skip
    assert (tmp_path / "rows-0-4.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    assert found(tmp_path) == 4


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The number of calls by which the third save of a run changes files."""
    checkpoints = saved(tmp_path_factory.mktemp("points"), 1, 2)
    with at_call(0, kill) as names:
        checkpoints.save(3, *state(3))
    assert {"write manifest.json.tmp", "replace manifest.json.tmp", "replace .unfinished", "fsync"} <= set(names)
    return len(names)


def test_a_kill_at_any_call_leaves_a_sound_checkpoint(tmp_path: Path, points: int) -> None:
    ends = []
    for number in range(1, points + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        checkpoints = saved(folder, 1, 2)

        def work(checkpoints: Checkpoints = checkpoints, number: int = number) -> None:
            with at_call(number, kill):
                checkpoints.save(3, *state(3))

        assert child(work) == 9
        ends.append(found(folder))
        after = Checkpoints(folder, "same")
        after.load()
        after.save(4, *state(4))  # and the next save finds nothing in its way
        assert found(folder) == 4 and not list(folder.glob("**/*.tmp"))
    assert ends[0] == 2 and ends[-1] == 3 and ends == sorted(ends)


def test_a_full_disk_at_any_call_is_an_error_and_costs_nothing(tmp_path: Path, points: int) -> None:
    for number in range(1, points + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        checkpoints = saved(folder, 1, 2)
        with at_call(number, full_disk):
            try:
                checkpoints.save(3, *state(3))
                done = True
            except OSError as error:
                assert "No space left" in str(error)
                done = False
        assert found(folder) in ((3,) if done else (2, 3))
        checkpoints.save(4, *state(4))
        assert found(folder) == 4


def test_of_200_corrupted_files_not_one_is_believed(tmp_path: Path) -> None:
    rng, sound = np.random.default_rng(0), tmp_path / "sound"
    sound.mkdir()
    saved(sound, 1, 2)
    files = sorted(path.relative_to(sound) for path in sound.glob("**/*") if path.is_file())
    refused = 0
    for _ in range(200):
        shutil.copytree(sound, folder := tmp_path / "damaged")
        file = folder / files[rng.integers(len(files))]
        before = file.read_bytes()
        file.write_bytes(corrupted(before, rng))
        newest_needs_it = "step-000000001" not in file.parts
        try:
            assert found(folder) == (1 if newest_needs_it else 2)
        except CorruptFileError as error:
            assert "rows-0-4" in file.name and "nothing was changed" in str(error)  # both checkpoints need these rows
        refused += newest_needs_it
        shutil.rmtree(folder)
    assert refused > 100


def test_it_says_which_checkpoint_is_damaged_and_falls_back(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "step-000000002" / "state.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step-000000002 is passed over: state\.safetensors"):
        checkpoints = Checkpoints(tmp_path, "same")
        assert checkpoints.load().step == 1
    checkpoints.save(2, *state(2))  # the run comes there again
    assert found(tmp_path) == 2


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    told = "none of the 1 .*put back the config.yaml"
    with pytest.warns(UserWarning, match=r"passed over: config\.yaml"), pytest.raises(CorruptFileError, match=told):
        Checkpoints(tmp_path, "other").load()
    assert found(tmp_path) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_an_earlier_format_is_named_with_the_way_back(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, "").save(7, *state(7)) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with (
        pytest.warns(UserWarning, match="it has format 1, and this version reads 3"),
        pytest.raises(CorruptFileError, match=r"go on with the version that made them, or remove .*resume begins anew"),
    ):
        Checkpoints(tmp_path, "").load()
