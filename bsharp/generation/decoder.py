"""The built-in generator: batched decoding with a KV cache through the ordinary forward of a transformers causal LM."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bsharp.generation.cache import deal_rows
from bsharp.generation.interface import GenerationRequest, SamplingParams
from bsharp.generation.sampling import choose_tokens, request_uniforms
from bsharp.types import Completion, FinishReason

if TYPE_CHECKING:
    from bsharp.models.loading import LanguageModel

__all__ = ["Decoder"]


@dataclass(frozen=True, slots=True)
class _Segment:
    """Rows first … first + count − 1 of one request: what a micro-batch is made of."""

    request: int
    first: int
    count: int


@dataclass(slots=True)
class _Batch:
    """The rows of a micro-batch that are still being decoded."""

    cache: Any
    rows: Int[Tensor, " rows"]  # which row of the micro-batch each one is
    prompt_lengths: Int[Tensor, "rows 1"]
    mask: Int[Tensor, "rows T"] | None  # over prompt and response; None where no prompt is padded
    prompt_width: int  # columns of the prompts, padding included

    def keep(self, indices: Int[Tensor, " kept"]) -> None:
        """Row i becomes what row indices[i] was; the others are dropped."""
        self.cache.batch_select_indices(indices)
        self.rows, self.prompt_lengths = self.rows[indices], self.prompt_lengths[indices]
        if self.mask is not None:
            self.mask = self.mask[indices]


class Decoder:
    """Samples from a transformers causal LM, all requests batched.

    A prompt is run once and its cache dealt to its samples; equal prompts of a micro-batch count as one. Requests are
    sorted by prompt length and cut into micro-batches of at most `max_rows` rows (a larger request alone is split);
    prompts are padded on the left under an attention mask with explicit positions. Finished rows leave the batch.

    The samples of a request depend on its seed, its prompt and the weights only, up to the rounding of logits, which
    may vary in the last bits with the rows decoded beside it. Equal calls on equal threads are equal bit for bit.
    The EOS token (any of `eos_token_ids`) belongs to the completion. Whether a row has ended is known from the EOS ids,
    never from the pad id, so pad == eos is no special case. Memory grows with max_rows × (prompt + new tokens).
    """

    def __init__(self, language_model: LanguageModel, max_rows: int = 512) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows = {max_rows}; decode at least 1 row at a time")
        self._language_model = language_model
        self._max_rows = max_rows
        self._policy_version = 0
        accepted = inspect.signature(language_model.model.forward).parameters
        # A model with relative positions takes no position_ids; one without logits_to_keep returns all positions.
        self._takes_positions = "position_ids" in accepted
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    @property
    def policy_version(self) -> int:
        """Version given to the last `sync_weights`, 0 before the first; every completion carries it."""
        return self._policy_version

    def sync_weights(self, policy: nn.Module, version: int) -> None:
        """Copy the weights of `policy` into the decoder's model, or nothing where it is that very model.

        Raises RuntimeError where the two differ in their parameters.
        """
        if policy is not self._language_model.model:
            self._language_model.model.load_state_dict(policy.state_dict())
        self._policy_version = version

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[tuple[Completion, ...]]:
        """The completions of each request, in the order of the requests; see SamplingParams for log-probabilities.

        Raises ValueError for prompts outside the vocabulary or, with max_new_tokens, beyond the model's positions, for
        fixed_length where EOS is all there is, and for logits that are no distribution. No requests give [].
        """
        self._check(requests, params)
        completions: list[list[Completion]] = [[] for _ in requests]
        with _evaluation_mode(self._language_model.model):
            for segments in _micro_batches(requests, self._max_rows):
                decoded = iter(self._decode(requests, segments, params))
                for segment in segments:
                    completions[segment.request].extend(next(decoded) for _ in range(segment.count))
        return [tuple(group) for group in completions]

    def _check(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        vocabulary = self._language_model.vocab_size
        longest = 0
        for request in requests:
            low, high = min(request.prompt_token_ids), max(request.prompt_token_ids)
            if low < 0 or high >= vocabulary:
                raise ValueError(
                    f"prompt token id {low if low < 0 else high} is outside the model's vocabulary of {vocabulary}; "
                    "encode the prompt with the model's own tokenizer"
                )
            longest = max(longest, len(request.prompt_token_ids))
        positions = getattr(self._language_model.model.config.get_text_config(), "max_position_embeddings", None)
        # Scoring a whole response later needs a position for its last token too, though decoding does not.
        if positions is not None and longest + params.max_new_tokens > positions:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens = {params.max_new_tokens} exceed the model's "
                f"{positions} positions; lower max_new_tokens or shorten the prompt"
            )

    def _decode(
        self, requests: Sequence[GenerationRequest], segments: Sequence[_Segment], params: SamplingParams
    ) -> list[Completion]:
        """The completions of one micro-batch, in the order of its segments."""
        device = self._language_model.device
        prompts, row_prompts = _distinct_prompts(requests, segments)
        uniforms = torch.from_numpy(_uniforms(requests, segments, params.max_new_tokens)).to(device)
        num_rows, limit = uniforms.shape
        batch, logits = self._prefill(prompts, torch.tensor(row_prompts, device=device), limit)
        is_eos = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
        is_eos[list(self._language_model.eos_token_ids)] = True
        tokens = torch.zeros((num_rows, limit), dtype=torch.long, device=device)
        logprobs = torch.zeros((num_rows, limit), dtype=torch.float64, device=device)
        lengths = torch.full((num_rows,), limit, device=device)
        for step in range(limit):
            chosen, chosen_logprobs = choose_tokens(
                logits, uniforms[batch.rows, step], params, self._language_model.eos_token_ids
            )
            tokens[batch.rows, step] = chosen
            logprobs[batch.rows, step] = chosen_logprobs
            ended = is_eos[chosen]
            lengths[batch.rows[ended]] = step + 1
            if step + 1 == limit or bool(ended.all()):
                break
            if bool(ended.any()):
                kept = _fill_holes(ended)
                batch.keep(kept)
                chosen = chosen[kept]
            logits = self._next_logits(batch, chosen, step)
        return self._completions(tokens, logprobs, lengths, is_eos)

    def _prefill(
        self, prompts: Sequence[tuple[int, ...]], row_prompts: Int[Tensor, " B"], limit: int
    ) -> tuple[_Batch, Float[Tensor, "B V"]]:
        """Run each prompt once; the batch of its samples and the logits of their first tokens."""
        model = self._language_model.model
        mask, token_ids = _pad_left(prompts, self._language_model.pad_token_id, self._language_model.device)
        lengths, width = mask.sum(-1), token_ids.shape[1]
        padded = bool((lengths < width).any())
        arguments: dict[str, Any] = {"attention_mask": mask.long()} if padded else {}
        if self._takes_positions:
            arguments["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        output = model(input_ids=token_ids, use_cache=True, **self._last_logits_only, **arguments)
        cache = getattr(output, "past_key_values", None)
        if not hasattr(cache, "layers"):
            raise ValueError(f"{type(model).__name__} returns no key/value cache; use another generator for it")
        # The last token drawn is never fed back, so it needs no room.
        deal_rows(cache, row_prompts, width + limit - 1)
        rows = torch.arange(len(row_prompts), device=mask.device)
        row_mask = None
        if padded:
            response_mask = mask.new_ones((len(row_prompts), limit))
            row_mask = torch.cat([mask.index_select(0, row_prompts), response_mask], dim=-1).long()
        batch = _Batch(cache, rows, lengths.index_select(0, row_prompts)[:, None], row_mask, width)
        return batch, output.logits[:, -1].index_select(0, row_prompts)

    def _next_logits(self, batch: _Batch, token_ids: Int[Tensor, " rows"], step: int) -> Float[Tensor, "rows V"]:
        arguments: dict[str, Any] = {}
        if batch.mask is not None:
            arguments["attention_mask"] = batch.mask[:, : batch.prompt_width + step + 1]
        if self._takes_positions:
            arguments["position_ids"] = batch.prompt_lengths + step
        output = self._language_model.model(
            input_ids=token_ids[:, None], past_key_values=batch.cache, use_cache=True, **arguments
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _completions(self, tokens: Tensor, logprobs: Tensor, lengths: Tensor, is_eos: Tensor) -> list[Completion]:
        last = tokens.gather(1, (lengths - 1)[:, None]).squeeze(1)
        completions = []
        rows = zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), is_eos[last].tolist(), strict=True)
        for row_tokens, row_logprobs, length, ended in rows:
            token_ids = tuple(row_tokens[:length])
            completions.append(
                Completion(
                    token_ids=token_ids,
                    logprobs=tuple(row_logprobs[:length]),
                    finish_reason=FinishReason.EOS if ended else FinishReason.LENGTH,
                    text=self._language_model.decode(token_ids),
                    policy_version=self._policy_version,
                )
            )
        return completions


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _micro_batches(requests: Sequence[GenerationRequest], max_rows: int) -> Iterator[list[_Segment]]:
    """Requests from short to long prompts, equal prompts side by side, in batches of at most max_rows rows."""
    prompts = [request.prompt_token_ids for request in requests]
    order = sorted(range(len(requests)), key=lambda index: (len(prompts[index]), prompts[index]))
    batch: list[_Segment] = []
    rows = 0
    for request in order:
        for first in range(0, requests[request].num_samples, max_rows):
            count = min(max_rows, requests[request].num_samples - first)
            if batch and rows + count > max_rows:
                yield batch
                batch, rows = [], 0
            batch.append(_Segment(request, first, count))
            rows += count
    if batch:
        yield batch


def _distinct_prompts(
    requests: Sequence[GenerationRequest], segments: Sequence[_Segment]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """The different prompts of a micro-batch, and for each of its rows which of them it continues."""
    numbers: dict[tuple[int, ...], int] = {}
    row_prompts: list[int] = []
    for segment in segments:
        number = numbers.setdefault(requests[segment.request].prompt_token_ids, len(numbers))
        row_prompts.extend([number] * segment.count)
    return list(numbers), row_prompts


def _uniforms(requests: Sequence[GenerationRequest], segments: Sequence[_Segment], max_new_tokens: int) -> np.ndarray:
    """The uniforms of all rows of a micro-batch, (B, T) float64."""
    blocks = []
    for segment in segments:
        end = segment.first + segment.count
        blocks.append(request_uniforms(requests[segment.request].seed, end, max_new_tokens)[segment.first :])
    return np.concatenate(blocks)


def _pad_left(
    prompts: Sequence[tuple[int, ...]], value: int, device: torch.device
) -> tuple[Bool[Tensor, "P T"], Int[Tensor, "P T"]]:
    """Mask and token ids of the prompts, aligned on the right so that every row's last position is its last token."""
    width = max(len(prompt) for prompt in prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    token_ids = torch.tensor([[value] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.arange(width)[None, :] >= (width - lengths)[:, None]
    return mask.to(device), token_ids.to(device)


def _fill_holes(ended: Bool[Tensor, " rows"]) -> Int[Tensor, " kept"]:
    """Which old row each kept row is: rows that go on stay where they are, and the last ones fill the holes."""
    survivors = (~ended).nonzero().squeeze(-1)
    kept = torch.arange(len(survivors), device=ended.device)
    kept[ended[: len(survivors)]] = survivors[survivors >= len(survivors)]
    return kept
