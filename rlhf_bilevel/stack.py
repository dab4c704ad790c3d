"""SAC's update of L learners at once: Stable-Baselines3's, by hand [Haarnoja 2018].

    y = r + gamma (1 - terminated) (min_q Q'_q(s', a') - alpha log pi(a'|s')),            a' ~ pi(s')
    critics descend    sum_q E[(Q_q(s, a) - y)^2] / 2
    actor descends     E[alpha log pi(a|s) - min_q Q_q(s, a)],                            a ~ pi(s), reparametrised
    log alpha descends -log alpha E[log pi(a|s) + target entropy]

What a network learns is one row of a matrix, of which its SB3 model holds views: the model is at any moment what SB3's
own update would have made of it, but for rounding, and its own optimizers take the steps. It is faster because
derivatives are written into memory that is kept, and those of the critics' weights in the actor's loss, which nobody
uses, are left out; on a GPU, because the matrices of all learners are multiplied at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from torch import Tensor, nn

from rlhf_bilevel.replay import Mirror, View

Piece = Sequence[Tensor]
"""Parameters that are one when they are laid end to end, as the weights of two layers on the same input."""

ALIGNED = 16  # floats: every piece begins where a cache line does
METRICS = ("train/ent_coef", "train/ent_coef_loss", "train/actor_loss", "train/critic_loss")  # SB3's keys


def stackable(model: Any) -> bool:
    """Whether the update here is the one of ``model``: plain SAC on vectors, its rates constant."""
    policy = model.policy
    return (
        type(model) is SAC
        and type(policy) is SACPolicy
        and not model.use_sde
        and not callable(model.learning_rate)
        and model.target_update_interval == 1
        and policy.activation_fn is nn.ReLU
        and policy.features_extractor_class is FlattenExtractor
        and policy.optimizer_class is torch.optim.Adam
        and set(policy.optimizer_kwargs) <= {"fused"}
    )


class Rows:
    """N networks of one shape: ``flat`` (N, P) holds their parameters, a row each, ``gradient`` their derivatives."""

    def __init__(self, networks: Sequence[Sequence[Piece]]) -> None:
        first = networks[0]
        self._shapes = [(sum(len(part) for part in piece), *piece[0].shape[1:]) for piece in first]
        sizes = [ALIGNED * math.ceil(math.prod(shape) / ALIGNED) for shape in self._shapes]
        self._starts = [0, *accumulate(sizes)]
        self.flat, self.gradient = torch.zeros(2, len(networks), self._starts[-1], device=first[0][0].device)
        for row, slopes, pieces in zip(self.flat, self.gradient, networks, strict=True):
            for start, piece in zip(self._starts, pieces, strict=False):
                for parameter in piece:
                    place = slice(start, start + parameter.numel())
                    parameter.data = row[place].view(parameter.shape).copy_(parameter.detach())
                    parameter.grad = slopes[place].view(parameter.shape) if parameter.requires_grad else None
                    start = place.stop

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """Views (n, ...) of n rows of a matrix like ``flat``."""
        places = zip(self._starts, self._shapes, strict=False)
        return [matrix[:, start : start + math.prod(shape)].view(-1, *shape) for start, shape in places]


class Tape:
    """The way through a network with ReLUs between its layers, and back, in memory that is kept from pass to pass.

    Of one network, x is (B, i), weights (j, i) and biases (j,); of N at once, all have a leading axis N.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, int], Tensor] = {}
        self._inputs: list[Tensor] = []

    def _kept(self, what: str, layer: int, like: Tensor, width: int) -> Tensor:
        if (what, layer) not in self._memory:
            self._memory[what, layer] = like.new_empty(*like.shape[:-1], width)
        return self._memory[what, layer]

    def forward(self, pieces: Sequence[Tensor], x: Tensor) -> Tensor:
        """The last layer's output (..., B, j), until the next pass."""
        self._inputs = []
        for layer, (weight, bias) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
            x = x.relu_() if layer else x
            self._inputs.append(x)
            y = self._kept("output", layer, x, weight.shape[-2])
            if x.dim() == 2:
                torch.addmm(bias, x, weight.t(), out=y)
            else:
                torch.baddbmm(bias[:, None], x, weight.mT, out=y)
            x = y
        return x

    def backward(
        self, pieces: Sequence[Tensor], slope: Tensor, into: Sequence[Tensor] | None, to_input: bool = False
    ) -> Tensor:
        """From the loss's derivative by the output of the last pass, that by the parameters, or by its input."""
        product = torch.mm if slope.dim() == 2 else torch.bmm
        for layer in reversed(range(len(self._inputs))):
            x, weight = self._inputs[layer], pieces[2 * layer]
            if into is not None:
                product(slope.mT, x, out=into[2 * layer])
                torch.sum(slope, -2, out=into[2 * layer + 1])
            if layer or to_input:
                slope = product(slope, weight, out=self._kept("slope", layer, x, weight.shape[-1]))
            if layer:
                torch.ops.aten.threshold_backward(slope, x, 0, grad_input=slope)
        return slope


