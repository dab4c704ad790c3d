"""Everything around a run: folder and lock, checkpoints, evaluations, log, callbacks, and its end.

``train`` begins a run and trains it to its end; ``resume`` continues one that was interrupted; ``begin_fork`` begins a
fork.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from rlhf_bilevel.config import MOST_THREADS, Config, parse_keep_every, validate
from rlhf_bilevel.data.label_log import LabelLog, RecordedTeacher
from rlhf_bilevel.data.run_folder import OWN, RunFolder, config_bytes
from rlhf_bilevel.envs import registry
from rlhf_bilevel.errors import AlreadyExistsError, UserError
from rlhf_bilevel.feedback.teacher_spec import BY_SETTINGS, OURS
from rlhf_bilevel.learners import filed_settings
from rlhf_bilevel.learners.batched_sac import BatchedSAC
from rlhf_bilevel.learners.off_policy import Together, on_its_own
from rlhf_bilevel.registries import LEARNERS, METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.reward_file import RewardInfo, to_bytes
from rlhf_bilevel.runs import asked_queries, fork, selection
from rlhf_bilevel.runs.build import EVALUATION, Parts, build, check_memory_for_run, make_env, training_envs
from rlhf_bilevel.runs.callbacks import CallbackLike, Hooks, check_callback
from rlhf_bilevel.runs.checkpoint import Checkpoint
from rlhf_bilevel.runs.checkpoint_manager import CheckpointManager, restoring
from rlhf_bilevel.runs.evaluations import Evaluations
from rlhf_bilevel.runs.logger import Log, output_formats
from rlhf_bilevel.runs.process import Interrupts, delayed_interrupts, exclusive_training, preserved_generators
from rlhf_bilevel.runs.spec import RunSpec, resolve_device
from rlhf_bilevel.training import loop
from rlhf_bilevel.training.query_session import why_no_label
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.training.snapshot import restore
from rlhf_bilevel.types import Metrics
from rlhf_bilevel.utils.files import JSON_LIMIT, check_trust, read, to_json, write
from rlhf_bilevel.utils.registry import Registry
from rlhf_bilevel.utils.versions import installed_versions

LINE_EVERY = 60  # seconds between two lines of a progress bar in a file


class Origin(NamedTuple):
    """What a fork continues from."""

    folder: Path
    loaded: Checkpoint | None = None  # the checkpoint; None: the newest, when it begins
    trust: bool = False  # whether the teacher that the folder names may be asked


@dataclass(frozen=True)
class Observers:
    """Who sees the metrics of a run in this process, besides its folder. UserError for what cannot be one."""

    callback: CallbackLike = None  # as SB3's ``learn`` takes them
    progress_bar: bool = False
    screen: bool = False  # whether the metrics are printed as a table
    logger: Logger | None = None  # SB3's; its output formats get each row

    def __post_init__(self) -> None:
        if self.callback is not None:
            check_callback(self.callback)
        output_formats(self.logger)


NOBODY = Observers()


class Session:
    """A run in this process, from the moment when its folder is taken to its end.

    ``lock`` is the lock on its folder. A fork without a folder starts at ``begins``, a checkpoint of the run in
    ``origin``.
    """

    def __init__(
        self,
        spec: RunSpec,
        parts: Parts,
        run: Run,
        lock: FileLock | None = None,
        begins: Checkpoint | None = None,
        origin: Path | None = None,
    ) -> None:
        self.spec, self.parts, self.run = spec, parts, run
        self.agent = int(run.method.agent(run.options))  # number of the learner whose policy a user gets
        self.going = False  # while ``recording``
        self._lock, self._begins, self._origin = lock, begins, origin
        asks: Any = run.teacher if parts.teacher is None else None
        self._people = asks if run.config.teacher_human else None
        self._recorder = asks.recorder if asks and (run.config.teacher_human or run.config.teacher_url) else None

    @property
    def model(self) -> Any:
        """The agent's SB3 algorithm."""
        return self.run.learners[self.agent].model

    def follow(self, observers: Observers) -> None:
        """Trains to the end, or until a callback stops it. UserError if a reward was to be learnt and no label came."""
        try:
            stack = spread_stack(self.spec, self.parts, self.run)
            apart = bool(stack) and not self.spec.env.startswith(registry.OWN)
            beside = stack.side_by_side(learner_processes(self.spec, self.parts)) if stack else nullcontext()
            with beside, self.recording(observers, apart) as record:
                for row in loop.train(self.run):
                    if not record(row):
                        break
        finally:
            if self._lock:
                self._lock.release()
        if fault := why_no_label(self.run):
            raise UserError(fault)

    def _keep_policy(self) -> None:
        """Keeps the agent's policy in the run's folder. If that fails, the run goes on without it."""
        try:
            self.spec.folder.keep_policy(self.run.step, self.model.policy)
        except OSError as error:
            warnings.warn(f"the policy of step {self.run.step} is not kept: {error}", stacklevel=2)

    def _select(self, keeper: CheckpointManager) -> None:
        """Spends the labels that were held back: the agent's model acts by the policy that is preferred."""
        run, folder = self.run, self.spec.folder
        try:
            labels = run.config.select_labels
            config = selection.selection_config(run.config, labels)
            chosen = selection.choose(
                self.spec, self.parts, config, self.model, folder, labels, recorded=keeper.recorded
            )
        except selection.NoChoiceError as problem:
            warnings.warn(f"the last policy stays: {problem}", stacklevel=2)
            return
        write_selection(folder.path, chosen)

    @contextmanager
    def recording(self, observers: Observers, apart: bool = False) -> Iterator[Callable[[Metrics], bool]]:
        """Gives a function that takes the metrics of each step and returns whether to go on.

        With ``apart``, evaluations are in a process of their own; not if there are callbacks, which are told at once.

        If there is a checkpoint, the run continues from it. What was learnt is written at the end, unless there was an
        error or no label (see ``query_session.why_no_label``).
        """
        callback = None if observers.callback is None else check_callback(observers.callback)
        extra = output_formats(observers.logger)
        spec, run, config, people = self.spec, self.run, self.run.config, self._people
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
                answers = fork.used_answers(self._origin, self._begins)
                with restoring(RunFolder(self._origin).checkpoints, self._begins.step):
                    restore(run, self._begins.tree["run"], self._begins.tables, answers)
                self._begins = None
            self.going = True
            stack.callback(setattr, self, "going", False)
            if self._recorder:
                stack.enter_context(closing(self._recorder))
            if people:
                stack.enter_context(people)
            log = stack.enter_context(closing(Log(spec.out, observers.screen, run.step, events, extra)))
            bar = stack.enter_context(closing(make_progress_bar(run, observers.progress_bar)))
            evaluated = partial(make_env, spec.env, config, EVALUATION), self.agent, log
            there = spec.env if apart and callback is None else ""
            evaluations = stack.enter_context(closing(Evaluations(run, *evaluated, there)))
            policy_steps = frozenset(config.policy_steps)
            hooks = None if callback is None else Hooks(run, self.agent, callback, log.logger)

            def settle(wait: bool = True) -> None:
                """Writes the evaluation that is going on elsewhere, and the rows that wait for it."""
                if metrics := evaluations.end(wait):
                    log.release(metrics)
                    show(metrics)

            def show(metrics: Metrics) -> None:
                return_text = f"{metrics['eval/true_return']:.0f}"
                bar.set_postfix(true_return=return_text, labels=len(run.prefs), refresh=False)

            def record(row: Metrics) -> bool:
                interrupts.check()
                bar.update()
                due = run.step % config.eval_freq == 0 or run.step == config.total_timesteps
                settle(wait=due)
                if due:
                    if metrics := evaluations.begin():
                        row |= metrics
                        show(metrics)
                    else:
                        log.hold()
                log.record(row, run.step)
                if people:
                    people.beat(run)
                self.model.num_timesteps = run.step
                go_on = hooks is None or hooks.step(row)
                log.write(row)
                if spec.out and run.step in policy_steps:
                    self._keep_policy()
                if go_on and keeper and "rollout/true_return" in row and keeper.due(run, patient=evaluations.pending):
                    settle()
                    with delayed_interrupts():
                        keeper.save(run, marks)  # between two episodes
                return go_on

            def marks() -> dict[str, Any]:
                if self._recorder:
                    self._recorder.flush()
                return log.marks()

            yield record
            settle()
            interrupts.check()
            if hooks:
                hooks.end()
                log.flush()
            if keeper and spec.out and not why_no_label(run):
                with delayed_interrupts():
                    self._keep_policy()
                    keeper.finish(run, marks)
                if config.select_labels:
                    self._select(keeper)
                with delayed_interrupts():
                    if questions := asked_queries.read_run(spec.out, trust=True):
                        questions.write(spec.folder.preferences)
                    write_learnt(spec.out, spec.env, config, self.model, run.reward)


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


