"""Forward and backward passes of a `Network` over packed tokens, written out.

Nothing here knows of losses: `hidden_states` gives what the output layer reads, and `backward` takes the gradient with respect
to it and hands the gradient of every weight, apart for every part of the packing, to a `GradientSink`. transformers' own
modules under autograd are the reference; the tests compare both.

Departures from the textbook backward pass: activations that cost one elementwise pass are computed again, keys and values
that several grids read get their gradients summed by one gather, and a residual stream's gradient is added to in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bsharp.models.network import Block, Linear, Network
from bsharp.models.packing import Grid, Packing
from bsharp.models.products import fast_products

__all__ = ["Activations", "GradientSink", "backward", "forward", "hidden_states", "prefill"]


class GradientSink(Protocol):
    """Takes what the gradient of a weight is the sum of, token by token; it knows how tokens are dealt to parts."""

    def product(self, weight: Tensor, of_outputs: Float[Tensor, "N K"], inputs: Float[Tensor, "N J"]) -> None:
        """∂L/∂weight = Σ_n of_outputs_n inputs_nᵀ."""

    def vector(self, weight: Tensor, terms: Float[Tensor, "N ... K"]) -> None:
        """∂L/∂weight = Σ_n terms_n, over the heads of a token too."""

    def rows(self, weight: Tensor, of_rows: Float[Tensor, "N K"]) -> None:
        """∂L/∂weight_v = Σ of_rows_n over the packed tokens n that are v."""


@dataclass(frozen=True, eq=False)
class _Rotation:
    """cos and signed sin at every packed token; queries are scaled by 1/√K on the way."""

    of_queries: tuple[Tensor, Tensor]
    of_keys: tuple[Tensor, Tensor]
    back_to_queries: tuple[Tensor, Tensor]
    back_to_keys: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, network: Network, packing: Packing) -> _Rotation:
        cos, sin = network.rotation(packing.positions)
        scale = network.head_size**-0.5
        scaled_cos, scaled_sin = cos * scale, sin * scale
        return cls((scaled_cos, scaled_sin), (cos, sin), (scaled_cos, -scaled_sin), (cos, -sin))


@dataclass(frozen=True, eq=False)
class _Attended:
    """What attention leaves for its backward pass."""

    queries: list[Tensor]  # of every grid: rotated queries, scaled
    keys: list[Tensor]
    values: list[Tensor]
    shares: list[Tensor]  # softmax
    outputs: Float[Tensor, "N D"]


@dataclass(frozen=True, eq=False)
class _Normed:
    """What a norm has read, and its 1/√(mean x² + ε), float32; None where the family has no such norm."""

    values: Float[Tensor, "... K"]
    inverse: Float[Tensor, "... 1"] | None

    @property
    def normalised(self) -> Float[Tensor, "... K"]:
        """x̂ = x / √(mean x² + ε), float32."""
        assert self.inverse is not None
        return self.values.float() * self.inverse


@dataclass(frozen=True, eq=False)
class _Kept:
    """Activations of one block that its backward pass reads."""

    inputs: _Normed
    query: _Normed  # (N, H, K) before their norm and rotation
    key: _Normed
    attended: _Attended
    middle: _Normed  # between attention and MLP
    gate: Float[Tensor, "N F"]
    up: Float[Tensor, "N F"]


@dataclass(frozen=True, eq=False)
class Activations:
    """Of one forward pass, for one backward pass."""

    blocks: list[_Kept]
    last: _Normed  # before the final norm
    rotation: _Rotation


def hidden_states(network: Network, packing: Packing) -> Float[Tensor, "N D"]:
    """The last hidden state of every packed token, after the final norm; nothing is kept."""
    return _forward(network, packing, None)[0]


def forward(network: Network, packing: Packing) -> tuple[Float[Tensor, "N D"], Activations]:
    """`hidden_states`, and the activations that `backward` needs."""
    kept: list[_Kept] = []
    hidden, last, rotation = _forward(network, packing, kept)
    return hidden, Activations(kept, last, rotation)


def prefill(network: Network, packing: Packing) -> tuple[Float[Tensor, "N D"], list[tuple[Tensor, Tensor]]]:
    """`hidden_states`, and of every block the rotated keys and the values of all packed tokens, each (N, G, K)."""
    states: list[tuple[Tensor, Tensor]] = []
    return _forward(network, packing, None, states)[0], states


def _forward(
    network: Network,
    packing: Packing,
    kept: list[_Kept] | None,
    states: list[tuple[Tensor, Tensor]] | None = None,
) -> tuple[Float[Tensor, "N D"], _Normed, _Rotation]:
    with torch.no_grad(), fast_products(network.weight_bytes):
        rotation = _Rotation.of(network, packing)
        stream = functional.embedding(packing.token_ids, network.embedding)
        for block in network.blocks:
            stream = _block(network, block, packing, stream, rotation, kept, states)
        return *_norm(stream, network.final_norm, network.epsilon), rotation


def backward(
    network: Network,
    packing: Packing,
    activations: Activations,
    of_hidden: Float[Tensor, "N D"],
    sink: GradientSink,
) -> None:
    """Hand the gradient of every weight that trains to `sink`, from the gradient of the last hidden states.

    The output layer is not among them: its gradient is made where its logits are (`bsharp.models.scored_head`). The
    activations are used up.
    """
    with torch.no_grad(), fast_products(network.weight_bytes):
        last = activations.last
        of_stream = _norm_backward(of_hidden, last, last.normalised, network.final_norm, sink)
        for block in reversed(network.blocks):
            of_stream = _block_backward(
                network, block, packing, activations.blocks.pop(), activations.rotation, of_stream, sink
            )
        if network.embedding.requires_grad:
            if network.padding_token is not None:
                of_stream = of_stream.masked_fill((packing.token_ids == network.padding_token)[:, None], 0.0)
            sink.rows(network.embedding, of_stream)


def _block(
    network: Network,
    block: Block,
    packing: Packing,
    stream: Float[Tensor, "N D"],
    rotation: _Rotation,
    kept: list[_Kept] | None,
    states: list[tuple[Tensor, Tensor]] | None,
) -> Float[Tensor, "N D"]:
    normed, inputs = _norm(stream, block.attention_norm, network.epsilon)
    query = _linear(normed, block.query).view(len(stream), network.heads, network.head_size)
    key = _linear(normed, block.key).view(len(stream), network.kv_heads, network.head_size)
    value = _linear(normed, block.value)
    query, queries = _head_norm(query, block.query_norm, network.epsilon)
    key, keys = _head_norm(key, block.key_norm, network.epsilon)
    query, key = _rotate(query, *rotation.of_queries), _rotate(key, *rotation.of_keys)
    if states is not None:
        states.append((key, value.view(key.shape)))
    attended = _attend(network, packing, query, key, value, keep=kept is not None)
    stream = stream + _linear(attended.outputs, block.output)
    normed, middle = _norm(stream, block.mlp_norm, network.epsilon)
    gate, up = _linear(normed, block.gate), _linear(normed, block.up)
    if kept is not None:
        kept.append(_Kept(inputs, queries, keys, attended, middle, gate, up))
    return stream + _linear(functional.silu(gate).mul_(up), block.down)


def _block_backward(
    network: Network,
    block: Block,
    packing: Packing,
    kept: _Kept,
    rotation: _Rotation,
    of_stream: Float[Tensor, "N D"],
    sink: GradientSink,
) -> Float[Tensor, "N D"]:
    """The gradient with respect to the block's inputs."""
    opened = functional.silu(kept.gate)
    _weight_gradient(block.down, of_stream, opened * kept.up, sink)
    of_product = of_stream @ block.down.weight
    of_up = opened.mul_(of_product)
    of_gate = torch.ops.aten.silu_backward(of_product.mul_(kept.up), kept.gate)
    normalised = kept.middle.normalised
    normed = normalised.to(of_stream.dtype) * block.mlp_norm
    _weight_gradient(block.gate, of_gate, normed, sink)
    _weight_gradient(block.up, of_up, normed, sink)
    of_normed = torch.addmm(of_gate @ block.gate.weight, of_up, block.up.weight)
    of_middle = _norm_backward(of_normed, kept.middle, normalised, block.mlp_norm, sink).add_(of_stream)

    _weight_gradient(block.output, of_middle, kept.attended.outputs, sink)
    of_query, of_key, of_value = _attend_backward(network, packing, kept.attended, of_middle @ block.output.weight)
    of_query = _rotated_backward(network, of_query, kept.query, block.query_norm, rotation.back_to_queries, sink)
    of_key = _rotated_backward(network, of_key, kept.key, block.key_norm, rotation.back_to_keys, sink)
    normalised = kept.inputs.normalised
    normed = normalised.to(of_stream.dtype) * block.attention_norm
    of_normed = of_query @ block.query.weight
    of_normed.addmm_(of_key, block.key.weight).addmm_(of_value, block.value.weight)
    for linear, of_outputs in ((block.query, of_query), (block.key, of_key), (block.value, of_value)):
        _weight_gradient(linear, of_outputs, normed, sink)
    return _norm_backward(of_normed, kept.inputs, normalised, block.attention_norm, sink).add_(of_middle)


