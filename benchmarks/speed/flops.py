"""Operations that a step needs, counted, not measured.

Counted are the multiplications and additions of matrix products, 2·m·n·k each: the linear layers and, in attention, scores and
weighted values over the keys that a causal query sees, 4·heads·head_dim·(position + 1). Each distinct prompt counts once
and each response token once; the last token of a response is never fed, since it predicts nothing. The output layer counts
where a response token is predicted: once behind each prompt, which its G responses share, and once behind every fed response
token. A backward pass counts twice its forward pass. Nothing that is recomputed, padded or computed twice counts, and
neither do element-wise operations (softmax, norms, rotations, the optimizer).

Bytes of decoding are those that must come from memory if nothing stays in a cache: all weights once per step and keys and
values of every token so far, those of a prompt once for its G rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Layout", "Phase", "Product", "attention_flops", "decode_bytes", "linear_flops", "phases"]


@dataclass(frozen=True)
class Product:
    """One linear layer: `count` of them in the model, each (tokens, k) × (k, n)."""

    name: str
    k: int
    n: int
    count: int

    def flops(self, tokens: int) -> int:
        """Of the forward pass over so many tokens, all layers together."""
        return 2 * tokens * self.k * self.n * self.count


@dataclass(frozen=True)
class Layout:
    """The sizes of a decoder with gated feed-forward layers and grouped queries."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int

    @classmethod
    def of(cls, config: Any) -> Layout:
        """From a transformers configuration."""
        return cls(
            int(config.vocab_size),
            int(config.hidden_size),
            int(config.num_hidden_layers),
            int(config.num_attention_heads),
            int(config.num_key_value_heads),
            int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
            int(config.intermediate_size),
        )

    @property
    def products(self) -> tuple[Product, ...]:
        """The linear layers of the blocks."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {
            "q": (self.hidden, queries),
            "k": (self.hidden, keys),
            "v": (self.hidden, keys),
            "o": (queries, self.hidden),
            "gate": (self.hidden, self.feed_forward),
            "up": (self.hidden, self.feed_forward),
            "down": (self.feed_forward, self.hidden),
        }
        return tuple(Product(name, k, n, self.layers) for name, (k, n) in sizes.items())

    @property
    def head(self) -> Product:
        return Product("head", self.hidden, self.vocabulary, 1)

    @property
    def parameters(self) -> int:
        """Weights of the linear layers; a tied embedding is the head."""
        return sum(product.k * product.n * product.count for product in (*self.products, self.head))


@dataclass(frozen=True)
class Phase:
    """What one part of a step computes: the tokens behind each kind of product, and whether there is a backward pass."""

    name: str
    tokens: int  # fed to the blocks
    predictions: int  # of the output layer
    attention: int  # operations of attention, forward
    passes: int  # 1: forward; 3: forward and backward

    def flops(self, layout: Layout) -> int:
        return self.passes * (linear_flops(layout, self.tokens, self.predictions) + self.attention)


def linear_flops(layout: Layout, tokens: int, predictions: int) -> int:
    """Forward operations of all linear layers."""
    return sum(product.flops(tokens) for product in layout.products) + layout.head.flops(predictions)


def attention_flops(layout: Layout, start: int, end: int) -> int:
    """Forward operations of attention for the tokens at positions start … end − 1 of one row, each seeing all before it."""
    seen = (end * (end + 1) - start * (start + 1)) // 2
    return 4 * layout.layers * layout.heads * layout.head_dim * seen


def phases(layout: Layout, prompt_lengths: Sequence[int], group: int, tokens: int) -> Mapping[str, Phase]:
    """Rollout, scoring (one forward pass over finished rollouts) and update of a step.

    `prompt_lengths` are those of the distinct prompts, each with `group` responses of `tokens` tokens.
    """
    fed = tokens - 1
    rows = group * len(prompt_lengths)
    attention = sum(
        attention_flops(layout, 0, length) + group * attention_flops(layout, length, length + fed)
        for length in prompt_lengths
    )
    whole = sum(prompt_lengths) + rows * fed
    predictions = len(prompt_lengths) + rows * fed
    return {
        name: Phase(name, whole, predictions, attention, passes)
        for name, passes in (("rollout", 1), ("scoring", 1), ("update", 3))
    }


def decode_bytes(layout: Layout, prompt_lengths: Sequence[int], group: int, tokens: int, width: int) -> int:
    """Bytes read by the steps of decoding (not by the prompts' own pass), each number `width` bytes wide."""
    steps = tokens - 1
    per_token = 2 * layout.layers * layout.kv_heads * layout.head_dim
    prompts = steps * sum(prompt_lengths)
    # Step t reads the t tokens before it and its own.
    responses = group * len(prompt_lengths) * steps * (steps + 1) // 2
    return width * (steps * layout.parameters + per_token * (prompts + responses))
