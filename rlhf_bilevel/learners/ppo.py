"""PPO of Stable-Baselines3, on the replay buffer and the reward of a run [Schulman et al. 2017].

    d_t = r_t + gamma (1 - terminated_t) V(s_{t+1}) - V(s_t),      A_t = d_t + gamma lambda A_{t+1} within an episode

A rollout is all steps since the last update. When it has ``n_steps`` steps, they get the learner's rewards of that
moment and generalised advantages A_t, and PPO's epochs follow. At a time limit the value of the next state is added.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from torch import Tensor

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.envs.actions import scaled
from rlhf_bilevel.learners.sb3_tools import drawing_from, logging_to
from rlhf_bilevel.types import Metrics, RowReward
from rlhf_bilevel.utils.serialization import Tree, load_optimizer, optimizer_state


class PPOLearner:
    """A ``Learner`` with PPO. It must be the only learner of its run, and it has no critic of actions.

    It takes its gradient steps at the first update with ``n_steps`` or more steps since the last ones, however many
    are asked for.
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
            "policy_kwargs": {"net_arch": list(config.net_arch)},
        }
        self.model: Any = algorithm(env=env, **arguments | overrides)
        self._rng = torch.Generator()  # its own random numbers, from where SB3 has seeded torch
        self._rng.set_state(torch.get_rng_state())
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self._metrics = Logger(folder=None, output_formats=[])
        self._store, self._config = store, config
        self._row_reward: RowReward = store.true_reward
        self._begin = 0  # the first row of the rollout
        self._taken: list[Tensor] = []  # for each row of it: the action before clipping, its log-probability, V(s)

    def act(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``Learner.act``."""
        policy, space = self.model.policy, self.model.action_space
        policy.set_training_mode(False)
        with torch.no_grad(), drawing_from(self._rng):
            action, value, log_prob = policy(torch.as_tensor(obs[None], device=self.model.device))
        del self._taken[self._store.size - self._begin :]  # a step that failed was not stored
        self._taken.append(torch.cat([action.reshape(-1).to(value.dtype), log_prob, value[0]]).cpu())
        if isinstance(space, Discrete):
            chosen = action[0].cpu().numpy()
            return chosen, scaled(space, chosen)
        clipped = np.clip(action[0].cpu().numpy(), space.low, space.high)
        return clipped, policy.scale_action(clipped)

    def improve(self, updates: int, step: int) -> Metrics:
        """PPO's epochs if the rollout is full, otherwise nothing. As ``Learner.improve`` in all else."""
        model = self.model
        if len(self._taken) < model.n_steps:
            return {}
        model.rollout_buffer = self._rollout()
        model._update_current_progress_remaining(step, self._config.total_timesteps)
        with drawing_from(self._rng), logging_to(self._metrics, model):
            model.train()
        self._forget()
        values = dict(self._metrics.name_to_value)
        if not np.isfinite(values["train/loss"]):
            raise FloatingPointError(f"a learner diverged at step {step}: train/loss={values['train/loss']}")
        return values

    def _rollout(self) -> RolloutBuffer:
        """The rollout as SB3's buffer, with rewards and advantages."""
        model, store = self.model, self._store
        rows, taken = torch.arange(self._begin, store.size), torch.stack(self._taken)
        spaces = model.observation_space, model.action_space
        buffer = RolloutBuffer(len(rows), *spaces, model.device, gae_lambda=model.gae_lambda, gamma=model.gamma)
        starts, terminated = torch.isin(rows, store.index()["starts"]).numpy(), store.terminated[rows].numpy()
        reward = self._row_reward(rows).numpy().copy()
        for end in np.flatnonzero(starts[1:] & (terminated[:-1] == 0)):  # an episode that a time limit has ended
            reward[end] += model.gamma * self._value(rows[end])
        columns = (store.obs[rows], taken[:, :-2], reward, starts, taken[:, -1], taken[:, -2])
        names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs")
        for name, column in zip(names, columns, strict=True):
            getattr(buffer, name)[:, 0] = column
        buffer.pos, buffer.full = len(rows), True
        buffer.compute_returns_and_advantage(self._value(rows[-1]), terminated[-1:])
        return buffer

    def _value(self, row: Tensor) -> Tensor:
        """V of the state after this row."""
        with torch.no_grad():
            return self.model.policy.predict_values(self._store.next_obs[row][None].to(self.model.device))[0].cpu()

    def follow(self, other: PPOLearner) -> None:
        """As ``Learner.follow``. The rollout stays its own."""
        new = copy.deepcopy(other.state_dict())
        self.load_state_dict(self.state_dict() | {name: new[name] for name in ("policy", "optimizer", "updates")})

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """V(s) of obs (..., o): (...), without gradient. ``act`` is not used."""
        with torch.no_grad():
            values = self.model.policy.predict_values(obs.flatten(0, -2).to(self.model.device))
        return values.reshape(obs.shape[:-1]).cpu()

    def _forget(self) -> None:
        self._begin, self._taken = self._store.size, []

    def set_reward(self, reward: RowReward, cache: bool = True) -> None:
        """As ``Learner.set_reward``. The reward is asked for once a rollout, so that nothing is cached."""
        self._row_reward = reward

    def reset_critic(self) -> None:
        """As ``Learner.reset_critic``. The rollout is dropped too, because the old critic has valued its steps."""
        policy = self.model.policy
        with drawing_from(self._rng):
            for module in (*policy.mlp_extractor.value_net, policy.value_net):
                if isinstance(module, torch.nn.Linear):
                    module.reset_parameters()
                    for parameter in module.parameters():
                        for moment in policy.optimizer.state.get(parameter, {}).values():
                            moment.zero_()
        self._forget()

    def state_dict(self) -> Tree:
        """As ``Learner.state_dict``."""
        return {
            "policy": self.model.policy.state_dict(),
            "optimizer": optimizer_state(self.model.policy.optimizer),
            "updates": self.model._n_updates,
            "begin": self._begin,
            "taken": torch.stack(self._taken) if self._taken else None,
            "rng": self._rng.get_state(),
        }

    def load_state_dict(self, state: Tree) -> None:
        """As ``Learner.load_state_dict``."""
        self.model.policy.load_state_dict(state["policy"])
        load_optimizer(self.model.policy.optimizer, state["optimizer"])
        self.model._n_updates, self._begin = state["updates"], state["begin"]
        self._taken = list(state["taken"]) if state["taken"] is not None else []
        self._rng.set_state(state["rng"])

    def load_policy(self, state: Tree) -> None:
        """Loads only the policy of a ``state_dict``: the learner acts as that one did, and cannot learn on."""
        self.model.policy.load_state_dict(state["policy"])
