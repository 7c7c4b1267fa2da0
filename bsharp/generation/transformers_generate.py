"""Decoding through transformers' own generate: for every architecture that the built-in decoder does not serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bsharp.generation.batching import Segment, distinct_prompts, pad_left, row_uniforms
from bsharp.generation.interface import GenerationRequest, SamplingParams
from bsharp.generation.local import LocalGenerator, Sampled, transformers_model
from bsharp.generation.sampling import choose_tokens

if TYPE_CHECKING:
    from bsharp.models.loading import LanguageModel

__all__ = ["TransformersGenerator"]


class TransformersGenerator(LocalGenerator):
    """The Generator interface over `model.generate`, with the same samples as the `Decoder` up to rounding.

    Each token is chosen by the project's own `choose_tokens` inside a logits processor, which leaves generate one
    token a row to take, and notes its log-probability there: seeds, prefixes and SamplingParams mean the same as with
    the decoder, and no scores are kept. Nothing of the model's generation_config (top_p, top_k, repetition penalties,
    forced tokens, lengths) takes part. Each row runs its own prompt, and rows stay in the batch until all have ended:
    slower than the decoder, with memory for max_rows × (prompt + new tokens).

    Prompts are padded on the left under an attention mask; a model with a recurrent state, which padding would enter,
    gets only prompts of one length side by side.
    """

    def __init__(self, language_model: LanguageModel, max_rows: int = 512, policy_version: int = 0) -> None:
        super().__init__(language_model, max_rows, policy_version)
        self._pad_prompts = not has_recurrent_state(transformers_model(language_model.model))

    def _decode(
        self, requests: Sequence[GenerationRequest], segments: Sequence[Segment], params: SamplingParams
    ) -> Sampled:
        language_model = self._language_model
        device, model = language_model.device, transformers_model(language_model.model)
        prompts, row_prompts = distinct_prompts(requests, segments)
        mask, token_ids = pad_left(prompts, language_model.pad_token_id, device)
        uniforms = torch.from_numpy(row_uniforms(requests, segments, params.max_new_tokens)).to(device)
        choice = _Choice(uniforms, params, language_model.eos_token_ids)
        settings = GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            do_sample=False,
            eos_token_id=list(language_model.eos_token_ids),
            pad_token_id=language_model.pad_token_id,
            use_cache=True,
            disable_compile=True,
        )
        with _without_settings(model):
            model.generate(
                token_ids[row_prompts],
                attention_mask=mask[row_prompts].long(),
                generation_config=settings,
                logits_processor=LogitsProcessorList([choice]),
            )
        if choice.sampled is None:
            raise ValueError(f"{type(model).__name__}.generate asked for no token; use another generator for it")
        return choice.sampled


class _Choice(LogitsProcessor):  # type: ignore[misc]
    """Chooses the token of each row, notes it with its log-probability, and leaves nothing else to choose from."""

    def __init__(self, uniforms: Float[Tensor, "B T"], params: SamplingParams, eos_token_ids: Sequence[int]) -> None:
        self._uniforms, self._params, self._eos_token_ids = uniforms, params, eos_token_ids
        self._step = 0
        self._rows: Int[Tensor, " rows"] = torch.arange(len(uniforms), device=uniforms.device)
        self.sampled: Sampled | None = None

    def __call__(self, input_ids: Int[Tensor, "B S"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        count, limit = self._uniforms.shape
        if self.sampled is None:
            self.sampled = Sampled.nothing(count, limit, scores.shape[-1], self._eos_token_ids, scores.device)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._eos_token_ids[0]] = 0.0  # of rows that have ended; generate replaces it by padding
        rows = self._rows
        if self._step < limit and len(rows):
            uniforms = self._uniforms[rows, self._step]
            chosen, logprobs = choose_tokens(scores[rows], uniforms, self._params, self._eos_token_ids)
            ended = self.sampled.record(rows, self._step, chosen, logprobs)
            forced[rows, self._eos_token_ids[0]] = -torch.inf
            forced[rows, chosen] = 0.0
            self._rows = rows[~ended]
        self._step += 1
        return forced


def has_recurrent_state(model: Any) -> bool:
    """Whether the model carries a state from token to token that no attention mask keeps padding out of."""
    layer_types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    attention = {"full_attention", "sliding_attention", "chunked_attention"}
    return bool(getattr(model, "_is_stateful", False)) or not attention.issuperset(layer_types)


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """The model's own generation_config is empty inside: generate would fill in from it whatever is not given."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
