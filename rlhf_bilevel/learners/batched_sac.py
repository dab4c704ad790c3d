"""One gradient step of SAC for L learners at once [Haarnoja et al. 2018].

    y = r + gamma (1 - terminated) (min_q Q'_q(s', a') - alpha log pi(a'|s')),            a' ~ pi(s')
    critics      minimise    sum_q E[(Q_q(s, a) - y)^2] / 2
    actor        minimises   E[alpha log pi(a|s) - min_q Q_q(s, a)],                      a ~ pi(s), reparametrised
    log alpha    minimises   -log alpha E[log pi(a|s) + target entropy]
    targets      follow      Q'_q <- (1 - tau) Q'_q + tau Q_q

It computes what Stable-Baselines3's own update computes, up to rounding, with gradients written out by hand. The
parameters of all networks of one kind are the rows of one matrix, and so are Adam's moments. The SB3 models hold views
of these rows: they always have the newest weights, and can be saved at any time.

Why it is faster than SB3:

- Adam makes one step for a whole row, not one for each tensor.
- The policy evaluates s and s' in one pass.
- Results go into memory that is allocated once, and views of it are made once.
- Gradients that nobody needs are not computed: of the actor's loss by the critics' weights, by the states, and by the
  critics that are not the minimum.
- On a GPU, the matrices of all learners are multiplied in one call.
- On a CPU with several cores, processes update the learners side by side, in memory that they share. Threads of one
  process would not: between two small operations each of them waits for Python's lock.

Shapes: L learners, l learners of one update, Q critics of each, B rows of a batch, P parameters of a network.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from torch import Tensor, nn

from rlhf_bilevel.data.replay_buffer import DeviceCopy, RelabelledView
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.normed_policy import NormedPolicy
from rlhf_bilevel.utils.child import Child

Settings = Mapping[str, Any]
"""Adam's: rate, betas, epsilon and weight decay."""

Piece = Sequence[Tensor]
"""Parameters that are used as one tensor, stacked along the first axis: two layers on the same input are one layer."""

threshold_backward = torch.ops.aten.threshold_backward.grad_input
ALIGNED = 16  # floats: every piece begins at a cache line
NORM_EPSILON = 1e-5  # of torch.nn.LayerNorm
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


class Rows:
    """The parameters of N networks of one shape: one row for each network.

    ``flat`` (N, P) are the parameters, ``gradient`` (N, P) the derivatives of the loss, ``first`` and ``second`` (N, P)
    Adam's moments, ``steps`` (N,) its counts. From now on the networks and their optimizers hold views of these
    tensors. ``optimizers`` are empty for networks that are not trained.
    """

    def __init__(
        self, networks: Sequence[Sequence[Piece]], optimizers: Sequence[torch.optim.Optimizer | None] = ()
    ) -> None:
        pieces_of_one = networks[0]
        self._shapes = [(sum(len(part) for part in piece), *piece[0].shape[1:]) for piece in pieces_of_one]
        sizes = [ALIGNED * math.ceil(math.prod(shape) / ALIGNED) for shape in self._shapes]
        self._starts, device = [0, *accumulate(sizes)], pieces_of_one[0][0].device
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
                        views = {"step": self.steps[number], "exp_avg": moments[0], "exp_avg_sq": moments[1]}
                        for name, moment in optimizer.state[parameter].items():
                            views[name].copy_(moment)
                        optimizer.state[parameter] = views
                    start = place.stop
        self._optimizer = next(iter(optimizers), None)

    def __getstate__(self) -> dict[str, Any]:
        """Without the optimizer: another process gets its settings at each update."""
        return vars(self) | {"_optimizer": None}

    def settings(self) -> Settings:
        """Adam's settings as they are now; none where nothing is trained."""
        if self._optimizer is None:
            return {}
        group = self._optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        return {"beta1": beta1, "beta2": beta2} | {name: group[name] for name in ("lr", "eps", "weight_decay")}

    def step(self, at: slice, settings: Settings) -> None:
        """One step of Adam, with its ``settings``, for the rows ``at``, by their ``gradient``."""
        flat, gradient, first, second = (
            matrix[at].unbind() for matrix in (self.flat, self.gradient, self.first, self.second)
        )
        torch._fused_adam_(  # torch.optim.Adam calls the same, but spends as much time again in Python
            flat, gradient, first, second, [], self.steps[at].add_(1).unbind(),
            amsgrad=False, maximize=False, **settings,
        )  # fmt: skip

    def pieces(self, matrix: Tensor) -> list[Tensor]:
        """The pieces of a network for n rows of a matrix like ``flat``: views (n, ...)."""
        places = zip(self._starts, self._shapes, strict=False)
        return [matrix[:, start : start + math.prod(shape)].view(-1, *shape) for start, shape in places]


