"""A run's folder: the names of its files, when the run has begun and ended, and what is read and written there.

Nothing is unpickled. This module imports no torch, so that the command line, ``compare`` and the label server start
without it.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from rlhf_bilevel.config import Config, Record, gather, nearest, networks, recorded, settle, spread, weights
from rlhf_bilevel.errors import CorruptFileError, LockedError, UserError
from rlhf_bilevel.utils.files import (
    CSV_LIMIT,
    SUMS,
    YAML_LIMIT,
    examine,
    lock,
    read,
    read_yaml,
    reading,
    sealed,
    sha256,
    tensors,
    trusted,
    write,
    write_sums,
    written,
)
from rlhf_bilevel.utils.versions import commit, versions

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from torch import nn

CONFIG, PROGRESS, EVALUATIONS = "config.yaml", "progress.csv", "evaluations.csv"
STEP = "time/total_timesteps"  # column of PROGRESS
OWN = "own"  # in place of algorithm settings that no file can hold
REWARD_LIMIT = 2**30  # bytes of a reward's file
HEADER = 2**20  # bytes of a safetensors file that are no weights, at most
FORKING = "fork.unfinished"
BEGINNING = re.compile(
    rf"\.lock|{re.escape(FORKING)}(\.tmp)?|config\.yaml(\.tmp)?|(progress|evaluations)\.csv|labels\.sqlite(-\w+)?|"
    r"events\.out\.tfevents\..*|checkpoints"
)
"""Names of what a fork begins with. ``FORKING`` is there before any of them until the folder is a run's."""
TAIL = 2**16  # bytes at the end of PROGRESS that hold its last row


