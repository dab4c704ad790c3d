"""A run's folder: the names of its files, whether the run has begun or ended, and what is read and written there.

No pickle is ever loaded, so that a stranger's folder runs no code. This module does not import torch, so that the
command line, ``compare`` and the label server start without it.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.memory import network_sizes, num_weights
from rlhf_bilevel.config.names import flatten_options, nest_options
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.config.record import ConfigRecord, check_record, upgrade
from rlhf_bilevel.config.schema import NAMED
from rlhf_bilevel.errors import CorruptFileError, LockedError, UserError
from rlhf_bilevel.registries import REWARD_FORMS
from rlhf_bilevel.utils.files import (
    CSV_LIMIT,
    SUMS,
    check_folder,
    check_trust,
    load_tensors,
    lock,
    naming_write_errors,
    one_line,
    open_to_read,
    read,
    read_verified,
    sha256,
    write,
    write_sums,
)
from rlhf_bilevel.utils.json_yaml import YAML_LIMIT, from_yaml, read_yaml, to_yaml
from rlhf_bilevel.utils.suggest import did_you_mean
from rlhf_bilevel.utils.versions import current_commit, installed_versions

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from torch import Tensor, nn

CONFIG, PROGRESS, EVALUATIONS = "config.yaml", "progress.csv", "evaluations.csv"
STEP = "time/total_timesteps"  # column of PROGRESS
FORMER_ALGORITHMS = {"Uniform": "RandomPolicy"}  # as older runs name them
OWN = "own"  # stands for algorithm settings that no file can hold
REWARD_LIMIT = 2**30  # the most bytes of a file with a reward model
HEADER = 2**20  # the most bytes of a safetensors file that are not weights
FORKING = "fork.unfinished"
BEGINNING = re.compile(
    rf"\.lock|label_page\.lock|{re.escape(FORKING)}(\.tmp)?|config\.yaml(\.tmp)?|(progress|evaluations)\.csv|labels\.sqlite(-\w+)?|"
    r"events\.out\.tfevents\..*|checkpoints"
)
"""Names of the files that a fork begins with. ``FORKING`` exists from before the first of them until all exist."""
POLICY = re.compile(r"step-(\d{9,})\.safetensors")
TAIL = 2**16  # bytes at the end of PROGRESS that hold its last row


class RunFolder:
    """The folder of one run; it need not exist. An attribute is a path in it unless it says otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG  # all settings; written first
        self.progress = path / PROGRESS  # metrics, a row for each episode
        self.evaluations = path / EVALUATIONS  # true returns, a row for each evaluation episode
        self.labels = path / "labels.sqlite"  # all answers that training has used
        self.checkpoints = path / "checkpoints"  # a folder
        self.model = path / "model.zip"  # for other programs
        self.policy = path / "policy.safetensors"
        self.policies = path / "policies"  # a folder: what the policy was at each tenth of the steps, and at the end
        self.selection = path / "selection.json"  # which of them the teacher preferred
        self.selecting = path / "selecting.json"  # what is asked for, while a folder of ``select`` is not complete
        self.reward = path / "reward.safetensors"
        self.preferences = path / "preferences.parquet"  # all queries, as a preference dataset
        self.learning_curve = path / "learning_curve.png"
        self.sums = path / SUMS  # checksums of the files above; written last
        self.book = path / "book.sqlite"  # queries to people and their answers
        self.run_id = path / "run_id"  # the run's name in the book
        self.label_page = path / "label_page.json"  # the question and the guidelines of the label page
        self.label_page_lock = path / "label_page.lock"  # held by the first label page that is open
        self.requests = path / "teacher.jsonl"  # every request to a teacher by HTTP, and its answer
        self.clips = path / "clips"  # a folder: the clips that people see
        self.lock_file = path / ".lock"
        self.forking = path / FORKING  # exists while a fork begins

    def __str__(self) -> str:
        return str(self.path)

    @property
    def output(self) -> Path:
        """The log of what a run of a study printed; it is beside the folder."""
        path = self.path.absolute()  # "." has no name
        return path.with_name(f"{path.name}.log")

    def events(self) -> list[Path]:
        """TensorBoard's files."""
        return list(self.path.glob("events.out.tfevents.*"))

    @property
    def vacant(self) -> bool:
        """Whether a new run may use the folder: nothing is there but a lock, or remains of a start that was killed."""
        if not self.path.is_dir():
            return not os.path.lexists(self.path)
        left = {self.lock_file.name, self.label_page_lock.name, f"{CONFIG}.tmp"}
        return {path.name for path in self.path.iterdir()} <= left or self.unfinished_fork

    @property
    def unfinished_fork(self) -> bool:
        """Whether the folder holds only what a fork wrote that was killed while it began."""
        names = {path.name for path in self.path.iterdir()}
        marked = FORKING in names or f"{FORKING}.tmp" in names
        return marked and CONFIG not in names and all(map(BEGINNING.fullmatch, names))

    @property
    def begun(self) -> bool:
        """Whether a run has begun there."""
        return self.config.is_file()

    @property
    def ended(self) -> bool:
        """Whether the run has come to its end."""
        return self.sums.is_file()

    @property
    def evaluated(self) -> bool:
        """Whether the run has been evaluated at least once."""
        return self.evaluations.is_file()

    def examine(self, writes: bool = False) -> RunFolder:
        """The folder itself, if it is a run's. UserError if not, or if ``files.check_folder`` refuses what it holds."""
        if not self.begun:
            near = [str(run.path) for run in runs_in(self.path.parent)]
            hint = f"; {did_you_mean(str(self.path), near)}" if near else ""
            if inside := runs_in(self.path, depth=2):
                hint = f"; it holds {len(inside)} run{'s' * (len(inside) > 1)}: choose one, such as {inside[0]}"
            raise UserError(f"{self} is not a run's folder: it has no {CONFIG}{hint}")
        check_folder(self.path, writes)
        return self

    def clear_selection(self) -> None:
        """Removes what a selection that got no answer has written. Locks on the folder stay."""
        for path in self.path.iterdir():
            if path not in (self.lock_file, self.label_page_lock, self.selecting):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.selecting.unlink(missing_ok=True)  # last: it says what the folder is

    def lock(self) -> FileLock:
        """The run's lock, taken: who trains the run holds it. LockedError if another process does."""
        run_lock = lock(self.lock_file)
        with naming_write_errors(self.path):
            try:
                run_lock.acquire()
            except Timeout:
                raise LockedError(f"{self} is being trained by another process") from None
        return run_lock

    def claim(self) -> FileLock:
        """A study's lock on the run, beside the folder. Entering it raises Timeout if another process holds it."""
        path = self.path.absolute()  # "." has no name
        return lock(path.with_name(f".{path.name}.lock"))

    def write_config(self, record: Mapping[str, Any]) -> None:
        """Writes config.yaml, with all that is needed to repeat the run."""
        write(self.config, config_bytes(record))

    def read_config(self, must_be_complete: bool = False) -> dict[str, Any]:
        """What ``write_config`` wrote; a part of it is enough unless ``must_be_complete``.

        UserError if a value is of another kind than it writes, CorruptFileError if it is no such file.
        """
        record = read_yaml(self.config)
        check_record(self.config, record, must_be_complete)
        return upgrade(record)

    def trusted_config(self, trust: bool, custom: Collection[str] = ()) -> dict[str, Any]:
        """All of config.yaml, with its settings checked. UserError if it names a module to import, unless ``trust``.

        ``custom`` are keys whose values are not used, as the user gives objects of their own instead.
        """
        record = self.examine().read_config(must_be_complete=True)
        record["algorithm"] = FORMER_ALGORITHMS.get(record["algorithm"], record["algorithm"])
        record["settings"] = nest_options(flatten_options(record["settings"], record["method"]), record["method"])
        try:
            validate(record["settings"])
        except UserError as error:
            raise CorruptFileError(f"{self.config}: {error}") from None
        module = record["env"].rpartition(":")[0]
        if module and module not in sys.modules:
            check_trust(trust, f"{self} would import the module {module!r}")
        places = [record[key] for key in ("method", "algorithm") if key not in custom]
        for place in [*places, *(record["settings"].get(key) or "" for key in NAMED)]:
            if ":" in place:  # also if it is imported already: whatever is in it would be called
                check_trust(trust, f"{self} would import the module {place.partition(':')[0]!r}")
        for key, value in record["settings"].get("env_kwargs", {}).items():
            if not isinstance(value, bool | int | float):  # text may name a file or a module
                check_trust(trust, f"{self} would give its environment {key}={value!r:.60}")
        return record

    def has_config(self, record: Mapping[str, Any]) -> bool:
        """Whether config.yaml equals ``record``, except for versions. Settings that no file can hold never are."""
        on_disk = read_yaml(self.config) if self.begun else {}
        expected = from_yaml(to_yaml(_storable(record)))
        return expected["algorithm_settings"] != OWN and all(
            key in on_disk and on_disk[key] == expected[key] for key in expected
        )

    def config_sha256(self) -> str:
        """Hash of config.yaml; each checkpoint holds it."""
        return sha256(read(self.config, YAML_LIMIT))

    def read_progress(self) -> list[dict[str, str]]:
        """The rows of progress.csv by column, one for each episode and evaluation."""
        return list(parse_csv(read(self.progress, math.inf)))

    def last_step(self) -> int:
        """Environment step at the end of the last whole episode in progress.csv; 0 before there is one."""
        try:
            with open_to_read(self.progress, math.inf) as file:
                names = file.readline(TAIL)
                file.seek(max(file.tell(), file.seek(0, io.SEEK_END) - TAIL))
                last = file.read().split(b"\n")[-2:-1]  # after the last newline there is no whole row
            return next((int(row[STEP]) for row in parse_csv(b"".join((names, *last, b"\n")))), 0)
        except (ValueError, LookupError, TypeError):  # it does not exist yet, or is being rewritten
            return 0

    def read_evaluations(self) -> Iterator[dict[str, str]]:
        """The rows of evaluations.csv by column. CorruptFileError if a run has ended and the file has changed since."""
        if self.ended:
            return parse_csv(read_verified(self.path, EVALUATIONS, CSV_LIMIT, needed=False))
        return parse_csv(read(self.evaluations, CSV_LIMIT))

    def write_models(self, model: OffPolicyAlgorithm, reward: bytes) -> None:
        """Writes the policy, the reward model (``reward`` is its file's content), model.zip and all checksums.

        model.zip is for other programs: a plain SB3 file, which is a pickle and which nothing here reads.
        """
        from safetensors.torch import save as to_bytes

        file = io.BytesIO()
        model.save(file, exclude=["_last_obs"])
        write(self.model, file.getvalue())
        write(self.policy, to_bytes(model.policy.state_dict()))
        write(self.reward, reward)
        logs = [log for log in (self.progress, self.evaluations) if log.is_file()]
        logs += [self.selection] if self.selection.is_file() else []
        files = [self.config, self.model, self.policy, self.reward, *logs, *self.kept_policies().values()]
        write_sums(self.path, [str(file.relative_to(self.path)) for file in files])

    def has_models(self, model: OffPolicyAlgorithm, reward: bytes) -> bool:
        """Whether the policy and the reward model are those of ``write_models``."""
        from safetensors.torch import save as to_bytes

        weights = {name: value.detach().cpu().contiguous() for name, value in model.policy.state_dict().items()}
        found = ((self.policy, to_bytes(weights)), (self.reward, reward))
        return all(file.is_file() and file.read_bytes() == content for file, content in found)

    def keep_policy(self, step: int, policy: nn.Module) -> None:
        """Keeps what the policy is at this step: of an actor-critic the actor, of any other all weights."""
        from safetensors.torch import save as to_bytes

        with naming_write_errors(self.policies):
            self.policies.mkdir(exist_ok=True)
        weights = {name: value.detach().cpu().clone() for name, value in policy.state_dict().items()}
        acting = {name: value for name, value in weights.items() if name.startswith("actor.")} or weights
        write(self.policies / f"step-{step:09d}.safetensors", to_bytes(acting))

    def kept_policies(self) -> dict[int, Path]:
        """The files of the policies that were kept, by their step, in order."""
        files = {path: POLICY.fullmatch(path.name) for path in self.policies.glob("step-*")}
        return dict(sorted((int(match[1]), path) for path, match in files.items() if match))

    def read_policy(self, step: int, policy: nn.Module) -> None:
        """Makes ``policy`` act as ``keep_policy`` found it at this step. CorruptFileError if the file does not fit, or
        if the run has ended and the file has changed since.
        """
        file, weights = self.policies / f"step-{step:09d}.safetensors", policy.state_dict()
        name, limit = str(file.relative_to(self.path)), _num_bytes(weights) + HEADER
        data = read_verified(self.path, name, limit) if self.ended else read(file, limit)
        _load(policy, data, file, weights)

    def read_models(self, model: OffPolicyAlgorithm, reward: nn.Module) -> None:
        """Loads the weights into a model and a reward of the same settings. CorruptFileError if a file has changed."""
        read_verified(self.path, CONFIG, YAML_LIMIT)
        for module, file in ((model.policy, self.policy), (reward, self.reward)):
            limit = _num_bytes(module.state_dict()) + HEADER
            _load(module, read_verified(self.path, file.name, limit), file)

    def read_reward(self) -> bytes:
        """The file's content. CorruptFileError where it is not as it was written."""
        return read_verified(self.path, self.reward.name, REWARD_LIMIT)

    def check_sizes(self, config: Config, arguments: Mapping[str, Any], obs_size: int, act_size: int) -> None:
        """CorruptFileError if config.yaml describes larger networks than the files hold.

        Without this check, a changed config.yaml could make this process use up all memory. ``arguments`` are those of
        the SB3 algorithm.
        """
        policy, critic, critics = network_sizes(config, arguments, critics=1)
        learnt = num_weights(obs_size, *policy) + critics * num_weights(obs_size, *critic)
        rewarded = 0  # the size of a form that is not ours is not known here
        if config.reward_form in REWARD_FORMS.ours:
            form = REWARD_FORMS[config.reward_form]
            terms = form.num_terms(form.num_features(obs_size + act_size))
            sizes = terms, *(() if form.linear else config.reward_net_arch), 1
            rewarded = config.ensemble_size * num_weights(*sizes)
        for file, least_weights in ((self.policy, learnt), (self.reward, rewarded)):
            size = file.stat().st_size if file.is_file() else math.inf  # a missing file is reported later
            if 4 * least_weights > size:
                raise CorruptFileError(
                    f"{file} does not fit {CONFIG}, which tells of at least {least_weights:,} weights"
                )