Adam = tuple[Settings, Settings, Settings]
"""Adam's settings for actor, critics and alpha."""

Memory = dict[tuple[int, ...], Tensor]
"""Tensors that networks of one shape share for their results, by layer and size."""


def policy(model: Any) -> list[Piece]:
    """The pieces of an SB3 actor: its layers, then mu and log_std as one layer."""
    actor = model.actor
    heads = [[actor.mu.weight, actor.log_std.weight], [actor.mu.bias, actor.log_std.bias]]
    return [*layers(actor.latent_pi), *heads]


def layers(network: nn.Module) -> list[Piece]:
    """The pieces of an SB3 network: weight and bias of each linear layer and of each normalisation, in their order."""
    parts = [module for module in network.modules() if isinstance(module, nn.Linear | nn.LayerNorm)]
    return [[parameter] for module in parts for parameter in (module.weight, module.bias)]


class Normalisation:
    """One layer normalisation [Ba et al. 2016] of n networks, or of one: over the features of each column.

        z = (x - mean(x)) / sqrt(var(x) + eps),    out = gain z + shift

    ``x`` is (..., h, B) for h features; ``gain`` and ``shift`` are (..., h). ``slopes`` are where the derivatives by
    them go, None if they are not trained. ``z`` and ``scale`` are memory that the backward pass reads.
    """

    def __init__(
        self, gain: Tensor, shift: Tensor, z: Tensor, scale: Tensor, slopes: tuple[Tensor, Tensor] | None
    ) -> None:
        self._gain, self._shift = gain[..., None], shift[..., None]
        self._z, self._scale, self._slopes = z, scale, slopes

    def forward(self, x: Tensor) -> None:
        """Replaces ``x`` by the output."""
        torch.sub(x, x.mean(-2, keepdim=True), out=self._z)
        torch.rsqrt(self._z.square().mean(-2, keepdim=True) + NORM_EPSILON, out=self._scale)
        self._z.mul_(self._scale)
        torch.addcmul(self._shift, self._gain, self._z, out=x)

    def backward(self, slope: Tensor, which: Tensor | None = None) -> Tensor:
        """The derivative of the loss by x, in place of ``slope``, that by the output (..., h, C).

        The C columns are the first ones of the batch, or those that ``which`` (C,) numbers.
        """
        z, scale = self._z, self._scale
        if which is None:
            z, scale = z[..., : slope.shape[-1]], scale[..., : slope.shape[-1]]
        else:
            z, scale = z.index_select(-1, which), scale.index_select(-1, which)
        if self._slopes:
            by_gain, by_shift = self._slopes
            torch.sum(slope * z, -1, out=by_gain)
            torch.sum(slope, -1, out=by_shift)
        slope.mul_(self._gain)
        along = (slope * z).mean(-2, keepdim=True)
        return slope.sub_(slope.mean(-2, keepdim=True)).addcmul_(z, along, value=-1).mul_(scale)


