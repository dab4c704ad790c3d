"""How a run starts: anew (``train``), where it was cut off (``resume``), or from a checkpoint (``begin_fork``).

``select`` starts from a run that has ended, and chooses one of its policies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.reading import parse_keep_every, validate
from rlhf_bilevel.data.label_log import LabelLog, RecordedTeacher
from rlhf_bilevel.data.run_folder import OWN, RunFolder, config_bytes
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teacher_spec import OURS
from rlhf_bilevel.learners import algorithm_settings
from rlhf_bilevel.registries import LEARNERS, METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.runs import fork, selection
from rlhf_bilevel.runs.build import build, check_memory_for_run
from rlhf_bilevel.runs.checkpoint import Checkpoint
from rlhf_bilevel.runs.checkpoint_manager import restoring
from rlhf_bilevel.runs.claim import check_outside, check_vacant, claim_folder
from rlhf_bilevel.runs.environments import training_envs
from rlhf_bilevel.runs.output import config_record, write_learnt, write_selection
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.process import Interrupts, delayed_interrupts, exclusive_training, preserved_generators
from rlhf_bilevel.runs.session import NOBODY, Observers, Session
from rlhf_bilevel.runs.side_by_side import spread_stack, torch_threads, with_threads
from rlhf_bilevel.runs.spec import RunSpec, resolve_device
from rlhf_bilevel.utils.files import JSON_LIMIT, check_trust, read, write
from rlhf_bilevel.utils.json_yaml import to_json
from rlhf_bilevel.utils.registry import Registry
from rlhf_bilevel.utils.suggest import did_you_mean
from rlhf_bilevel.utils.versions import installed_versions

OWN_PARTS = ("method", "env", "teacher", "algorithm", "algorithm_settings")
"""What may be an object of the user's own."""


class Origin(NamedTuple):
    """What a fork continues from."""

    folder: Path
    loaded: Checkpoint | None = None  # the checkpoint; None: the newest, when it begins
    trust: bool = False  # whether the teacher that the folder names may be asked
    retaught: bool = False  # whether the teacher is another, by name


def train(spec: RunSpec, observers: Observers = NOBODY) -> Session:
    """Begins a run and trains it to its end.

    AlreadyExistsError, and nothing is written, if its folder holds something; LockedError if another process begins
    there, too. UserError if this process is training already, and if a reward was to be learnt and no label came: the
    folder then has the evaluations and no model.
    """
    parts = Parts.of(spec.method, spec.algorithm)
    if spec.threads:
        torch.set_num_threads(torch_threads(spec, parts))
    with exclusive_training():
        session = begin(spec, parts)
        session.follow(observers)
    return session


def begin(spec: RunSpec, parts: Parts) -> Session:
    """A run at its first step, with its folder; no other process can take it until the run ends."""
    spec = replace(spec, out=spec.out and spec.out.absolute())  # also if the program changes its folder
    config = spec.resolve(parts.method)
    if config.select_labels and not spec.out:
        raise UserError(f"select_labels={config.select_labels}: policies are kept in the run's folder, give it as out=")
    if spec.out:
        check_vacant(spec.out)
        with preserved_generators(), Interrupts():
            spec.check_env(parts.method)  # before the folder is created
    environments = training_envs(spec, config, parts.method)
    config, notice = spec.fit(config, environments[0].limit, parts.method)
    run, lock = build(spec, parts, config, environments), None
    if stack := spread_stack(spec, parts, run):
        stack.update.share()  # before the folder is created, as there may be too little memory for it
    if notice:
        warnings.warn(notice, stacklevel=3)
    if spec.out:
        with delayed_interrupts(), claim_folder(spec.out) as lock:
            spec.folder.write_config(config_record(spec, parts, config))
    return Session(spec, parts, run, lock)


