"""All that goes on around a run: its folder and lock, checkpoints, evaluations, log, callbacks, and how it ends.

``train`` begins a run and brings it to its end; ``resume`` goes on with one that was cut off, ``go_on`` begins a fork.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from stable_baselines3.common.base_class import BaseAlgorithm
from tqdm import tqdm

from rlhf_bilevel.config import Config, kept_interval, settle
from rlhf_bilevel.data.run_folder import OWN, RunFolder, config_bytes
from rlhf_bilevel.envs import registry
from rlhf_bilevel.errors import AlreadyExistsError, UserError
from rlhf_bilevel.evaluation.rollout import evaluate
from rlhf_bilevel.feedback.teacher_spec import BY_SETTINGS, OURS
from rlhf_bilevel.learners import filed_settings
from rlhf_bilevel.learners.off_policy import on_its_own
from rlhf_bilevel.methods.registry import METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.reward_file import RewardInfo, to_bytes
from rlhf_bilevel.runs import asked_queries, fork
from rlhf_bilevel.runs.build import ALGORITHMS, EVALUATION, Parts, build, make_env, training_envs, weigh
from rlhf_bilevel.runs.callbacks import CallbackLike, Hooks, checked
from rlhf_bilevel.runs.checkpoint import Loaded
from rlhf_bilevel.runs.checkpoint_manager import CheckpointManager, compatible
from rlhf_bilevel.runs.logger import Log
from rlhf_bilevel.runs.process import Interrupts, generators_kept, held, training
from rlhf_bilevel.runs.spec import RunSpec, device_here
from rlhf_bilevel.training import loop
from rlhf_bilevel.training.loop import fruitless
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.training.snapshot import restore
from rlhf_bilevel.types import Learner, Row
from rlhf_bilevel.utils.files import trusted
from rlhf_bilevel.utils.versions import versions

LINE_EVERY = 60  # seconds between two lines of a progress bar that goes into a file


class Origin(NamedTuple):
    """What a fork goes on from."""

    folder: Path
    loaded: Loaded | None = None  # the checkpoint; None: the newest, when it begins


class Session:
    """A run in this process, from when its folder is taken to its end.

    ``lock`` is on its folder, and ``begins`` the checkpoint of ``origin`` that a run without a folder goes on from.
    """

    def __init__(
        self,
        spec: RunSpec,
        parts: Parts,
        run: Run,
        lock: FileLock | None = None,
        begins: Loaded | None = None,
        origin: Path | None = None,
    ) -> None:
        self.spec, self.parts, self.run = spec, parts, run
        self.agent = int(run.method.agent(run.options))  # the number of the learner whose policy a user gets
        self.going = False  # while ``recording``
        self._lock, self._begins, self._origin = lock, begins, origin
        self._people: Any = run.teacher if run.config.teacher_human and parts.teacher is None else None

    @property
    def model(self) -> Any:
        """The agent's SB3 algorithm."""
        return self.run.learners[self.agent].model

    def follow(self, callback: CallbackLike = None, progress_bar: bool = False, screen: bool = False) -> None:
        """Trains to the end, or until a callback stops it. UserError where a reward was to be learnt from no label."""
        try:
            with self.recording(callback, progress_bar, screen) as record:
                for row in loop.train(self.run):
                    if not record(row):
                        break
        finally:
            if self._lock:
                self._lock.release()
        if fault := fruitless(self.run):
            raise UserError(fault)

    @contextmanager
    def recording(
        self, callback: CallbackLike = None, progress_bar: bool = False, screen: bool = False
    ) -> Iterator[Callable[[Row], bool]]:
        """What the run yields after each step goes in, and whether to go on comes out.

        If there is a checkpoint, the run goes to it first. What was learnt is written at the end, unless that is an
        error or no label was given (see ``algorithm.fruitless``).
        """
        callback = None if callback is None else checked(callback)
        spec, run, config, people = self.spec, self.run, self.run.config, self._people
        test_env = make_env(spec.env, config, EVALUATION)
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            keeper = None
            if spec.out:
                keeper = stack.enter_context(
                    CheckpointManager(spec.out, spec.checkpoint_every, self._lock, spec.keep_every)
                )
            events = keeper.restore(run) if keeper else {}
            if self._begins:
                assert self._origin is not None
                answers = fork.answers(self._origin, self._begins)
                with compatible(RunFolder(self._origin).checkpoints, self._begins.step):
                    restore(run, self._begins.tree["run"], self._begins.tables, answers)
                self._begins = None
            self.going = True
            stack.callback(setattr, self, "going", False)
            if people:
                stack.enter_context(closing(people.film))
                stack.enter_context(people)
            log = stack.enter_context(closing(Log(spec.out, screen, run.step, events)))
            bar = stack.enter_context(closing(progress(run, progress_bar)))
            hooks = None if callback is None else Hooks(run, self.agent, callback, log.logger)

            def record(row: Row) -> bool:
                interrupts.check()
                bar.update()
                if run.step % config.eval_every == 0 or run.step == config.steps:
                    row |= evaluated(run, test_env, self.agent, log)
                    told = f"{row['eval/true_return']:.0f}"
                    bar.set_postfix(true_return=told, labels=len(run.prefs), refresh=False)
                log.record(row, run.step)
                if people:
                    people.beat(run)
                self.model.num_timesteps = run.step
                go_on = hooks is None or hooks.step(row)
                log.write(row)
                if go_on and keeper and "rollout/true_return" in row:  # between two episodes
                    with held():
                        keeper.offer(run, marks)
                return go_on

            def marks() -> dict[str, Any]:
                if people:
                    people.film.flush()
                return log.marks()

            yield record
            interrupts.check()
            if hooks:
                hooks.end()
                log.flush()
            if keeper and spec.out and not fruitless(run):
                with held():
                    if questions := asked_queries.of_run(spec.out, trust=True):
                        questions.write(spec.folder.preferences)
                    keeper.finish(run, marks)
                    write_learnt(spec.out, spec.env, config, self.model, run.reward)


