"""A new run that continues from a checkpoint of another: with other settings, more steps, more labels, another method.

``begin`` writes the new run's folder like that of a run that was cut off at the checkpoint: settings, answers, logs
until then, and the state. ``resume`` then continues it: as the other did, bit for bit, if nothing is changed.
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
from rlhf_bilevel.runs.checkpoint import Checkpoint, Checkpoints
from rlhf_bilevel.runs.checkpoint_manager import CheckpointState, restoring
from rlhf_bilevel.runs.logger import GrowingCSV
from rlhf_bilevel.types import Preferences
from rlhf_bilevel.utils.files import naming_write_errors, open_to_read, sha256, sync, write
from rlhf_bilevel.utils.serialization import Tree, random_state

SHAPES = (
    "action_repeat", "env_kwargs", "flatten", "protocol", "segment_length", "net_arch", "critic_layer_norm",
    "ensemble_size", "reward_form", "reward_net_arch", "reward_use_action", "reward_units", "reward_clip",
    "cost_hidden", "reward",
)  # fmt: skip
"""Settings that change the shape or meaning of stored data or weights: a fork cannot change them."""
RATES = {
    "learning_rate": ("learners",),
    "reward_lr": ("reward_optimizer", "health"),
    "cost_learning_rate": ("method",),
}
"""Settings that are an optimizer's rate, and the parts of a run's state with such optimizers."""
LEARNER_SEEDS = 100_003  # between the seeds of a run's learners


def load_checkpoint(folder: Path, at: int | None) -> Checkpoint:
    """The newest checkpoint of the run in ``folder``, or the newest at step ``at`` or before.

    UserError if there is none, CorruptFileError if it does not belong to a run.
    """
    if at is not None and not isinstance(at, int):
        raise UserError(f"at={at!r:.60}: must be a step of training, a whole number")
    run = RunFolder(folder).examine()
    checkpoints = Checkpoints(run.checkpoints, run.config_sha256())
    loaded = checkpoints.load(at)
    if loaded is None:
        if not (steps := checkpoints.steps()):
            when = "one is written at the end of an episode, about every minute of training (--checkpoint-every)"
            raise UserError(f"{folder} has no checkpoint{' yet' * (not run.ended)}: {when}")
        available = ", ".join(map(str, steps))
        raise UserError(
            f"{folder} has no checkpoint at step {at} or before: it has {available}; --keep-every keeps more of them"
        )
    with restoring(checkpoints.folder, loaded.step):
        CheckpointState(**loaded.tree)
    return loaded


def used_answers(folder: Path, loaded: Checkpoint) -> list[Preferences | None]:
    """The answers that the run in ``folder`` had used at that checkpoint, session by session."""
    saved = CheckpointState(**loaded.tree)
    with LabelLog.copy(RunFolder(folder).labels) as labels:
        return labels.used(saved.sessions, saved.labels)


def check(loaded: Checkpoint, old: Config, new: Config) -> None:
    """UserError if a run with settings ``new`` cannot continue from there."""
    old_settings, new_settings = (config.options | config.model_dump() for config in (old, new))
    for name in SHAPES:
        if name not in old_settings or name not in new_settings:  # an option that only one method has
            continue
        before, after = old_settings[name], new_settings[name]
        if before != after:
            raise UserError(
                f"{name}={after}: a fork keeps the {name} of its run, {before}, as what was stored and "
                "learnt depends on it"
            )
    for name, before, after in (
        ("termination", old.termination, new.termination),
        ("ent_coef", old.ent_coef, new.ent_coef),
    ):
        if _stored(before) != _stored(after):
            raise UserError(
                f"{name}={after}: a fork of a run with {name}={before} cannot have it, as what was stored depends on it"
            )
    if new.total_timesteps <= loaded.step:
        raise UserError(
            f"steps={new.total_timesteps}: the checkpoint is at step {loaded.step}, and a fork must end after it"
        )
    used = sum(loaded.tree["sessions"])
    if new.training_labels < used:
        held_back = f" (select_labels={new.select_labels} are held back)" if new.select_labels else ""
        raise UserError(f"labels={new.labels}: the checkpoint has used {used} labels already{held_back}")


def _stored(value: str) -> str:
    """Equal for values of ``termination``, or of ``ent_coef``, with which a run stores the same things."""
    return value if value == "absorb" else "auto" if value.startswith("auto") else ""


def adapt_learners(tree: Tree, old: tuple[int, int], new: tuple[int, int]) -> Tree:
    """A run's state for a method with other learners; ``old`` and ``new``: (number of learners, the agent's number).

    The agent stays the agent. A new learner starts as a copy of it, with random numbers of its own. A learner that is
    not needed is left out; its transitions stay in the replay buffer.
    """
    if old == new:
        return tree
    (count, agent), (new_count, new_agent) = old, new
    order = [agent, *(number for number in range(count) if number != agent)]  # the agent first
    places = [new_agent, *(number for number in range(max(count, new_count)) if number != new_agent)]
    tree = copy.deepcopy(tree)
    learners, envs = list[Any]([None] * new_count), [0] * new_count
    for number, place in enumerate(places[:new_count]):
        existing = number < count
        source = tree["learners"][order[number] if existing else agent]
        learners[place] = source if existing else copy.deepcopy(source) | {"fresh": True}
        envs[place] = tree["envs"][order[number] if existing else agent]
    writers = torch.tensor([places[order.index(who)] for who in tree["store"]["writers"].tolist()], dtype=torch.int64)
    return tree | {"learners": learners, "envs": envs, "store": tree["store"] | {"writers": writers}}


def adapt_rates(tree: Tree, old: Config, new: Config) -> Tree:
    """The state with the rates of ``new``: an optimizer's state holds its rate. One that is not ``old``'s stays."""
    tree = dict(tree)
    before, after = (config.options | config.model_dump() for config in (old, new))
    for name, parts in RATES.items():
        if before.get(name) == after.get(name) or name not in before or name not in after:
            continue
        for part in parts:
            tree[part] = _with_rate(tree[part], before[name], after[name])
    return tree


def differ(old: Config, new: Config) -> bool:
    """Whether settings differ, apart from the budgets."""
    before, after = (config.model_dump() | {"total_timesteps": 0, "labels": 0} for config in (old, new))
    return before != after


def forget_rewards(tree: Tree) -> Tree:
    """The state without the rewards of rows that learners keep: they may be another function's."""
    nothing = {"cached": torch.zeros(0, dtype=torch.int32), "reward": torch.zeros(0)}
    learners = [
        learner | {"view": learner["view"] | nothing} if "view" in learner else learner for learner in tree["learners"]
    ]
    return tree | {"learners": learners}


