"""Stable-Baselines3's callbacks around a run, with what SB3 tells them and lets them use (docs/how-to/callbacks.md)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics

CallbackLike = BaseCallback | Sequence[BaseCallback] | Any
"""A callback, several, or a function of (locals, globals), as SB3's ``learn`` takes them."""


def check_callback(callback: CallbackLike) -> Any:
    """The callback as SB3 takes it. UserError if it is not one."""
    parts: list[Any] = list(callback) if isinstance(callback, (list, tuple)) else [callback]
    for part in parts:
        if isinstance(part, type) or not (isinstance(part, BaseCallback) or callable(part)):
            raise UserError(f"callback={part!r} is no callback: give an object of a class of SB3's, or a function")
    if not isinstance(callback, (list, tuple)):
        return callback
    return [part if isinstance(part, BaseCallback) else ConvertCallback(part) for part in parts]


class Hooks:
    """Calls ``callback``, which is not None, during a run whose agent is learner ``agent``; ``logger`` is the run's."""

    def __init__(self, run: Run, agent: int, callback: CallbackLike, logger: Logger) -> None:
        model: Any = run.learners[agent].model  # type: ignore[attr-defined]
        if not issubclass(type(model), BaseAlgorithm):
            raise UserError(f"a callback gets a model of SB3, and this learner has a {type(model).__name__}")
        self._run, self._agent, self._model, self._began = run, agent, model, time.monotonic()
        model.num_timesteps = model._num_timesteps_at_start = run.step
        model._total_timesteps, model.start_time, model._episode_num = run.config.total_timesteps, time.time_ns(), 0
        model.ep_info_buffer, model.ep_success_buffer = (deque(maxlen=model._stats_window_size) for _ in range(2))
        model.set_logger(logger)
        if hasattr(model, "save_replay_buffer"):
            model.save_replay_buffer = partial(_save_with_kept_generators, run, model.save_replay_buffer)
        self._hook = model._init_callback(callback)
        training_locals = {"self": model, "total_timesteps": run.config.total_timesteps, "callback": self._hook}
        training_locals |= {"tb_log_name": "run", "log_interval": 1, "reset_num_timesteps": True}
        training_locals |= {"progress_bar": False, "env": model.get_env()}
        self._hook.on_training_start(training_locals, globals())
        self._hook.on_rollout_start()
        self._steps, self._episodes = 0, 0  # in this rollout

    def step(self, row: Metrics) -> bool:
        """To be called after each step, with its metrics. Whether to go on. UserError if a callback returns None."""
        run, model, rollout_over = self._run, self._model, self._rollout_over(row)
        model.num_timesteps = run.step
        done = "rollout/true_return" in row
        self._steps, self._episodes = self._steps + 1, self._episodes + done
        step_locals = self._locals(row, done)
        self._hook.update_locals(step_locals)
        go_on = self._hook.on_step()
        if go_on is None:
            raise UserError("a callback has returned None: True goes on with the training, False stops it")
        if not go_on:
            return False
        model._update_info_buffer(step_locals["infos"], step_locals["dones"])
        model._episode_num += done
        if rollout_over:
            self._hook.on_rollout_end()
            self._steps = self._episodes = 0
            if run.step < run.config.total_timesteps:
                self._hook.on_rollout_start()
        return True

    def end(self) -> None:
        """To be called at the end of training."""
        self._hook.on_training_end()
        self._model.set_logger(Logger(folder=None, output_formats=[]))  # the run's is closed now

    def _rollout_over(self, row: Metrics) -> bool:
        if isinstance(self._model, OffPolicyAlgorithm):
            return self._run.step % self._run.config.train_freq == 0
        return any(key.startswith(f"learner_{self._agent}/") for key in row)  # after PPO's update

    def _locals(self, row: Metrics, done: bool) -> dict[str, Any]:
        """The locals of SB3's ``collect_rollouts`` for the newest step; arrays (1, ...) are for one environment."""
        model, store, at = self._model, self._run.store, slice(self._run.step - 1, self._run.step)
        columns = store.next_obs, store.act, store.env_reward
        new_obs, actions, rewards = (column[at].numpy().copy() for column in columns)
        info = dict(self._run.info)
        if done:
            info["terminal_observation"] = new_obs[0].copy()
            info["TimeLimit.truncated"] = not store.terminated[at].item()
            spent = round(time.monotonic() - self._began, 6)
            info["episode"] = {"r": row["rollout/true_return"], "l": int(row["rollout/length"]), "t": spent}
        return {
            "actions": model.policy.unscale_action(actions),
            "buffer_actions": actions,
            "new_obs": new_obs,
            "rewards": rewards,
            "dones": np.array([done]),
            "infos": [info],
            "num_collected_steps": self._steps,
            "num_collected_episodes": self._episodes,
        }


def _save_with_kept_generators(run: Run, save: Callable[[Any], None], path: Any) -> None:
    """Calls ``save``, which draws random numbers, and resets the generators: the run does not notice."""
    states, torch_state = {purpose: rng.bit_generator.state for purpose, rng in run.rng.items()}, torch.get_rng_state()
    try:
        save(path)
    finally:
        torch.set_rng_state(torch_state)
        for purpose, rng in run.rng.items():
            rng.bit_generator.state = states[purpose]
