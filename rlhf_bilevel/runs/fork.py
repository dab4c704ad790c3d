"""A new run that goes on from a checkpoint of another: with other settings, more steps, more labels, another method.

``begin`` writes the new run's folder as if it were a run that was cut off at that checkpoint: settings, answers, logs
up to there and the state. ``resume`` then goes on with it. Where nothing is changed it goes on as the other did, bit
for bit.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.label_log import LabelLog
from rlhf_bilevel.data.run_folder import BEGINNING, RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.runs.checkpoint import Checkpoints, Loaded
from rlhf_bilevel.runs.checkpoint_manager import Told, compatible
from rlhf_bilevel.runs.logger import Rows
from rlhf_bilevel.types import Preferences
from rlhf_bilevel.utils.files import reading, sha256, sync, write, written
from rlhf_bilevel.utils.serialization import Tree, random_state

SHAPES = (
    "action_repeat", "env_kwargs", "flatten", "protocol", "segment_length", "hidden", "critic_layer_norm", "members",
    "reward_form", "reward_hidden", "cost_hidden", "reward",
)  # fmt: skip
"""Settings on which the shape or the meaning of what was stored and learnt depends: a fork has those of its origin."""
LEARNER_SEEDS = 100_003  # between the seeds of a run's learners


def load(folder: Path, at: int | None) -> Loaded:
    """The newest checkpoint of the run in ``folder``, or the newest at step ``at`` or before.

    UserError where there is none, CorruptFileError where it is not one of a run.
    """
    run = RunFolder(folder).examine()
    checkpoints = Checkpoints(run.checkpoints, run.config_sha256())
    loaded = checkpoints.load(at)
    if loaded is None:
        there = ", ".join(map(str, checkpoints.steps())) or "none"
        before = "" if at is None else f" at step {at} or before"
        raise UserError(f"{folder} has no checkpoint{before}: it has {there}; --keep-every keeps more of them")
    with compatible(checkpoints.folder, loaded.step):
        Told(**loaded.tree)
    return loaded


def answers(folder: Path, loaded: Loaded) -> list[Preferences | None]:
    """Those that the run in ``folder`` had used at that checkpoint, a session after the other."""
    told = Told(**loaded.tree)
    with LabelLog.copy(RunFolder(folder).labels) as labels:
        return labels.used(told.sessions, told.labels)


def check(loaded: Loaded, old: Config, new: Config) -> None:
    """UserError where a run with settings ``new`` cannot go on from there."""
    there, here = (config.options | config.model_dump() for config in (old, new))
    for name in SHAPES:
        if name in there and name in here and there[name] != here[name]:  # options of one method alone may be missing
            raise UserError(
                f"{name}={here[name]}: a fork keeps the {name} of its run, {there[name]}, as what was stored and "
                "learnt depends on it"
            )
    if new.steps <= loaded.step:
        raise UserError(f"steps={new.steps}: the checkpoint is at step {loaded.step}, and a fork must end after it")
    used = sum(loaded.tree["sessions"])
    if new.labels < used:
        raise UserError(f"labels={new.labels}: the checkpoint has used {used} labels already")


def adapted(tree: Tree, old: tuple[int, int], new: tuple[int, int]) -> Tree:
    """A run's state for a method with other learners; ``old`` and ``new`` are (learners, the agent's number).

    The agent goes on as the agent. A learner that is new begins as a copy of it, with random numbers of its own; one
    that is missing is left out, and what it wrote stays in the store.
    """
    if old == new:
        return tree
    (count, agent), (new_count, new_agent) = old, new
    order = [agent, *(number for number in range(count) if number != agent)]  # the agent first
    places = [new_agent, *(number for number in range(max(count, new_count)) if number != new_agent)]
    tree = copy.deepcopy(tree)
    learners, envs = list[Any]([None] * new_count), [0] * new_count
    for number, place in enumerate(places[:new_count]):
        known = number < count
        source = tree["learners"][order[number] if known else agent]
        learners[place] = source if known else copy.deepcopy(source) | {"fresh": True}
        envs[place] = tree["envs"][order[number] if known else agent]
    writers = torch.tensor([places[order.index(who)] for who in tree["store"]["writers"].tolist()], dtype=torch.int64)
    return tree | {"learners": learners, "envs": envs, "store": tree["store"] | {"writers": writers}}


def reseeded(tree: Tree, seed: int, everything: bool) -> Tree:
    """Learners that are new, or ``everything`` that draws, with random numbers as a run with ``seed`` begins with."""
    tree = dict(tree)
    learners = []
    for number, learner in enumerate(tree["learners"]):
        own = seed + number * LEARNER_SEEDS
        if learner.pop("fresh", False) or everything:
            learner = learner | {"rng": torch.Generator().manual_seed(own).get_state()}
            if "view" in learner:
                learner["view"] = learner["view"] | {"rng": random_state(np.random.RandomState(own))}
                learner["actions"] = np.random.default_rng(own).bit_generator.state
        learners.append(learner)
    tree["learners"] = learners
    if everything:
        purposes = enumerate(tree["rng"])
        tree["rng"] = {name: np.random.default_rng([seed, i]).bit_generator.state for i, name in purposes}
        tree["generator"] = torch.Generator().manual_seed(seed).get_state()
    return tree


def begin(source: Path, target: Path, loaded: Loaded, tree: Tree, config: bytes) -> None:
    """Makes the folder ``target`` that of a run that was cut off at ``loaded``, with that config.yaml.

    config.yaml is the last to be written: a folder without it is no run, and a file ``RunFolder.forking`` says until
    then what the folder is. CorruptFileError where the other run's answers or logs are not those that the checkpoint
    knew.
    """
    told, old, run = Told(**loaded.tree), RunFolder(source), RunFolder(target)
    write(run.forking, f"A fork of {source} begins here. If it was killed, the same command clears it.\n".encode())
    for log in (old.progress, old.evaluations):
        Rows(log, told.marks.get(log.name))
    with LabelLog.copy(old.labels) as labels:
        labels.used(told.sessions, told.labels)  # checks them
        labels.write(run.labels, len(told.sessions))
    events = [path for path in old.events() if path.name in told.marks.get("events", {})]
    for log in (old.progress, old.evaluations, *events):
        if log.is_file():  # what it holds beyond the step is cut when the run goes on
            copy = target / log.name
            with reading(log, math.inf) as there, written(copy), copy.open("xb") as here:
                shutil.copyfileobj(there, here)
    new: Mapping[str, Any] = loaded.tree | {"run": tree}
    Checkpoints(run.checkpoints, sha256(config)).save(loaded.step, new, loaded.tables, keep=True)
    write(run.config, config)
    with written(target):
        run.forking.unlink()
        sync(target)


def clear(target: Path) -> None:
    """What a ``begin`` has left that was killed is removed. To be called under the lock on the folder."""
    if RunFolder(target).unfinished_fork:
        undo(target)


def undo(target: Path) -> None:
    """What ``begin`` has made, or a part of it, is removed; the lock on the folder stays."""
    run = RunFolder(target)
    for path in target.iterdir():
        if BEGINNING.fullmatch(path.name) and path not in (run.lock_file, run.forking):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    run.forking.unlink(missing_ok=True)  # last, as it says what the others are
