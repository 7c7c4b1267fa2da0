"""Decoding with a `Network`: the same numbers as the model's own modules, in a fifth of the operations.

Prompts are run packed, once each. Every step then runs one token of every row that goes on (`bsharp.generation.step_program`).
Sums run in float32, whatever the type of the weights: float64 is left to the model's own modules.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bsharp.generation.shared_prompts import SharedPrompts
from bsharp.generation.step_program import BlockWeights, Layout, output_logits, program
from bsharp.models.network import Block, Network
from bsharp.models.packed import prefill
from bsharp.models.packing import pack
from bsharp.models.products import product_library

__all__ = ["NetworkSteps", "StepWeights"]

LEAST_FAST = 2**21
"""Rows times entries of a weight from which on a product is large enough for the library that is faster with large ones."""


class StepWeights:
    """The weights of all blocks, copied side by side; to be made again when the weights have changed."""

    def __init__(self, network: Network) -> None:
        self.network = network
        with torch.inference_mode():
            self.blocks = [_weights(network, block) for block in network.blocks]
            self.layout = Layout(
                network.embedding.detach(),
                network.final_norm.detach(),
                network.head.weight.detach(),
                _detached(network.head.bias),
                torch.tensor([network.epsilon]),
                network.heads,
                network.kv_heads,
                network.head_size,
                LEAST_FAST if product_library(network.weight_bytes) == "onednn" else -1,
            )


def _weights(network: Network, block: Block) -> BlockWeights:
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
    return BlockWeights(
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
        self._weights, self._step_logits = weights, program()[0]
        one = torch.ones((len(prompts), 1), dtype=torch.bool)
        packing = pack(network, prompts, torch.zeros((len(prompts), 1), dtype=torch.long), one)
        hidden, states = prefill(network, packing)
        lengths, own = torch.tensor([len(prompt) for prompt in prompts]), torch.tensor(row_prompts)
        of_prompts = output_logits(weights.layout, hidden.index_select(0, packing.predictor))
        self.first_logits = of_prompts.index_select(0, own)
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
        shared = self._shared
        shared.make_room(step)
        rotation = self._rotation.index_select(0, self._positions + step)
        weights = self._weights
        return self._step_logits(weights.layout, weights.blocks, shared.stored, shared.asked, token_ids, rotation, step)