def with_threads(spec: RunSpec, threads: object) -> RunSpec:
    """The spec with another number of CPU threads. UserError if it is none."""
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise UserError(f"threads={threads!r:.60}: must be a whole number from 1 to {MOST_THREADS}")
    return replace(spec, threads=threads)


def learner_processes(spec: RunSpec, parts: Parts) -> int:
    """In how many processes the learners of a run are updated."""
    side_by_side = parts.algorithm is SAC and spec.device == "cpu"
    return min(spec.threads or 1, parts.method.learners) if side_by_side else 1


def spread_stack(spec: RunSpec, parts: Parts, run: Run) -> BatchedSAC | None:
    """What updates the learners in several processes; None if it is this one alone."""
    improve = run.improve
    return improve.stack if learner_processes(spec, parts) > 1 and isinstance(improve, Together) else None


def torch_threads(spec: RunSpec, parts: Parts) -> int:
    """The threads that torch has in each process of a run which was given a number of threads.

    With learners side by side, one is left to evaluations: threads of torch wait for each other, so that a process
    that stops one of them stops all.
    """
    assert spec.threads
    processes = learner_processes(spec, parts)
    return spec.threads if processes == 1 else max(1, (spec.threads - 1) // processes)


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
    """A fork with these settings, at the checkpoint of its ``origin``, for ``additional_steps`` more; its folder is
    created.

    UserError if it cannot continue from there (see ``fork.check``); then nothing is left in its folder.
    """
    source = RunFolder(origin.folder)
    record = source.trusted_config(trust=True)  # its modules were imported before
    old = validate(record["settings"])
    if record["teacher"] not in OURS and parts.teacher is None:
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
    before, after = (
        (m.learners, int(m.agent(m.options_of(c)))) for m, c in ((old_method, old), (parts.method, config))
    )
    with restoring(source.checkpoints, loaded.step):
        state = fork.adapt_learners(loaded.tree["run"], before, after)
        if record["method"] != spec.method:
            state = state | {"method": None}
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
            return Session(spec, parts, build(spec, parts, config, environments), lock)
        except BaseException:
            fork.undo(spec.out)
            raise


def resume(
    folder: Path,
    observers: Observers = NOBODY,
    *,
    trust: bool = False,
    checkpoint_every: str = "1m",
    keep_every: int = 0,
    threads: int | None = None,
    custom: Mapping[str, Any] = {},
) -> Session:
    """Continues a run that was cut off, to its end; on one CPU, bit for bit as if it had not been.

    ``trust`` and ``custom`` are as in ``read_folder``. ``threads`` are the run's CPU threads from here on; None: as
    before. Sets torch's number of threads. UserError, and nothing changes, if there is nothing to resume, if another
    process trains the run, and if no checkpoint can be used.
    """
    spec, parts, record = read_folder(folder, trust, custom)
    spec = replace(spec, device=resolve_device(spec.device), checkpoint_every=checkpoint_every)
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
                    warnings.warn(
                        f"{name} was {version_then} and is {version}: the run may go on differently", stacklevel=2
                    )
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
    user's own objects: UserError if one is missing. ``trust`` allows the folder to name a module that is imported for
    its environment.
    """
    record = RunFolder(folder).trusted_config(trust, custom)

    def part(name: str, available: Mapping[str, Any]) -> Any:
        if name in custom:
            return custom[name]
        if not (available.knows(record[name]) if isinstance(available, Registry) else record[name] in available):
            raise UserError(f"{folder} was trained with a {name} of your own, {record[name]}: give it as {name}=")
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
        filed_settings.check(RunFolder(folder).config, parts.algorithm, record["algorithm_settings"])
    settings = validate(record["settings"]).model_dump(mode="json")
    if record["env"].startswith(registry.OWN) and "env" not in custom:
        raise UserError(f"{folder} was trained on an environment of your own, {record['env']}: give it as env=")
    env_id = registry.own(custom["env"]) if "env" in custom else registry.resolve(record["env"])
    method = parts.method.name if "method" in custom else record["method"]
    spec = RunSpec(method, env_id, settings, out=folder.absolute())
    algorithm = "" if "algorithm" in custom else record["algorithm"]
    return replace(spec, device=record["device"], threads=record.get("cores", 1), algorithm=algorithm), parts, record


def save(
    folder: Path,
    spec: RunSpec,
    parts: Parts,
    config: Config,
    model: BaseAlgorithm,
    reward: RewardEnsemble,
) -> None:
    """Writes what ``build.load_learnt`` needs, without a pickle, and ``model.zip``, a plain SB3 file, which is a
    pickle.

    UserError if ``folder`` holds anything but this agent, or an equal one.
    """
    record = config_record(spec, parts, config)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and no folder for a run")
    with delayed_interrupts():
        if not folder.exists() or not any(folder.iterdir()):
            folder.mkdir(parents=True, exist_ok=True)
            RunFolder(folder).write_config(record)
        elif not (RunFolder(folder).ended and RunFolder(folder).has_config(record)):
            raise UserError(f"{folder} holds something else than this agent, and is not overwritten: choose another")
        write_learnt(folder, spec.env, config, model, reward)


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
    with delayed_interrupts():
        spec.out.mkdir(parents=True, exist_ok=True)
        lock = folder.lock()
    try:
        if folder.ended or not folder.selecting.is_file() or read(folder.selecting, JSON_LIMIT) != asked_for:
            check_vacant(spec.out)
        write(folder.selecting, asked_for)
        folder.write_config(config_record(spec, parts, config))
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
    return chosen


def write_selection(folder: Path, chosen: selection.Selection) -> None:
    """Writes which policy was chosen, and how, into a run's folder."""
    write(RunFolder(folder).selection, to_json(chosen.record(), indent=1).encode())


def write_learnt(folder: Path, env_id: str, config: Config, model: BaseAlgorithm, reward: RewardEnsemble) -> None:
    """Writes the agent's model and the reward model into a run's folder."""
    info = RewardInfo.of(reward, env_id, config, model.observation_space, model.action_space)
    with on_its_own(model):
        RunFolder(folder).write_models(model, to_bytes(reward, info))  # type: ignore[arg-type]


def config_record(spec: RunSpec, parts: Parts, config: Config) -> dict[str, Any]:
    """The contents of a run's config.yaml, except for versions."""
    return {
        "method": spec.method,
        **({"method_name": parts.method.name} if ":" in spec.method else {}),
        "env": spec.env,
        "teacher": BY_SETTINGS if parts.teacher is None else type(parts.teacher).__name__,
        "algorithm": spec.algorithm or parts.algorithm_name,
        "algorithm_settings": parts.algorithm_settings,
        "device": spec.device,
        "threads": torch.get_num_threads(),
        **({"cores": spec.threads} if (spec.threads or 1) > 1 else {}),
        "settings": config.model_dump(mode="json"),
    }


def make_progress_bar(run: Run, shown: bool) -> Any:
    """A bar on standard error: on a terminal it changes each second, in a log file each minute."""
    stream = sys.stderr  # None if it was closed
    on_screen = stream is not None and (stream.isatty() or "ipykernel" in sys.modules)
    every = 1 if on_screen else LINE_EVERY
    # Some terminals say that they have no columns and no lines, and tqdm would show nothing there
    columns, lines = get_terminal_size() if on_screen else (None, None)
    return tqdm(
        total=run.config.total_timesteps,
        initial=run.step,
        unit="step",
        mininterval=every,
        maxinterval=10 * every,
        file=stream,
        ncols=columns,
        nrows=lines,
        disable=not shown or stream is None,
    )


def check_vacant(out: Path) -> None:
    """AlreadyExistsError if the folder of a new run holds something."""
    if not RunFolder(out).vacant:
        raise AlreadyExistsError(f"{out} exists already and is not overwritten")


@contextmanager
def claim_folder(out: Path) -> Iterator[FileLock]:
    """Creates the folder of a new run and locks it. The lock is released if the code inside fails.

    LockedError if another process has it; AlreadyExistsError if another process has begun and ended a run there.
    """
    with delayed_interrupts():
        out.mkdir(parents=True, exist_ok=True)
        lock = RunFolder(out).lock()
    try:
        check_vacant(out)
        fork.clear_unfinished(out)
        yield lock
    except BaseException:
        lock.release()
        raise


def check_outside(out: Path | None, source: Path) -> None:
    """UserError if ``out`` lies inside ``source``, the folder of a run that may remove it with its checkpoints."""
    if out and source.resolve() in out.resolve().parents:
        raise UserError(f"{out} is inside {source}, which stays as it is: choose a folder outside")
