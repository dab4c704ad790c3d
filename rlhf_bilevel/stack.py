"""SAC's update of L learners at once: Stable-Baselines3's, by hand [Haarnoja 2018].

    y = r + gamma (1 - terminated) (min_q Q'_q(s', a') - alpha log pi(a'|s')),            a' ~ pi(s')
    critics descend    sum_q E[(Q_q(s, a) - y)^2] / 2
    actor descends     E[alpha log pi(a|s) - min_q Q_q(s, a)],                            a ~ pi(s), reparametrised
    log alpha descends -log alpha E[log pi(a|s) + target entropy]

What a network learns is one row of a matrix, of which its SB3 model holds views, and so are its optimizer's moments:
the model is at any moment what SB3's own update would have made of it, but for rounding. It is faster because Adam
steps a row at once, the policy is asked about s and s' in one pass, results are written into memory that is kept, and
derivatives that nobody uses, those of the critics' weights in the actor's loss, are left out; on a GPU, because the
matrices of all learners are multiplied at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from torch import Tensor, nn
from torch.optim.adam import adam

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
    """N networks of one shape, a row each: ``flat`` (N, P) holds their parameters, ``gradient`` their derivatives.

    ``first``, ``second`` (N, P) and ``steps`` (N,) are Adam's moments and counts, which the networks' optimizers share.
    """

    def __init__(
        self, networks: Sequence[Sequence[Piece]], optimizers: Sequence[torch.optim.Optimizer | None] = ()
    ) -> None:
        first = networks[0]
        self._shapes = [(sum(len(part) for part in piece), *piece[0].shape[1:]) for piece in first]
        sizes = [ALIGNED * math.ceil(math.prod(shape) / ALIGNED) for shape in self._shapes]
        self._starts, device = [0, *accumulate(sizes)], first[0][0].device
        matrices = torch.zeros(4, len(networks), self._starts[-1], device=device)
        self.flat, self.gradient, self.first, self.second = matrices
        self.steps = torch.zeros(len(networks), device=device)
        for number, pieces in enumerate(networks):
            optimizer = optimizers[number] if optimizers else None
            for start, piece in zip(self._starts, pieces, strict=False):
                for parameter in piece:
                    place = slice(start, start + parameter.numel())
                    data, slope, *moments = (row[place].view(parameter.shape) for row in matrices[:, number])
                    parameter.data = data.copy_(parameter.detach())
                    if optimizer:
                        parameter.grad = slope
                        own = dict(zip(("step", "exp_avg", "exp_avg_sq"), (self.steps[number], *moments), strict=True))
                        for name, moment in optimizer.state[parameter].items():
                            own[name].copy_(moment)
                        optimizer.state[parameter] = own
                    start = place.stop
        self._optimizer = next(iter(optimizers), None)

    def step(self, at: slice) -> None:
        """Adam's step of some rows, along their derivatives."""
        assert self._optimizer
        settings = self._optimizer.param_groups[0]
        beta1, beta2 = settings["betas"]
        parts = (matrix[at].unbind() for matrix in (self.flat, self.gradient, self.first, self.second, self.steps))
        flat, gradient, first, second, steps = map(list, parts)
        adam(
            flat, gradient, first, second, [], steps, fused=True, amsgrad=False, maximize=False,
            beta1=beta1, beta2=beta2, lr=settings["lr"], eps=settings["eps"], weight_decay=settings["weight_decay"],
        )  # fmt: skip

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """Views (n, ...) of n rows of a matrix like ``flat``."""
        places = zip(self._starts, self._shapes, strict=False)
        return [matrix[:, start : start + math.prod(shape)].view(-1, *shape) for start, shape in places]


