"""What generators share whose model lives in this process: checks, micro-batches, seeds, versions, the completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bsharp.generation.batching import Segment, micro_batches
from bsharp.generation.interface import GenerationRequest, SamplingParams
from bsharp.types import Completion, FinishReason

if TYPE_CHECKING:
    from bsharp.models.loading import LanguageModel

__all__ = ["LocalGenerator", "Sampled", "transformers_model"]


def transformers_model(model: Any) -> Any:
    """The transformers model itself, out of PEFT's wrapper: its own forward and generate run the adapters' layers too."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


@dataclass(slots=True)
class Sampled:
    """What has been drawn for the B rows of a micro-batch, at most T tokens each."""

    tokens: Int[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]  # nats, float64
    lengths: Int[Tensor, " B"]  # T until the row has drawn an EOS id
    is_eos: Bool[Tensor, " V"]

    @classmethod
    def nothing(cls, rows: int, limit: int, vocabulary: int, eos: Sequence[int], device: torch.device) -> Sampled:
        """Room for `limit` tokens of each row."""
        is_eos = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        is_eos[list(eos)] = True
        tokens = torch.zeros((rows, limit), dtype=torch.long, device=device)
        logprobs = torch.zeros((rows, limit), dtype=torch.float64, device=device)
        return cls(tokens, logprobs, torch.full((rows,), limit, device=device), is_eos)

    @classmethod
    def joined(cls, pieces: Sequence[Sampled]) -> Sampled:
        """The rows of all pieces, in order."""
        if len(pieces) == 1:
            return pieces[0]
        tokens, logprobs, lengths = (
            torch.cat([getattr(piece, name) for piece in pieces]) for name in ("tokens", "logprobs", "lengths")
        )
        return cls(tokens, logprobs, lengths, pieces[0].is_eos)

    def record(
        self, rows: Int[Tensor, " rows"], step: int, chosen: Int[Tensor, " rows"], logprobs: Float[Tensor, " rows"]
    ) -> Bool[Tensor, " rows"]:
        """Write what `rows` have drawn at this step; which of them have ended, with it or before.

        What a row draws after its end is written too, behind its length.
        """
        self.tokens[rows, step] = chosen
        self.logprobs[rows, step] = logprobs
        before = self.lengths[rows] <= step
        ends = self.is_eos[chosen] & ~before
        self.lengths[rows[ends]] = step + 1
        return ends | before


class LocalGenerator(ABC):
    """A Generator over a LanguageModel of this process; a subclass says how the rows of one micro-batch are decoded.

    Requests are sorted by prompt length and cut into micro-batches of at most `max_rows` rows (a larger request alone
    is split). The samples of a request depend on its seed, its prompt and the weights only, up to the rounding of
    logits, which may vary in the last bits with the rows decoded beside it. The EOS token (any of `eos_token_ids`)
    belongs to the completion. Whether a row has ended is known from the EOS ids, never from the pad id, so pad == eos
    is no special case.
    """

    _pad_prompts = True

    def __init__(self, language_model: LanguageModel, max_rows: int = 512, policy_version: int = 0) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows = {max_rows}; decode at least 1 row at a time")
        self._language_model = language_model
        self._max_rows = max_rows
        self._policy_version = policy_version

    @property
    def policy_version(self) -> int:
        """Version given to the last `sync_weights`, before the first the one given at the start; completions carry it."""
        return self._policy_version

    def sync_weights(self, policy: nn.Module, version: int) -> None:
        """Copy the weights of `policy` into the generator's model, or nothing where it is that very model.

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
        with self._language_model.ready(), _evaluation_mode(self._language_model.model):
            batches = list(micro_batches(requests, self._max_rows, self._pad_prompts))
            for segments in batches:
                decoded = iter(self._completions(self._decode(requests, segments, params)))
                for segment in segments:
                    completions[segment.request].extend(next(decoded) for _ in range(segment.count))
        return [tuple(group) for group in completions]

    @abstractmethod
    def _decode(
        self, requests: Sequence[GenerationRequest], segments: Sequence[Segment], params: SamplingParams
    ) -> Sampled:
        """What the rows of one micro-batch have drawn, in the order of its segments."""

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

    def _completions(self, sampled: Sampled) -> list[Completion]:
        last = sampled.tokens.gather(1, (sampled.lengths - 1)[:, None]).squeeze(1)
        columns = (sampled.tokens, sampled.logprobs, sampled.lengths, sampled.is_eos[last])
        completions = []
        for row_tokens, row_logprobs, length, ended in zip(*(column.tolist() for column in columns), strict=True):
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
