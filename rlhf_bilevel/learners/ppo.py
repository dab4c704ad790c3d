"""PPO of Stable-Baselines3 as a learner on our store and our reward [Schulman et al. 2017].

A rollout is what has been acted since the last update. When it is full it is rewarded with what the learner sees then,
generalised advantages are taken of it, an episode's time limit bootstrapped, and PPO's epochs follow:

    d_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t),      A_t = d_t + gamma lambda A_{t+1} within an episode
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.learners.off_policy import drawing_from, logging_to
from rlhf_bilevel.types import RowReward
from rlhf_bilevel.utils.serialization import Tree, load_optimizer, optimizer_state


class PPOLearner:
    """The store's only writer, driven one environment step at a time. It has no critics of actions.

    However many gradient steps are due, it takes PPO's own as often as a rollout of ``n_steps`` is full.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        config: Config,
        store: ReplayBuffer,
        number: int = 0,
        algorithm: type[PPO] = PPO,
        device: str = "cpu",
        **overrides: Any,
    ) -> None:
        arguments: dict[str, Any] = {
            "policy": "MlpPolicy",
            "gamma": config.gamma,
            "seed": config.seed + number * 100_003,
            "device": device,
            "policy_kwargs": {"net_arch": list(config.hidden)},
        }
        self.model: Any = algorithm(env=env, **arguments | overrides)
        self._rng = torch.Generator()  # a stream of its own, from where SB3's seed has put torch's
        self._rng.set_state(torch.get_rng_state())
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self._metrics = Logger(folder=None, output_formats=[])
        self._store, self._config = store, config
        self._signal: RowReward = store.true_reward
        self._begin = 0  # first row of the rollout
        self._taken: list[Tensor] = []  # of its rows: the action before it was clipped, its log-probability, V(s)

    def act(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        policy, space = self.model.policy, self.model.action_space
        policy.set_training_mode(False)
        with torch.no_grad(), drawing_from(self._rng):
            action, value, log_prob = policy(torch.as_tensor(obs[None], device=self.model.device))
        del self._taken[self._store.size - self._begin :]  # a step that failed, and was not stored
        self._taken.append(torch.cat([action[0], log_prob, value[0]]).cpu())
        clipped = np.clip(action[0].cpu().numpy(), space.low, space.high)
        return clipped, policy.scale_action(clipped)

    def improve(self, updates: int, step: int) -> dict[str, float]:
        model = self.model
        if len(self._taken) < model.n_steps:
            return {}
        model.rollout_buffer = self._rollout()
        model._update_current_progress_remaining(step, self._config.steps)
        with drawing_from(self._rng), logging_to(self._metrics, model):
            model.train()
        self._forget()
        values = dict(self._metrics.name_to_value)
        if not np.isfinite(values["train/loss"]):
            raise FloatingPointError(f"a learner diverged at step {step}: train/loss={values['train/loss']}")
        return values

    def _rollout(self) -> RolloutBuffer:
        model, store = self.model, self._store
        rows, taken = torch.arange(self._begin, store.size), torch.stack(self._taken)
        spaces = model.observation_space, model.action_space
        buffer = RolloutBuffer(len(rows), *spaces, model.device, gae_lambda=model.gae_lambda, gamma=model.gamma)
        starts, terminated = torch.isin(rows, store.index()["starts"]).numpy(), store.terminated[rows].numpy()
        reward = self._signal(rows).numpy().copy()
        for end in np.flatnonzero(starts[1:] & (terminated[:-1] == 0)):  # an episode that a time limit has cut
            reward[end] += model.gamma * self._value(rows[end])
        columns = (store.obs[rows], taken[:, :-2], reward, starts, taken[:, -1], taken[:, -2])
        names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs")
        for name, column in zip(names, columns, strict=True):
            getattr(buffer, name)[:, 0] = column
        buffer.pos, buffer.full = len(rows), True
        buffer.compute_returns_and_advantage(self._value(rows[-1]), terminated[-1:])
        return buffer

    def _value(self, row: Tensor) -> Tensor:
        """V of the state that follows on this row."""
        with torch.no_grad():
            return self.model.policy.predict_values(self._store.next_obs[row][None].to(self.model.device))[0].cpu()

    def follow(self, other: PPOLearner) -> None:
        theirs = copy.deepcopy(other.state())
        mine = self.state()
        self.load(mine | {name: theirs[name] for name in ("policy", "optimizer", "updates")})

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """V(s): there is no critic of actions."""
        with torch.no_grad():
            values = self.model.policy.predict_values(obs.flatten(0, -2).to(self.model.device))
        return values.reshape(obs.shape[:-1]).cpu()

    def _forget(self) -> None:
        self._begin, self._taken = self._store.size, []

    def see(self, signal: RowReward, keep: bool = True) -> None:
        self._signal = signal  # asked for once a rollout: there is nothing to keep

    def reset_critic(self) -> None:
        """The rollout is forgotten too: its steps were valued by the critic that was."""
        policy = self.model.policy
        with drawing_from(self._rng):
            for module in (*policy.mlp_extractor.value_net, policy.value_net):
                if isinstance(module, torch.nn.Linear):
                    module.reset_parameters()
                    for parameter in module.parameters():
                        for moment in policy.optimizer.state.get(parameter, {}).values():
                            moment.zero_()
        self._forget()

    def state(self) -> Tree:
        return {
            "policy": self.model.policy.state_dict(),
            "optimizer": optimizer_state(self.model.policy.optimizer),
            "updates": self.model._n_updates,
            "begin": self._begin,
            "taken": torch.stack(self._taken) if self._taken else None,
            "rng": self._rng.get_state(),
        }

    def load(self, state: Tree) -> None:
        self.model.policy.load_state_dict(state["policy"])
        load_optimizer(self.model.policy.optimizer, state["optimizer"])
        self.model._n_updates, self._begin = state["updates"], state["begin"]
        self._taken = list(state["taken"]) if state["taken"] is not None else []
        self._rng.set_state(state["rng"])

    def load_policy(self, state: Tree) -> None:
        self.model.policy.load_state_dict(state["policy"])