class Tape:
    """The way through a network with ReLUs between its layers, and back, in memory that is kept from pass to pass.

    Of one network, x is (B, i), weights (j, i) and biases (j,); of N at once, all have a leading axis N.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[Any, ...], Tensor] = {}
        self._inputs: list[Tensor] = []

    def _kept(self, what: str, layer: int, like: Tensor, width: int) -> Tensor:
        key = what, layer, *like.shape[:-1]
        if key not in self._memory:
            self._memory[key] = like.new_empty(*like.shape[:-1], width)
        return self._memory[key]

    def forward(self, pieces: Sequence[Tensor], x: Tensor, out: Tensor) -> None:
        """The last layer's output to ``out`` (..., B, j)."""
        self._inputs, last = [], len(pieces) // 2 - 1
        for layer, (weight, bias) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
            x = x.relu_() if layer else x
            self._inputs.append(x)
            y = out if layer == last else self._kept("output", layer, x, weight.shape[-2])
            if x.dim() == 2:
                torch.addmm(bias, x, weight.t(), out=y)
            else:
                torch.baddbmm(bias[:, None], x, weight.mT, out=y)
            x = y

    def backward(
        self, pieces: Sequence[Tensor], slope: Tensor, into: Sequence[Tensor] | None, out: Tensor | None = None
    ) -> None:
        """From the loss's derivative by the last pass's output, or by its first rows: those by the parameters to
        ``into``, that by its input to ``out``."""
        product = torch.mm if slope.dim() == 2 else torch.bmm
        for layer in reversed(range(len(self._inputs))):
            x, weight = self._inputs[layer][..., : slope.shape[-2], :], pieces[2 * layer]
            if into is not None:
                product(slope.mT, x, out=into[2 * layer])
                torch.sum(slope, -2, out=into[2 * layer + 1])
            if layer:
                slope = product(slope, weight, out=self._kept("slope", layer, x, weight.shape[-1]))
                torch.ops.aten.threshold_backward(slope, x, 0, grad_input=slope)
            elif out is not None:
                product(slope, weight, out=out)


def policy(model: Any) -> list[Piece]:
    actor = model.actor
    heads = [[actor.mu.weight, actor.log_std.weight], [actor.mu.bias, actor.log_std.bias]]
    return [*layers(actor.latent_pi), *heads]