def policy(model: Any) -> list[Piece]:
    actor = model.actor
    heads = [[actor.mu.weight, actor.log_std.weight], [actor.mu.bias, actor.log_std.bias]]
    return [*layers(actor.latent_pi), *heads]


def layers(network: nn.Module) -> list[Piece]:
    """Weight and bias of each linear layer."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return [[parameter] for module in linear for parameter in (module.weight, module.bias)]


class Networks:
    """Some rows as they are multiplied: all at once, or one after another."""

    def __init__(self, rows: Rows, at: slice, tapes: Sequence[Tape], batched: bool) -> None:
        def grouped(matrix: Tensor) -> list[list[Tensor]]:
            pieces = rows.pieces(matrix[at])
            return [pieces] if batched else [list(one) for one in zip(*pieces, strict=True)]

        self._weights, self._slopes = grouped(rows.flat), grouped(rows.gradient)
        self._tapes, self._batched = tapes[: len(self._weights)], batched

    def forward(self, x: Tensor) -> Tensor:
        """x (n, B, i) to (n, B, j)."""
        if self._batched:
            return self._tapes[0].forward(self._weights[0], x)
        ways = zip(self._tapes, self._weights, x, strict=True)
        return torch.stack([tape.forward(weights, y) for tape, weights, y in ways])

    def fit(self, slope: Tensor) -> None:
        """The loss's derivative by the parameters to their gradients, from that by the last output (n, B, j)."""
        for tape, weights, part, into in zip(self._tapes, self._weights, self._split(slope), self._slopes, strict=True):
            tape.backward(weights, part, into)

    def by_input(self, slope: Tensor) -> Tensor:
        """The derivative by the last input (n, B, i)."""
        parts = zip(self._tapes, self._weights, self._split(slope), strict=True)
        slopes = [tape.backward(weights, part, None, to_input=True) for tape, weights, part in parts]
        return slopes[0] if self._batched else torch.stack(slopes)

    def _split(self, x: Tensor) -> Sequence[Tensor]:
        return [x] if self._batched else x.unbind()


class Parts(NamedTuple):
    """What an update of some models needs of them."""

    critics: slice  # their rows
    policy: Networks
    critic: Networks
    target: Networks