def begin_fork(spec: RunSpec, parts: Parts, origin: Origin, additional_steps: int) -> Session:
    """A fork with these settings, at its ``origin``'s checkpoint, for ``additional_steps`` more, and its folder.

    UserError if it cannot continue from there (see ``fork.check``); then nothing is left in its folder.
    """
    source = RunFolder(origin.folder)
    record = source.trusted_config(trust=True)  # its modules were imported before
    old = validate(record["settings"])
    if record["teacher"] not in OURS and parts.teacher is None and not origin.retaught:
        raise UserError(
            f"{origin.folder} was taught by a teacher of your own, {record['teacher']}: give it as teacher="
        )
    loaded = origin.loaded or fork.load_checkpoint(origin.folder, None)
    config = spec.having(total_timesteps=loaded.step + additional_steps).resolve(parts.method)
    if parts.teacher is None and config.teacher_url:
        if config.teacher_url == old.teacher_url:
            check_contacts(origin.folder, config, origin.trust)
        if config.teacher_frames:
            raise UserError("a fork has no pictures of what came before it: teacher_frames=0 sends states and actions")
    fork.check(loaded, old, config)
    old_method = METHODS.get(record["method"], parts.method)
    both = (old_method, old), (parts.method, config)
    before, after = ((method.learners, int(method.agent(method.options_of(c)))) for method, c in both)
    with restoring(source.checkpoints, loaded.step):
        state = fork.adapt_learners(loaded.tree["run"], before, after)
        if record["method"] != spec.method:
            state = state | {"method": None}
        if record["method"] != spec.method or fork.differ(old, config):
            state = fork.forget_rewards(state)
        state = fork.adapt_rates(state, old, config)
        state = fork.reseed(state, config.seed, everything=config.seed != old.seed)
    if spec.out is None:
        begins = loaded._replace(tree=loaded.tree | {"run": state})
        run = build(spec, parts, config, used_sessions=len(begins.tree["sessions"]))
        return Session(spec, parts, run, begins=begins, origin=origin.folder)
    check_vacant(spec.out)
    environments = training_envs(spec, config, parts.method)
    check_memory_for_run(parts, config, environments)
    with claim_folder(spec.out) as lock:
        try:
            with delayed_interrupts():
                fork.begin(origin.folder, spec.out, loaded, state, config_bytes(config_record(spec, parts, config)))
            return Session(spec, parts, build(spec, parts, config, environments), lock, origin=origin.folder)
        except BaseException:
            fork.undo(spec.out)
            raise


def resume(
    folder: Path,
    observers: Observers = NOBODY,
    *,
    trust: bool = False,
    checkpoint_every: str | None = None,
    keep_every: int | None = None,
    threads: int | None = None,
    custom: Mapping[str, Any] = {},
) -> Session:
    """Continues a run that was cut off, to its end; on one CPU, bit for bit as if it had not been.

    ``trust`` and ``custom`` are as in ``read_folder``. ``threads`` are the run's CPU threads from here on,
    ``checkpoint_every`` and ``keep_every`` as in ``RunSpec``; None: as before. Sets torch's number of threads.
    UserError, and nothing changes, if there is nothing to resume, if another process trains the run, and if no
    checkpoint can be used.
    """
    spec, parts, record = read_folder(folder, trust, custom)
    spec = replace(spec, device=resolve_device(spec.device))
    if checkpoint_every is not None:
        spec = replace(spec, checkpoint_every=checkpoint_every)
    if keep_every is not None:
        spec = replace(spec, keep_every=parse_keep_every(keep_every))
    if threads is not None:
        spec = with_threads(spec, threads)
    config = validate(spec.settings)
    assert spec.out is not None
    if parts.teacher is None:
        check_contacts(folder, config, trust)
    spec.folder.examine(writes=True)
    with exclusive_training():
        lock = spec.folder.lock()
        try:
            if spec.folder.selecting.is_file():
                raise UserError(f"{folder} is no run: the same rlhf-bilevel select command goes on with it")
            if spec.folder.ended:  # under the lock, as another process may just have ended it
                raise UserError(f"{folder} has come to its end: there is nothing to resume")
            for name, version in installed_versions().items():
                if (version_then := record["versions"].get(name)) != version:
                    change = f"{name} was {version_then} and is {version}"
                    warnings.warn(f"{change}: the run may go on differently", stacklevel=2)
            torch.set_num_threads(record["threads"] if threads is None else torch_threads(spec, parts))
            session = Session(spec, parts, build(spec, parts, config), lock)
            session.follow(observers)
        finally:
            lock.release()
    return session


def check_contacts(folder: Path, config: Config, trust: bool) -> None:
    """UserError, without ``trust``, if a run with the settings in ``folder`` would contact another machine."""
    if config.teacher_human and config.teacher_labels_db:
        check_trust(trust, f"{folder} would go to the database {config.teacher_labels_db}")
    if config.teacher_url:
        check_trust(trust, f"{folder} would send its pairs to {config.teacher_url}")


