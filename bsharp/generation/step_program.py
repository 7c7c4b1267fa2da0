"""The operations of one decoding step, as one program that runs without Python where torch can compile it so.

A step of a small model is some forty short operations a block. Called from Python they cost as much as they compute, and a
second thread that decodes other rows has to wait for the first one's Python. `torch.jit.script` turns the functions below into
a program of the same operations in the same order, in some hundredths of a second: its numbers are theirs to the last bit.
Where that is not to be had the functions run as they stand.

The functions keep to what `torch.jit.script` can read: shapes stand in comments and docstrings, not in types.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Asked", "BlockWeights", "Layout", "Stored", "attention", "output_logits", "program", "step_logits"]


class BlockWeights(NamedTuple):
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


class Layout(NamedTuple):
    """What the blocks of a network have in common."""

    embedding: Tensor  # V × D
    final_norm: Tensor
    head: Tensor  # V × D
    head_bias: Tensor | None
    epsilon: Tensor  # (1,)
    heads: int
    groups: int
    size: int  # of a head
    least_fast: int  # rows times entries of a weight from which on oneDNN computes a product; negative: never


class Asked(NamedTuple):
    """Where the heads of each row stand among those of the entries (`bsharp.generation.shared_prompts`)."""

    asked: Tensor  # which row's heads each slot asks for
    found: Tensor  # at which slot each row's heads are found
    bias: Tensor | None  # E·G × 1 × L: −∞ behind a shorter prompt; None where none is shorter


class Stored(NamedTuple):
    """Rotated keys and values that a block's attention reads, float32."""

    prompt_keys: Tensor  # E·G × L × K
    prompt_values: Tensor
    own_keys: Tensor  # R × G × capacity × K, zeros behind what is stored
    own_values: Tensor


def step_logits(
    layout: Layout,
    blocks: list[BlockWeights],
    stored: list[Stored],
    asked: Asked,
    token_ids: Tensor,
    rotation: Tensor,
    step: int,
) -> Tensor:
    """(R, V) logits after `token_ids` (R,), the step-th own tokens of the rows, rotated by `rotation` (R, 1, K/2).

    The step's keys and values are written into `stored`, which has room for them.
    """
    stream = functional.embedding(token_ids, layout.embedding)
    for place, weights in enumerate(blocks):
        stream = block(layout, weights, stored[place], asked, stream, rotation, step)
    return output_logits(layout, norm(stream, layout.final_norm, layout.epsilon))


def output_logits(layout: Layout, hidden: Tensor) -> Tensor:
    """(R, V) logits of hidden states (R, D) after the final norm."""
    return linear(layout, hidden, layout.head, layout.head_bias)


def block(
    layout: Layout,
    weights: BlockWeights,
    stored: Stored,
    asked: Asked,
    stream: Tensor,
    rotation: Tensor,
    step: int,
) -> Tensor:
    """(R, D) residual stream after a block."""
    rows, heads, groups, size = stream.shape[0], layout.heads, layout.groups, layout.size
    normed = norm(stream, weights.attention_norm, layout.epsilon)
    inward = linear(layout, normed, weights.inward, weights.inward_bias).view(rows, heads + 2 * groups, size)
    compared = inward[:, : heads + groups]
    head_norm = weights.head_norm
    if head_norm is not None:
        compared = norm(compared, head_norm, layout.epsilon)
    # Where the models round to lower precision between these operations, this does not.
    turned = torch.view_as_complex(compared.float().view(rows, heads + groups, size // 2, 2)) * rotation
    compared = torch.view_as_real(turned).flatten(-2)
    queries, keys, values = compared[:, :heads], compared[:, heads:], inward[:, heads + groups :]
    found = attention(stored, asked, queries, keys, values, step).to(stream.dtype)
    # A product in lower precision is rounded before it is added, as the models do.
    stream = linear(layout, found, weights.outward, weights.outward_bias).add_(stream)
    normed = norm(stream, weights.mlp_norm, layout.epsilon)
    opened = linear(layout, normed, weights.opening, weights.opening_bias)
    middle = opened.shape[1] // 2
    product = functional.silu(opened[:, :middle]).mul_(opened[:, middle:])
    return linear(layout, product, weights.down, weights.down_bias).add_(stream)


def attention(stored: Stored, asked: Asked, queries: Tensor, keys: Tensor, values: Tensor, step: int) -> Tensor:
    """(R, H·K): softmax(q·k/√K) over a row's prompt and its own tokens 0 … step, times their values.

    `queries` (R, H, K) float32, `keys` and `values` (R, G, K) are the step's own.
    """
    stored.own_keys[:, :, step] = keys
    stored.own_values[:, :, step] = values
    own_keys, own_values = stored.own_keys.flatten(0, 1), stored.own_values.flatten(0, 1)
    rows, heads, size = queries.shape[0], queries.shape[1], queries.shape[2]
    entries, columns = stored.prompt_keys.shape[0], stored.prompt_keys.shape[1]
    shared, scale = heads // keys.shape[1], float(size) ** -0.5
    asking = queries.reshape(rows * keys.shape[1], shared, size)
    none = torch.empty([1])  # a bias of weight 0, which is not read
    by_entry = asking.index_select(0, asked.asked).view(entries, -1, size)
    bias = asked.bias
    if bias is None:
        of_prompts = torch.baddbmm(none, by_entry, stored.prompt_keys.mT, beta=0, alpha=scale)
    else:
        of_prompts = torch.baddbmm(bias, by_entry, stored.prompt_keys.mT, alpha=scale)
    of_prompts = of_prompts.view(-1, shared, columns).index_select(0, asked.found)
    of_own = torch.baddbmm(none, asking, own_keys.mT, beta=0, alpha=scale)
    shares = torch.cat([of_prompts, of_own], -1)
    shares[:, :, columns + step + 1 :].fill_(-float("inf"))
    shares = shares.softmax(-1)
    # Whole rows are gathered, own columns too: one memory copy each.
    by_entry = shares.flatten(1).index_select(0, asked.asked).view(entries, -1, shares.shape[2])
    found = (
        torch.bmm(by_entry[:, :, :columns], stored.prompt_values).view(-1, shared, size).index_select(0, asked.found)
    )
    return found.baddbmm_(shares[:, :, columns:], own_values).view(rows, heads * size)


def norm(values: Tensor, weight: Tensor, epsilon: Tensor) -> Tensor:
    """weight · x / √(mean x² + ε), in float32; in lower precision rounded before the weight, as the models do."""
    length = torch.linalg.vector_norm(values, 2, [-1], True, dtype=epsilon.dtype)
    inverse = torch.addcmul(epsilon, length, length, value=1.0 / values.shape[-1]).rsqrt_()
    if values.dtype == epsilon.dtype:
        return (values * inverse).mul_(weight)
    return torch.mul(values, inverse, out=torch.empty(values.shape, dtype=values.dtype)).mul_(weight)


def linear(layout: Layout, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs · weightᵀ + bias by the library that is faster with products of this size."""
    least = layout.least_fast
    if least >= 0 and inputs.shape[0] * weight.numel() >= least and inputs.dtype == torch.float32:
        return onednn_linear(inputs, weight, bias)
    return functional.linear(inputs, weight, bias)


def onednn_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear` by oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


@functools.cache
def program() -> tuple[Callable[..., Tensor], bool]:
    """`step_logits`, and whether it runs without Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and what replaces it wants a C++ compiler and a minute
            return torch.jit.script(step_logits), True
    except Exception:  # whatever keeps a release of torch or Python from it
        return step_logits, False
