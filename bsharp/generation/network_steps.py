"""Decoding with a `Network`: the same numbers as the model's own modules, in a fifth of the operations.

Prompts are run packed, once each. Every step then runs one token of every row that goes on: keys and values of a row stand in
one buffer, right behind those of its prompt, so that a step writes one column and reads a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bsharp.models.network import Block, Network
from bsharp.models.packed import prefill
from bsharp.models.packing import pack
from bsharp.models.products import linear

__all__ = ["NetworkSteps", "StepWeights"]

ROWS_FOR_FAST_PRODUCTS = 32
"""Rows from which on products of a step are large enough for the library that is faster with large ones."""


@dataclass(frozen=True, eq=False)
class _Weights:
    """One block's weights as a step multiplies with them: queries, keys and values in one product, gate and up in another."""

    attention_norm: Tensor
    inward: Tensor  # (H + 2G)·K × D
    inward_bias: Tensor | None
    head_norm: Tensor | None  # (H + G) × K
    outward: Tensor  # D × H·K
    outward_bias: Tensor | None
    mlp_norm: Tensor
    opening: Tensor  # 2F × D
    opening_bias: Tensor | None
    down: Tensor  # D × F
    down_bias: Tensor | None


class StepWeights:
    """The weights of all blocks, copied side by side; to be made again when the weights have changed."""

    def __init__(self, network: Network) -> None:
        self.network = network
        with torch.inference_mode():
            self.blocks = [_weights(network, block) for block in network.blocks]


def _weights(network: Network, block: Block) -> _Weights:
    norms = None
    if block.query_norm is not None and block.key_norm is not None:
        norms = torch.cat([block.query_norm.expand(network.heads, -1), block.key_norm.expand(network.kv_heads, -1)])
    inward = (block.query, block.key, block.value)
    return _Weights(
        block.attention_norm.detach(),
        torch.cat([part.weight for part in inward]),
        _joined([part.bias for part in inward]),
        norms,
        block.output.weight.detach(),
        _detached(block.output.bias),
        block.mlp_norm.detach(),
        torch.cat([block.gate.weight, block.up.weight]),
        _joined([block.gate.bias, block.up.bias]),
        block.down.weight.detach(),
        _detached(block.down.bias),
    )


def _joined(biases: Sequence[Tensor | None]) -> Tensor | None:
    present = [bias for bias in biases if bias is not None]
    if len(present) not in (0, len(biases)):
        raise ValueError("some of the linear maps that are run together have a bias and others none")
    return torch.cat(present) if present else None


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


