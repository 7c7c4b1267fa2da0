"""Decoding with a `Network`: the same numbers as the model's own modules, in a fifth of the operations.

Prompts are run packed, once each. Every step then runs one token of every row that goes on (`bsharp.generation.shared_prompts`
has the attention). Sums run in float32, whatever the type of the weights: float64 is left to the model's own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn import functional

from bsharp.generation.shared_prompts import SharedPrompts
from bsharp.models.network import Block, Network
from bsharp.models.packed import prefill
from bsharp.models.packing import pack
from bsharp.models.products import linear

__all__ = ["NetworkSteps", "StepWeights"]

LEAST_FAST = 2**21
"""Rows times entries of a weight from which on a product is large enough for the library that is faster with large ones."""


@dataclass(frozen=True, eq=False)
class _Weights:
    """One block's weights as a step multiplies with them: queries, keys and values in one product, gate and up in another.

    The two numbers of a head that a rotation turns stand side by side, as real and imaginary part: i and i + K/2 become 2i and
    2i + 1.
    """

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
    order = _pairs(network.head_size)
    norms = None
    if block.query_norm is not None and block.key_norm is not None:
        expanded = [
            block.query_norm[order].expand(network.heads, -1),
            block.key_norm[order].expand(network.kv_heads, -1),
        ]
        norms = torch.cat(expanded)
    turned = [(part.weight, part.bias) for part in (block.query, block.key)]
    inward = [tuple(_paired(tensor, order) for tensor in part) for part in turned]
    inward.append((block.value.weight, block.value.bias))
    return _Weights(
        block.attention_norm.detach(),
        torch.cat([weight for weight, _ in inward if weight is not None]),
        _joined([bias for _, bias in inward]),
        norms,
        block.output.weight.detach(),
        _detached(block.output.bias),
        block.mlp_norm.detach(),
        torch.cat([block.gate.weight, block.up.weight]),
        _joined([block.gate.bias, block.up.bias]),
        block.down.weight.detach(),
        _detached(block.down.bias),
    )


def _pairs(size: int) -> Int[Tensor, " K"]:
    """0, K/2, 1, K/2 + 1, …"""
    return torch.arange(size).view(2, -1).T.flatten()


def _paired(rows: Tensor | None, order: Int[Tensor, " K"]) -> Tensor | None:
    """Rows of a weight or a bias, in this order within every head."""
    return None if rows is None else rows.view(-1, len(order), *rows.shape[1:])[:, order].flatten(0, 1)


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
        self._epsilon = torch.tensor([network.epsilon])
        one = torch.ones((len(prompts), 1), dtype=torch.bool)
        packing = pack(network, prompts, torch.zeros((len(prompts), 1), dtype=torch.long), one)
        hidden, states = prefill(network, packing)
        lengths, own = torch.tensor([len(prompt) for prompt in prompts]), torch.tensor(row_prompts)
        self.first_logits = self._logits(hidden.index_select(0, packing.predictor)).index_select(0, own)
        order = _pairs(network.head_size)
        self._shared = SharedPrompts([(keys[:, :, order], values) for keys, values in states], lengths, own)
        self.rows: Int[Tensor, " rows"] = torch.arange(len(own))
        self._positions = lengths[own]
        half = network.head_size // 2
        tables = network.rotation(torch.arange(int(lengths.max()) + limit))
        self._rotation = torch.complex(*(table[..., half:].float() for table in tables))

    def keep(self, indices: Int[Tensor, " kept"]) -> None:
        """Row i becomes what row indices[i] was; the others are dropped."""
        self._shared.keep(indices)
        self.rows, self._positions = self.rows[indices], self._positions[indices]

    def next_logits(self, token_ids: Int[Tensor, " rows"], step: int) -> Float[Tensor, "rows V"]:
        """Logits after `token_ids`, the step-th tokens of the responses."""
        network = self._network
        places = self._positions + step
        rotation = self._rotation.index_select(0, places)
        stream = functional.embedding(token_ids, network.embedding)
        for layer, weights in enumerate(self._weights.blocks):
            stream = self._block(weights, layer, stream, rotation, step)
        return self._logits(stream, norm=True)

    def _block(
        self,
        weights: _Weights,
        layer: int,
        stream: Float[Tensor, "R D"],
        rotation: Complex[Tensor, "R 1 K/2"],
        step: int,
    ) -> Float[Tensor, "R D"]:
        network, rows = self._network, len(stream)
        heads, groups, size = network.heads, network.kv_heads, network.head_size
        normed = _norm(stream, weights.attention_norm, self._epsilon)
        inward = _linear(normed, weights.inward, weights.inward_bias).view(rows, heads + 2 * groups, size)
        compared = inward[:, : heads + groups]
        if weights.head_norm is not None:
            compared = _norm(compared, weights.head_norm, self._epsilon)
        # Where the models round to lower precision between these operations, this does not.
        turned = torch.view_as_complex(compared.float().view(rows, heads + groups, size // 2, 2)) * rotation
        compared = torch.view_as_real(turned).flatten(-2)
        found = self._shared.attend(layer, compared[:, :heads], compared[:, heads:], inward[:, heads + groups :], step)
        stream = _added(stream, found.to(stream.dtype), weights.outward, weights.outward_bias)
        normed = _norm(stream, weights.mlp_norm, self._epsilon)
        opened = _linear(normed, weights.opening, weights.opening_bias)
        middle = opened.shape[1] // 2
        product = functional.silu(opened[:, :middle]).mul_(opened[:, middle:])
        return _added(stream, product, weights.down, weights.down_bias)

    def _logits(self, hidden: Float[Tensor, "R D"], norm: bool = False) -> Float[Tensor, "R V"]:
        network = self._network
        if norm:
            hidden = _norm(hidden, network.final_norm, self._epsilon)
        return _linear(hidden, network.head.weight, network.head.bias)


def _norm(values: Float[Tensor, "... K"], weight: Tensor, epsilon: Float[Tensor, 1]) -> Float[Tensor, "... K"]:
    """weight · x / √(mean x² + ε), in float32; in lower precision rounded before the weight, as the models do."""
    length = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=epsilon.dtype)
    inverse = torch.addcmul(epsilon, length, length, value=1 / values.shape[-1]).rsqrt_()
    if values.dtype == epsilon.dtype:
        return (values * inverse).mul_(weight)
    return torch.mul(values, inverse, out=values.new_empty(values.shape)).mul_(weight)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    fast = len(inputs) * weight.numel() >= LEAST_FAST
    return linear(inputs, weight, bias) if fast else functional.linear(inputs, weight, bias)


def _added(stream: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """stream + inputs · weight + bias; a product in lower precision is rounded before it is added, as the models do."""
    return _linear(inputs, weight, bias).add_(stream)