class Networks:
    """The forward and the backward pass of n ReLU networks, the rows ``at`` of ``rows``. They may have normalisations.

    The input is x (n, i, B) for i input entries. It is read from the same memory in every pass, and results are written
    to the same memory, so that views are made only here. The batch is the last axis, because products with a short last
    axis are slow. The backward pass takes the first ``columns`` of the batch. It computes derivatives by the parameters
    if ``fits``, and by the last ``inputs`` entries of the input.

    ``batched`` multiplies all n networks in one call; otherwise they are computed one after another. ``memories`` are
    shared with other passes of the same shape: one for each network, or one for all if batched.
    """

    def __init__(
        self,
        rows: Rows,
        at: slice,
        x: Tensor,
        memories: Sequence[Memory],
        batched: bool,
        columns: int,
        fits: bool = False,
        inputs: int = 0,
    ) -> None:
        pieces, slopes = rows.pieces(rows.flat[at]), rows.pieces(rows.gradient[at])
        last = len(pieces) - 2
        normed = pieces[2].dim() == 2  # each hidden layer has a normalisation after it, whose gain is no matrix
        self._batched = batched
        self._affine: Any
        self._affine, self._product = (torch.baddbmm, torch.bmm) if batched else (torch.addmm, torch.mm)
        self._out = x.new_empty(len(x), pieces[-1].shape[-1], x.shape[-1])
        self._by_input = x.new_empty(len(x), inputs, columns)
        self._forward: list[tuple[Any, ...]] = []  # a layer: bias, weight, input, output, normalisation, ReLU or not
        self._backward: list[list[tuple[Any, ...]]] = []  # for each network, from the last layer to the first

        def shared(memory: Memory, *key: int) -> Tensor:
            return memory.setdefault(key, x.new_empty(*x.shape[: int(batched)], *key[-2:]))

        indices: Sequence[Any] = [...] if batched else range(len(x))
        for index, memory in zip(indices, memories, strict=False):
            layer_input, by_layer_input, backward = x[index], self._by_input[index] if inputs else None, []
            norm: Normalisation | None = None
            for layer in range(0, last + 1, 4 if normed else 2):
                weight, bias = pieces[layer][index], pieces[layer + 1][index]
                used = layer_input[..., :columns]
                by_parameters = (slopes[layer][index], slopes[layer + 1][index]) if fits else None
                used_weight = weight if layer else weight[..., weight.shape[-1] - inputs :]
                backward.append((used if layer else None, norm, used.mT, used_weight.mT, by_parameters, by_layer_input))
                out = self._out[index] if layer == last else shared(memory, layer, weight.shape[-2], x.shape[-1])
                by_layer_input = shared(memory, layer + 1, weight.shape[-2], columns)
                norm = None
                if normed and layer < last:
                    trained = (slopes[layer + 2][index], slopes[layer + 3][index]) if fits else None
                    z = shared(memory, layer + 2, weight.shape[-2], x.shape[-1])
                    scale = shared(memory, layer + 3, 1, x.shape[-1])
                    norm = Normalisation(pieces[layer + 2][index], pieces[layer + 3][index], z, scale, trained)
                self._forward.append((bias[..., None], weight, layer_input, out, norm, layer < last))
                layer_input = out
            self._backward.append(backward[::-1])

    def forward(self) -> Tensor:
        """The outputs (n, j, B) for j output entries, in memory that the next pass overwrites."""
        for bias, weight, x, out, norm, hidden in self._forward:
            self._affine(bias, weight, x, out=out)
            if norm:
                norm.forward(out)
            if hidden:
                out.relu_()
        return self._out

    def backward(self, by_out: Tensor) -> Tensor:
        """The derivative of the loss by the input (n, inputs, columns), from that by the output (n, j, columns).

        If ``fits``, it also writes the derivatives by the parameters to ``Rows.gradient``.
        """
        for slope, layers in zip([by_out] if self._batched else by_out.unbind(), self._backward, strict=True):
            for hidden, norm, x, weight, by_parameters, below in layers:
                if by_parameters:
                    by_weight, by_bias = by_parameters
                    if hidden is None:  # the input has few entries: keep the batch as the last axis here too
                        by_weight.copy_(self._product(x.mT, slope.mT).mT)
                    else:
                        self._product(slope, x, out=by_weight)
                    torch.sum(slope, -1, out=by_bias)
                if below is not None:
                    slope = self._product(weight, slope, out=below)
                if hidden is not None:
                    threshold_backward(slope, hidden, 0, grad_input=slope)
                if norm:
                    slope = norm.backward(slope)
        return self._by_input

    def backward_of(self, which: Tensor, slope: float) -> Tensor:
        """``backward`` of a minimum over the networks: (1, inputs, B). Not for ``batched`` networks.

        ``which`` (B,) is the number of the least network in each column of the batch, and ``slope`` the derivative of
        the loss by its output. The other networks get no gradient there, so that each column goes back through one
        network only.
        """
        by_input = self._by_input[:1]
        for number, layers in enumerate(self._backward):
            columns = (which == number).nonzero()[:, 0]
            part = by_input.new_full((1, len(columns)), slope)
            for hidden, norm, _, weight, _, _ in layers:
                part = torch.mm(weight, part)
                if hidden is not None:
                    threshold_backward(part, hidden.index_select(1, columns), 0, grad_input=part)
                if norm:
                    part = norm.backward(part, columns)
            by_input[0].index_copy_(1, columns, part)
        return by_input


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

    A copy in another process works on the same tensors, if their memory is shared, and has memory of its own for what
    comes in between.
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
        self._done = self.drawn.new_zeros(
            learners, copies, self.obs + self.act, 2 * batch
        )  # by the policy at s, then s'

    def __reduce__(self) -> Any:
        return Update, tuple(getattr(self, field.name) for field in fields(self))

    def trained(self) -> tuple[Rows, Rows, Rows]:
        """The rows that Adam moves."""
        return self.actor, self.critic, self.alpha

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
        """Updates the models ``at``, with Adam's settings as ``trained`` has the rows; the metrics (4, l)."""
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
            Rows([policy(model) for model in models], [model.actor.optimizer for model in models]),
            Rows(
                [layers(q) for model in models for q in model.critic.q_networks],
                [model.critic.optimizer for model in models for _ in model.critic.q_networks],
            ),
            Rows([layers(q) for model in models for q in model.critic_target.q_networks]),
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
        actor, critic, alpha = (rows.settings() for rows in self.update.trained())
        return actor, critic, alpha

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