class Stack:
    """L models of one shape. Model l draws its batches from ``views[l]`` and its noise from ``noises[l]``.

    ``batched`` multiplies the matrices of all networks at once, as a GPU wants it. A CPU is faster with one after
    another: its products of single matrices are better, and a network's numbers stay in its cache.
    """

    def __init__(
        self,
        models: Sequence[Any],
        views: Sequence[View],
        noises: Sequence[torch.Generator],
        batch: int,
        batched: bool | None = None,
    ) -> None:
        model = models[0]
        device = model.device
        self._models, self._views, self._noises = models, views, noises
        self._batched = device.type == "cuda" if batched is None else batched
        self._gamma, self._tau, self._rate = model.gamma, model.tau, float(model.learning_rate)
        self._entropy, self._tuned = float(model.target_entropy), model.ent_coef_optimizer is not None
        self._actor = Rows([policy(model) for model in models])
        self._alpha = Rows(
            [[[model.log_ent_coef if self._tuned else model.ent_coef_tensor.log()[None]]] for model in models]
        )
        self._critics = len(model.critic.q_networks)
        self._critic, self._target = (
            Rows([layers(q) for model in models for q in getattr(model, name).q_networks])
            for name in ("critic", "critic_target")
        )
        self._tape, self._tapes = Tape(), [Tape() for _ in range(self._critics)]
        self._parts: dict[tuple[int, int], Parts] = {}
        self._obs, self._act = model.observation_space.shape[0], model.action_space.shape[0]
        self._stores = {view.store: Mirror(view.store, device) for view in views}
        self._drawn = torch.zeros(len(models), batch, 2 * self._obs + self._act + 2, device=device)
        self._chance = (
            torch.zeros(len(models), batch),
            torch.zeros(len(models), 2, batch, self._act),
        )  # as they are drawn
        self._reward, self._noise = (drawn.to(device) for drawn in self._chance)  # the same where the device is the CPU
        self._graph: Any = None
        if device.type == "cuda":
            self._capture()

    def improve(self, updates: int, step: int, at: slice | None = None) -> list[dict[str, float]]:
        """So many updates of the models ``at``; for each, what SB3 logs of it, means over the updates."""
        at = at or slice(0, len(self._models))
        measured = torch.stack([self._improve(at) for _ in range(updates)]).mean(0)  # (4, l)
        told = []
        for model, column in zip(self._models[at], measured.T.tolist(), strict=True):
            model._n_updates += updates
            values = dict(zip(METRICS, column, strict=True))
            for key, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(f"a learner diverged at step {step}: {key}={value}")
            told.append(values | {"train/n_updates": model._n_updates, "train/learning_rate": self._rate})
        return told

    def _improve(self, at: slice) -> Tensor:
        """An update of the models ``at`` on fresh batches."""
        rewards, noises = (drawn[at] for drawn in self._chance)
        for drawn, reward, noise, view, rng in zip(
            self._drawn[at], rewards, noises, self._views[at], self._noises[at], strict=True
        ):
            rows, reward[:] = view.sample(len(drawn))
            self._stores[view.store].take(rows, out=drawn)
            for part in noise:  # in SB3's order: for this step's action, then for the next one's
                part.normal_(generator=rng)
        if self._graph is None:
            return self._update(at)
        self._reward[at], self._noise[at] = rewards, noises
        if at != slice(0, len(self._models)):
            return self._update(at)
        self._graph.replay()
        return self._measured.clone()

    def _capture(self) -> None:
        """An update of all models as one CUDA graph, whose some hundred kernels are then launched as one.

        Their optimizers must not have taken a step yet. A state that is loaded later is copied into what it uses.
        """
        optimizers = [model.ent_coef_optimizer for model in self._models if self._tuned]
        optimizers += [part.optimizer for model in self._models for part in (model.actor, model.critic)]
        for optimizer in optimizers:  # their counts of steps stay on the GPU
            for group in optimizer.param_groups:
                group["capturable"] = True
        matrices = [rows.flat for rows in (self._actor, self._critic, self._target, self._alpha)]
        before, everyone = [matrix.clone() for matrix in matrices], slice(0, len(self._models))
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # PyTorch asks for a warm-up
                self._update(everyone)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._measured = self._update(everyone)
        for matrix, value in zip(matrices, before, strict=True):
            matrix.copy_(value)
        for optimizer in optimizers:
            for moments in optimizer.state.values():
                for moment in moments.values():
                    moment.zero_()
        self._graph = graph

    def _update(self, at: slice) -> Tensor:
        """Of the models ``at``, on what was drawn for them; the metrics (4, l)."""
        if self._batched or at.stop - at.start == 1:
            return self._update_at(at)
        return torch.cat([self._update_at(slice(one, one + 1)) for one in range(at.start, at.stop)], 1)

    def _update_at(self, at: slice) -> Tensor:
        drawn, reward, noise, parts = self._drawn[at], self._reward[at], self._noise[at], self._parts_at(at)
        now, pair = drawn[..., : self._obs], drawn[..., : self._obs + self._act]
        later, terminated = drawn[..., self._obs + self._act : -2], drawn[..., -1]
        count, log_alpha = drawn.shape[1], self._alpha.flat[at, :1].clone()
        alpha = log_alpha.exp()  # (l, 1)

        action, log_prob, _ = squashed(parts.policy.forward(later), noise[:, 1])
        best = self._values(parts.target, torch.cat([later, action], -1)).amin(1)
        target = reward + (1 - terminated) * self._gamma * (best - alpha * log_prob)

        error = self._values(parts.critic, pair) - target[:, None]  # (l, Q, B)
        parts.critic.fit((error / count).flatten(0, 1)[..., None])
        for model in self._models[at]:
            model.critic.optimizer.step()

        action, log_prob, by_heads = squashed(parts.policy.forward(now), noise[:, 0])
        value, least = self._values(parts.critic, torch.cat([now, action], -1)).min(1, keepdim=True)
        slope = torch.zeros_like(error).scatter_(1, least, -1 / count)
        by_pair = parts.critic.by_input(slope.flatten(0, 1)[..., None]).unflatten(0, error.shape[:2]).sum(1)
        parts.policy.fit(by_heads(by_pair[..., self._obs :], alpha / count))
        surprise = log_prob.mean(-1, keepdim=True) + self._entropy
        self._alpha.gradient[at, :1] = -surprise
        for model in self._models[at]:
            model.actor.optimizer.step()
            if self._tuned:
                model.ent_coef_optimizer.step()
        self._target.flat[parts.critics].lerp_(self._critic.flat[parts.critics], self._tau)
        alpha_loss, actor_loss = -log_alpha * surprise, (alpha * log_prob - value[:, 0]).mean(-1)
        return torch.stack([alpha[:, 0], alpha_loss[:, 0], actor_loss, error.square().mean(-1).sum(-1) / 2])

    def _values(self, critics: Networks, pair: Tensor) -> Tensor:
        """pair (l, B, o + a) to (l, Q, B)."""
        shared = pair[:, None].expand(-1, self._critics, -1, -1).flatten(0, 1)
        return critics.forward(shared).unflatten(0, (-1, self._critics)).squeeze(-1)

    def _parts_at(self, at: slice) -> Parts:
        key = at.start, at.stop
        if key not in self._parts:
            critics = slice(at.start * self._critics, at.stop * self._critics)
            self._parts[key] = Parts(
                critics,
                Networks(self._actor, at, [self._tape], self._batched),
                Networks(self._critic, critics, self._tapes, self._batched),
                Networks(self._target, critics, self._tapes, self._batched),
            )
        return self._parts[key]


def squashed(heads: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Actions a = tanh(mu + exp(log_std) noise) (l, B, a) and the logarithms of their densities (l, B).

    And the derivative of weight log pi(a) + v(a) by the heads (l, B, 2 a), a function of dv/da and the weight (l, 1).
    """
    mu, raw = heads.chunk(2, -1)
    log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
    pushed = log_std.exp() * noise
    action = torch.tanh(mu + pushed)
    slope = 1 - action.square()
    density = -noise.square() / 2 - log_std - math.log(2 * math.pi) / 2 - torch.log(slope + 1e-6)  # SB3's epsilon

    def by_heads(by_action: Tensor, weight: Tensor) -> Tensor:
        weight = weight[..., None]
        by_mu = (by_action + weight * 2 * action / (slope + 1e-6)) * slope
        return torch.cat([by_mu, (by_mu * pushed - weight) * (raw == log_std)], -1)  # none where it was clamped

    return action, density.sum(-1), by_heads
