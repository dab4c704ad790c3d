"""Off-policy learners: the algorithms of Stable-Baselines3, on the replay buffer and the reward of a run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer as SB3ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn
from torch.func import functional_call

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.replay_buffer import RelabelledView, ReplayBuffer
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.batched_sac import stackable
from rlhf_bilevel.learners.normed_policy import NormedPolicy
from rlhf_bilevel.learners.sb3_tools import drawing_from, logging_to, save_for_sb3
from rlhf_bilevel.types import Metrics, RewardFn, RowReward, Steps
from rlhf_bilevel.utils.serialization import Tree, load_optimizer, optimizer_state

BUFFER = 1_000_000  # transitions, SB3's default: the buffer size of a saved model, if SB3 trains it further
CHUNK = 4096  # rows whose rewards are computed at once
INSIDE = 1 - 1e-4
"""Actions are clipped to this before their log-probability is taken. A squashed Gaussian has none at 1, which rounding
can reach."""


def settings(config: Config, algorithm: type[OffPolicyAlgorithm], device: str = "cpu") -> dict[str, Any]:
    """Keyword arguments of the SB3 ``algorithm`` for ``config``. Plain SB3 gives the same with them."""
    arguments: dict[str, Any] = {
        "policy": "MlpPolicy",
        "learning_rate": config.learning_rate,
        "learning_starts": config.learning_starts,
        "batch_size": config.batch_size,
        "gamma": config.gamma,
        "tau": config.tau,
        "train_freq": config.train_freq,
        "gradient_steps": config.gradient_steps,
        "seed": config.seed,
        "device": device,
        # Fused Adam computes the same in one call. With small networks, the loop over tensors is a third of an update
        "policy_kwargs": {"net_arch": list(config.net_arch), "optimizer_kwargs": {"fused": True}},
    }
    if issubclass(algorithm, SAC) and config.critic_layer_norm:
        arguments["policy"] = NormedPolicy
    takes = inspect.signature(algorithm).parameters
    if issubclass(algorithm, SAC) or "ent_coef" in takes:
        arguments["ent_coef"] = config.ent_coef if config.ent_coef.startswith("auto") else float(config.ent_coef)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in takes}  # CrossQ has no tau


def q_values(critic: Callable[..., Any], obs: Tensor, act: Tensor) -> Tensor:
    """Q_q(s, a) of each critic, (Q, N), for obs (N, o) and act (N, a). One of quantiles, as TQC's, counts with their
    mean.
    """
    values = critic(obs, act)
    return values.mean(-1).T if isinstance(values, Tensor) else torch.stack(values).squeeze(-1)


class ViewAsBuffer:
    """A learner's view of the replay buffer, with the part of SB3's buffer interface that ``train`` uses."""

    def __init__(self, view: RelabelledView, device: torch.device) -> None:
        self._view, self._device = view, device

    def size(self) -> int:
        """How many rows are stored."""
        return self._view.store.size

    def sample(self, batch_size: int, env: None = None) -> ReplayBufferSamples:
        """A batch with the learner's rewards, on its device. ``env`` is SB3's, for normalisation, and is not used."""
        rows, reward = self._view.sample(batch_size)
        store = self._view.store
        columns = [column[rows] for column in (store.obs, store.act, store.next_obs, store.terminated[:, None])]
        return ReplayBufferSamples(*(column.to(self._device) for column in (*columns, reward[:, None])))


class SB3Learner:
    """A ``Learner`` with any off-policy algorithm of SB3 that takes a Box action space.

    ``number`` gives each learner of a run random numbers of its own. Learner 0 draws the same as plain SB3 with the
    same seed. ``overrides`` are arguments of the algorithm, which go before those of ``config``.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        config: Config,
        store: ReplayBuffer,
        number: int = 0,
        algorithm: type[OffPolicyAlgorithm] = SAC,
        device: str = "cpu",
        **overrides: Any,
    ) -> None:
        seed = config.seed + number * 100_003
        arguments = settings(config, algorithm, device) | {"seed": seed} | overrides | {"buffer_size": 1}
        model: Any = algorithm(env=env, **arguments)
        self.model = model
        model.buffer_size = overrides.get("buffer_size", BUFFER)  # of a saved model; here the store is the buffer
        model.save = partial(save_for_sb3, model)
        model.save_replay_buffer = self._save_buffer
        model.action_space = copy.deepcopy(model.action_space)  # environments may share it and its random numbers
        # Its own random numbers, from where SB3 has seeded torch: beside other learners it draws the same as alone
        self._rng = torch.Generator()
        self._rng.set_state(torch.get_rng_state())
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self._metrics = Logger(folder=None, output_formats=[])  # read below: SB3's train returns nothing
        self._view = RelabelledView(store, seed, (config.newest_share, config.newest_rows))
        self.model.replay_buffer = ViewAsBuffer(self._view, self.model.device)
        self._config = config
        self._plain = stackable(model) and model.action_noise is None and model.device.type == "cpu"

    def act(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``Learner.act``. Before ``learning_starts`` actions are uniform."""
        model, start = self.model, self._config.learning_starts
        if self._plain and step >= start:  # draws the same as SB3's ``predict``, which is slow
            with torch.no_grad():
                mean, log_std, _ = model.actor.get_action_dist_params(torch.as_tensor(obs[None]))
                noise = torch.randn(mean.shape, generator=self._rng)
                scaled = torch.tanh(mean + log_std.exp() * noise).numpy()
            return model.policy.unscale_action(scaled)[0], scaled[0]
        model.num_timesteps, model._last_obs = step, obs[None]
        with drawing_from(self._rng):
            action, scaled = model._sample_action(start, model.action_noise)
        return action[0], scaled[0]

    def improve(self, updates: int, step: int) -> Metrics:
        """As ``Learner.improve``, by SB3's ``train``. The metrics are those that SB3 logs."""
        self.model._update_current_progress_remaining(step, self._config.total_timesteps)
        with drawing_from(self._rng), logging_to(self._metrics, self.model):
            self.model.train(updates, self._config.batch_size)
        values = dict(self._metrics.name_to_value)
        for key, value in values.items():
            if not np.isfinite(value):
                raise FloatingPointError(f"a learner diverged at step {step}: {key}={value}")
        return values

    def set_reward(self, reward: RowReward, cache: bool = True) -> None:
        """As ``Learner.set_reward``."""
        self._view.set_reward(reward, cache)

    def reset_critic(self) -> None:
        """As ``Learner.reset_critic``. The critics' optimizer and target critics are reset too."""
        critic = self.model.critic
        with drawing_from(self._rng):
            for module in critic.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm):
                    module.reset_parameters()
        for moments in critic.optimizer.state.values():
            for moment in moments.values():
                moment.zero_()
        if hasattr(self.model, "critic_target"):  # CrossQ has none
            self.model.critic_target.load_state_dict(critic.state_dict())

    def state_dict(self) -> Tree:
        """As ``Learner.state_dict``."""
        modules, variables = self.model._get_torch_save_params()
        noise = self.model.action_noise
        return {
            "modules": {name: _state(attrgetter(name)(self.model)) for name in modules},
            "variables": {name: getattr(self.model, name) for name in variables},
            "updates": self.model._n_updates,
            "actions": self.model.action_space.np_random.bit_generator.state,
            "noise": torch.from_numpy(noise.noise_prev) if isinstance(noise, OrnsteinUhlenbeckActionNoise) else None,
            "rng": self._rng.get_state(),
            "view": self._view.state_dict(),
        }

    def load_state_dict(self, state: Tree) -> None:
        """As ``Learner.load_state_dict``."""
        for name, saved in state["modules"].items():
            part = attrgetter(name)(self.model)
            if isinstance(part, torch.optim.Optimizer):
                load_optimizer(part, saved)
            else:
                part.load_state_dict(saved)
        for name, saved in state["variables"].items():
            getattr(self.model, name).data.copy_(saved)  # in place: an optimizer holds it
        self.model._n_updates = state["updates"]
        self.model.action_space.np_random.bit_generator.state = state["actions"]
        if state["noise"] is not None:
            self.model.action_noise.noise_prev = state["noise"].numpy()
        self._rng.set_state(state["rng"])
        self._view.load_state_dict(state["view"])

    def load_policy(self, state: Tree) -> None:
        """Loads only the policy of a ``state_dict``: the learner acts as that one did, and cannot learn on."""
        self.model.policy.load_state_dict(state["modules"]["policy"])

    def follow(self, other: SB3Learner) -> None:
        """As ``Learner.follow``. Cached rewards and the random numbers of uniform actions stay its own."""
        old, new = self.state_dict(), copy.deepcopy(other.state_dict())
        view = old["view"] | {"rng": new["view"]["rng"]}
        self.load_state_dict(new | {"view": view, "actions": old["actions"]})

    def value_gap(self, other: SB3Learner, obs: Tensor) -> float:
        """J(self) - J(other) in discounted return, entropies included, by the critics of this learner alone.

        By the performance-difference lemma [Kakade and Langford 2002] it is
        E_s[ V(s) - E_{a ~ other}[Q(s, a) - alpha log other(a|s)] ] / (1 - gamma) over the states ``obs`` (N, o) that
        ``other`` visits. It is not negative if this learner is optimal.
        """
        states = obs.to(self.model.device)
        with torch.no_grad(), torch.random.fork_rng():  # a metric must not change what the run draws
            critic = self.model.critic
            gap = self._soft_value(states, self.model.actor, critic)
            gap -= self._soft_value(states, other.model.actor, critic)
        return gap.mean().item() / (1 - self._config.gamma)

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """As ``Learner.value``."""
        flat_obs, flat_act = (part.flatten(0, -2).to(self.model.device) for part in (obs, act))
        self.model.policy.set_training_mode(False)
        with torch.no_grad():
            return q_values(self.model.critic, flat_obs, flat_act).amin(0).reshape(obs.shape[:-1]).cpu()

    def critics_after(self, rows: Tensor, reward: Tensor) -> RewardFn:
        """As ``Learner.critics_after``: a step on the mean squared Bellman error, at the learning rate of the run."""
        model, store = self.model, self._view.store
        columns = (store.obs, store.act, store.next_obs, store.terminated)
        obs, act, next_obs, terminated = (column[rows].to(model.device) for column in columns)
        with torch.no_grad(), drawing_from(self._rng):
            target = getattr(model, "critic_target", model.critic)
            later = (1 - terminated) * model.gamma * self._soft_value(next_obs, model.actor, target)
        now = {name: weight.detach().requires_grad_() for name, weight in model.critic.named_parameters()}

        def critics(weights: dict[str, Tensor], obs: Tensor, act: Tensor) -> Tensor:
            return q_values(lambda *pair: functional_call(model.critic, weights, pair), obs, act)

        error = critics(now, obs, act) - (reward.to(model.device) + later)  # (Q, N)
        slopes = torch.autograd.grad(error.square().mean(-1).sum(), list(now.values()), create_graph=True)
        rate = self._config.learning_rate
        after = {name: now[name].detach() - rate * slope for name, slope in zip(now, slopes, strict=True)}
        return lambda obs, act: critics(after, obs.to(model.device), act.to(model.device)).to(reward.device)

    def score_products(self, steps: Steps, others: Steps, weight: Tensor) -> Tensor:
        """As ``Learner.score_products``. UserError if the algorithm has no log pi(a|s)."""
        actor = self.model.actor
        if not isinstance(self.model, SAC):
            name = type(self.model).__name__
            raise UserError(f"{name} has no action probabilities, which this method needs: SAC has")

        def log_prob(obs: Tensor, act: Tensor) -> Tensor:
            mean, log_std, _ = actor.get_action_dist_params(obs.to(self.model.device))
            inside = act.to(self.model.device).clamp(-INSIDE, INSIDE)
            return actor.action_dist.proba_distribution(mean, log_std).log_prob(inside)

        weights = list(actor.parameters())
        direction = torch.autograd.grad(weight.to(self.model.device) @ log_prob(*others), weights)
        # The gradient of u . log pi is linear in u. Its derivative by u, along ``direction``, is one product per step
        u = torch.ones(len(steps[0]), device=self.model.device, requires_grad=True)
        scores = torch.autograd.grad(u @ log_prob(*steps), weights, create_graph=True)
        return torch.autograd.grad(scores, u, direction)[0].cpu()

    def replay_buffer(self) -> SB3ReplayBuffer:
        """A replay buffer of SB3 with all stored rows and this learner's rewards of now."""
        model, store, size = self.model, self._view.store, self._view.store.size
        spaces = model.observation_space, model.action_space
        buffer = SB3ReplayBuffer(len(store.env_reward), *spaces, model.device)
        columns = {"observations": store.obs, "next_observations": store.next_obs, "actions": store.act}
        for name, column in columns.items():
            getattr(buffer, name)[:size, 0] = column[:size]
        for rows in torch.arange(size).split(CHUNK):
            buffer.rewards[rows, 0] = self._view.reward(rows)
        terminated = store.terminated[:size].numpy()
        starts = store.index()["starts"].numpy()
        buffer.dones[:size, 0] = terminated
        buffer.dones[starts[starts > 0] - 1, 0] = 1
        buffer.timeouts[:size] = buffer.dones[:size] * (terminated == 0)[:, None]
        buffer.pos, buffer.full = size % buffer.buffer_size, size == buffer.buffer_size
        return buffer

    def _save_buffer(self, path: Any) -> None:
        save_to_pkl(path, self.replay_buffer(), self.model.verbose)

    def temperature(self) -> float:
        """As ``Learner.temperature``."""
        return self._alpha().item()

    def _soft_value(self, states: Tensor, actor: Any, critic: Any) -> Tensor:
        """One sample of min_q Q_q(s, a) - alpha log pi(a|s) in each state (N, o): (N,)."""
        self.model.policy.set_training_mode(False)
        if not hasattr(actor, "action_log_prob"):  # no entropy term
            return q_values(critic, states, actor(states)).amin(0)
        act, log_prob = actor.action_log_prob(states)
        return q_values(critic, states, act).amin(0) - self._alpha() * log_prob

    def _alpha(self) -> Tensor:
        model = self.model
        return model.log_ent_coef.exp() if model.log_ent_coef is not None else model.ent_coef_tensor


def _state(part: Any) -> Tree:
    return optimizer_state(part) if isinstance(part, torch.optim.Optimizer) else part.state_dict()
