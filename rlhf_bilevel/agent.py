"""The library's front door: an agent that learns from preferences, with Stable-Baselines3's habits."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from gymnasium.spaces.utils import flatdim
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tqdm import tqdm

from rlhf_bilevel import asked, envs, fork
from rlhf_bilevel.algorithm import Method, Run, fruitless, train
from rlhf_bilevel.callbacks import Hooks, Told, checked
from rlhf_bilevel.checkpoint import Loaded
from rlhf_bilevel.config import (
    Config,
    Options,
    checkpoint_interval,
    complete,
    fitting,
    footprint,
    gather,
    nearest,
    nearest_setting,
    preset,
    reaching,
    renamed,
    settle,
)
from rlhf_bilevel.dataset import PREFERENCES
from rlhf_bilevel.doctor import versions
from rlhf_bilevel.evaluate import Evaluation, evaluate
from rlhf_bilevel.files import LOCK, Refused, Taken, enough_memory, examine, taken, trusted
from rlhf_bilevel.folder import (
    OWN,
    check_sizes,
    config_bytes,
    ended,
    read_config,
    read_models,
    same_config,
    write_config,
    write_models,
)
from rlhf_bilevel.guard import Guard, Isolated
from rlhf_bilevel.keeper import CHECKPOINTS, Keeper, compatible
from rlhf_bilevel.labels import LABELS, count, sessions
from rlhf_bilevel.log import Log
from rlhf_bilevel.methods.registry import METHODS
from rlhf_bilevel.ppo import PPOLearner
from rlhf_bilevel.preference import PreferenceStore
from rlhf_bilevel.process import Interrupts, generators_kept, held, ordinary_torch, training
from rlhf_bilevel.replay import Store
from rlhf_bilevel.reward import RewardEnsemble
from rlhf_bilevel.sac import SB3Learner, Uniform, on_its_own, together
from rlhf_bilevel.state import current, restore
from rlhf_bilevel.teacher import Replayed, Rerun, SimulatedTeacher
from rlhf_bilevel.traits import BY_SETTINGS, OURS, traits
from rlhf_bilevel.types import Preferences, Row, Teacher

TRAINING, EVALUATION, TEST = range(3)  # streams of episodes; both learners meet the same training episodes
ANY_STEPS = 10**9  # of settings that are looked at before their number is known
LINE_EVERY = 60  # seconds between two lines of a progress bar that goes into a file
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {cls.__name__: cls for cls in (SAC, TD3, DDPG, PPO, Uniform)}


class Agent:
    """A policy and a reward, learnt from a teacher's preferences on one environment.

        agent = Agent("penalty", "dm_control/cartpole-balance-v0", labels=100).learn(10_000, progress_bar=True)
        action, _ = agent.predict(obs)

    ``method`` is a name in ``METHODS`` or a ``Method`` of your own, ``env_id`` any id that ``envs.resolve`` takes,
    ``teacher`` any object that answers queries, ``Replayed`` labels, or a simulated one in words such as
    ``"mistake=0.1,skip=0.1"`` (see ``traits``; default: the oracle on the true reward), or ``"human"``: people who are
    asked through the page of ``rlhf-bilevel label`` (see ``human``). ``algorithm`` is any off-policy
    algorithm of SB3 (default: the method's) with ``algorithm_settings`` passed on to it. ``out`` is the run's folder:
    it must be new or empty. A run with a folder goes on after a fault (``resume``) from its newest checkpoint;
    ``checkpoint_every`` is as ``config.checkpoint_interval`` reads it; the last checkpoint stays, and with
    ``keep_every`` one about every so many steps, for ``fork``. ``settings`` are fields of ``Config``, which go
    before the method's own, and these before the preset's; ``options={...}`` are what the method alone has.
    Raises ValueError on a wrong value.
    """

    def __init__(
        self,
        method: str | Method,
        env_id: str,
        *,
        teacher: Teacher | Replayed | str | None = None,
        preset: str = "cpu",
        algorithm: type[BaseAlgorithm] | None = None,
        algorithm_settings: dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
        out: Path | str | None = None,
        checkpoint_every: str = "1m",
        keep_every: int = 0,
        **settings: Any,
    ) -> None:
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(f"unknown method {method!r}; {nearest(method, METHODS)}")
        if not isinstance(method, (str, Method)):
            raise ValueError(f"method={method!r}: give a name of {', '.join(METHODS)}, or a Method of your own")
        self.method = METHODS[method] if isinstance(method, str) else method
        if not isinstance(env_id, str):
            told = "an environment is made anew for each purpose, so it is named by its id"
            raise ValueError(f"env_id={env_id!r}: {told}: gymnasium.register('My-v0', MyEnv), then 'My-v0'")
        self.env_id = envs.resolve(env_id)
        if isinstance(teacher, str):
            settings |= traits(teacher)
            teacher = None
        if teacher is not None and (both := [key for key in settings if key.startswith("teacher_")]):
            raise ValueError(f"{both[0]} is a setting of the simulated teacher, and another teacher is given")
        if isinstance(teacher, type) or not (teacher is None or isinstance(teacher, Replayed) or callable(teacher)):
            raise ValueError(f"teacher={teacher!r}: give an object that can be called with queries, or words")
        self.teacher = teacher  # None: as the settings say
        self.out = Path(out).absolute() if out is not None else None  # whatever folder the program goes to meanwhile
        self._preset, self._settings = preset, (settings := renamed(settings, [self.method.name]))
        self._algorithm, self._algorithm_settings = self._chosen(algorithm), algorithm_settings or {}
        checkpoint_interval(checkpoint_every)
        self._device, self._checkpoint_every, self._keep_every = found(device), checkpoint_every, keep_every
        known = [*Config.model_fields, "device", "out", "checkpoint_every", "keep_every", "algorithm"]
        known += ["algorithm_settings"]
        for key in settings:
            if "." not in key and key not in known:
                raise ValueError(f"unknown setting {key!r}; {nearest_setting(key, known)}")
        self._settled(settings.get("steps", ANY_STEPS))
        self.model: Any = None  # the SB3 algorithm whose policy a user gets
        self.reward: RewardEnsemble | None = None
        self.config: Config | None = None
        self.run: Run | None = None
        self._origin: Path | None = None  # the run that training goes on from
        self._loaded: Loaded | None = None  # its checkpoint
        self._begins: Loaded | None = None  # what a fork begins with, where no folder of its own holds it
        self._recording = False
        self._lock: FileLock | None = None  # on the run's folder, from before anything is written there
        self._film: Any = None  # of training, where people see it
        self._people: Any = None  # human.teacher.HumanTeacher, where people answer

    @property
    def asks_people(self) -> bool:
        return self.teacher is None and bool(self._settings.get("teacher_human"))

    def learn(
        self,
        total_timesteps: int,
        callback: Told = None,
        progress_bar: bool = False,
        screen: bool = False,
    ) -> Agent:
        """Trains for ``total_timesteps`` environment steps, those of all learners together. May be called once.

        An agent that was loaded or forked goes on for so many steps more, from its checkpoint. SB3 callbacks get the
        agent's SB3 model; one that returns False stops the training (docs/callbacks.md). ``screen`` prints the metrics
        as a table. Refused, a ValueError, where this process trains already, and where the method learns a reward and
        no label at all was given until the last step: the folder then has the evaluations, and no model.
        """
        with training():
            run = self._go_on(total_timesteps) if self._origin else self.start(total_timesteps)
            return self._follow(run, callback, progress_bar, screen)

    def start(self, total_timesteps: int) -> Run:
        """A run at its first step, with its folder, which no other process can take until ``recording`` ends."""
        if self.model is not None:
            raise RuntimeError("this agent has learnt already: make a new one")
        config = self._settled(total_timesteps)
        if config.steps != self._settings.get("steps", config.steps):
            raise ValueError(f"steps={self._settings['steps']} was given to the agent, and learn({config.steps}) now")
        if self.out:
            free(self.out)
        self.config = config
        training = self._training()
        self.config, told = fitted(self.method, config, training[0].limit, {"steps": config.steps} | self._settings)
        run = self._build(self.config, training)
        if told:
            warnings.warn(told, stacklevel=3)
        if self.out:
            with held():
                self.out.mkdir(parents=True, exist_ok=True)
                self._lock = taken(self.out)
                try:
                    free(self.out)  # what another process has begun and ended meanwhile is left alone
                    self._write_config(self.out)
                except BaseException:
                    self._lock.release()
                    raise
        return run

    @classmethod
    def resume(
        cls,
        folder: Path | str,
        callback: Told = None,
        progress_bar: bool = False,
        screen: bool = False,
        *,
        trust: bool = False,
        checkpoint_every: str = "1m",
        keep_every: int = 0,
        **own: Any,
    ) -> Agent:
        """Goes on with the training of a run that was cut off, as if it had not been: on one CPU, bit for bit.

        ``own`` are those of ``method``, ``teacher``, ``algorithm`` and ``algorithm_settings`` that were your own.
        Callbacks begin anew. Sets torch's number of threads to what it was. Refused where there is nothing to resume,
        where another process trains the run, and where no checkpoint can be used; then nothing has changed.
        """
        agent, told = cls._read(Path(folder), trust, own)
        agent._checkpoint_every, agent._keep_every = checkpoint_every, keep_every
        agent._device = found(told["device"])
        assert agent.out is not None and agent.config is not None
        if agent.config.teacher_human and (database := agent.config.teacher_labels_db):
            trusted(trust, f"{folder} would go to the database {database}")
        examine(agent.out, writes=True)
        with training():
            agent._lock = taken(agent.out)
            try:
                if ended(agent.out):  # asked under the lock, as another process may have been about to end it
                    raise Refused(f"{folder} has come to its end: there is nothing to resume")
                for name, version in versions().items():
                    if (then := told["versions"].get(name)) != version:
                        warnings.warn(
                            f"{name} was {then} and is {version}: the run may go on differently", stacklevel=2
                        )
                torch.set_num_threads(told["threads"])
                return agent._follow(agent._build(agent.config), callback, progress_bar, screen)
            finally:
                agent._lock.release()

    @classmethod
    def fork(
        cls,
        folder: Path | str,
        *,
        at: int | None = None,
        out: Path | str | None = None,
        method: str | Method | None = None,
        trust: bool = False,
        checkpoint_every: str = "1m",
        keep_every: int = 0,
        own: Mapping[str, Any] = {},
        **settings: Any,
    ) -> Agent:
        """An agent whose ``learn`` goes on from a checkpoint of the run in ``folder``, which stays as it is.

        From the newest checkpoint, or the newest at step ``at`` or before. ``settings`` are those that differ:
        ``labels=200`` is the new budget, those that were used included. Another ``seed`` draws all random numbers anew.
        Another ``method`` starts from the policy that a user would get. ``own`` is as in ``resume``. Where nothing
        differs, it goes on as the run did, bit for bit. Refused where there is no checkpoint, or a setting is changed
        on which the shape of what was learnt depends.
        """
        origin, told = cls._read(Path(folder), trust, own)
        assert origin.config is not None
        before = origin.config.model_dump(mode="json")
        if origin.teacher is not None:
            before = {key: value for key, value in before.items() if not key.startswith("teacher_")}
        if method is not None:  # what makes the new method goes before what made the old one
            new = METHODS.get(method) if isinstance(method, str) else method
            before |= {"options": {}} | dict(new.settings if new else {})
        agent = cls(
            origin.method if method is None else method,
            told["env"],
            teacher=origin.teacher,
            algorithm=origin._algorithm if method is None else None,
            algorithm_settings=origin._algorithm_settings,
            device=told["device"],
            out=out,
            checkpoint_every=checkpoint_every,
            keep_every=keep_every,
            **before | settings,
        )
        if agent.asks_people:
            raise Refused("teacher human: a fork is not labelled by people; its labels go on with another teacher")
        if agent._algorithm is not origin._algorithm:
            raise Refused(
                f"{agent.method.name} learns with {agent._algorithm.__name__}, and {folder} has learnt with "
                f"{origin._algorithm.__name__}: a fork keeps the algorithm"
            )
        agent._origin, agent._loaded = Path(folder).absolute(), fork.load(Path(folder), at)
        apart(agent.out, agent._origin)
        steps = max(agent._settings["steps"], 0 if "steps" in settings else agent._loaded.step + 1)
        agent._settings["steps"] = steps
        fork.check(agent._loaded, origin.config, settled(agent.method, agent.env_id, agent._preset, agent._settings))
        return agent

    @property
    def forked_at(self) -> int:
        """The step of the checkpoint that a fork goes on from; 0 of any other agent."""
        return self._loaded.step if self._loaded else 0

    def _go_on(self, more: int) -> Run:
        """The run of a fork, its folder begun."""
        assert self._origin is not None
        if self.run is not None:
            raise RuntimeError("this agent has learnt already: fork its folder")
        source = self._origin
        told = read_config(source, trust=True)  # what it names was imported before
        old = settle(told["settings"])
        if told["teacher"] not in OURS and self.teacher is None:
            raise Refused(f"{source} was taught by a teacher of your own, {told['teacher']}: give it as teacher=")
        loaded = self._loaded or fork.load(source, None)
        c = settled(self.method, self.env_id, self._preset, self._settings | {"steps": loaded.step + more})
        fork.check(loaded, old, c)
        self.config = c
        was = METHODS.get(told["method"], self.method)
        learners = [
            (each.learners, int(each.agent(options_of(each, config))))
            for each, config in ((was, old), (self.method, c))
        ]
        with compatible(source / CHECKPOINTS, loaded.step):
            state = fork.adapted(current(loaded.tree["run"]), learners[0], learners[1])
            if told["method"] != self.method.name:
                state = state | {"method": None}
            state = fork.reseeded(state, c.seed, everything=c.seed != old.seed)
        if self.out is None:
            self._begins = loaded._replace(tree=loaded.tree | {"run": state})
            return self._build(c)
        free(self.out)
        with held():
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = taken(self.out)
        try:
            free(self.out)
            try:
                with held():
                    fork.begin(source, self.out, loaded, state, config_bytes(self._told()))
                return self._build(c)
            except BaseException:
                fork.undo(self.out)
                raise
        except BaseException:
            self._lock.release()
            raise

    def _follow(self, run: Run, callback: Any, progress_bar: bool, screen: bool) -> Agent:
        try:
            with self.recording(run, callback, progress_bar, screen) as record:
                for row in train(run):
                    if not record(row):
                        break
        finally:
            if self._lock:
                self._lock.release()
        if fault := fruitless(run):
            raise Refused(fault)
        return self

    @contextmanager
    def recording(
        self, run: Run, callback: Any = None, progress_bar: bool = False, screen: bool = False
    ) -> Iterator[Callable[[Row], bool]]:
        """All that goes on around a run: what it yields after each step goes in, and whether to go on comes out.

        Evaluations, log, checkpoints, callbacks; if there is a checkpoint, the run goes to it first. What was learnt is
        written at the end, unless that is an error or no label was given (see ``algorithm.fruitless``).
        """
        callback = None if callback is None else checked(callback)
        config, agent = run.config, int(run.method.agent(run.options))
        self.run, self.reward = run, run.reward
        self.model = run.learners[agent].model  # type: ignore[attr-defined]
        test_env = self.make_env(EVALUATION)
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            keeper = None
            if self.out:
                keeper = stack.enter_context(Keeper(self.out, self._checkpoint_every, self._lock, self._keep_every))
            events = keeper.restore(run) if keeper else {}
            if self._begins:
                with compatible(Path(CHECKPOINTS), self._begins.step):
                    restore(run, self._begins.tree["run"], self._begins.tables)
                self._begins = None
            self._recording = True
            stack.callback(setattr, self, "_recording", False)
            if self._people:
                stack.enter_context(closing(self._film))
                stack.enter_context(self._people)
            log = stack.enter_context(closing(Log(self.out, screen, run.step, events)))
            bar = stack.enter_context(closing(progress(run, progress_bar)))
            hooks = None if callback is None else Hooks(run, agent, callback, log.logger)

            def record(row: Row) -> bool:
                interrupts.check()
                bar.update()
                if run.step % config.eval_every == 0 or run.step == config.steps:
                    row |= self._evaluate(run, test_env, agent, log)
                    told = f"{row['eval/true_return']:.0f}"
                    bar.set_postfix(true_return=told, labels=len(run.prefs), refresh=False)
                log.record(row, run.step)
                if self._people:
                    self._people.beat(run)
                self.model.num_timesteps = run.step
                go_on = hooks is None or hooks.step(row)
                log.write(row)
                if go_on and keeper and "rollout/true_return" in row:  # between two episodes
                    with held():
                        keeper.offer(run, marks)
                return go_on

            def marks() -> dict[str, Any]:
                if self._film:
                    self._film.flush()
                return log.marks()

            yield record
            interrupts.check()
            if hooks:
                hooks.end()
                log.flush()
            if keeper and self.out and not fruitless(run):
                with held():
                    if questions := asked.of_run(self.out, trust=True):
                        questions.write(self.out / PREFERENCES)
                    keeper.finish(run, marks)
                    self._write(self.out)

    def predict(
        self, obs: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """Actions for one observation (o,) or a batch (N, o), as SB3 gives them; ``evaluate_policy`` takes an agent.

        ``state`` and ``episode_start`` are SB3's for recurrent policies, which these are not.
        """
        return self._learnt().predict(obs, deterministic=deterministic)[0], None

    def _learnt(self) -> Any:
        """The model. Refused where there is none yet."""
        if self.model is None:
            raise Refused(
                "this agent has learnt nothing yet: agent.learn(steps), or Agent.load(folder) for one that has"
            )
        return self.model

    def evaluate(self, episodes: int) -> Evaluation:
        """True returns and successes on episodes that were met neither in training nor in its evaluations."""
        self._learnt()
        return evaluate(lambda obs: self.predict(obs)[0], self.make_env(TEST), episodes)

    def make_env(self, stream: int = TEST, render_mode: str | None = None) -> Guard:
        """The environment as this agent meets it; ``stream`` sets its episodes apart from those of other streams."""
        c = self.config or self._settled(self._settings.get("steps", ANY_STEPS))
        absorbs = c.termination == "absorb"
        make = partial(envs.make, self.env_id, c.seed, stream, c.protocol, render_mode, c.action_repeat, absorbs)
        return self._guarded(make, c.env_timeout if render_mode is None else 0.0)

    def _guarded(self, make: Callable[[], Any], timeout: float) -> Guard:
        return Guard(partial(Isolated, make, self.env_id, timeout) if timeout else make)

    def save(self, folder: Path | str) -> None:
        """Writes what ``load`` needs, without a pickle, and ``model.zip``, a plain SB3 file, which is one.

        Refused where ``folder`` holds anything else than what this agent, or one like it, has saved there before.
        """
        self._learnt()
        folder = Path(folder).absolute()
        if self._recording and self.out and folder.resolve() == self.out.resolve():
            raise Refused(f"{folder} is being trained, and is written at its end: save into another folder")
        with held():
            if new(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self._write_config(folder)
            elif not (ended(folder) and same_config(folder, self._told())):
                raise Refused(f"{folder} holds something else than this agent, and is not overwritten: choose another")
            self._write(folder)

    def _write(self, folder: Path) -> None:
        assert self.reward is not None
        with on_its_own(self.model):
            write_models(folder, self.model, self.reward)

    @classmethod
    def load(cls, folder: Path | str, *, trust: bool = False, out: Path | str | None = None, **own: Any) -> Agent:
        """The agent of a run's folder, ready to predict, and its reward. No code of the folder's runs.

        ``learn`` goes on from the end of the run, as ``fork`` does, and writes to ``out``, or nothing.

        ``own`` are those of ``method``, ``algorithm`` and ``algorithm_settings`` that were your own. ``trust`` lets the
        folder name a module that is imported for its environment. Damaged, a ValueError, where a file is not as it was
        written.
        """
        folder = Path(folder)
        agent, _ = cls._read(folder, trust, {"teacher": None} | own)  # it will not be asked
        config = agent.config
        assert config is not None
        check_sizes(folder, config, agent._algorithm_settings)
        env = agent.make_env()
        sizes = flatdim(env.observation_space), flatdim(env.action_space)
        with ordinary_torch(), generators_kept():
            model = agent._learner(config, env, Store(*sizes, capacity=1)).model
            reward = RewardEnsemble.of(config, *sizes, torch.Generator())
            reward.pessimism = config.pessimism
            read_models(folder, model, reward)
        model.num_timesteps = config.steps
        agent.model, agent.reward = model, reward
        agent._origin, agent._settings = folder.absolute(), config.model_dump(mode="json")
        agent.out = None if out is None else Path(out).absolute()
        apart(agent.out, agent._origin)
        return agent

    @classmethod
    def _read(cls, folder: Path, trust: bool, own: Mapping[str, Any]) -> tuple[Agent, dict[str, Any]]:
        """An agent with the settings that ``folder`` tells, before it learns; and all that is told there."""
        told = read_config(folder, trust)

        def part(name: str, known: Mapping[str, Any]) -> Any:
            if name not in own and told[name] not in known:
                raise Refused(f"{folder} was trained with a {name} of your own, {told[name]}: give it as {name}=")
            return own[name] if name in own else known[told[name]]

        if told["algorithm_settings"] == OWN and "algorithm_settings" not in own:
            raise Refused(f"{folder} was trained with settings that no file holds: give them as algorithm_settings=")
        agent = cls(
            part("method", METHODS),
            told["env"],
            teacher=part("teacher", dict.fromkeys(OURS)),
            algorithm=part("algorithm", ALGORITHMS),
            algorithm_settings=own.get("algorithm_settings", told["algorithm_settings"]),
            out=folder,
        )
        agent.config = settle(told["settings"])
        return agent, told

    def _training(self) -> list[Any]:
        return [self.make_env(TRAINING) for _ in range(self.method.learners)]

    def _build(self, config: Config, training: list[Any] | None = None) -> Run:
        training = self._training() if training is None else training
        sizes = flatdim(training[0].observation_space), flatdim(training[0].action_space)
        needed = footprint(config, options_of(self.method, config), *sizes, len(training))
        enough_memory("this run", needed)
        store, prefs = Store(*sizes, config.steps), PreferenceStore()
        if config.teacher_human:
            training = self._filmed(training, store)
        teacher = self._teacher_of(config, store, prefs)
        learners = [self._learner(config, env, store, number) for number, env in enumerate(training)]
        rng = torch.Generator().manual_seed(config.seed)
        reward = RewardEnsemble.of(config, *sizes, rng)
        return Run(self.method, config, training, learners, teacher, store, reward, rng, together(learners), prefs)

    def _teacher_of(self, config: Config, store: Store, prefs: PreferenceStore) -> Teacher:
        if self.teacher is None:
            if config.teacher_human:
                from rlhf_bilevel.human.teacher import HumanTeacher

                assert self.out is not None
                self._people = HumanTeacher(config, store, self._film, self.out)
                return self._people
            if config.teacher_rerun:
                given = _given(Path(config.teacher_rerun), config, store)
                used = self._begins.tree["sessions"] if self._begins else 0
                return Rerun(given, count(self.out / LABELS) if self.out else used)
            if config.teacher_replay:
                given = _given(Path(config.teacher_replay), config, store)
                if not any(len(answers.label) for answers in given if answers is not None):
                    raise Refused(f"teacher replay={config.teacher_replay}: there are no labels in it")
                return Replayed(given).after(prefs)
            return SimulatedTeacher(config, store)
        return self.teacher.after(prefs) if isinstance(self.teacher, Replayed) else self.teacher

    def _filmed(self, training: list[Any], store: Store) -> list[Any]:
        """The same environments, filmed as people will see them."""
        if self.out is None:
            raise ValueError("teacher 'human': people are asked through files of the run, give its folder as out=")
        from rlhf_bilevel.human import film

        assert self.config is not None
        c, self._film = self.config, film.Film(self.out)
        for env in training:
            env.close()
        make = partial(film.make, self.env_id, c.seed, TRAINING, c.protocol, c.action_repeat, c.termination == "absorb")
        return [film.Filmed(self._guarded(make, c.env_timeout), store, self._film) for _ in training]

    def _learner(self, config: Config, env: Any, store: Store, number: int = 0) -> Any:
        arguments = {**self.method.arguments(options_of(self.method, config)), **self._algorithm_settings}
        kind: Any = PPOLearner if issubclass(self._algorithm, PPO) else SB3Learner
        return kind(env, config, store, number, self._algorithm, self._device, **arguments)

    def _settled(self, steps: int) -> Config:
        return settled(self.method, self.env_id, self._preset, self._settings | {"steps": steps})

    def _chosen(self, algorithm: type[BaseAlgorithm] | None) -> type[Any]:
        """The learners' algorithm; ValueError where the method cannot do with it."""
        own = ALGORITHMS[self.method.algorithm]
        if algorithm is None or algorithm is own:
            return own
        if not isinstance(algorithm, type):
            raise ValueError(f"algorithm={algorithm!r} is no class: stable_baselines3.TD3 is one")
        if own is not SAC or not issubclass(algorithm, OffPolicyAlgorithm):
            takes = "any off-policy algorithm" if own is SAC else own.__name__
            raise ValueError(f"algorithm={algorithm.__name__}: the method {self.method.name} takes {takes}")
        if self.method.densities and not issubclass(algorithm, SAC):
            told = f"the method {self.method.name} needs probabilities of actions, which only SAC has"
            raise ValueError(f"algorithm={algorithm.__name__}: {told}")
        return algorithm

    def _evaluate(self, run: Run, env: Any, agent: int, log: Log) -> Row:
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

    def _write_config(self, folder: Path) -> None:
        write_config(folder, self._told())

    def _told(self) -> dict[str, Any]:
        """All that config.yaml tells of a run, but for versions."""
        assert self.config is not None
        return {
            "method": self.method.name,
            "env": self.env_id,
            "teacher": BY_SETTINGS if self.teacher is None else type(self.teacher).__name__,
            "algorithm": self._algorithm.__name__,
            "algorithm_settings": self._algorithm_settings,
            "device": self._device,
            "threads": torch.get_num_threads(),
            "settings": self.config.model_dump(mode="json"),
        }


def new(folder: Path) -> bool:
    """Whether a run may begin there. Refused where it is no folder."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file, and no folder for a run")
    return not folder.exists() or not any(folder.iterdir())


def found(device: str | torch.device) -> str:
    """What ``auto`` is here; else as it was given. Refused where there is no such device."""
    name, gpus = str(device), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (number and not number.isdecimal())):
        raise Refused(f"device={name!r}: cpu, cuda (or cuda:0, ...) and auto are known")
    if kind == "cuda" and gpus <= int(number or 0):
        raise Refused(f"device={name!r}: PyTorch finds {gpus or 'no'} NVIDIA GPU here; choose cpu or auto")
    return name


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


def settled(method: Method, env_id: str, preset_name: str, given: Mapping[str, Any]) -> Config:
    """A run's settings: those ``given`` go before the method's own, and these before the preset's."""
    check_options(given, [method])
    config = settle(gather(preset(preset_name, env_id) | dict(method.settings) | dict(given), method.name))
    return reaching(config).model_copy(update={"options": options_of(method, config).model_dump(mode="json")})


def options_of(method: Method, config: Config) -> Options:
    return complete(method.options, config.options, f"{method.name}.")


def fitted(method: Method, config: Config, limit: int | None, given: Mapping[str, Any]) -> tuple[Config, str]:
    """The same with segments that fit into the episodes, if any is asked about: see ``config.fitting``."""
    asks = method.upper is not None and config.labels > 0
    return fitting(config, limit, "segment_length" in given) if asks else (config, "")


def check_options(given: Mapping[str, Any], methods: Sequence[str | Method]) -> None:
    """Those called ``method.name``, of any method, and the ``options`` of ``methods``; ValueError on a wrong one."""
    own = {(found := METHODS[method] if isinstance(method, str) else method).name: found for method in methods}
    known, plain = METHODS | own, {"options": given.get("options", {})}
    for key in given:
        method, dot, _ = key.partition(".")
        if dot and method not in known:
            raise ValueError(f"unknown setting {key!r}: no method is called {method!r}; {nearest(method, known)}")
    for name in dict.fromkeys([*own, *(key.partition(".")[0] for key in given if "." in key)]):
        dotted = {key: value for key, value in given.items() if "." in key}
        told = gather(dotted | (plain if name in own else {}), name)
        complete(known[name].options, told.get("options", {}), f"{name}.")


def _given(path: Path, config: Config, store: Store) -> list[Preferences | None]:
    """The answers in a file, session by session. Refused where their segments are not as this run's."""
    given: list[Preferences | None] = []
    given += [asked.load(path).preferences()] if path.suffix == ".parquet" else sessions(path)
    must = config.segment_length, store.obs.shape[-1], store.act.shape[-1]
    for first in (answers.first for answers in given if answers is not None):
        has = *first.obs.shape[1:], first.act.shape[-1]
        if has != must:
            said = "segments of {} steps, observations of {} and actions of {} numbers"
            raise Refused(f"{path} has {said.format(*has)}, and this run has {said.format(*must)}")
    return given


def free(out: Path) -> None:
    """Taken, a FileExistsError, where the folder of a new run holds something; only the lock on it may be there."""
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise Taken(f"{out} exists already and is not overwritten")


def apart(out: Path | None, source: Path) -> None:
    """Refused where a run's folder lay inside that of another, which may remove it with its checkpoints."""
    if out and source.resolve() in out.resolve().parents:
        raise Refused(f"{out} is inside {source}, which stays as it is: choose a folder outside")


def acts(learner: Any, obs: np.ndarray) -> np.ndarray:
    return learner.model.predict(obs, deterministic=True)[0]