def _load(module: nn.Module, data: bytes, file: Path, others: Mapping[str, Tensor] = {}) -> None:
    """Loads the weights in ``data``, which was read from ``file``, and in their absence ``others``."""
    try:
        module.load_state_dict({**others, **load_tensors(data, file)})
    except RuntimeError as error:
        raise CorruptFileError(f"{file} does not fit {CONFIG}: {one_line(error)}") from None


def _num_bytes(weights: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in weights.values())


def runs_in(path: Path, depth: int = 1) -> list[RunFolder]:
    """The runs in a folder and, if ``depth`` is 2, in its folders; but no run inside another run's folder."""
    patterns = ("/".join(["*"] * level) for level in range(1, depth + 1))
    folders = sorted(file.parent for pattern in patterns for file in path.glob(f"{pattern}/{CONFIG}"))
    return [RunFolder(out) for out in folders if out.parent not in folders]


def outside_runs(path: Path) -> Path:
    """Returns ``path``. UserError if it is a run's folder or inside one: a run's folder holds one run."""
    for run in map(RunFolder, (path.absolute(), *path.absolute().parents)):
        if run.begun and (run.ended or run.lock_file.is_file() or run.evaluated):
            raise UserError(f"{path}: {run} is a run's folder, and holds no other run: choose another path")
    return path


def parse_csv(data: bytes) -> Iterator[dict[str, str]]:
    """The rows of a CSV file that may still grow; an unfinished last line is left out. ValueError if it is not text."""
    return csv.DictReader(io.StringIO(data[: data.rfind(b"\n") + 1].decode()))


def config_bytes(record: Mapping[str, Any]) -> bytes:
    """The content of config.yaml for ``record``."""
    record = {"version": ConfigRecord.model_fields["version"].default, **_storable(record)}
    record |= {"versions": installed_versions(), "commit": current_commit()}
    return to_yaml(record).encode()


def _storable(record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        yaml.safe_dump(record["algorithm_settings"])
    except yaml.YAMLError:
        return {**record, "algorithm_settings": OWN}
    return {**record}
