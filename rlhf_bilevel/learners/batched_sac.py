"""One gradient step of SAC for L learners at once [Haarnoja et al. 2018].

    y = r + gamma (1 - terminated) (min_q Q'_q(s', a') - alpha log pi(a'|s')),            a' ~ pi(s')
    critics      minimise    sum_q E[(Q_q(s, a) - y)^2] / 2
    actor        minimises   E[alpha log pi(a|s) - min_q Q_q(s, a)],                      a ~ pi(s), reparametrised
    log alpha    minimises   -log alpha E[log pi(a|s) + target entropy]
    targets      follow      Q'_q <- (1 - tau) Q'_q + tau Q_q

It computes what Stable-Baselines3's own update computes, up to rounding, with gradients written out by hand. The
parameters of all networks of one kind are the rows of one matrix (``stacked_adam.py``). The SB3 models hold views of
these rows: they always have the newest weights, and can be saved at any time.

Why it is faster than SB3, besides what ``stacked_adam.py`` and ``stacked_networks.py`` say:

- The policy evaluates s and s' in one pass.
- The actor's loss has no gradient by the critics' weights, by the states, and by the critics that are not the minimum.
- On a GPU, the matrices of all learners are multiplied in one call.
- On a CPU with several cores, processes update the learners side by side, in memory that they share. Threads of one
  process would not: between two small operations each of them waits for Python's lock.

Shapes: L learners, l learners of one update, Q critics of each, B rows of a batch, P parameters of a network.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from rlhf_bilevel.data.replay_buffer import DeviceCopy, RelabelledView
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.normed_policy import NormedPolicy
from rlhf_bilevel.learners.squashed_gaussian import squashed, squashed_slope
from rlhf_bilevel.learners.stacked_adam import Rows, Settings
from rlhf_bilevel.learners.stacked_networks import Memory, Networks, layer_pieces, policy_pieces
from rlhf_bilevel.utils.child import Child

METRICS = ("train/ent_coef", "train/ent_coef_loss", "train/actor_loss", "train/critic_loss")  # SB3's log keys


def stackable(model: Any) -> bool:
    """Whether ``BatchedSAC`` can update ``model``: plain SAC on vector observations, with constant rates."""
    policy = model.policy
    return (
        type(model) is SAC
        and type(policy) in (SACPolicy, NormedPolicy)
        and not model.use_sde
        and not callable(model.learning_rate)
        and model.target_update_interval == 1
        and policy.activation_fn is nn.ReLU
        and policy.features_extractor_class is FlattenExtractor
        and policy.optimizer_class is torch.optim.Adam
        and set(policy.optimizer_kwargs) <= {"fused"}
    )


Adam = tuple[Settings, Settings, Settings]
"""Adam's settings for actor, critics and alpha."""


class Parts(NamedTuple):
    """What the update of some models works on. These are views: the memory stays the same."""

    critics: slice  # the rows of their critics
    copies: list[tuple[Tensor, Tensor]]  # (to, from): parts of a new batch that go into the networks' inputs
    action: Tensor  # where the policy's actions go
    policy: Networks  # pi at s and s'
    fitted: Networks  # the critics at (s, a)
    on_policy: Networks  # the critics at (s, pi(s))
    target: Networks  # the target critics at (s', pi(s'))