EPSILON = 1e-6  # SB3 adds it to 1 - a^2 before the logarithm


class Squashed(NamedTuple):
    """Actions of a squashed Gaussian policy, and what their derivatives need."""

    action: Tensor  # (..., a, B) tanh(mu + spread)
    log_prob: Tensor  # (..., B) log pi(action)
    spread: Tensor  # (..., a, B) exp(log_std) noise
    flat: Tensor  # (..., a, B) the slope of tanh, 1 - action^2
    inside: Tensor  # (..., a, B) whether log_std was not clamped


def squashed(heads: Tensor, noise: Tensor) -> Squashed:
    """Actions from ``heads`` (..., 2 a, B), which are mu and then the unclamped log_std, and ``noise`` (..., a, B)."""
    mu, raw = heads.chunk(2, -2)
    log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
    spread = log_std.exp() * noise
    action = torch.tanh(mu + spread)
    flat = 1 - action.square()
    density = noise.square() / -2 - log_std - torch.log(flat + EPSILON)
    log_prob = density.sum(-2) - math.log(2 * math.pi) / 2 * action.shape[-2]
    return Squashed(action, log_prob, spread, flat, raw == log_std)


def squashed_slope(chosen: Squashed, by_action: Tensor, weight: Tensor) -> Tensor:
    """The derivative of weight log pi(a) + v(a) by the heads: (l, 2 a, C).

    ``by_action`` (l, a, C) is dv/da at the first C columns of the batch, ``weight`` is (l, 1).
    """
    action, _, spread, flat, inside = (part[..., : by_action.shape[-1]] for part in chosen)
    weight = weight[..., None]
    by_mu = (by_action + weight * 2 * action / (flat + EPSILON)) * flat
    by_log_std = (by_mu * spread - weight) * inside  # zero where it was clamped
    return torch.cat([by_mu, by_log_std], -2)