class RunFolder:
    """The folder of one run, which need not be there. A property is a path in it unless it says otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG  # what is run; the first to be written
        self.progress = path / PROGRESS  # metrics, a row an episode
        self.evaluations = path / EVALUATIONS  # true returns, a row an episode of an evaluation
        self.labels = path / "labels.sqlite"  # all answers that training has used
        self.checkpoints = path / "checkpoints"  # a folder
        self.model = path / "model.zip"  # for other programs
        self.policy = path / "policy.safetensors"
        self.reward = path / "reward.safetensors"
        self.preferences = path / "preferences.parquet"  # all that was asked, as a dataset
        self.learning_curve = path / "learning_curve.png"
        self.sums = path / SUMS  # of the files above; the last to be written
        self.book = path / "book.sqlite"  # what people were asked and answered
        self.run_id = path / "run_id"  # the run's name in the book
        self.clips = path / "clips"  # a folder: what people see
        self.lock_file = path / ".lock"
        self.forking = path / FORKING  # while a fork begins

    def __str__(self) -> str:
        return str(self.path)

    @property
    def output(self) -> Path:
        """Beside the folder: what a run of many has printed."""
        return self.path.with_name(f"{self.path.name}.log")

    def events(self) -> list[Path]:
        """TensorBoard's files."""
        return list(self.path.glob("events.out.tfevents.*"))

    @property
    def vacant(self) -> bool:
        """Whether a run may begin there: there is nothing, or only a lock and what a process left that was killed while
        it began a run.
        """
        if not self.path.is_dir():
            return not os.path.lexists(self.path)
        left = {self.lock_file.name, f"{CONFIG}.tmp"}
        return {path.name for path in self.path.iterdir()} <= left or self.unfinished_fork

    @property
    def unfinished_fork(self) -> bool:
        """Whether the folder holds what a fork left that was killed while it began, and nothing else."""
        names = {path.name for path in self.path.iterdir()}
        marked = FORKING in names or f"{FORKING}.tmp" in names
        return marked and CONFIG not in names and all(map(BEGINNING.fullmatch, names))

    @property
    def begun(self) -> bool:
        return self.config.is_file()

    @property
    def ended(self) -> bool:
        return self.sums.is_file()

    @property
    def evaluated(self) -> bool:
        return self.evaluations.is_file()

    def examine(self, writes: bool = False) -> RunFolder:
        """The folder itself. UserError where it is no run's, or holds what no run writes (see ``files.examine``)."""
        if not self.begun:
            near = [str(run.path) for run in runs_in(self.path.parent)]
            hint = f"; {nearest(str(self.path), near)}" if near else ""
            raise UserError(f"{self} is not a run's folder: it has no {CONFIG}{hint}")
        examine(self.path, writes)
        return self

    def lock(self) -> FileLock:
        """Acquired: whoever trains the run has it. LockedError where another process does."""
        own = lock(self.lock_file)
        with written(self.path):
            try:
                own.acquire()
            except Timeout:
                raise LockedError(f"{self} is being trained by another process") from None
        return own

    def claim(self) -> FileLock:
        """The sweep's lock on the run, beside the folder. Timeout when it is entered while another process has it."""
        return lock(self.path.with_name(f".{self.path.name}.lock"))

    def write_config(self, told: Mapping[str, Any]) -> None:
        """All that is needed to repeat the run."""
        write(self.config, config_bytes(told))

    def read_config(self, whole: bool = False) -> dict[str, Any]:
        """What ``write_config`` wrote, or a part of it unless the ``whole`` must be there.

        UserError where a value is of another kind than it writes, CorruptFileError where it is no such file.
        """
        told = read_yaml(self.config)
        recorded(self.config, told, whole)
        return told

    def trusted_config(self, trust: bool) -> dict[str, Any]:
        """The whole, its settings checked. UserError where its environment's module were imported without ``trust``."""
        told = self.examine().read_config(whole=True)
        told["settings"] = gather(spread(told["settings"], told["method"]), told["method"])
        try:
            settle(told["settings"])
        except UserError as error:
            raise CorruptFileError(f"{self.config}: {error}") from None
        module = told["env"].rpartition(":")[0]
        if module and module not in sys.modules:
            trusted(trust, f"{self} would import the module {module!r}")
        for key, value in told["settings"].get("env_kwargs", {}).items():
            if not isinstance(value, bool | int | float):  # text may name a file or a module
                trusted(trust, f"{self} would give its environment {key}={value!r:.60}")
        return told

    def has_config(self, told: Mapping[str, Any]) -> bool:
        """Whether ``write_config`` wrote the same, versions apart. Settings that no file holds are never the same."""
        there = read_yaml(self.config) if self.begun else {}
        asked = yaml.safe_load(yaml.dump(_plainly(told), Dumper=_WithoutAliases))
        return asked["algorithm_settings"] != OWN and all(key in there and there[key] == asked[key] for key in asked)

    def config_sha256(self) -> str:
        """With which checkpoints are sealed."""
        return sha256(read(self.config, YAML_LIMIT))

    def read_progress(self) -> list[dict[str, str]]:
        return list(rows(read(self.progress, math.inf)))

    def last_step(self) -> int:
        """The last step that the run has told of: that of its last whole episode. 0 before there is one."""
        try:
            with reading(self.progress, math.inf) as file:
                names = file.readline(TAIL)
                file.seek(max(file.tell(), file.seek(0, io.SEEK_END) - TAIL))
                last = file.read().split(b"\n")[-2:-1]  # what follows the last newline is no whole row
            return next((int(row[STEP]) for row in rows(b"".join((names, *last, b"\n")))), 0)
        except (ValueError, LookupError, TypeError):  # it is not there yet, or being renewed
            return 0

    def read_evaluations(self) -> Iterator[dict[str, str]]:
        """CorruptFileError where a run has ended, and not every byte is as it was then."""
        if self.ended:
            return rows(sealed(self.path, EVALUATIONS, CSV_LIMIT, needed=False))
        return rows(read(self.evaluations, CSV_LIMIT))

    def write_models(self, model: OffPolicyAlgorithm, reward: bytes) -> None:
        """``reward`` is its file's content.

        ``model.zip`` is for other programs: a plain SB3 file, which is a pickle, and which nothing here reads.
        """
        from safetensors.torch import save as to_bytes

        file = io.BytesIO()
        model.save(file, exclude=["_last_obs"])
        write(self.model, file.getvalue())
        write(self.policy, to_bytes(model.policy.state_dict()))
        write(self.reward, reward)
        logs = [log for log in (self.progress, self.evaluations) if log.is_file()]
        write_sums(self.path, [file.name for file in (self.config, self.model, self.policy, self.reward, *logs)])

    def read_models(self, model: OffPolicyAlgorithm, reward: nn.Module) -> None:
        """Into a model and a reward of the same settings. CorruptFileError where a file is not as it was written."""
        sealed(self.path, CONFIG, YAML_LIMIT)
        for module, file in ((model.policy, self.policy), (reward, self.reward)):
            size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
            try:
                module.load_state_dict(tensors(sealed(self.path, file.name, size + HEADER), file))
            except RuntimeError as error:
                raise CorruptFileError(f"{file} does not fit {CONFIG}: {' '.join(str(error).split())}") from None

    def read_reward(self) -> bytes:
        """The file's content. CorruptFileError where it is not as it was written."""
        return sealed(self.path, self.reward.name, REWARD_LIMIT)

    def check_sizes(self, config: Config, arguments: Mapping[str, Any], obs_size: int, act_size: int) -> None:
        """CorruptFileError where the settings, and ``arguments`` of the SB3 algorithm, tell of larger networks than the
        files hold, which no memory may hold either.
        """
        policy, critic, critics = networks(config, arguments, critics=1)
        learnt = weights(obs_size, *policy) + critics * weights(obs_size, *critic)
        inputs, form = obs_size + act_size, config.reward_form
        inputs = inputs * (inputs + 3) // 2 if form == "quadratic" else inputs
        rewarded = config.members * weights(inputs, *(config.reward_hidden if form == "network" else ()), 1)
        for file, least in ((self.policy, learnt), (self.reward, rewarded)):
            size = file.stat().st_size if file.is_file() else math.inf  # that it is missing is told later
            if 4 * least > size:
                raise CorruptFileError(f"{file} does not fit {CONFIG}, which tells of at least {least:,} weights")


