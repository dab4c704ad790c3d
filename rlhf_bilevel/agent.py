"""The library's front door: an agent that learns from preferences, with Stable-Baselines3's habits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.names import current_names
from rlhf_bilevel.config.reading import did_you_mean_setting, validate
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registration
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.rollout import Evaluation, evaluate
from rlhf_bilevel.evaluation.selection import ERROR, LABELS, MARGIN
from rlhf_bilevel.evaluation.tasks import bounds
from rlhf_bilevel.feedback.recorded import Replayed
from rlhf_bilevel.feedback.teacher_spec import teacher_settings
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.runs import claim, fork, output, selection, start
from rlhf_bilevel.runs.build import load_learnt
from rlhf_bilevel.runs.callbacks import CallbackLike
from rlhf_bilevel.runs.environments import TEST, make_env
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.process import default_torch, exclusive_training
from rlhf_bilevel.runs.session import NOBODY, Observers, Session
from rlhf_bilevel.runs.side_by_side import torch_threads, with_threads
from rlhf_bilevel.runs.spec import RunSpec, check_owners
from rlhf_bilevel.runs.start import Origin
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics, Teacher

ARGUMENTS = ("device", "out", "checkpoint_every", "keep_every", "algorithm", "algorithm_settings")


class Agent:
    """A policy and a reward model, learnt from a teacher's preferences on one environment.

        agent = Agent("penalty", "dm_control/cartpole-balance-v0", labels=100).learn(10_000, progress_bar=True)
        action, _ = agent.predict(obs)

    Arguments:

    - ``method``: a name in ``METHODS``, ``module:NAME``, or a ``Method`` of your own.
    - ``env_id``: an id that ``envs.registration.resolve`` takes, or a function that makes a new environment at each
      call. Such a function is given again as ``env=``: to ``resume`` and ``load``, and in ``custom`` to ``fork``.
    - ``teacher``: any object that answers queries; a class of such, made with the run's ``Config`` and
      ``ReplayBuffer``; ``Replayed`` labels; a simulated teacher in words such as ``"mistake=0.1,skip=0.1"`` (see
      ``teacher_settings``); ``"human"``: people, through the page of ``rlhf-bilevel label``; or a URL that is asked by
      HTTP (see ``feedback.http_teacher``). Default: the oracle on the true reward.
    - ``algorithm``: an off-policy algorithm of SB3, a class of ``types.Learner``, or the name of one (in ``LEARNERS``,
      or ``module:NAME``). Default: the method's. ``algorithm_settings`` are its arguments.
    - ``out``: the run's folder, new or empty. A run with a folder can go on after a fault (``resume``).
    - ``checkpoint_every``: see ``config.reading.parse_checkpoint_every``. The last checkpoint is kept. ``keep_every``
      keeps one about every so many steps, for ``fork``.
    - ``settings``: fields of ``Config``. They take precedence over the method's own settings, and these over the
      preset's. ``options={...}`` are settings that only the method has. With ``reward=PATH`` the learner
      sees the reward in this file, or in this run's folder, and nobody is asked.

    Raises UserError for a wrong value.

    Attributes: ``model`` is the SB3 algorithm whose policy a user gets, ``reward`` the reward model, ``config`` all
    settings, and ``run`` the state of training; each is None before there is one.
    """

    def __init__(
        self,
        method: str | Method,
        env_id: str | Callable[..., gymnasium.Env[Any, Any]],
        *,
        teacher: Teacher | type[Teacher] | Replayed | str | None = None,
        preset: str = "cpu",
        algorithm: type[Any] | str | None = None,
        algorithm_settings: dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
        out: Path | str | None = None,
        checkpoint_every: str = "1m",
        keep_every: int = 0,
        **settings: Any,
    ) -> None:
        """See the class. Nothing is built before ``learn``."""
        if callable(env_id):
            env_id = registration.own(env_id)
        if not isinstance(env_id, str):
            reason = "an environment is made anew for each purpose, so give its id, or a function that makes it"
            raise UserError(f"env_id={env_id!r}: {reason}: gymnasium.register('My-v0', MyEnv), then 'My-v0'")
        if isinstance(teacher, str):
            settings, teacher = teacher_settings(teacher) | settings, None
        if teacher is not None and (conflicting := [key for key in settings if key.startswith("teacher_")]):
            raise UserError(f"{conflicting[0]} is a setting of the simulated teacher, and another teacher is given")
        if teacher is not None and settings.get("reward"):
            raise UserError(f"reward={settings['reward']}: nobody is asked where it is given, and a teacher is given")
        parts = Parts.of(method, algorithm, algorithm_settings, teacher)
        settings = current_names(settings, [parts.method.name])
        for key in settings:
            if "." not in key and key not in Config.model_fields:
                hint = did_you_mean_setting(key, [*Config.model_fields, *ARGUMENTS], parts.method.option_names())
                raise UserError(f"unknown setting {key!r}; {hint}")
        spec = RunSpec.of(
            method if isinstance(method, str) else method.name,
            env_id,
            settings,
            preset=preset,
            device=str(device),
            out=None if out is None else Path(out),
            checkpoint_every=checkpoint_every,
            keep_every=keep_every,
            algorithm=algorithm if isinstance(algorithm, str) else "",
        )
        spec.resolve(parts.method)  # settings that do not fit together are refused now
        check_owners(spec.method, settings)
        self._set_up(spec, parts)

    @classmethod
    def of(cls, spec: RunSpec, parts: Parts | None = None) -> Agent:
        """An agent for this spec, before it learns. ``parts`` are needed if one of them is your own object."""
        agent = cls.__new__(cls)
        agent._set_up(spec, parts or Parts.of(spec.method, spec.algorithm))
        return agent

    def _set_up(self, spec: RunSpec, parts: Parts) -> None:
        self._spec = replace(spec, out=spec.out and spec.out.absolute())  # also if the program changes its folder
        self._parts = parts
        self.method, self.teacher = parts.method, parts.teacher  # None: as the settings say
        self.env_id, self.out = self._spec.env, self._spec.out
        self.model: Any = None
        self.reward: RewardEnsemble | None = None
        self.config: Config | None = None
        self.run: Run | None = None
        self._origin: Origin | None = None  # only of an agent that was loaded or forked
        self._session: Session | None = None

    @property
    def asks_people(self) -> bool:
        """Whether people answer the queries."""
        return self.teacher is None and bool(self._spec.settings.get("teacher_human"))

    def learn(
        self,
        total_timesteps: int,
        callback: CallbackLike = None,
        progress_bar: bool = False,
        screen: bool = False,
        logger: Logger | None = None,
    ) -> Agent:
        """Trains for ``total_timesteps`` environment steps, those of all learners together, and returns the agent.

        It can be called once. An agent that was loaded or forked trains for this many more steps from its checkpoint.
        SB3 callbacks get the agent's SB3 model; training stops when one returns False (docs/how-to/callbacks.md).
        ``screen`` prints the metrics as a table. The output formats of ``logger``, an SB3 ``Logger``, get them too.

        Raises UserError if this process is training already, and if the method learns a reward but got no label until
        the last step: the folder then has the evaluations and no model.
        """
        observers = Observers(callback, progress_bar, screen, logger)
        with exclusive_training():
            self.start(total_timesteps)
            assert self._session is not None
            self._session.follow(observers)
        return self

    def start(self, total_timesteps: int) -> Run:
        """Creates the run at its first step, and its folder; no other process can take it until ``recording`` ends."""
        if self.run is not None:
            raise RuntimeError("this agent has learnt already: make a new one, or fork its folder")
        steps = validate({"total_timesteps": total_timesteps}).total_timesteps
        if self._origin:
            return self._attach(start.begin_fork(self._spec, self._parts, self._origin, steps))
        if steps != (settings_steps := self._spec.settings.get("total_timesteps", steps)):
            raise UserError(f"total_timesteps={settings_steps} was given to the agent, and learn({steps}) now")
        return self._attach(start.begin(self._spec.having(total_timesteps=steps), self._parts))

    def _attach(self, started: Session) -> Run:
        self._session, self.run, self.config = started, started.run, started.run.config
        self.model, self.reward = started.model, started.run.reward
        return started.run

    @contextmanager
    def recording(self, run: Run, observers: Observers = NOBODY) -> Iterator[Callable[[Metrics], bool]]:
        """Everything around the run that ``start`` created; see ``Session.recording``."""
        assert self._session is not None and self._session.run is run
        with self._session.recording(observers) as record:
            yield record

    @classmethod
    def resume(
        cls,
        folder: Path | str,
        callback: CallbackLike = None,
        progress_bar: bool = False,
        screen: bool = False,
        logger: Logger | None = None,
        *,
        trust: bool = False,
        checkpoint_every: str | None = None,
        keep_every: int | None = None,
        threads: int | None = None,
        **custom: Any,
    ) -> Agent:
        """Continues a run that was cut off, as if it had not been: on one CPU, bit for bit.

        ``custom`` are those of ``method``, ``env``, ``teacher``, ``algorithm`` and ``algorithm_settings`` that were
        your own objects. ``threads`` is as ``--threads``, ``checkpoint_every`` and ``keep_every`` as for the agent;
        None: as before. Callbacks start from the beginning. Sets torch's number of threads.

        Raises UserError, and changes nothing, if there is nothing to resume, if another process is training the run, or
        if no checkpoint can be used.
        """
        observers = Observers(callback, progress_bar, screen, logger)
        resumed = start.resume(
            Path(folder),
            observers,
            trust=trust,
            checkpoint_every=checkpoint_every,
            keep_every=keep_every,
            threads=threads,
            custom=custom,
        )
        agent = cls.of(resumed.spec, resumed.parts)
        agent._attach(resumed)
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
        threads: int | None = None,
        custom: Mapping[str, Any] = {},
        **settings: Any,
    ) -> Agent:
        """An agent whose ``learn`` continues from a checkpoint of the run in ``folder``; that run stays as it is.

        The checkpoint is the newest, or the newest at step ``at`` or before. ``settings`` are those that differ:
        ``labels=200`` is the new budget, including the labels that were used. Another ``seed`` draws all random numbers
        anew. Another ``method`` starts from the policy that a user would get. Another ``teacher`` may be given, and so
        must be what was your own object, see ``resume``; a ``method`` that was goes into ``custom``. ``threads`` is as
        ``--threads``, and sets torch's number of threads; None: as before. If nothing differs, it continues as the run
        did, bit for bit.

        Raises UserError if there is no checkpoint, or if a changed setting changes the shapes of what was learnt.
        """
        source = Path(folder).absolute()
        for name in ("env", "env_id", "algorithm", "device", "preset"):
            if isinstance(settings.get(name), str):
                raise UserError(f"{name}={settings[name]!r:.60}: a fork keeps the {name} of its run")
        given = {name: settings.pop(name) for name in start.OWN_PARTS if name in settings}
        teacher = given.get("teacher")
        custom = dict(custom) | {name: part for name, part in given.items() if not isinstance(part, str)}
        if isinstance(teacher, str):
            custom["teacher"] = None  # another than the run's
        spec, parts, _ = start.read_folder(Path(folder), trust, custom)
        old_settings = dict(spec.settings)
        if teacher is not None or parts.teacher is not None:
            old_settings = {key: value for key, value in old_settings.items() if not key.startswith("teacher_")}
        new_method = METHODS[method] if isinstance(method, str) else method or parts.method
        if method is not None:  # the new method's settings replace the old one's
            old_settings |= {"options": {}} | dict(new_method.settings)
        settings = current_names(settings, [new_method.name])
        agent = cls(
            custom.get("method", spec.method) if method is None else method,
            spec.env,
            teacher=parts.teacher if teacher is None else teacher,
            algorithm=custom.get("algorithm", spec.algorithm) if method is None else None,
            algorithm_settings=dict(parts.algorithm_settings),
            device=spec.device,
            out=out,
            checkpoint_every=checkpoint_every,
            keep_every=keep_every,
            **old_settings | settings,
        )
        agent._spec = replace(agent._spec, threads=spec.threads)
        if threads is not None:
            agent._spec = with_threads(agent._spec, threads)
            torch.set_num_threads(torch_threads(agent._spec, agent._parts))
        if agent.asks_people:
            raise UserError("teacher human: a fork is not labelled by people; its labels go on with another teacher")
        if agent._parts.algorithm is not parts.algorithm:
            raise UserError(
                f"{agent.method.name} learns with {agent._parts.algorithm.__name__}, and {folder} has learnt with "
                f"{parts.algorithm.__name__}: a fork keeps the algorithm"
            )
        loaded = fork.load_checkpoint(Path(folder), at)
        claim.check_outside(agent.out, source)
        least_steps = 0 if "total_timesteps" in settings else loaded.step + 1
        agent._origin = Origin(source, loaded, trust or "teacher_url" in settings, retaught=isinstance(teacher, str))
        agent._spec = agent._spec.having(total_timesteps=max(agent._spec.steps, least_steps))
        fork.check(loaded, validate(spec.settings), agent._spec.resolve(agent.method))
        return agent

    @property
    def forked_at(self) -> int:
        """Step of the checkpoint that a fork continues from; 0 for any other agent."""
        return self._origin.loaded.step if self._origin and self._origin.loaded else 0

    def predict(
        self, obs: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, None]:
        """Actions (a,) or (N, a) for one observation (o,) or a batch (N, o), in SB3's form, and None for the state.

        ``evaluate_policy`` takes an agent. ``state`` and ``episode_start``, for SB3's recurrent policies, are not used.
        """
        return self._trained_model().predict(obs, deterministic=deterministic)[0], None

    def _trained_model(self) -> Any:
        """The model. UserError before there is one."""
        if self.model is None:
            raise UserError(
                "this agent has learnt nothing yet: agent.learn(steps), or Agent.load(folder) for one that has"
            )
        return self.model

    def evaluate(self, episodes: int) -> Evaluation:
        """True returns and successes in ``episodes`` test episodes: neither training nor its evaluations have them."""
        self._trained_model()
        if not isinstance(episodes, int) or episodes < 1:
            raise UserError(f"episodes={episodes!r:.60}: must be a whole number, at least 1")
        evaluation = evaluate(lambda obs: self.predict(obs)[0], self.make_env(TEST), episodes)
        return replace(evaluation, within=bounds(self.env_id, "true_return"))

    def select(
        self,
        labels: int = LABELS,
        *,
        margin: float = MARGIN,
        error: float = ERROR,
        segment_length: int | None = None,
        teacher: Teacher | type[Teacher] | str | None = None,
        seed: int = 0,
        out: Path | str | None = None,
    ) -> selection.Selection:
        """Asks the teacher which of the policies that the run kept is best; the agent acts by that one afterwards.

        At most ``labels`` are used (see ``evaluation.selection``). ``teacher`` is as for the agent; None: the run's
        own. ``segment_length`` is the run's if it is None. ``seed`` fixes episodes and segments. With ``out``, the
        chosen policy is written into that folder, new or empty, as a run of its own, with all answers; the same call
        goes on if it was stopped there. People need it: their page is that of ``rlhf-bilevel label OUT``.

        Raises UserError if the run has no folder or kept only one policy, or if something cannot be used.
        """
        model, folder = self._trained_model(), self._origin.folder if self._origin else self.out
        if folder is None or (self._session and self._session.going):
            raise UserError("policies are chosen in the folder of a run that has ended: give out= to the agent")
        assert self.config is not None and self.reward is not None
        words, own = (teacher, None) if isinstance(teacher, str) else (None, teacher)
        config = selection.selection_config(self.config, labels, segment_length, words, seed)
        parts = self._parts if teacher is None else self._parts._replace(teacher=own)
        selection.check_teacher(RunFolder(folder), parts, config, asked=teacher is not None, out=out is not None)
        if teacher is None and parts.teacher is None:
            start.check_contacts(folder, config, bool(self._origin and self._origin.trust))
        spec = replace(self._spec, out=None if out is None else Path(out).absolute())
        choose = partial(
            selection.choose, spec, parts, config, model, RunFolder(folder), labels=config.labels, margin=margin,
            error=error,
        )  # fmt: skip
        with default_torch():
            if spec.out is None:
                chosen = choose()
            else:
                teaching = {key: value for key, value in config.model_dump().items() if key.startswith("teacher_")}
                new = self.config.model_copy(update=teaching | {"reward": "", "reward_sha256": "", "select_labels": 0})
                asked = {"of": str(folder), "margin": margin, "error": error, "teacher": teaching}
                asked |= {key: getattr(config, key) for key in ("labels", "segment_length", "seed")}
                chosen = start.select(RunFolder(folder), spec, parts, new, model, self.reward, choose, asked)
        model.num_timesteps = chosen.chosen
        return chosen

    def make_env(self, stream: int = TEST, render_mode: str | None = None) -> FaultTolerantEnv:
        """The environment as this agent sees it. Each ``stream`` has episodes of its own. ``render_mode``: None or
        "rgb_array".
        """
        return make_env(self.env_id, self.config or self._spec.resolve(self.method), stream, render_mode)

    def save(self, folder: Path | str) -> None:
        """Writes what ``load`` needs, without a pickle, and ``model.zip``, a plain SB3 file, which is a pickle.

        UserError if ``folder`` holds anything but what this agent, or an equal one, saved there before.
        """
        self._trained_model()
        folder = Path(folder).absolute()
        if self._session and self._session.going and self.out and folder.resolve() == self.out.resolve():
            raise UserError(f"{folder} is being trained, and is written at its end: save into another folder")
        assert self.config is not None and self.reward is not None
        output.save(folder, self._spec, self._parts, self.config, self.model, self.reward)

    @classmethod
    def load(cls, folder: Path | str, *, trust: bool = False, out: Path | str | None = None, **custom: Any) -> Agent:
        """The agent in a run's folder, ready to predict, and its reward model. No code from the folder is run.

        ``learn`` continues from the end of the run, as ``fork`` does. It writes to ``out``; None: it writes nothing.
        ``custom`` are those of ``method``, ``env``, ``algorithm`` and ``algorithm_settings`` that were your own
        objects. ``trust`` allows the folder to name modules, of its environment or its method, which are imported.

        Raises CorruptFileError if a file does not hold what was written.
        """
        folder = Path(folder)
        spec, parts, _ = start.read_folder(folder, trust, {"teacher": None} | custom)  # no teacher is needed to predict
        spec = replace(spec, device="cpu", out=None if out is None else Path(out))
        agent = cls.of(spec, parts)
        agent.config = validate(spec.settings)
        agent.model, agent.reward = load_learnt(folder, spec, parts, agent.config)
        agent._origin = Origin(folder.absolute(), trust=trust)
        claim.check_outside(agent.out, agent._origin.folder)
        return agent
