"""Teacher-forced log-probabilities of responses, in nats, at the tokens exactly as sampled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.masking import gather_token_logprobs
from bsharp.models.loading import LanguageModel

__all__ = ["ForwardResult", "forward_responses", "length_sorted_microbatches", "response_logprobs"]


@dataclass(frozen=True)
class ForwardResult:
    """What one forward pass tells about the response tokens of its rows; outside the mask the values mean nothing."""

    token_logprobs: Float[Tensor, "B T"]  # nats, at the tokens of the response
    entropy: Float[Tensor, "B T"] | None  # nats, of the whole next-token distribution before each token
    hidden: Float[Tensor, "B T D"] | None  # last hidden state from which each token was predicted
    logits: Float[Tensor, "B T V"] | None = None  # at the sampling temperature, EOS masked where it was masked


def forward_responses(
    language_model: LanguageModel,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    temperature: float = 1.0,
    fixed_length: bool = False,
    with_entropy: bool = False,
    with_hidden: bool = False,
    with_logits: bool = False,
) -> ForwardResult:
    """One forward pass over prompt + response rows: log π(y_t | x, y_<t) for every response token.

    Rows are filled on the right, so that padding stands behind every real token and a causal model cannot see it.
    `fixed_length` masks every EOS id out of the distribution and renormalises, as the sampler does.
    """
    device = language_model.device
    prompt_lengths = [len(prompt) for prompt in prompt_token_ids]
    response_lengths = response_mask.sum(-1).tolist()
    if min(prompt_lengths, default=1) < 1:
        raise ValueError("every prompt needs at least one token, got an empty one; add a BOS token or prompt text")
    width = max(p + r for p, r in zip(prompt_lengths, response_lengths, strict=True))
    rows = torch.full((len(prompt_lengths), width), language_model.pad_token_id, dtype=torch.long)
    attention = torch.zeros_like(rows)
    responses = response_token_ids.cpu()
    for index, (prompt, length) in enumerate(zip(prompt_token_ids, response_lengths, strict=True)):
        rows[index, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        rows[index, len(prompt) : len(prompt) + length] = responses[index, :length]
        attention[index, : len(prompt) + length] = 1
    arguments = {}
    if "logits_to_keep" in inspect.signature(language_model.model.forward).parameters:
        arguments["logits_to_keep"] = width - min(prompt_lengths) + 1
    output = language_model.model(
        input_ids=rows.to(device),
        attention_mask=attention.to(device),
        use_cache=False,
        output_hidden_states=with_hidden,
        **arguments,
    )
    offset = width - output.logits.shape[1]
    # The logits that predict response token t stand one place before it. Places behind a row's end repeat its last one.
    places = torch.tensor(prompt_lengths)[:, None] - 1 + torch.arange(responses.shape[1])[None, :]
    places = places.clamp(max=width - 1).to(device)
    logits = output.logits.gather(1, (places - offset)[..., None].expand(-1, -1, output.logits.shape[-1]))
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    if fixed_length:
        eos = torch.tensor(language_model.eos_token_ids, device=device)
        logits = logits.index_fill(-1, eos, -torch.inf)
    # Tokens outside the mask are replaced by a token that is never masked out, so that no infinity enters a gradient.
    safe = logits.detach().argmax(-1)
    targets = torch.where(response_mask.to(device), responses.to(device), safe)
    hidden = None
    if with_hidden:
        states = output.hidden_states[-1]
        hidden = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
    entropy = None
    if with_entropy:
        logprobs = logits.detach().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)
    return ForwardResult(
        token_logprobs=gather_token_logprobs(logits, targets),
        entropy=entropy,
        hidden=hidden,
        logits=logits if with_logits else None,
    )


def response_logprobs(
    language_model: LanguageModel,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    temperature: float = 1.0,
    fixed_length: bool = False,
    microbatch_rows: int = 64,
) -> Float[Tensor, "B T"]:
    """`forward_responses` without gradients, in length-sorted micro-batches; 0 outside the mask."""
    double = language_model.model.dtype == torch.float64
    result = torch.zeros(response_mask.shape, dtype=torch.float64 if double else torch.float32)
    lengths = [len(p) + int(n) for p, n in zip(prompt_token_ids, response_mask.sum(-1), strict=True)]
    with torch.inference_mode():
        for rows in length_sorted_microbatches(lengths, microbatch_rows):
            width = int(response_mask[rows].sum(-1).max())
            if width == 0:
                continue
            part = forward_responses(
                language_model,
                [prompt_token_ids[i] for i in rows],
                response_token_ids[rows, :width],
                response_mask[rows, :width],
                temperature,
                fixed_length,
            )
            mask = response_mask[rows, :width]
            result[rows, :width] = torch.where(mask, part.token_logprobs.cpu(), 0.0).to(result.dtype)
    return result


def length_sorted_microbatches(lengths: Sequence[int], microbatch_rows: int) -> Iterator[list[int]]:
    """Row indices in micro-batches of similar length: less padding, the same sums (weights are set batch-wide)."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    for start in range(0, len(order), microbatch_rows):
        yield order[start : start + microbatch_rows]