@dataclass
class Update:
    """The update of L models on the batches that were drawn for them.

    Another process may have a copy. Both then work on the same parameters and batches, in shared memory. For results in
    between, each has its own memory.
    """

    actor: Rows
    critic: Rows
    target: Rows
    alpha: Rows
    drawn: Tensor  # (L, B, 2 o + a + 2) rows of the store
    reward: Tensor  # (L, B)
    noise: Tensor  # (L, a, 2 B) for a ~ pi(s), then for a' ~ pi(s')
    measured: Tensor  # (4, L) the metrics of the newest update
    obs: int
    act: int
    critics: int
    gamma: float
    tau: float
    entropy: float  # SB3's target entropy
    tuned: bool  # whether alpha is
    batched: bool

    def __post_init__(self) -> None:
        self._memories: list[Memory] = [{} for _ in range(1 + self.critics)]  # the policy's, the critics'
        self._parts: dict[tuple[int, int], Parts] = {}
        learners, batch, _ = self.drawn.shape
        copies = self.critics if self.batched else 1  # products of many at once need each factor in full
        self._pair = self.drawn.new_zeros(learners, copies, self.obs + self.act, batch)  # (s, a)
        self._done = self._pair.repeat(1, 1, 1, 2)  # by the policy at s, then s'

    def __reduce__(self) -> Any:
        return Update, tuple(getattr(self, field.name) for field in fields(self))

    def share(self) -> None:
        """Moves all that changes into memory that other processes can have. UserError if there is too little."""
        if self.drawn.is_shared():
            return
        parts = self.actor, self.critic, self.target, self.alpha
        tensors = [matrix for rows in parts for matrix in (rows.flat, rows.steps)]
        tensors += [self.drawn, self.reward, self.noise, self.measured]
        check_shared_memory(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
        for tensor in tensors:
            tensor.share_memory_()

    def make(self, at: slice, adam: Adam) -> Tensor:
        """Updates the models ``at``, with Adam's settings; the metrics (4, l)."""
        if self.batched or at.stop - at.start == 1:
            return self._make(at, adam)
        return torch.cat([self._make(slice(number, number + 1), adam) for number in range(at.start, at.stop)], 1)

    def _make(self, at: slice, adam: Adam) -> Tensor:
        """The update itself, as the formulas at the top: of l models in one pass."""
        drawn, parts, log_alpha = self.drawn[at], self._parts_at(at), self.alpha.flat[at, :1]
        alpha, count, shape = log_alpha.exp(), drawn.shape[1], (-1, self.critics, drawn.shape[1])  # (l, 1)
        for to, what in parts.copies:
            to.copy_(what)

        chosen = squashed(parts.policy.forward(), self.noise[at])
        parts.action.copy_(chosen.action[:, None])
        log_prob, next_log_prob = chosen.log_prob.split(count, -1)
        best = parts.target.forward().view(shape).amin(1)
        target = self.reward[at] + (1 - drawn[..., -1]) * self.gamma * (best - alpha * next_log_prob)

        error = parts.fitted.forward().view(shape) - target[:, None]  # (l, Q, B)
        parts.fitted.backward((error / count).view(-1, 1, count))
        for_actor, for_critic, for_alpha = adam
        self.critic.step(parts.critics, for_critic)

        value, least = parts.on_policy.forward().view(shape).min(1, keepdim=True)
        if self.batched:
            slope = torch.zeros_like(error).scatter_(1, least, -1 / count)
            by_action = parts.on_policy.backward(slope.view(-1, 1, count)).unflatten(0, shape[:2]).sum(1)
        else:
            by_action = parts.on_policy.backward_of(least.view(-1), -1 / count)
        parts.policy.backward(squashed_slope(chosen, by_action, alpha / count))
        mean = log_prob.mean(-1, keepdim=True)
        surprise = mean + self.entropy
        losses = -log_alpha * surprise, alpha * mean - value.mean(-1), error.square().sum((1, 2))[:, None] / (2 * count)
        measured = torch.cat([alpha, *losses], 1).T
        torch.neg(surprise, out=self.alpha.gradient[at, :1])
        self.actor.step(at, for_actor)
        if self.tuned:
            self.alpha.step(at, for_alpha)
        self.target.flat[parts.critics].lerp_(self.critic.flat[parts.critics], self.tau)
        return measured

    def _parts_at(self, at: slice) -> Parts:
        """The parts of the models ``at``, made once."""
        key = at.start, at.stop
        if key in self._parts:
            return self._parts[key]
        critics = slice(at.start * self.critics, at.stop * self.critics)
        drawn, pair, done = self.drawn[at].mT[:, None], self._pair[at], self._done[at]
        obs, width, count = self.obs, self.obs + self.act, drawn.shape[-1]
        here, there = done.split(count, -1)

        def values(rows: Rows, pair: Tensor, **back: Any) -> Networks:
            x = pair.expand(-1, self.critics, -1, -1).flatten(0, 1)
            return Networks(rows, critics, x, self._memories[1:], self.batched, count, **back)

        self._parts[key] = Parts(
            critics,
            [
                (pair, drawn[:, :, :width]),
                (here[:, :, :obs], drawn[:, :, :obs]),
                (there[:, :, :obs], drawn[:, :, width:-2]),
            ],
            done[:, :, obs:],
            Networks(self.actor, at, done[:, 0, :obs], self._memories, self.batched, count, fits=True),
            values(self.critic, pair, fits=True),
            values(self.critic, here, inputs=self.act),
            values(self.target, there),
        )
        return self._parts[key]


class BatchedSAC:
    """Updates L SB3 models of one shape. Model l draws ``batch`` rows from ``views[l]`` and noise from ``noises[l]``.

    ``batched`` multiplies the matrices of all networks in one call, which is the default on a GPU. A CPU is faster with
    one network after another: it multiplies single matrices better, and one network fits into its cache.
    """

    def __init__(
        self,
        models: Sequence[Any],
        views: Sequence[RelabelledView],
        noises: Sequence[torch.Generator],
        batch: int,
        batched: bool | None = None,
    ) -> None:
        model = models[0]
        device = model.device
        self._models, self._views, self._noises = models, views, noises
        self._rate = float(model.learning_rate)
        obs, act = model.observation_space.shape[0], model.action_space.shape[0]
        self._stores = {view.store: DeviceCopy(view.store, device) for view in views}
        self._chance = torch.zeros(len(models), batch), torch.zeros(len(models), 2, batch, act)  # as drawn
        tuned = model.ent_coef_optimizer is not None
        alphas = [[[model.log_ent_coef if tuned else model.ent_coef_tensor.log()[None]]] for model in models]
        self.update = Update(
            Rows([policy_pieces(model) for model in models], [model.actor.optimizer for model in models]),
            Rows(
                [layer_pieces(q) for model in models for q in model.critic.q_networks],
                [model.critic.optimizer for model in models for _ in model.critic.q_networks],
            ),
            Rows([layer_pieces(q) for model in models for q in model.critic_target.q_networks]),
            Rows(alphas, [model.ent_coef_optimizer for model in models]),
            torch.zeros(len(models), batch, 2 * obs + act + 2, device=device),
            torch.zeros(len(models), batch, device=device),
            torch.zeros(len(models), act, 2 * batch, device=device),
            torch.zeros(len(METRICS), len(models), device=device),
            obs,
            act,
            len(model.critic.q_networks),
            model.gamma,
            model.tau,
            float(model.target_entropy),
            tuned,
            device.type == "cuda" if batched is None else batched,
        )
        self._graph: Any = None
        self._helpers: list[tuple[slice, Child]] = []
        if device.type == "cuda":
            self._capture()

    @contextmanager
    def side_by_side(self, processes: int) -> Iterator[None]:
        """Inside, ``improve`` of all models takes so many processes, this one included: each updates a part of them.

        What they learn is the same, bit for bit. ``processes`` are at most as many as there are models. UserError if
        there is too little memory that processes can share.
        """
        bounds = [len(self._models) * number // processes for number in range(processes + 1)]
        self.update.share()
        with ExitStack() as stack:
            stack.callback(self._helpers.clear)
            for start, end in pairwise(bounds[1:]):
                threads = torch.get_num_threads()
                helper = Child(_helper, self.update, threads, what="a learner", option="--threads")
                stack.callback(helper.close)
                self._helpers.append((slice(start, end), helper))
            yield

    def improve(self, updates: int, step: int, at: slice | None = None) -> list[dict[str, float]]:
        """``updates`` gradient steps of the models ``at`` (default: all), at environment step ``step``.

        Returns the metrics of each model by SB3's log keys, means over the updates. FloatingPointError if one is not
        finite.
        """
        at = at or slice(0, len(self._models))
        measured = torch.stack([self._improve(at) for _ in range(updates)]).mean(0)  # (4, l)
        metrics = []
        for model, column in zip(self._models[at], measured.T.tolist(), strict=True):
            model._n_updates += updates
            values = dict(zip(METRICS, column, strict=True))
            for key, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"a learner diverged at step {step}: {key}={value}")
            metrics.append(values | {"train/n_updates": model._n_updates, "train/learning_rate": self._rate})
        return metrics

    def _improve(self, at: slice) -> Tensor:
        """One update of the models ``at`` on new batches; the metrics (4, l)."""
        whole = at == slice(0, len(self._models))
        if whole and self._helpers:
            return self._improve_side_by_side()
        self._draw(at)
        if self._graph is None or not whole:
            return self.update.make(at, self._adam())
        self._graph.replay()
        return self._measured.clone()

    def _improve_side_by_side(self) -> Tensor:
        own, adam = slice(0, self._helpers[0][0].start), self._adam()
        drawn_ahead = not all(view.cached for view in self._views)
        if drawn_ahead:  # these rewards may draw random numbers, which must come in the order of the models
            self._draw(slice(0, len(self._models)))
        for at, helper in self._helpers:
            if not drawn_ahead:
                self._draw(at)
            helper.send(_make, at, adam)
        if not drawn_ahead:
            self._draw(own)
        self.update.measured[:, own] = self.update.make(own, adam)
        for _, helper in self._helpers:
            helper.receive()
        return self.update.measured.clone()

    def _adam(self) -> Adam:
        update = self.update
        return update.actor.settings(), update.critic.settings(), update.alpha.settings()

    def _draw(self, at: slice) -> None:
        """Draws batches and noise of the models ``at``."""
        update = self.update
        rewards, noises = (drawn[at] for drawn in self._chance)
        for drawn, reward, noise, view, rng in zip(
            update.drawn[at], rewards, noises, self._views[at], self._noises[at], strict=True
        ):
            rows, reward[:] = view.sample(len(drawn))
            self._stores[view.store].take(rows, out=drawn)
            for part in noise:  # in SB3's order: first for a ~ pi(s), then for a' ~ pi(s')
                part.normal_(generator=rng)
        update.reward[at] = rewards
        update.noise[at].unflatten(-1, noises.shape[1:3]).copy_(noises.permute(0, 3, 1, 2))

    def _capture(self) -> None:
        """Records an update of all models as one CUDA graph, so that some hundred kernels are launched in one call.

        The graph reads and writes the memory of ``Rows``: a state that is loaded later is copied into it.
        """
        update, adam = self.update, self._adam()
        parts = update.actor, update.critic, update.target, update.alpha
        moved = [matrix for rows in parts for matrix in (rows.flat, rows.first, rows.second, rows.steps)]
        before, everyone = [matrix.clone() for matrix in moved], slice(0, len(self._models))
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # PyTorch asks for a warm-up
                update.make(everyone, adam)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._measured = update.make(everyone, adam)
        for matrix, value in zip(moved, before, strict=True):
            matrix.copy_(value)
        self._graph = graph


def _helper(update: Update, threads: int) -> Update:
    """What a helper of ``side_by_side`` begins with."""
    torch.set_num_threads(threads)
    return update


def _make(update: Update, at: slice, adam: Adam) -> None:
    """What a helper does for each update."""
    update.measured[:, at] = update.make(at, adam)


def check_shared_memory(needed: int) -> None:
    """UserError if processes cannot share so many bytes: in a container, /dev/shm is often small."""
    place = Path("/dev/shm")
    if place.is_dir() and needed > (free := shutil.disk_usage(place).free):
        raise UserError(
            f"--threads: learners side by side need {needed / 2**20:.0f} MiB in {place}, and {free / 2**20:.0f} are "
            "free: give more, or train with --threads 1"
        )
