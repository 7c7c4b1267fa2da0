"""One next token per row from logits: inverse-CDF sampling, greedy choice and the restrictions of SamplingParams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bsharp.generation.interface import LogitsError, SamplingParams

__all__ = ["choose_tokens", "request_uniforms"]

BLOCK = 256
"""Tokens that are searched one by one once their block is known."""
ENTRIES_AT_ONCE = 2**25
"""Logits turned into probabilities at once: rows of a large vocabulary are taken in parts, in at most 1 GB of memory."""


def request_uniforms(seed: int, num_samples: int, max_new_tokens: int) -> np.ndarray:
    """Uniforms in [0, 1) of one request, (num_samples, max_new_tokens) float64: one per row and step.

    Filled row by row from the request's own Philox stream, so the first rows do not depend on num_samples.
    """
    return np.random.Generator(np.random.Philox(seed)).random((num_samples, max_new_tokens))


def choose_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], params: SamplingParams, eos_token_ids: Sequence[int]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """The next token of each row and its log-probability (nats, fp64) under the distribution `params` describes.

    With weights w = exp(z/τ − max z/τ) in fp32 and their running sum C in fp64, the token is the first one with
    C > u·C_V, and its log-probability is log w − log C_V. Ties of the greedy choice go to the lowest id.
    Rows are independent of each other. Raises ValueError where a row has no usable distribution (NaN or +∞ logits, every
    token masked).
    """
    rows = max(ENTRIES_AT_ONCE // logits.shape[-1], 1)
    if len(logits) <= rows:
        return _choose(logits, uniforms, params, eos_token_ids)
    parts = [
        _choose(*part, params, eos_token_ids)
        for part in zip(torch.split(logits, rows), torch.split(uniforms, rows), strict=True)
    ]
    return torch.cat([tokens for tokens, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _choose(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], params: SamplingParams, eos_token_ids: Sequence[int]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    scaled = logits.float()
    if params.fixed_length:
        scaled = scaled.index_fill(-1, torch.tensor(list(eos_token_ids), device=logits.device), -torch.inf)
    if not params.greedy:
        if params.temperature != 1.0:
            scaled = scaled / params.temperature
        if params.top_k is not None or params.top_p < 1.0:
            scaled = _restrict(scaled, params.top_p, params.top_k)
    largest = scaled.amax(-1, keepdim=True)
    weights = (scaled - largest).exp_()
    if params.greedy:
        tokens, total = scaled.argmax(-1, keepdim=True), weights.sum(-1, keepdim=True, dtype=torch.float64)
    else:
        tokens, total = _invert(weights, uniforms[:, None])
    if not bool(torch.isfinite(total).all()):
        raise LogitsError(
            "the model's logits give no distribution (NaN, +inf, or every token masked); "
            "check that its weights are finite, or lower the learning rate if training made them so"
        )
    logprobs = (scaled.gather(-1, tokens) - largest).double() - total.log()
    return tokens.squeeze(-1), logprobs.squeeze(-1)


def _invert(
    weights: Float[Tensor, "B V"], uniforms: Float[Tensor, "B 1"]
) -> tuple[Int[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """The first token whose running sum of weights, in fp64, exceeds u times their sum, and that sum.

    A large vocabulary is searched in two steps, first for the block and then within it: the running sum of the whole row, in
    fp64, would cost more than everything else of a step. Blocks of 256 weights are summed in fp32, pairwise, to 1e-7.
    """
    vocabulary = weights.shape[-1]
    if vocabulary <= 4 * BLOCK:
        return _first_beyond(weights.cumsum(-1, dtype=torch.float64), uniforms)
    whole = vocabulary - vocabulary % BLOCK
    blocks = weights[:, :whole].reshape(len(weights), -1, BLOCK).sum(-1)
    if whole < vocabulary:
        blocks = torch.cat([blocks, weights[:, whole:].sum(-1, keepdim=True)], dim=-1)
    blocks = blocks.double()
    running = blocks.cumsum(-1)
    block, total = _first_beyond(running, uniforms)
    block = block.clamp(max=blocks.shape[-1] - 1)  # of a row that is no distribution
    wanted = uniforms * total - (running.gather(-1, block) - blocks.gather(-1, block))
    inside = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    own = weights.gather(-1, inside.clamp(max=vocabulary - 1)).double()
    own[inside >= vocabulary] = 0.0
    within = own.cumsum(-1)
    # As a share: the two sums of a block differ in their last bits.
    share = (wanted / blocks.gather(-1, block)).clamp(0.0, 1.0 - 2.0**-53)
    place, _ = _first_beyond(within, share)
    return (block * BLOCK + place).clamp(max=vocabulary - 1), total


def _first_beyond(
    running: Float[Tensor, "B N"], uniforms: Float[Tensor, "B 1"]
) -> tuple[Int[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """The first place at which a running sum exceeds u times the whole, and the whole."""
    total = running[:, -1:]
    # u ≤ 1 − 2⁻⁵³ and a positive total, so in fp64 u·total stays below total. The first entry that exceeds it is then a
    # strict increase of the sum: a token of probability 0 is never drawn.
    return torch.searchsorted(running, uniforms * total, right=True), total


def _restrict(scaled: Float[Tensor, "B V"], top_p: float, top_k: int | None) -> Float[Tensor, "B V"]:
    """Logits with everything outside top_k, then outside top_p of what is left, at −∞."""
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    if top_p < 1.0:
        probabilities = ordered.double().softmax(-1)
        # A token stays while the mass before it is below top_p: the first always, and also the one that reaches it.
        mass_before = probabilities.cumsum(-1) - probabilities
        ordered = ordered.masked_fill(mass_before >= top_p, -torch.inf)
    return torch.empty_like(scaled).scatter_(-1, order, ordered)