def layers(network: nn.Module) -> list[Piece]:
    """Weight and bias of each linear layer."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return [[parameter] for module in linear for parameter in (module.weight, module.bias)]


class Networks:
    """Some rows as they are multiplied: all at once, or one after another. What a pass gives lasts until the next."""

    def __init__(self, rows: Rows, at: slice, tapes: Sequence[Tape], batched: bool) -> None:
        def grouped(matrix: Tensor) -> list[list[Tensor]]:
            pieces = rows.pieces(matrix[at])
            return [pieces] if batched else [list(one) for one in zip(*pieces, strict=True)]

        self._weights, self._slopes = grouped(rows.flat), grouped(rows.gradient)
        self._tapes, self._batched = tapes[: len(self._weights)], batched
        self._outputs: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x (n, B, i) to (n, B, j)."""
        out = self._kept(x, self._weights[0][-1].shape[-1])
        for tape, weights, part, y in zip(self._tapes, self._weights, self._split(x), self._split(out), strict=True):
            tape.forward(weights, part, y)
        return out

    def fit(self, slope: Tensor) -> None:
        """The loss's derivative by the parameters to their gradients, from that by the last output (n, B, j)."""
        for tape, weights, part, into in zip(self._tapes, self._weights, self._split(slope), self._slopes, strict=True):
            tape.backward(weights, part, into)

    def by_input(self, slope: Tensor) -> Tensor:
        """The derivative by the last input (n, B, i)."""
        out = self._kept(slope, self._weights[0][0].shape[-1])
        parts = zip(self._tapes, self._weights, self._split(slope), self._split(out), strict=True)
        for tape, weights, part, y in parts:
            tape.backward(weights, part, None, y)
        return out

    def _kept(self, like: Tensor, width: int) -> Tensor:
        if width not in self._outputs:
            self._outputs[width] = like.new_empty(*like.shape[:-1], width)
        return self._outputs[width]

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
        self._critics = len(model.critic.q_networks)
        self._actor = Rows([policy(model) for model in models], [model.actor.optimizer for model in models])
        self._critic = Rows(
            [layers(q) for model in models for q in model.critic.q_networks],
            [model.critic.optimizer for model in models for _ in model.critic.q_networks],
        )
        self._target = Rows([layers(q) for model in models for q in model.critic_target.q_networks])
        self._alpha = Rows(
            [[[model.log_ent_coef if self._tuned else model.ent_coef_tensor.log()[None]]] for model in models],
            [model.ent_coef_optimizer for model in models],
        )
        self._tape, self._tapes = Tape(), [Tape() for _ in range(self._critics)]
        self._parts: dict[tuple[int, int], Parts] = {}
        self._obs, self._act = model.observation_space.shape[0], model.action_space.shape[0]
        self._stores = {view.store: Mirror(view.store, device) for view in views}
        self._drawn = torch.zeros(len(models), batch, 2 * self._obs + self._act + 2, device=device)
        self._done = torch.zeros(len(models), 2, batch, self._obs + self._act, device=device)  # by the policy at s, s'
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

        A state that is loaded later is copied into what it uses.
        """
        parts = self._actor, self._critic, self._target, self._alpha
        moved = [matrix for rows in parts for matrix in (rows.flat, rows.first, rows.second, rows.steps)]
        before, everyone = [matrix.clone() for matrix in moved], slice(0, len(self._models))
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # PyTorch asks for a warm-up
                self._update(everyone)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._measured = self._update(everyone)
        for matrix, value in zip(moved, before, strict=True):
            matrix.copy_(value)
        self._graph = graph

    def _update(self, at: slice) -> Tensor:
        """Of the models ``at``, on what was drawn for them; the metrics (4, l)."""
        if self._batched or at.stop - at.start == 1:
            return self._update_at(at)
        return torch.cat([self._update_at(slice(one, one + 1)) for one in range(at.start, at.stop)], 1)

    def _update_at(self, at: slice) -> Tensor:
        drawn, done, reward, parts = self._drawn[at], self._done[at], self._reward[at], self._parts_at(at)
        width, count, log_alpha = self._obs + self._act, drawn.shape[1], self._alpha.flat[at, :1].clone()
        alpha = log_alpha.exp()  # (l, 1)
        done[:, 0, :, : self._obs], done[:, 1, :, : self._obs] = drawn[..., : self._obs], drawn[..., width:-2]

        heads = parts.policy.forward(done[..., : self._obs].flatten(1, 2)).unflatten(1, (2, count))
        action, log_prob = squashed(heads, self._noise[at])
        done[..., self._obs :] = action
        best = self._values(parts.target, done[:, 1]).amin(1)
        target = reward + (1 - drawn[..., -1]) * self._gamma * (best - alpha * log_prob[:, 1])

        error = self._values(parts.critic, drawn[..., :width]) - target[:, None]  # (l, Q, B)
        parts.critic.fit((error / count).flatten(0, 1)[..., None])
        self._critic.step(parts.critics)

        value, least = self._values(parts.critic, done[:, 0]).min(1, keepdim=True)
        slope = torch.zeros_like(error).scatter_(1, least, -1 / count)
        by_pair = parts.critic.by_input(slope.flatten(0, 1)[..., None]).unflatten(0, error.shape[:2]).sum(1)
        by_heads = squashed_slope(
            heads[:, 0], self._noise[at, 0], action[:, 0], by_pair[..., self._obs :], alpha / count
        )
        parts.policy.fit(by_heads)
        surprise = log_prob[:, 0].mean(-1, keepdim=True) + self._entropy
        self._alpha.gradient[at, :1] = -surprise
        self._actor.step(at)
        if self._tuned:
            self._alpha.step(at)
        self._target.flat[parts.critics].lerp_(self._critic.flat[parts.critics], self._tau)
        alpha_loss, actor_loss = -log_alpha * surprise, (alpha * log_prob[:, 0] - value[:, 0]).mean(-1)
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


EPSILON = 1e-6  # SB3's, in the logarithm of 1 - a^2


def squashed(heads: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions a = tanh(mu + exp(log_std) noise) (..., a) and the logarithms of their densities (...).

    ``heads`` (..., 2 a) are mu and log_std, the latter before it is clamped.
    """
    mu, log_std = heads.chunk(2, -1)
    log_std = log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
    action = torch.tanh(mu + log_std.exp() * noise)
    density = -noise.square() / 2 - log_std - torch.log(1 - action.square() + EPSILON)
    return action, density.sum(-1) - math.log(2 * math.pi) / 2 * action.shape[-1]


def squashed_slope(heads: Tensor, noise: Tensor, action: Tensor, by_action: Tensor, weight: Tensor) -> Tensor:
    """The derivative of weight log pi(a) + v(a) by the heads (l, B, 2 a), from dv/da (l, B, a); weight is (l, 1)."""
    weight, (_, raw), flat = weight[..., None], heads.chunk(2, -1), 1 - action.square()
    log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
    by_mu = (by_action + weight * 2 * action / (flat + EPSILON)) * flat
    by_log_std = (by_mu * log_std.exp() * noise - weight) * (raw == log_std)  # none where it was clamped
    return torch.cat([by_mu, by_log_std], -1)
