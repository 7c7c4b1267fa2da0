"""Teacher-forced log-probabilities of responses, in nats, at the tokens exactly as sampled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.masking import gather_token_logprobs
from bsharp.models.loading import LanguageModel

__all__ = ["ForwardResult", "forward_responses", "response_logprobs", "scoring_microbatches"]

PROMPTS_PER_BLOCK = 8
"""Prompts whose responses are sorted by length together: few enough to be run again in each of their micro-batches."""


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
    share_prompts: bool = True,
) -> ForwardResult:
    """log π(y_t | x, y_<t) for every response token, differentiable, from one pass over prompts and responses.

    With `share_prompts` a prompt that several rows have in common is run once and its keys and values are dealt to
    them, through the model's own cache: the same sums, and the gradient flows through the cache. Without, each row is
    run whole. `fixed_length` masks every EOS id out of the distribution and renormalises, as the sampler does.
    Raises ValueError for an empty prompt.
    """
    if min((len(prompt) for prompt in prompt_token_ids), default=1) < 1:
        raise ValueError("every prompt needs at least one token, got an empty one; add a BOS token or prompt text")
    distinct = {tuple(prompt): None for prompt in prompt_token_ids}
    shared = share_prompts and len(distinct) < len(prompt_token_ids)
    run = _run_shared if shared else _run_rows
    raw_logits, hidden = run(language_model, prompt_token_ids, response_token_ids, response_mask, with_hidden)
    device = raw_logits.device
    logits = (raw_logits if raw_logits.dtype == torch.float64 else raw_logits.float()) / temperature
    if fixed_length:
        logits = logits.index_fill(-1, torch.tensor(language_model.eos_token_ids, device=device), -torch.inf)
    # Tokens outside the mask are replaced by a token that is never masked out, so that no infinity enters a gradient.
    safe = logits.detach().argmax(-1)
    targets = torch.where(response_mask.to(device), response_token_ids.to(device), safe)
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


def _run_rows(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    with_hidden: bool,
) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B T D"] | None]:
    """The plain path: prompt + response in one row, filled on the right, where a causal model cannot see the padding."""
    prompt_lengths = [len(prompt) for prompt in prompts]
    response_lengths = response_mask.sum(-1).tolist()
    width = max(p + r for p, r in zip(prompt_lengths, response_lengths, strict=True))
    rows = torch.full((len(prompts), width), language_model.pad_token_id, dtype=torch.long)
    attention = torch.zeros_like(rows)
    for index, (prompt, length) in enumerate(zip(prompts, response_lengths, strict=True)):
        rows[index, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        rows[index, len(prompt) : len(prompt) + length] = responses[index, :length]
        attention[index, : len(prompt) + length] = 1
    device = language_model.device
    output = language_model.model(
        input_ids=rows.to(device),
        attention_mask=attention.to(device),
        use_cache=False,
        output_hidden_states=with_hidden,
        **_keep_logits(language_model, width - min(prompt_lengths) + 1),
    )
    # The logits that predict response token t stand one place before it. Places behind a row's end repeat its last one.
    places = torch.tensor(prompt_lengths)[:, None] - 1 + torch.arange(responses.shape[1])[None, :]
    places = places.clamp(max=width - 1).to(device)
    offset = width - output.logits.shape[1]
    logits = output.logits.gather(1, (places - offset)[..., None].expand(-1, -1, output.logits.shape[-1]))
    hidden = None
    if with_hidden:
        states = output.hidden_states[-1]
        hidden = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
    return logits, hidden


def _run_shared(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    with_hidden: bool,
) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B T D"] | None]:
    """Each distinct prompt once, aligned on the right; its cache dealt to its rows; then the responses behind it."""
    device, pad = language_model.device, language_model.pad_token_id
    places: dict[tuple[int, ...], int] = {}
    row_prompt = torch.tensor([places.setdefault(tuple(prompt), len(places)) for prompt in prompts])
    width = max(len(prompt) for prompt in places)
    prompt_ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in places])
    lengths = torch.tensor([len(prompt) for prompt in places])
    prompt_mask = (torch.arange(width)[None, :] >= (width - lengths)[:, None]).long()
    first = language_model.model(
        input_ids=prompt_ids.to(device),
        attention_mask=prompt_mask.to(device),
        use_cache=True,
        output_hidden_states=with_hidden,
        **_positions(language_model, (prompt_mask.cumsum(-1) - 1).clamp(min=0)),
        **_keep_logits(language_model, 1),
    )
    row_source = row_prompt.to(device)
    logits = [first.logits[:, -1:].index_select(0, row_source)]
    hidden = [first.hidden_states[-1][:, -1:].index_select(0, row_source)] if with_hidden else []
    if responses.shape[1] > 1:
        cache = first.past_key_values
        cache.batch_select_indices(row_source)
        # The last token predicts nothing. Filled-up tokens stand behind the real ones, where these cannot see them.
        tokens = torch.where(response_mask, responses, pad)[:, :-1]
        steps = torch.arange(tokens.shape[1])[None, :]
        rest = language_model.model(
            input_ids=tokens.to(device),
            attention_mask=torch.cat([prompt_mask[row_prompt], torch.ones_like(tokens)], dim=1).to(device),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=with_hidden,
            **_positions(language_model, lengths[row_prompt][:, None] + steps),
        )
        logits.append(rest.logits)
        hidden += [rest.hidden_states[-1]] if with_hidden else []
    return torch.cat(logits, dim=1), torch.cat(hidden, dim=1) if with_hidden else None


def _keep_logits(language_model: LanguageModel, count: int) -> dict[str, int]:
    return {"logits_to_keep": count} if "logits_to_keep" in _accepted(type(language_model.model).forward) else {}


def _positions(language_model: LanguageModel, positions: Int[Tensor, "B T"]) -> dict[str, Any]:
    # A model with relative positions takes no position_ids.
    if "position_ids" not in _accepted(type(language_model.model).forward):
        return {}
    return {"position_ids": positions.to(language_model.device)}


@functools.cache
def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def response_logprobs(
    language_model: LanguageModel,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    temperature: float = 1.0,
    fixed_length: bool = False,
    microbatch_rows: int = 64,
) -> Float[Tensor, "B T"]:
    """`forward_responses` without gradients, in micro-batches; 0 outside the mask."""
    double = language_model.model.dtype == torch.float64
    result = torch.zeros(response_mask.shape, dtype=torch.float64 if double else torch.float32)
    lengths = response_mask.sum(-1).tolist()
    with torch.inference_mode():
        for rows in scoring_microbatches(prompt_token_ids, lengths, microbatch_rows):
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


def scoring_microbatches(
    prompts: Sequence[Sequence[int]], response_lengths: Sequence[int], microbatch_rows: int
) -> Iterator[list[int]]:
    """Row indices to run together: rows of a few prompts of similar length, within them responses of similar length.

    Less padding and prompts run seldom; the sums are the same, since every row's weight is set batch-wide.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(row)
    ordered = sorted(by_prompt, key=lambda prompt: (len(prompt), by_prompt[prompt][0]))
    block: list[int] = []
    prompts_in_block = 0
    for number, prompt in enumerate(ordered, start=1):
        block += by_prompt[prompt]
        prompts_in_block += 1
        if number == len(ordered) or (prompts_in_block >= PROMPTS_PER_BLOCK and len(block) >= microbatch_rows):
            block.sort(key=lambda row: (response_lengths[row], row))
            for start in range(0, len(block), microbatch_rows):
                yield block[start : start + microbatch_rows]
            block, prompts_in_block = [], 0