def train(
    spec: RunSpec,
    parts: Parts | None = None,
    callback: CallbackLike = None,
    progress_bar: bool = False,
    screen: bool = False,
) -> Session:
    """Begins the run and trains it to its end. ``parts`` are needed where one is the user's own.

    AlreadyExistsError, and nothing written, where its folder holds something; LockedError where another process begins
    there too. UserError where this process trains already, and where a reward was to be learnt and no label was given:
    the folder then has the evaluations, and no model.
    """
    if spec.threads:
        torch.set_num_threads(spec.threads)
    with training():
        session = begin(spec, parts or Parts.of(spec.method))
        session.follow(callback, progress_bar, screen)
    return session


def begin(spec: RunSpec, parts: Parts) -> Session:
    """A run at its first step, with its folder, which no other process can take until it has come to its end."""
    spec = replace(spec, out=spec.out and spec.out.absolute())  # whatever folder the program goes to meanwhile
    config = spec.resolve(parts.method)
    if spec.out:
        free(spec.out)
        with generators_kept(), Interrupts():
            spec.check_env(parts.method)  # an environment that is refused leaves no folder
    environments = training_envs(spec, config, parts.method)
    config, told = spec.fit(config, environments[0].limit, parts.method)
    run, lock = build(spec, parts, config, environments), None
    if told:
        warnings.warn(told, stacklevel=3)
    if spec.out:
        with held(), claimed(spec.out) as lock:
            spec.folder.write_config(config_record(spec, parts, config))
    return Session(spec, parts, run, lock)


def go_on(spec: RunSpec, parts: Parts, origin: Origin, more: int) -> Session:
    """A fork with these settings at the checkpoint of its ``origin``, for so many steps ``more``; its folder is begun.

    UserError where it cannot go on from there (see ``fork.check``); then nothing is left in its folder.
    """
    source = RunFolder(origin.folder)
    told = source.trusted_config(trust=True)  # what it names was imported before
    old = settle(told["settings"])
    if told["teacher"] not in OURS and parts.teacher is None:
        raise UserError(f"{origin.folder} was taught by a teacher of your own, {told['teacher']}: give it as teacher=")
    loaded = origin.loaded or fork.load(origin.folder, None)
    config = spec.having(steps=loaded.step + more).resolve(parts.method)
    fork.check(loaded, old, config)
    was = METHODS.get(told["method"], parts.method)
    before, after = ((m.learners, int(m.agent(m.options_of(c)))) for m, c in ((was, old), (parts.method, config)))
    with compatible(source.checkpoints, loaded.step):
        state = fork.adapted(loaded.tree["run"], before, after)
        if told["method"] != parts.method.name:
            state = state | {"method": None}
        state = fork.reseeded(state, config.seed, everything=config.seed != old.seed)
    if spec.out is None:
        begins = loaded._replace(tree=loaded.tree | {"run": state})
        run = build(spec, parts, config, used_sessions=len(begins.tree["sessions"]))
        return Session(spec, parts, run, begins=begins, origin=origin.folder)
    free(spec.out)
    environments = training_envs(spec, config, parts.method)
    weigh(parts, config, environments)
    with claimed(spec.out) as lock:
        try:
            with held():
                fork.begin(origin.folder, spec.out, loaded, state, config_bytes(config_record(spec, parts, config)))
            return Session(spec, parts, build(spec, parts, config, environments), lock)
        except BaseException:
            fork.undo(spec.out)
            raise


