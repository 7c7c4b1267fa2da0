"""Output layer, log-probabilities, entropies and their gradient in one pass, without ever holding all logits.

A policy-gradient loss is a sum over tokens, and what a token's log-probability counts in it depends on that token alone: it is
known as soon as the log-probability is. So the gradient with respect to a chunk's logits is made while they are there, and
nothing is computed twice. `bsharp.models.head.chunked_logprobs`, which autograd can go through, computes them again instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from bsharp.models.network import Linear
from bsharp.models.products import fast_products

__all__ = ["HeadSink", "Scored", "score_and_differentiate", "score_tokens"]

LOGIT_BYTES = 2**23
"""Logits that are turned into log-probabilities at once: as much as stays in a processor's cache."""
SCORED_BYTES = 2**24
"""Logits that one product makes where nothing but log-probabilities is asked for: every product reads the whole output layer."""
PRODUCT_BYTES = 2**26
"""Logits, and later their gradients, that one product makes or meets where the layer trains: its own gradient is as large as it
is, and passing over it seldom is what makes these products fast."""
LEAST_TOKENS = 32
"""Tokens at once however large the vocabulary is: fewer would read the whole layer for too little work."""

Coefficient = Callable[[slice, Tensor], Tensor]
"""(which of the M tokens, their log-probabilities) → ∂loss/∂log-probability of each."""


class HeadSink(Protocol):
    """Takes the gradient of the output layer, in pieces of one part after the other."""

    def head_product(self, part: int | None, of_logits: Float[Tensor, "N V"], hidden: Float[Tensor, "N D"]) -> None:
        """∂L/∂W += of_logitsᵀ hidden, of this part; with None the tokens are all M, dealt to their parts by the sink."""

    def head_bias(self, part: int | None, of_logits: Float[Tensor, "N V"]) -> None:
        """∂L/∂b += Σ of_logits."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What the output layer says of M tokens, nats."""

    logprobs: Float[Tensor, " M"]
    entropy: Float[Tensor, " M"] | None


def score_tokens(
    hidden: Float[Tensor, "M D"],
    head: Linear,
    targets: Int[Tensor, " M"],
    temperature: float = 1.0,
    masked_token_ids: Sequence[int] = (),
    with_entropy: bool = False,
) -> Scored:
    """log q(y_m) and, where asked for, the entropy of q, with q = softmax((W h_m + b)/temperature) less the masked tokens.

    Softmax and sums are in float32 at least, logits of the type of `hidden` first. No gradients.
    """
    with torch.no_grad(), fast_products(head.weight.nbytes):
        chunks = _Chunks(hidden, head, targets, temperature, masked_token_ids, with_entropy, SCORED_BYTES)
        for large in _slices(slice(0, len(targets)), chunks.rows_of_product):
            logits = chunks.product(large)
            for rows in _slices(large, chunks.rows_at_once):
                chunks.score(rows, logits[rows.start - large.start : rows.stop - large.start])
    return chunks.scored()


def score_and_differentiate(
    hidden: Float[Tensor, "M D"],
    head: Linear,
    targets: Int[Tensor, " M"],
    coefficient: Coefficient,
    parts: Sequence[slice],
    sink: HeadSink,
    temperature: float = 1.0,
    masked_token_ids: Sequence[int] = (),
) -> tuple[Scored, Float[Tensor, "M D"]]:
    """`score_tokens` with entropies, and the gradient of Σ_m loss_m with respect to the hidden states.

    ∂loss/∂z_v = c (1[v = y] − q(v)) / temperature with c = `coefficient`; that of W and b goes to `sink` where they train.
    `parts` are consecutive slices of the M tokens.
    """
    with torch.no_grad(), fast_products(head.weight.nbytes):
        chunks = _Chunks(hidden, head, targets, temperature, masked_token_ids, True, PRODUCT_BYTES)
        of_hidden = torch.empty_like(hidden)
        whole = len(targets) <= chunks.rows_at_once
        for part, tokens in [(None, slice(0, len(targets)))] if whole else list(enumerate(parts)):
            for large in _slices(tokens, chunks.rows_of_product):
                of_logits = chunks.product(large)  # the logits first
                for rows in _slices(large, chunks.rows_at_once):
                    here = of_logits[rows.start - large.start : rows.stop - large.start]
                    logprobs, shares = chunks.score(rows, here)
                    scale = (coefficient(rows, logprobs) / temperature).to(shares.dtype)[:, None]
                    _of_logits(shares, scale, targets[rows], masked_token_ids, here)
                torch.mm(of_logits, head.weight, out=of_hidden[large])
                if head.weight.requires_grad:
                    sink.head_product(part, of_logits, hidden[large])
                if head.bias is not None and head.bias.requires_grad:
                    sink.head_bias(part, of_logits)
    return chunks.scored(), of_hidden