def read_folder(folder: Path, trust: bool, custom: Mapping[str, Any]) -> tuple[RunSpec, Parts, dict[str, Any]]:
    """The run in a folder: a spec with all of its settings, its parts, and the contents of config.yaml.

    ``custom`` are those of ``method``, ``env``, ``teacher``, ``algorithm`` and ``algorithm_settings`` that were the
    user's own objects: UserError if one is missing. ``trust`` allows that a module is imported for its environment.
    """
    for name in custom:
        if name not in OWN_PARTS:
            raise UserError(f"{name}= is no part of a run; {did_you_mean(name, OWN_PARTS)}")
    record = RunFolder(folder).trusted_config(trust, custom)

    def part(name: str, available: Mapping[str, Any]) -> Any:
        if name in custom:
            return custom[name]
        if not (available.knows(record[name]) if isinstance(available, Registry) else record[name] in available):
            raise UserError(
                f"{folder} was trained with a {name} of your own, {record[name]}: give it as {name}= in Python "
                "(a run that was given module:NAME needs no object)"
            )
        return available[record[name]]

    if record["algorithm_settings"] == OWN and "algorithm_settings" not in custom:
        raise UserError(f"{folder} was trained with settings that no file holds: give them as algorithm_settings=")
    parts = Parts.of(
        part("method", METHODS),
        part("algorithm", LEARNERS),
        custom.get("algorithm_settings", record["algorithm_settings"]),
        part("teacher", dict.fromkeys(OURS)),
    )
    if "algorithm_settings" not in custom:
        algorithm_settings.check(RunFolder(folder).config, parts.algorithm, record["algorithm_settings"])
    settings = validate(record["settings"]).model_dump(mode="json")
    if record["env"].startswith(registration.OWN) and "env" not in custom:
        raise UserError(f"{folder} was trained on an environment of your own, {record['env']}: give it as env=")
    env_id = registration.own(custom["env"]) if "env" in custom else registration.resolve(record["env"])
    method = parts.method.name if "method" in custom else record["method"]
    spec = RunSpec(method, env_id, settings, out=folder.absolute())
    algorithm = "" if "algorithm" in custom else record["algorithm"]
    saving = {key: record[key] for key in ("checkpoint_every", "keep_every") if key in record}
    spec = replace(spec, device=record["device"], threads=record.get("cores", 1), algorithm=algorithm, **saving)
    return spec, parts, record


def select(
    source: RunFolder,
    spec: RunSpec,
    parts: Parts,
    config: Config,
    model: BaseAlgorithm,
    reward: RewardEnsemble,
    choose: Callable[..., selection.Selection],
    request: Mapping[str, Any],
) -> selection.Selection:
    """Chooses a policy of the run ``source``, and writes it as a run into the folder ``spec.out``, with all answers.

    ``choose`` is ``selection.choose``, without its argument ``recorded``. A selection that was stopped after its first
    answer goes on if ``request`` is the same; UserError if the folder holds anything else.
    """
    assert spec.out is not None
    check_outside(spec.out, source.path)
    folder, asked_for = spec.folder, to_json(request).encode()
    created = not spec.out.exists()
    with delayed_interrupts():
        spec.out.mkdir(parents=True, exist_ok=True)
        lock = folder.lock()
    try:
        if folder.ended or not folder.selecting.is_file() or read(folder.selecting, JSON_LIMIT) != asked_for:
            check_vacant(spec.out)
        write(folder.selecting, asked_for)
        folder.write_config(config_record(spec, parts, config))
        if source.label_page.is_file():  # people are asked the same
            write(folder.label_page, read(source.label_page, JSON_LIMIT))
        with closing(LabelLog(folder.labels)) as log:
            try:
                chosen = choose(recorded=lambda teacher: RecordedTeacher(teacher, log))
            except BaseException:
                if not len(log):
                    folder.clear_selection()
                raise
        model.num_timesteps = chosen.chosen
        with delayed_interrupts():
            write_selection(spec.out, chosen)
            write_learnt(spec.out, spec.env, config, model, reward)
            folder.selecting.unlink()
    finally:
        lock.release()
        if created and {path.name for path in spec.out.iterdir()} <= {folder.lock_file.name}:  # it came to nothing
            folder.lock_file.unlink(missing_ok=True)
            spec.out.rmdir()
    return chosen
