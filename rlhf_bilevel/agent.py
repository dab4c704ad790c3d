"""The library's front door: an agent that learns from preferences, with Stable-Baselines3's habits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from rlhf_bilevel.config import Config, nearest_setting, renamed, settle
from rlhf_bilevel.envs import registry
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.rollout import Evaluation, evaluate
from rlhf_bilevel.feedback.recorded import Replayed
from rlhf_bilevel.feedback.teacher_spec import traits
from rlhf_bilevel.methods.registry import METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.runs import fork, session
from rlhf_bilevel.runs.build import TEST, Parts, learnt, make_env
from rlhf_bilevel.runs.callbacks import CallbackLike
from rlhf_bilevel.runs.process import training
from rlhf_bilevel.runs.session import Origin, Session
from rlhf_bilevel.runs.spec import RunSpec, its_own
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Row, Teacher

ARGUMENTS = ("device", "out", "checkpoint_every", "keep_every", "algorithm", "algorithm_settings")


class Agent:
    """A policy and a reward, learnt from a teacher's preferences on one environment.

        agent = Agent("penalty", "dm_control/cartpole-balance-v0", labels=100).learn(10_000, progress_bar=True)
        action, _ = agent.predict(obs)

    ``method`` is a name in ``METHODS`` or a ``Method`` of your own, ``env_id`` any id that ``registry.resolve`` takes,
    or a callable that makes an environment of Gymnasium's, a new one each time (``env=`` of ``resume`` and ``load``),
    ``teacher`` any object that answers queries, ``Replayed`` labels, or a simulated one in words such as
    ``"mistake=0.1,skip=0.1"`` (see ``traits``; default: the oracle on the true reward), or ``"human"``: people who are
    asked through the page of ``rlhf-bilevel label`` (see ``human``). ``algorithm`` is any off-policy
    algorithm of SB3 (default: the method's) with ``algorithm_settings`` passed on to it. ``out`` is the run's folder:
    it must be new or empty. A run with a folder goes on after a fault (``resume``) from its newest checkpoint;
    ``checkpoint_every`` is as ``config.checkpoint_interval`` reads it; the last checkpoint stays, and with
    ``keep_every`` one about every so many steps, for ``fork``. ``settings`` are fields of ``Config``, which go
    before the method's own, and these before the preset's; ``options={...}`` are what the method alone has.
    ``reward=PATH`` is one of them: a run's folder or file whose reward is learnt on as it is, without any label.
    Raises UserError on a wrong value.

    ``model`` is the SB3 algorithm whose policy a user gets, ``reward`` the reward model, ``config`` all settings and
    ``run`` what moved in training: None until there is one.
    """

    def __init__(
        self,
        method: str | Method,
        env_id: str | Callable[..., gymnasium.Env[Any, Any]],
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
        if callable(env_id):
            env_id = registry.own(env_id)
        if not isinstance(env_id, str):
            told = "an environment is made anew for each purpose, so give its id, or a function that makes it"
            raise UserError(f"env_id={env_id!r}: {told}: gymnasium.register('My-v0', MyEnv), then 'My-v0'")
        if isinstance(teacher, str):
            settings, teacher = traits(teacher) | settings, None
        if teacher is not None and (both := [key for key in settings if key.startswith("teacher_")]):
            raise UserError(f"{both[0]} is a setting of the simulated teacher, and another teacher is given")
        if teacher is not None and settings.get("reward"):
            raise UserError(f"reward={settings['reward']}: nobody is asked where it is given, and a teacher is given")
        parts = Parts.of(method, algorithm, algorithm_settings, teacher)
        settings = renamed(settings, [parts.method.name])
        for key in settings:
            if "." not in key and key not in Config.model_fields:
                raise UserError(f"unknown setting {key!r}; {nearest_setting(key, [*Config.model_fields, *ARGUMENTS])}")
        others: dict[str, Any] = {"preset": preset, "device": str(device), "out": None if out is None else Path(out)}
        others |= {"checkpoint_every": checkpoint_every, "keep_every": keep_every}
        spec = RunSpec.of(parts.method.name, env_id, settings, **others)
        spec.resolve(parts.method)  # what does not go together is told now
        its_own(spec.method, settings)
        self._be(spec, parts)

    @classmethod
    def of(cls, spec: RunSpec, parts: Parts | None = None) -> Agent:
        """An agent of this spec, before it learns; ``parts`` are needed where one is your own."""
        agent = cls.__new__(cls)
        agent._be(spec, parts or Parts.of(spec.method))
        return agent

    def _be(self, spec: RunSpec, parts: Parts) -> None:
        self._spec = replace(spec, out=spec.out and spec.out.absolute())  # whatever folder the program goes to
        self._parts = parts
        self.model: Any = None
        self.reward: RewardEnsemble | None = None
        self.config: Config | None = None
        self.run: Run | None = None
        self._origin: Origin | None = None  # of an agent that was loaded or forked
        self._session: Session | None = None

    @property
    def method(self) -> Method:
        return self._parts.method

    @property
    def env_id(self) -> str:
        return self._spec.env

    @property
    def teacher(self) -> Teacher | Replayed | None:
        """The one that was given as an object; None where settings say who it is."""
        return self._parts.teacher

    @property
    def out(self) -> Path | None:
        return self._spec.out

    @property
    def asks_people(self) -> bool:
        return self.teacher is None and bool(self._spec.settings.get("teacher_human"))

    def learn(
        self,
        total_timesteps: int,
        callback: CallbackLike = None,
        progress_bar: bool = False,
        screen: bool = False,
    ) -> Agent:
        """Trains for ``total_timesteps`` environment steps, those of all learners together. May be called once.

        An agent that was loaded or forked goes on for so many steps more, from its checkpoint. SB3 callbacks get the
        agent's SB3 model; one that returns False stops the training (docs/callbacks.md). ``screen`` prints the metrics
        as a table. UserError where this process trains already, and where the method learns a reward and
        no label at all was given until the last step: the folder then has the evaluations, and no model.
        """
        with training():
            self.start(total_timesteps)
            assert self._session is not None
            self._session.follow(callback, progress_bar, screen)
        return self

    def start(self, total_timesteps: int) -> Run:
        """A run at its first step, with its folder, which no other process can take until ``recording`` ends."""
        if self.run is not None:
            raise RuntimeError("this agent has learnt already: make a new one, or fork its folder")
        steps = settle({"steps": total_timesteps}).steps
        if self._origin:
            return self._follow(session.go_on(self._spec, self._parts, self._origin, steps))
        if steps != (given := self._spec.settings.get("steps", steps)):
            raise UserError(f"steps={given} was given to the agent, and learn({steps}) now")
        return self._follow(session.begin(self._spec.having(steps=steps), self._parts))

    def _follow(self, found: Session) -> Run:
        self._session, self.run, self.config = found, found.run, found.run.config
        self.model, self.reward = found.model, found.run.reward
        return found.run

    @contextmanager
    def recording(
        self, run: Run, callback: CallbackLike = None, progress_bar: bool = False, screen: bool = False
    ) -> Iterator[Callable[[Row], bool]]:
        """All that goes on around the run of ``start``: see ``Session.recording``."""
        assert self._session is not None and self._session.run is run
        with self._session.recording(callback, progress_bar, screen) as record:
            yield record

    @classmethod
    def resume(
        cls,
        folder: Path | str,
        callback: CallbackLike = None,
        progress_bar: bool = False,
        screen: bool = False,
        *,
        trust: bool = False,
        checkpoint_every: str = "1m",
        keep_every: int = 0,
        **own: Any,
    ) -> Agent:
        """Goes on with the training of a run that was cut off, as if it had not been: on one CPU, bit for bit.

        ``own`` are those of ``method``, ``env``, ``teacher``, ``algorithm`` and ``algorithm_settings`` that were your
        own. Callbacks begin anew. Sets torch's number of threads to what it was. UserError where there is nothing to
        resume, where another process trains the run, and where no checkpoint can be used; then nothing has changed.
        """
        others: dict[str, Any] = {"checkpoint_every": checkpoint_every, "keep_every": keep_every}
        ended = session.resume(Path(folder), callback, progress_bar, screen, trust=trust, own=own, **others)
        agent = cls.of(ended.spec, ended.parts)
        agent._follow(ended)
        return agent

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
        differs, it goes on as the run did, bit for bit. UserError where there is no checkpoint, or a setting is changed
        on which the shape of what was learnt depends.
        """
        source = Path(folder).absolute()
        spec, parts, _ = session.read(Path(folder), trust, own)
        before = dict(spec.settings)
        if parts.teacher is not None:
            before = {key: value for key, value in before.items() if not key.startswith("teacher_")}
        if method is not None:  # what makes the new method goes before what made the old one
            new = METHODS[method] if isinstance(method, str) else method
            before |= {"options": {}} | dict(new.settings)
        agent = cls(
            parts.method if method is None else method,
            spec.env,
            teacher=parts.teacher,
            algorithm=parts.algorithm if method is None else None,
            algorithm_settings=dict(parts.algorithm_settings),
            device=spec.device,
            out=out,
            checkpoint_every=checkpoint_every,
            keep_every=keep_every,
            **before | settings,
        )
        if agent.asks_people:
            raise UserError("teacher human: a fork is not labelled by people; its labels go on with another teacher")
        if agent._parts.algorithm is not parts.algorithm:
            raise UserError(
                f"{agent.method.name} learns with {agent._parts.algorithm.__name__}, and {folder} has learnt with "
                f"{parts.algorithm.__name__}: a fork keeps the algorithm"
            )
        loaded = fork.load(Path(folder), at)
        session.apart(agent.out, source)
        least = 0 if "steps" in settings else loaded.step + 1
        agent._origin, agent._spec = Origin(source, loaded), agent._spec.having(steps=max(agent._spec.steps, least))
        fork.check(loaded, settle(spec.settings), agent._spec.resolve(agent.method))
        return agent

    @property
    def forked_at(self) -> int:
        """The step of the checkpoint that a fork goes on from; 0 of any other agent."""
        return self._origin.loaded.step if self._origin and self._origin.loaded else 0

    def predict(
        self, obs: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """Actions for one observation (o,) or a batch (N, o), as SB3 gives them; ``evaluate_policy`` takes an agent.

        ``state`` and ``episode_start`` are SB3's for recurrent policies, which these are not.
        """
        return self._learnt().predict(obs, deterministic=deterministic)[0], None

    def _learnt(self) -> Any:
        """The model. UserError where there is none yet."""
        if self.model is None:
            raise UserError(
                "this agent has learnt nothing yet: agent.learn(steps), or Agent.load(folder) for one that has"
            )
        return self.model

    def evaluate(self, episodes: int) -> Evaluation:
        """True returns and successes on episodes that were met neither in training nor in its evaluations."""
        self._learnt()
        return evaluate(lambda obs: self.predict(obs)[0], self.make_env(TEST), episodes)

    def make_env(self, stream: int = TEST, render_mode: str | None = None) -> FaultTolerantEnv:
        """The environment as this agent meets it; ``stream`` sets its episodes apart from those of other streams."""
        return make_env(self.env_id, self.config or self._spec.resolve(self.method), stream, render_mode)

    def save(self, folder: Path | str) -> None:
        """Writes what ``load`` needs, without a pickle, and ``model.zip``, a plain SB3 file, which is one.

        UserError where ``folder`` holds anything else than what this agent, or one like it, has saved there before.
        """
        self._learnt()
        folder = Path(folder).absolute()
        if self._session and self._session.going and self.out and folder.resolve() == self.out.resolve():
            raise UserError(f"{folder} is being trained, and is written at its end: save into another folder")
        assert self.config is not None and self.reward is not None
        session.save(folder, self._spec, self._parts, self.config, self.model, self.reward)

    @classmethod
    def load(cls, folder: Path | str, *, trust: bool = False, out: Path | str | None = None, **own: Any) -> Agent:
        """The agent of a run's folder, ready to predict, and its reward. No code of the folder's runs.

        ``learn`` goes on from the end of the run, as ``fork`` does, and writes to ``out``, or nothing.

        ``own`` are those of ``method``, ``env``, ``algorithm`` and ``algorithm_settings`` that were your own. ``trust``
        lets the folder name a module that is imported for its environment. CorruptFileError where a file is not as
        it was written.
        """
        folder = Path(folder)
        spec, parts, _ = session.read(folder, trust, {"teacher": None} | own)  # it will not be asked
        spec = replace(spec, device="cpu", out=None if out is None else Path(out))
        agent = cls.of(spec, parts)
        agent.config = settle(spec.settings)
        agent.model, agent.reward = learnt(folder, spec, parts, agent.config)
        agent._origin = Origin(folder.absolute())
        session.apart(agent.out, agent._origin.folder)
        return agent
