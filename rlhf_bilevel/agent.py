"""The library's front door: an agent that learns from preferences, with Stable-Baselines3's habits."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import yaml
from gymnasium.spaces.utils import flatdim
from safetensors.torch import save_file
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from tqdm import tqdm

from rlhf_bilevel import envs
from rlhf_bilevel.algorithm import Method, Row, Run, train
from rlhf_bilevel.baselines import METHODS
from rlhf_bilevel.config import Config, preset
from rlhf_bilevel.cost import LearnedCost
from rlhf_bilevel.doctor import versions
from rlhf_bilevel.evaluate import Evaluation, evaluate
from rlhf_bilevel.log import Log
from rlhf_bilevel.replay import Store
from rlhf_bilevel.reward import RewardEnsemble
from rlhf_bilevel.sac import SB3Learner
from rlhf_bilevel.teacher import OracleTeacher
from rlhf_bilevel.types import Teacher

CONFIG, MODEL, REWARD = "config.yaml", "model.zip", "reward.safetensors"
TRAINING, EVALUATION, TEST = range(3)  # streams of episodes; both learners meet the same training episodes
ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {cls.__name__: cls for cls in (SAC, TD3, DDPG)}


class Agent:
    """A policy and a reward, learnt from a teacher's preferences on one environment.

        agent = Agent("penalty", "dm_control/cartpole-balance-v0", labels=100).learn(10_000, progress_bar=True)
        action, _ = agent.predict(obs)

    ``method`` is a name in ``baselines`` or a ``Method`` of your own, ``env_id`` any id that ``envs.resolve`` takes,
    ``teacher`` any object that answers queries (default: the oracle on the true reward), ``algorithm`` any off-policy
    algorithm of SB3 with ``algorithm_settings`` passed on to it. ``out`` is the run's folder: it must not exist.
    ``settings`` are fields of ``Config``. Raises ValueError (pydantic's ValidationError is one) on a wrong value.
    """

    def __init__(
        self,
        method: str | Method,
        env_id: str,
        *,
        teacher: Teacher | None = None,
        preset: str = "cpu",
        algorithm: type[OffPolicyAlgorithm] = SAC,
        algorithm_settings: dict[str, Any] | None = None,
        device: str = "cpu",
        out: Path | str | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
        self.method = METHODS[method] if isinstance(method, str) else method
        self.env_id = envs.resolve(env_id)
        self.teacher = teacher or OracleTeacher()
        self.out = Path(out) if out is not None else None
        self._preset, self._settings = preset, settings
        self._algorithm, self._algorithm_settings = algorithm, algorithm_settings or {}
        self._device = device
        self.model: Any = None  # the SB3 algorithm whose policy a user gets
        self.config: Config | None = None
        self.run: Run | None = None

    def learn(
        self,
        total_timesteps: int,
        callback: BaseCallback | Sequence[BaseCallback] | None = None,
        progress_bar: bool = False,
        screen: bool = False,
    ) -> Agent:
        """Trains for ``total_timesteps`` environment steps, those of all learners together. May be called once.

        SB3 callbacks get the agent's SB3 model; one that returns False stops the training. ``screen`` prints the
        metrics as a table.
        """
        if self.model is not None:
            raise RuntimeError("this agent has learnt already: make a new one")
        config = self.config = Config(steps=total_timesteps, **(preset(self._preset, self.env_id) | self._settings))
        run = self.run = self._build(config)
        agent = int(run.method.agent(config))
        self.model = run.learners[agent].model  # type: ignore[attr-defined]
        if self.out:
            self.out.mkdir(parents=True)  # an existing folder is an error: nothing is overwritten
            self._write_config(self.out)
        hook = self.model._init_callback(callback)
        test_env = self.make_env(EVALUATION)
        log, bar = Log(self.out, screen), tqdm(total=config.steps, unit="step", mininterval=1, disable=not progress_bar)
        hook.on_training_start(locals(), globals())
        try:
            for row in train(run):
                bar.update()
                if run.step % config.eval_every == 0 or run.step == config.steps:
                    row |= self._evaluate(run, test_env, agent, log)
                    bar.set_postfix(true_return=f"{row['eval/true_return']:.0f}", labels=len(run.prefs))
                log.record(row, run.step)
                self.model.num_timesteps = run.step
                if not hook.on_step():
                    break
        finally:
            hook.on_training_end()
            bar.close()
            log.close()
        if self.out:
            self.save(self.out)
        return self

    def predict(self, obs: np.ndarray, deterministic: bool = True) -> tuple[np.ndarray, None]:
        """Actions for one observation (o,) or a batch (N, o), as SB3 gives them."""
        return self.model.predict(obs, deterministic=deterministic)[0], None

    def evaluate(self, episodes: int) -> Evaluation:
        """True returns and successes on episodes that were met neither in training nor in its evaluations."""
        return evaluate(lambda obs: self.predict(obs)[0], self.make_env(TEST), episodes)

    def make_env(self, stream: int = TEST, render_mode: str | None = None) -> gymnasium.Env:
        """The environment as this agent meets it; ``stream`` sets its episodes apart from those of other streams."""
        assert self.config is not None, "nothing has been learnt yet"
        c = self.config
        return envs.make(self.env_id, c.seed, stream, c.protocol, render_mode, c.action_repeat)

    def save(self, folder: Path | str) -> None:
        """Writes what ``load`` needs: ``model.zip`` is a plain SB3 file, ``reward.safetensors`` the ensemble."""
        assert self.run is not None, "nothing has been learnt yet"
        folder = Path(folder)
        if not (folder / CONFIG).exists():
            folder.mkdir(parents=True, exist_ok=True)
            self._write_config(folder)
        self.model.save(folder / MODEL, exclude=["replay_buffer", "_last_obs"])
        save_file(self.run.reward.state_dict(), folder / REWARD)

    @classmethod
    def load(
        cls, folder: Path | str, method: Method | None = None, algorithm: type[OffPolicyAlgorithm] | None = None
    ) -> Agent:
        """The agent of a run's folder, ready to predict. SB3's file is a pickle: load only what you trust.

        ``method`` and ``algorithm`` are needed only where they were your own.
        """
        folder = Path(folder)
        told = yaml.safe_load((folder / CONFIG).read_text())
        agent = cls(method or told["method"], told["env"], out=folder)
        agent.config = Config(**told["settings"])
        agent.model = (algorithm or ALGORITHMS[told["algorithm"]]).load(folder / MODEL, device="cpu")
        return agent

    def _build(self, config: Config) -> Run:
        count = self.method.learners
        training = [self.make_env(TRAINING) for _ in range(count)]
        obs_size, act_size = (flatdim(space) for space in (training[0].observation_space, training[0].action_space))
        store = Store(obs_size, act_size, config.steps)
        learners = [
            SB3Learner(env, config, store, number, self._algorithm, self._device, **self._algorithm_settings)
            for number, env in enumerate(training)
        ]
        rng = torch.Generator().manual_seed(config.seed)
        reward = RewardEnsemble(obs_size, act_size, config.members, config.reward_hidden, rng)
        cost = LearnedCost(obs_size, act_size, config, rng)
        return Run(self.method, config, training, learners, self.teacher, store, reward, cost)

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
        """All that is needed to repeat the run."""
        assert self.config is not None
        told = {
            "method": self.method.name,
            "env": self.env_id,
            "teacher": type(self.teacher).__name__,
            "algorithm": self._algorithm.__name__,
            "algorithm_settings": {key: str(value) for key, value in self._algorithm_settings.items()},
            "device": self._device,
            "settings": self.config.model_dump(mode="json"),
            "versions": versions(),
            "commit": commit(),
        }
        (folder / CONFIG).write_text(yaml.safe_dump(told, sort_keys=False))


def acts(learner: Any, obs: np.ndarray) -> np.ndarray:
    return learner.model.predict(obs, deterministic=True)[0]


def commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    call = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=here, capture_output=True)
    return call.stdout.decode().strip() or None if call.returncode == 0 else None