def _with_rate(node: Any, before: float, after: float) -> Any:
    """A part of a state in which every optimizer's rate ``before`` has become ``after``."""
    if isinstance(node, dict) and node.keys() == {"parameters", "groups"}:
        groups = [group | {"lr": after} if group.get("lr") == before else group for group in node["groups"]]
        return node | {"groups": groups}
    if isinstance(node, dict):
        return {key: _with_rate(value, before, after) for key, value in node.items()}
    return [_with_rate(value, before, after) for value in node] if isinstance(node, list) else node


def reseed(tree: Tree, seed: int, everything: bool) -> Tree:
    """The state with new random numbers, as a run with ``seed`` begins, for new learners or for ``everything``."""
    tree = dict(tree)
    learners = []
    for number, learner in enumerate(tree["learners"]):
        learner_seed = seed + number * LEARNER_SEEDS
        if learner.pop("fresh", False) or everything:
            learner = learner | {"rng": torch.Generator().manual_seed(learner_seed).get_state()}
            if "view" in learner:
                learner["view"] = learner["view"] | {"rng": random_state(np.random.RandomState(learner_seed))}
                learner["actions"] = np.random.default_rng(learner_seed).bit_generator.state
        learners.append(learner)
    tree["learners"] = learners
    if everything:
        purposes = enumerate(tree["rng"])
        tree["rng"] = {name: np.random.default_rng([seed, i]).bit_generator.state for i, name in purposes}
        tree["generator"] = torch.Generator().manual_seed(seed).get_state()
    return tree


def begin(source: Path, target: Path, loaded: Checkpoint, tree: Tree, config: bytes) -> None:
    """Makes ``target`` the folder of a run with that config.yaml that was cut off at ``loaded``.

    config.yaml is written last: a folder without it is not a run. Until then the file ``RunFolder.forking`` says what
    the folder is. CorruptFileError if the other run's answers or logs are not those of the checkpoint.
    """
    saved, old, run = CheckpointState(**loaded.tree), RunFolder(source), RunFolder(target)
    write(run.forking, f"A fork of {source} begins here. If it was killed, the same command clears it.\n".encode())
    for log in (old.progress, old.evaluations):
        GrowingCSV(log, saved.marks.get(log.name))
    with LabelLog.copy(old.labels) as labels:
        labels.used(saved.sessions, saved.labels)  # raises if they are damaged
        labels.write(run.labels, len(saved.sessions))
    events = [path for path in old.events() if path.name in saved.marks.get("events", {})]
    for log in (old.progress, old.evaluations, *events):
        if log.is_file():  # rows after the checkpoint are cut when the run continues
            copy = target / log.name
            with open_to_read(log, math.inf) as original, naming_write_errors(copy), copy.open("xb") as duplicate:
                shutil.copyfileobj(original, duplicate)
    new: Mapping[str, Any] = loaded.tree | {"run": tree}
    Checkpoints(run.checkpoints, sha256(config)).save(loaded.step, new, loaded.tables, keep=True)
    write(run.config, config)
    with naming_write_errors(target):
        run.forking.unlink()
        sync(target)


def undo(target: Path) -> None:
    """Removes what ``begin`` has made, or a part of it; to be called under the lock on the folder. Its locks stay."""
    run = RunFolder(target)
    for path in target.iterdir():
        if BEGINNING.fullmatch(path.name) and path not in (run.lock_file, run.label_page_lock, run.forking):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    run.forking.unlink(missing_ok=True)  # last: it marks the others