class NetworkSteps:
    """The rows of a micro-batch that are still being decoded. `rows` says which row of the micro-batch each one is."""

    def __init__(
        self, weights: StepWeights, prompts: Sequence[tuple[int, ...]], row_prompts: Sequence[int], limit: int
    ) -> None:
        network = weights.network
        self._network, self._weights = network, weights
        one = torch.ones((len(prompts), 1), dtype=torch.bool)
        packing = pack(network, prompts, torch.zeros((len(prompts), 1), dtype=torch.long), one)
        hidden, states = prefill(network, packing)
        lengths, own = torch.tensor([len(prompt) for prompt in prompts]), torch.tensor(row_prompts)
        self.first_logits = self._logits(hidden.index_select(0, packing.predictor)).index_select(0, own)
        self._width = int(lengths.max())
        # Aligned on the right, as the last token of every prompt stands in the same column.
        columns = torch.arange(self._width)[None, :] - (self._width - lengths)[:, None]
        begins = lengths.cumsum(0) - lengths
        tokens = (begins[:, None] + columns.clamp(min=0))[own]
        # The last token drawn is never fed back, so it needs no room.
        self._layers = [self._buffers(key, value, tokens, limit - 1) for key, value in states]
        self._bias: Float[Tensor, "RG 1 S"] | None = None
        if bool((columns < 0).any()):
            bias = torch.zeros((len(own), self._width + limit), dtype=self._layers[0][0].dtype)
            bias[:, : self._width].masked_fill_(columns[own] < 0, -torch.inf)
            self._bias = bias.repeat_interleave(network.kv_heads, 0)[:, None]
        self.rows: Int[Tensor, " rows"] = torch.arange(len(own))
        self._positions = lengths[own]
        self._rotation = network.rotation(torch.arange(self._width + limit))

    def _buffers(self, key: Tensor, value: Tensor, tokens: Int[Tensor, "R W"], limit: int) -> tuple[Tensor, Tensor]:
        """(R, G, width + limit, K) each. Keys are kept in float32 at least, as the trainer compares them."""
        rows, network = len(tokens), self._network
        shape = (rows, network.kv_heads, self._width + limit, network.head_size)
        buffers = (key.new_empty(shape, dtype=torch.promote_types(key.dtype, torch.float32)), value.new_empty(shape))
        for buffer, states in zip(buffers, (key, value), strict=True):
            buffer[:, :, : self._width] = states[tokens].transpose(1, 2)
        return buffers

    def keep(self, indices: Int[Tensor, " kept"]) -> None:
        """Row i becomes what row indices[i] was; the others are dropped. Only rows that change place are copied."""
        count, network = len(indices), self._network
        moved = (indices != torch.arange(count)).nonzero().squeeze(-1)
        sources = indices[moved]
        for layer, buffers in enumerate(self._layers):
            for buffer in buffers:
                buffer[moved] = buffer[sources]
            self._layers[layer] = (buffers[0][:count], buffers[1][:count])
        if self._bias is not None:
            bias = self._bias.view(-1, network.kv_heads, self._bias.shape[-1])
            bias[moved] = bias[sources]
            self._bias = bias[:count].flatten(0, 1)[:, None]
        self.rows, self._positions = self.rows[indices], self._positions[indices]

    def next_logits(self, token_ids: Int[Tensor, " rows"], step: int) -> Float[Tensor, "rows V"]:
        """Logits after `token_ids`, the step-th tokens of the responses."""
        network = self._network
        places = self._positions + step
        cos, sin = (table.index_select(0, places) for table in self._rotation)
        stream = functional.embedding(token_ids, network.embedding)
        for weights, layer in zip(self._weights.blocks, self._layers, strict=True):
            stream = self._block(weights, layer, stream, cos, sin, self._width + step)
        return self._logits(stream, norm=True)

    def _block(
        self,
        weights: _Weights,
        layer: tuple[Tensor, Tensor],
        stream: Float[Tensor, "R D"],
        cos: Float[Tensor, "R 1 K"],
        sin: Float[Tensor, "R 1 K"],
        column: int,
    ) -> Float[Tensor, "R D"]:
        network, rows = self._network, len(stream)
        heads, groups, size = network.heads, network.kv_heads, network.head_size
        fast = rows >= ROWS_FOR_FAST_PRODUCTS
        normed = _norm(stream, weights.attention_norm, network.epsilon)
        inward = _linear(normed, weights.inward, weights.inward_bias, fast).view(rows, heads + 2 * groups, size)
        compared = inward[:, : heads + groups]
        if weights.head_norm is not None:
            compared = _norm(compared, weights.head_norm, network.epsilon)
        compared = (compared * cos).addcmul_(torch.roll(compared, size // 2, -1), sin)
        keys, values = layer
        keys[:, :, column] = compared[:, heads:]
        values[:, :, column] = inward[:, heads + groups :]
        asked = column + 1
        queries = compared[:, :heads].reshape(rows * groups, heads // groups, size).to(keys.dtype)
        bias = queries.new_zeros(1) if self._bias is None else self._bias[:, :, :asked]
        scores = torch.baddbmm(
            bias, queries, keys.flatten(0, 1)[:, :asked].mT, beta=0 if self._bias is None else 1, alpha=size**-0.5
        )
        found = torch.bmm(scores.softmax(-1).to(values.dtype), values.flatten(0, 1)[:, :asked])
        stream = _added(stream, found.view(rows, -1), weights.outward, weights.outward_bias, fast)
        normed = _norm(stream, weights.mlp_norm, network.epsilon)
        opened = _linear(normed, weights.opening, weights.opening_bias, fast)
        middle = opened.shape[1] // 2
        product = functional.silu(opened[:, :middle]).mul_(opened[:, middle:])
        return _added(stream, product, weights.down, weights.down_bias, fast)

    def _logits(self, hidden: Float[Tensor, "R D"], norm: bool = False) -> Float[Tensor, "R V"]:
        network = self._network
        if norm:
            hidden = _norm(hidden, network.final_norm, network.epsilon)
        return _linear(hidden, network.head.weight, network.head.bias, len(hidden) >= ROWS_FOR_FAST_PRODUCTS)


def _norm(values: Float[Tensor, "... K"], weight: Tensor, epsilon: float) -> Float[Tensor, "... K"]:
    """weight · x / √(mean x² + ε); in lower precision rounded before the weight, as the models do."""
    if values.dtype == torch.float32:
        normalised = functional.rms_norm(values, values.shape[-1:], weight if weight.ndim == 1 else None, epsilon)
        return normalised if weight.ndim == 1 else normalised * weight
    wide = values.float()
    inverse: Tensor = torch.linalg.vecdot(wide, wide)[..., None].div_(values.shape[-1]).add_(epsilon).rsqrt_()
    return (wide * inverse).to(values.dtype) * weight


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, fast: bool) -> Tensor:
    return linear(inputs, weight, bias) if fast else functional.linear(inputs, weight, bias)


def _added(stream: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None, fast: bool) -> Tensor:
    """stream + inputs · weight + bias; a product in lower precision is rounded before it is added, as the models do."""
    return _linear(inputs, weight, bias, fast).add_(stream)