def resume(
    folder: Path,
    callback: CallbackLike = None,
    progress_bar: bool = False,
    screen: bool = False,
    *,
    trust: bool = False,
    checkpoint_every: str = "1m",
    keep_every: int = 0,
    own: Mapping[str, Any] = {},
) -> Session:
    """Goes on with a run that was cut off, to its end; on one CPU bit for bit as if it had not been.

    ``trust`` and ``own`` are as in ``read``. Sets torch's number of threads to what it was. UserError where there is
    nothing to resume, where another process trains the run, and where no checkpoint can be used; then nothing has
    changed.
    """
    spec, parts, told = read(folder, trust, own)
    spec = replace(spec, device=device_here(spec.device), checkpoint_every=checkpoint_every)
    spec = replace(spec, keep_every=kept_interval(keep_every))
    config = settle(spec.settings)
    assert spec.out is not None
    if config.teacher_human and config.teacher_labels_db:
        trusted(trust, f"{folder} would go to the database {config.teacher_labels_db}")
    spec.folder.examine(writes=True)
    with training():
        lock = spec.folder.lock()
        try:
            if spec.folder.ended:  # asked under the lock, as another process may have been about to end it
                raise UserError(f"{folder} has come to its end: there is nothing to resume")
            for name, version in versions().items():
                if (then := told["versions"].get(name)) != version:
                    warnings.warn(f"{name} was {then} and is {version}: the run may go on differently", stacklevel=2)
            torch.set_num_threads(told["threads"])
            session = Session(spec, parts, build(spec, parts, config), lock)
            session.follow(callback, progress_bar, screen)
        finally:
            lock.release()
    return session


def read(folder: Path, trust: bool, own: Mapping[str, Any]) -> tuple[RunSpec, Parts, dict[str, Any]]:
    """What a run's folder tells that it is: a spec with all of its settings, its parts, and all that is told there.

    ``own`` are those of ``method``, ``env``, ``teacher``, ``algorithm`` and ``algorithm_settings`` that were the user's
    own: UserError where one is missing. ``trust`` lets the folder name a module that is imported for its environment.
    """
    told = RunFolder(folder).trusted_config(trust)

    def part(name: str, known: Mapping[str, Any]) -> Any:
        if name not in own and told[name] not in known:
            raise UserError(f"{folder} was trained with a {name} of your own, {told[name]}: give it as {name}=")
        return own[name] if name in own else known[told[name]]

    if told["algorithm_settings"] == OWN and "algorithm_settings" not in own:
        raise UserError(f"{folder} was trained with settings that no file holds: give them as algorithm_settings=")
    parts = Parts.of(
        part("method", METHODS),
        part("algorithm", ALGORITHMS),
        own.get("algorithm_settings", told["algorithm_settings"]),
        part("teacher", dict.fromkeys(OURS)),
    )
    if "algorithm_settings" not in own:
        filed_settings.check(RunFolder(folder).config, parts.algorithm, told["algorithm_settings"])
    settings = settle(told["settings"]).model_dump(mode="json")
    if told["env"].startswith(registry.OWN) and "env" not in own:
        raise UserError(f"{folder} was trained on an environment of your own, {told['env']}: give it as env=")
    env_id = registry.own(own["env"]) if "env" in own else registry.resolve(told["env"])
    spec = RunSpec(parts.method.name, env_id, settings, out=folder.absolute())
    return replace(spec, device=told["device"], threads=told["threads"]), parts, told