def _linear(inputs: Float[Tensor, "N J"], linear: Linear) -> Float[Tensor, "N K"]:
    return functional.linear(inputs, linear.weight, linear.bias)


def _weight_gradient(
    linear: Linear, of_outputs: Float[Tensor, "N K"], inputs: Float[Tensor, "N J"], sink: GradientSink
) -> None:
    if linear.weight.requires_grad:
        sink.product(linear.weight, of_outputs, inputs)
    if linear.bias is not None and linear.bias.requires_grad:
        sink.vector(linear.bias, of_outputs)


def _norm(
    values: Float[Tensor, "... K"], weight: Float[Tensor, " K"], epsilon: float
) -> tuple[Float[Tensor, "... K"], _Normed]:
    """weight · x / √(mean x² + ε), operation by operation as transformers computes it, in float32 and rounded before the weight;
    and what its backward pass needs."""
    wide = values.float()
    inverse = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return (wide * inverse).to(values.dtype).mul_(weight), _Normed(values, inverse)


def _head_norm(
    heads: Float[Tensor, "N H K"], weight: Float[Tensor, " K"] | None, epsilon: float
) -> tuple[Float[Tensor, "N H K"], _Normed]:
    """The norm over each head, where the family has one."""
    return (heads, _Normed(heads, None)) if weight is None else _norm(heads, weight, epsilon)


