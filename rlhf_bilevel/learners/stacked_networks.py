"""The forward and the backward pass of several ReLU networks of one shape, written out by hand.

Results go into memory that is allocated once, and views of it are made once. Gradients that nobody needs are not
computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_bilevel.learners.stacked_adam import Piece, Rows

threshold_backward = torch.ops.aten.threshold_backward.grad_input

NORM_EPSILON = 1e-5  # of torch.nn.LayerNorm

Memory = dict[tuple[int, ...], Tensor]
"""Tensors that networks of one shape share for their results, by layer and size."""


def policy_pieces(model: Any) -> list[Piece]:
    """The pieces of an SB3 actor: its layers, then mu and log_std as one layer."""
    actor = model.actor
    heads = [[actor.mu.weight, actor.log_std.weight], [actor.mu.bias, actor.log_std.bias]]
    return [*layer_pieces(actor.latent_pi), *heads]


def layer_pieces(network: nn.Module) -> list[Piece]:
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
        """Replaces ``x`` by the output. No step allocates, and none broadcasts two factors."""
        z, scale = self._z, self._scale
        torch.mean(x, -2, keepdim=True, out=scale)
        torch.sub(x, scale, out=z)
        torch.mul(z, z, out=x)
        torch.mean(x, -2, keepdim=True, out=scale)
        z.mul_(scale.add_(NORM_EPSILON).rsqrt_())
        torch.mul(z, self._gain, out=x)
        x.add_(self._shift)

    def backward(self, slope: Tensor, which: Tensor | None = None) -> Tensor:
        """The derivative of the loss by x, in place of ``slope``, that by the output (..., h, C).

        The C columns are the first ones of the batch, or those that ``which`` (C,) numbers.
        """
        z, scale = self._z, self._scale
        if which is None:
            z, scale = z[..., : slope.shape[-1]], scale[..., : slope.shape[-1]]
        else:
            z, scale = z.index_select(-1, which), scale.index_select(-1, which)
        product = slope * z
        if self._slopes:
            by_gain, by_shift = self._slopes
            torch.sum(product, -1, out=by_gain)
            torch.sum(slope, -1, out=by_shift)
        along = product.mul_(self._gain).mean(-2, keepdim=True)
        slope.mul_(self._gain)
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