def save(
    folder: Path, spec: RunSpec, parts: Parts, config: Config, model: BaseAlgorithm, reward: RewardEnsemble
) -> None:
    """Writes what ``build.learnt`` needs, without a pickle, and ``model.zip``, a plain SB3 file, which is one.

    UserError where ``folder`` holds anything else than this agent, or one like it.
    """
    told = config_record(spec, parts, config)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and no folder for a run")
    with held():
        if not folder.exists() or not any(folder.iterdir()):
            folder.mkdir(parents=True, exist_ok=True)
            RunFolder(folder).write_config(told)
        elif not (RunFolder(folder).ended and RunFolder(folder).has_config(told)):
            raise UserError(f"{folder} holds something else than this agent, and is not overwritten: choose another")
        write_learnt(folder, spec.env, config, model, reward)


def write_learnt(folder: Path, env_id: str, config: Config, model: BaseAlgorithm, reward: RewardEnsemble) -> None:
    info = RewardInfo.of(reward, env_id, config, model.observation_space, model.action_space)
    with on_its_own(model):
        RunFolder(folder).write_models(model, to_bytes(reward, info))  # type: ignore[arg-type]


def config_record(spec: RunSpec, parts: Parts, config: Config) -> dict[str, Any]:
    """All that config.yaml tells of a run, but for versions."""
    return {
        "method": parts.method.name,
        "env": spec.env,
        "teacher": BY_SETTINGS if parts.teacher is None else type(parts.teacher).__name__,
        "algorithm": parts.algorithm.__name__,
        "algorithm_settings": parts.algorithm_settings,
        "device": spec.device,
        "threads": torch.get_num_threads(),
        "settings": config.model_dump(mode="json"),
    }


def evaluated(run: Run, env: Any, agent: int, log: Log) -> Row:
    """Metrics of all learners on whole episodes of ``env``, the agent's number among them; each episode is logged."""
    row = Row()
    for number, learner in enumerate(run.learners):
        env.episode = 0  # the same episodes each time: curves differ by the policy alone
        result = evaluate(partial(acts, learner), env, run.config.eval_episodes)
        log.evaluation(result, run.step, len(run.prefs), number, number == agent)
        prefix = "eval" if number == agent else "eval_other"
        row[f"{prefix}/true_return"] = float(result.returns.mean())
        if result.successes is not None:
            row[f"{prefix}/success"] = float(result.successes.mean())
    return row


def acts(learner: Learner, obs: np.ndarray) -> np.ndarray:
    """The action (a,) that the learner has learnt to take, without exploring, where it observes ``obs`` (o,)."""
    return learner.model.predict(obs, deterministic=True)[0]


def progress(run: Run, shown: bool) -> Any:
    """A bar on standard error: on a terminal each second, else as in a log file, a line a minute."""
    stream = sys.stderr  # None where it has been closed
    on_screen = stream is not None and (stream.isatty() or "ipykernel" in sys.modules)
    every = 1 if on_screen else LINE_EVERY
    return tqdm(
        total=run.config.steps,
        initial=run.step,
        unit="step",
        mininterval=every,
        maxinterval=10 * every,
        file=stream,
        disable=not shown or stream is None,
    )


def free(out: Path) -> None:
    """AlreadyExistsError where the folder of a new run holds something."""
    if not RunFolder(out).vacant:
        raise AlreadyExistsError(f"{out} exists already and is not overwritten")


@contextmanager
def claimed(out: Path) -> Iterator[FileLock]:
    """The lock on the folder of a new run, which is made; it is let go where what is done meanwhile fails.

    LockedError where another process has it; AlreadyExistsError where another has begun and ended a run there.
    """
    with held():
        out.mkdir(parents=True, exist_ok=True)
        lock = RunFolder(out).lock()
    try:
        free(out)
        fork.clear(out)
        yield lock
    except BaseException:
        lock.release()
        raise


def apart(out: Path | None, source: Path) -> None:
    """UserError where a run's folder lay inside that of another, which may remove it with its checkpoints."""
    if out and source.resolve() in out.resolve().parents:
        raise UserError(f"{out} is inside {source}, which stays as it is: choose a folder outside")