def _of_logits(
    shares: Float[Tensor, "N V"],
    scale: Float[Tensor, "N 1"],
    targets: Int[Tensor, " N"],
    masked_token_ids: Sequence[int],
    out: Float[Tensor, "N V"],
) -> None:
    found = torch.mul(shares, -scale, out=out) if out.dtype == shares.dtype else shares.mul_(-scale)
    found.scatter_add_(-1, targets[:, None], scale)
    if masked_token_ids:
        found[:, list(masked_token_ids)] = 0.0
    if found is not out:
        out.copy_(found)


class _Chunks:
    """Logits of some tokens after the other, in the same memory."""

    def __init__(
        self,
        hidden: Float[Tensor, "M D"],
        head: Linear,
        targets: Int[Tensor, " M"],
        temperature: float,
        masked_token_ids: Sequence[int],
        with_entropy: bool,
        product_bytes: int,
    ) -> None:
        self._hidden, self._head, self._targets = hidden, head, targets
        self._temperature, self._masked = temperature, list(masked_token_ids)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        vocabulary = len(head.weight)
        self.rows_at_once = max(LEAST_TOKENS, LOGIT_BYTES // (vocabulary * wide.itemsize))
        self.rows_of_product = max(self.rows_at_once, product_bytes // (vocabulary * hidden.element_size()))
        count = min(self.rows_at_once, len(targets))
        self._shares = torch.empty((count, vocabulary), dtype=wide)
        self._wide = None if hidden.dtype == wide else torch.empty((count, vocabulary), dtype=wide)
        self._logprobs = torch.empty(len(targets), dtype=wide)
        self._entropy = torch.empty(len(targets), dtype=wide) if with_entropy else None

    def product(self, rows: slice) -> Float[Tensor, "N V"]:
        """The logits of these tokens."""
        return functional.linear(self._hidden[rows], self._head.weight, self._head.bias)

    def score(self, rows: slice, logits: Float[Tensor, "N V"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
        """Log-probabilities of these tokens, and q at each; the latter is overwritten by the next call.

        Logits are used up where they are float32 or wider.
        """
        shares = self._shares[: len(logits)]
        if self._wide is not None:
            logits = self._wide[: len(logits)].copy_(logits)
        if self._temperature != 1.0:
            logits.div_(self._temperature)
        if self._masked:
            logits[:, self._masked] = -torch.inf
        torch.softmax(logits, -1, out=shares)
        # log Σ exp z, from the largest share: 1/V at least, so that its logarithm loses nothing.
        normaliser = logits.amax(-1) - shares.amax(-1).log()
        logprobs = logits.gather(-1, self._targets[rows, None]).squeeze(-1) - normaliser
        self._logprobs[rows] = logprobs
        if self._entropy is not None:
            if self._masked:  # −∞ · 0 is no number: a token that is masked out adds nothing
                logits[:, self._masked] = 0.0
            self._entropy[rows] = normaliser - torch.linalg.vecdot(shares, logits)
        return logprobs, shares

    def scored(self) -> Scored:
        return Scored(self._logprobs, self._entropy)


def _slices(whole: slice, size: int) -> list[slice]:
    return [slice(start, min(start + size, whole.stop)) for start in range(whole.start, whole.stop, size)]