def _norm_backward(
    of_outputs: Float[Tensor, "... K"],
    normed: _Normed,
    normalised: Float[Tensor, "... K"],
    weight: Float[Tensor, " K"],
    sink: GradientSink,
) -> Float[Tensor, "... K"]:
    """∂L/∂x = (n − x̂ · mean(n · x̂)) / √(mean x² + ε), with x̂ = `normalised`, which the caller has of `normed` already, and
    n = of_outputs · weight.

    Where mean x² has overflowed the gradient is NaN, so that it is noticed: by this formula it would be 0.
    """
    inverse = normed.inverse
    assert inverse is not None
    inverse = inverse.masked_fill(inverse == 0.0, torch.nan)
    terms = of_outputs * normalised  # float32 at least
    if weight.requires_grad:
        sink.vector(weight, terms)
    along = torch.mv(terms.flatten(0, -2), weight.to(terms.dtype)).div_(weight.shape[-1]).view(inverse.shape)
    if of_outputs.dtype == terms.dtype:
        torch.mul(of_outputs, weight, out=terms)
    else:
        terms = (of_outputs * weight).to(terms.dtype)
    return terms.addcmul_(normalised, along, value=-1.0).mul_(inverse).to(of_outputs.dtype)


def _rotate(values: Float[Tensor, "N H K"], cos: Tensor, sin: Tensor) -> Float[Tensor, "N H K"]:
    return (values * cos).addcmul_(torch.roll(values, values.shape[-1] // 2, -1), sin)


def _rotated_backward(
    network: Network,
    of_outputs: Float[Tensor, "N HK"],
    before: _Normed,
    norm_weight: Float[Tensor, " K"] | None,
    back: tuple[Tensor, Tensor],
    sink: GradientSink,
) -> Float[Tensor, "N HK"]:
    result = _rotate(of_outputs.view(before.values.shape), *back)
    if norm_weight is not None:
        result = _norm_backward(result, before, before.normalised, norm_weight, sink)
    return result.flatten(1)


def _attend(
    network: Network,
    packing: Packing,
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "N G K"],
    value: Float[Tensor, "N GK"],
    keep: bool,
) -> _Attended:
    size = network.head_size
    flat_query, flat_key, flat_value = query.view(-1, size), key.view(-1, size), value.view(-1, size)
    found = flat_query.new_empty((sum(len(grid.queries) for grid in packing.grids), size))
    attended = _Attended([], [], [], [], value)
    first = 0
    for grid in packing.grids:
        queries = flat_query.index_select(0, grid.queries).view(_ask_shape(network, grid))
        keys = flat_key.index_select(0, grid.keys).view(_key_shape(network, grid))
        values = flat_value.index_select(0, grid.keys).view(_key_shape(network, grid))
        shares = _shares(network, grid, queries, keys)
        here = found[first : first + len(grid.queries)].view(queries.shape)
        torch.bmm(shares, values, out=here)
        first += len(grid.queries)
        if keep:
            for kept, tensor in zip(
                (attended.queries, attended.keys, attended.values, attended.shares),
                (queries, keys, values, shares),
                strict=True,
            ):
                kept.append(tensor)
    outputs = found.index_select(0, packing.query_places).view(len(packing.token_ids), network.heads * size)
    return _Attended(attended.queries, attended.keys, attended.values, attended.shares, outputs)


def _attend_backward(
    network: Network, packing: Packing, kept: _Attended, of_outputs: Float[Tensor, "N HK"]
) -> tuple[Float[Tensor, "N HK"], Float[Tensor, "N GK"], Float[Tensor, "N GK"]]:
    size = network.head_size
    flat = of_outputs.reshape(-1, size)
    asked = sum(len(grid.queries) for grid in packing.grids)
    keyed = sum(len(grid.keys) for grid in packing.grids)
    of_queries = flat.new_empty((asked, size))
    of_keys, of_values = flat.new_empty((keyed, size)), flat.new_empty((keyed, size))
    first = first_key = 0
    for grid, queries, keys, values, shares in zip(
        packing.grids, kept.queries, kept.keys, kept.values, kept.shares, strict=True
    ):
        here = slice(first, first + len(grid.queries))
        here_keys = slice(first_key, first_key + len(grid.keys))
        of_found = flat.index_select(0, grid.queries)
        if grid.filler is not None:
            rows, asking, _ = grid.shape
            of_found.view(rows, network.heads, asking, size).masked_fill_(grid.filler, 0.0)
        of_found = of_found.view(queries.shape)
        torch.bmm(shares.mT, of_found, out=of_values[here_keys].view(keys.shape))
        of_scores = _scores_backward(torch.bmm(of_found, values.mT), shares)
        torch.bmm(of_scores, keys, out=of_queries[here].view(queries.shape))
        torch.bmm(of_scores.mT, queries, out=of_keys[here_keys].view(keys.shape))
        first, first_key = here.stop, here_keys.stop
    places, begins = packing.key_places
    count = len(packing.token_ids)
    return (
        of_queries.index_select(0, packing.query_places).view(count, network.heads * size),
        functional.embedding_bag(places, of_keys, begins, mode="sum").view(count, network.kv_heads * size),
        functional.embedding_bag(places, of_values, begins, mode="sum").view(count, network.kv_heads * size),
    )


def _ask_shape(network: Network, grid: Grid) -> tuple[int, int, int]:
    """The query heads that read one key head, one below the other."""
    rows, asking, _ = grid.shape
    return rows * network.kv_heads, network.heads // network.kv_heads * asking, network.head_size


def _key_shape(network: Network, grid: Grid) -> tuple[int, int, int]:
    return grid.shape[0] * network.kv_heads, grid.shape[2], network.head_size


def _shares(
    network: Network, grid: Grid, queries: Float[Tensor, "RG AQ K"], keys: Float[Tensor, "RG S K"]
) -> Float[Tensor, "RG AQ S"]:
    """Softmax over the keys that a query may see.

    Scores are float32 at least: rounded to bfloat16 one of 20 would be off by 0.06, and its share by as much.
    """
    rows, asking, asked = grid.shape
    wide = torch.promote_types(queries.dtype, torch.float32)
    scores = torch.bmm(queries.to(wide), keys.to(wide).mT)
    scores.view(rows, network.heads, asking, asked).add_(grid.forbidden)
    return scores.softmax(-1).to(queries.dtype)


def _scores_backward(of_shares: Float[Tensor, "RG AQ S"], shares: Float[Tensor, "RG AQ S"]) -> Float[Tensor, "RG AQ S"]:
    wide = torch.promote_types(shares.dtype, torch.float32)
    found: Tensor = torch._softmax_backward_data(of_shares.to(wide), shares.to(wide), -1, wide)
    return found.to(shares.dtype)