def runs_in(path: Path, depth: int = 1) -> list[RunFolder]:
    """Runs in a folder, and in the folders in it where ``depth`` is 2; none that is in another's folder."""
    patterns = ("/".join(["*"] * level) for level in range(1, depth + 1))
    found = sorted(file.parent for pattern in patterns for file in path.glob(f"{pattern}/{CONFIG}"))
    return [RunFolder(out) for out in found if out.parent not in found]


def outside_runs(path: Path) -> Path:
    """``path``; UserError where it is a run's folder or in one: a run's folder holds one run."""
    for run in map(RunFolder, (path.absolute(), *path.absolute().parents)):
        if run.begun and (run.ended or run.lock_file.is_file() or run.evaluated):
            raise UserError(f"{path}: {run} is a run's folder, and holds no other run: choose another path")
    return path


def rows(data: bytes) -> Iterator[dict[str, str]]:
    """Of a table that may still grow: what follows the last newline is no whole row. ValueError where it is no text."""
    return csv.DictReader(io.StringIO(data[: data.rfind(b"\n") + 1].decode()))


def config_bytes(told: Mapping[str, Any]) -> bytes:
    """What ``RunFolder.write_config`` writes."""
    told = {"version": Record.model_fields["version"].default, **_plainly(told)}
    told |= {"versions": versions(), "commit": commit()}
    return yaml.dump(told, Dumper=_WithoutAliases, sort_keys=False).encode()


class _WithoutAliases(yaml.SafeDumper):
    """What ``files.read_yaml`` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plainly(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told} if _plain(told["algorithm_settings"]) else {**told, "algorithm_settings": OWN}


def _plain(value: Any) -> bool:
    try:
        yaml.safe_dump(value)
    except yaml.YAMLError:
        return False
    return True
