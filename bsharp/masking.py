"""Masked reductions, padding, and the gathering of token log-probabilities. Counts come from masks, never from values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["gather_token_logprobs", "masked_mean", "masked_sum", "pad_right"]


def masked_sum(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Sum over the masked-in tokens of each row. What is masked out may hold anything, NaN included."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(-1)


def masked_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Mean over all masked-in tokens of the batch. A batch with no token at all has mean 0."""
    return masked_sum(values, mask).sum() / mask.sum().clamp(min=1)


def pad_right(rows: Sequence[Sequence[int]], value: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Rows of token ids as one tensor, filled on the right with `value`, and the mask of the real tokens.

    The mask comes from the lengths, so `value` may also be a real token (pad == eos).
    """
    width = max((len(row) for row in rows), default=0)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    token_ids = torch.full((len(rows), width), value, dtype=torch.long)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return token_ids, torch.arange(width)[None, :] < lengths[:, None]


def gather_token_logprobs(
    logits: Float[Tensor, "B T V"], token_ids: Int[Tensor, "B T"], temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """log softmax(logits / temperature) at the given tokens, in fp32 at least (fp64 stays fp64)."""
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    chosen = scaled.gather(-1, token_ids[..., None]).squeeze(-1)
    return chosen - scaled.logsumexp(-1)
