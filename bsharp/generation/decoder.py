"""The built-in generator: batched decoding with a KV cache through the ordinary forward of a transformers causal LM."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bsharp.generation.batching import Segment, distinct_prompts, fill_holes, pad_left, row_uniforms, split_segments
from bsharp.generation.cache import deal_rows
from bsharp.generation.interface import GenerationRequest, SamplingParams
from bsharp.generation.local import LocalGenerator, Sampled, transformers_model
from bsharp.generation.network_steps import NetworkSteps, StepWeights
from bsharp.generation.sampling import choose_tokens
from bsharp.generation.static import Capture, CudaGraphs, FixedShapeSteps, graphs_for, serves
from bsharp.generation.step_program import program
from bsharp.models.network import network_of
from bsharp.models.parallel import TINY_WEIGHTS, run_pieces, threads_for_pieces
from bsharp.models.products import product_library
from bsharp.types import Completion

if TYPE_CHECKING:
    from bsharp.models.loading import LanguageModel

__all__ = ["Decoder"]

LEAST_ROWS = 64
"""Rows from which on those of a tiny model are dealt to threads: fewer are not worth waiting for each other's Python."""
LEAST_SHARE = 8
"""Rows that have ended leave once they are this part of all: moving rows costs something, and so do products of a new shape."""
CAPACITY_MULTIPLE = 64
"""Fixed shapes hold a multiple of this many tokens: attention kernels want aligned masks."""


@dataclass(slots=True)
class _GrowingSteps:
    """The rows of a micro-batch that are still being decoded, each step one column longer than the one before."""

    model: Any
    takes_positions: bool
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

    def next_logits(self, token_ids: Int[Tensor, " rows"], step: int) -> Float[Tensor, "rows V"]:
        """Logits after `token_ids`, the step-th tokens of the responses."""
        arguments: dict[str, Any] = {}
        if self.mask is not None:
            arguments["attention_mask"] = self.mask[:, : self.prompt_width + step + 1]
        if self.takes_positions:
            arguments["position_ids"] = self.prompt_lengths + step
        output = self.model(input_ids=token_ids[:, None], past_key_values=self.cache, use_cache=True, **arguments)
        logits: Tensor = output.logits[:, -1]
        return logits


class Decoder(LocalGenerator):
    """Samples from a transformers causal LM, all requests batched.

    A prompt is run once and its cache dealt to its samples; equal prompts of a micro-batch count as one. Prompts are
    padded on the left under an attention mask with explicit positions. Rows that have ended leave the batch once they are an
    eighth of it. Memory grows with max_rows × (prompt + new tokens).

    On the CPU the families that `network_of` reads decode with their weights alone (`bsharp.generation.network_steps`).
    On CUDA the steps have fixed shapes and are captured as CUDA graphs (`bsharp.generation.static`); `capture` asks for
    fixed shapes on any device and says how steps are captured. Everything else decodes in steps that grow, through the model's
    own modules. Equal calls on equal threads are equal bit for bit.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        max_rows: int = 512,
        policy_version: int = 0,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(language_model, max_rows, policy_version)
        self._model = transformers_model(language_model.model)
        accepted = inspect.signature(self._model.forward).parameters
        # A model with relative positions takes no position_ids; one without logits_to_keep returns all positions.
        self._takes_positions = "position_ids" in accepted
        self._last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._capture = capture
        self._graphs: CudaGraphs | None = None
        self._fixed: FixedShapeSteps | None = None
        self._weights: StepWeights | None = None

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[tuple[Completion, ...]]:
        """As `LocalGenerator.generate`. Copies of weights and buffers of fixed shape are made for the call and freed after it."""
        network = None if self._capture else network_of(self._language_model.model)
        if network is not None and network.dtype == torch.float64:  # asked for to be exact, not fast
            network = None
        try:
            self._weights = None if network is None else StepWeights(network)
            return super().generate(requests, params)
        finally:
            self._fixed = self._weights = None

    def _decode(
        self, requests: Sequence[GenerationRequest], segments: Sequence[Segment], params: SamplingParams
    ) -> Sampled:
        weights = self._weights
        if weights is None:
            return self._decode_by_modules(requests, segments, params)
        size = weights.network.weight_bytes
        pieces = split_segments(segments, _threads(size, sum(segment.count for segment in segments)))

        def prepared(piece: Sequence[Segment]) -> tuple[NetworkSteps, Tensor]:
            steps = NetworkSteps(weights, *distinct_prompts(requests, piece), params.max_new_tokens)
            return steps, torch.from_numpy(row_uniforms(requests, piece, params.max_new_tokens))

        def drawn(piece: tuple[NetworkSteps, Tensor]) -> Sampled:
            return self._draw(piece[0], piece[0].first_logits, piece[1], params)

        if size < TINY_WEIGHTS and product_library(size) == "default":
            return Sampled.joined(run_pieces(lambda piece: drawn(prepared(piece)), pieces))
        # Larger prompts are run by all threads together. So are those whose products another library computes: it is chosen for
        # the whole process, and a piece that is further on already would decode with it.
        return Sampled.joined(run_pieces(drawn, [prepared(piece) for piece in pieces]))

    def _decode_by_modules(
        self, requests: Sequence[GenerationRequest], segments: Sequence[Segment], params: SamplingParams
    ) -> Sampled:
        """Through the model's own forward pass."""
        device = self._language_model.device
        if self._fixed is None and self._takes_positions:
            self._fixed = self._fixed_shape_steps(requests, params)
        prompts, row_prompts = distinct_prompts(requests, segments)
        uniforms = torch.from_numpy(row_uniforms(requests, segments, params.max_new_tokens)).to(device)
        batch, logits = self._prefill(prompts, torch.tensor(row_prompts, device=device), params.max_new_tokens)
        return self._draw(batch, logits, uniforms, params)

    def _draw(
        self,
        batch: NetworkSteps | _GrowingSteps | FixedShapeSteps,
        logits: Float[Tensor, "B V"],
        uniforms: Float[Tensor, "B T"],
        params: SamplingParams,
    ) -> Sampled:
        """Token after token, from the logits of the first; rows that have ended leave once they are an eighth of all."""
        eos_token_ids = self._language_model.eos_token_ids
        num_rows, limit = uniforms.shape
        sampled = Sampled.nothing(num_rows, limit, logits.shape[-1], eos_token_ids, uniforms.device)
        for step in range(limit):
            chosen, logprobs = choose_tokens(logits, uniforms[batch.rows, step], params, eos_token_ids)
            ended = sampled.record(batch.rows, step, chosen, logprobs)
            count = int(ended.sum())
            if step + 1 == limit or count == len(ended):
                break
            if count * LEAST_SHARE >= len(ended):
                kept = fill_holes(ended)
                batch.keep(kept)
                chosen = chosen[kept]
            logits = batch.next_logits(chosen, step)
        return sampled

    def _fixed_shape_steps(
        self, requests: Sequence[GenerationRequest], params: SamplingParams
    ) -> FixedShapeSteps | None:
        """Buffers with room for every micro-batch of the call, or None where steps are to grow."""
        capture = self._capture or self._graphs_of_call()
        if capture is None:
            return None
        longest = max(len(request.prompt_token_ids) for request in requests) + params.max_new_tokens - 1
        capacity = -(-longest // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        rows = min(self._max_rows, sum(request.num_samples for request in requests))
        return FixedShapeSteps(self._model, rows, capacity, capture)

    def _graphs_of_call(self) -> CudaGraphs | None:
        """New graphs, whose memory pool goes with the call; after a failure those that failed: they hand back plain steps."""
        if self._graphs is None or self._graphs.failure is None:
            self._graphs = graphs_for(self._language_model.device)
        return self._graphs

    def _prefill(
        self, prompts: Sequence[tuple[int, ...]], row_prompts: Int[Tensor, " B"], limit: int
    ) -> tuple[_GrowingSteps | FixedShapeSteps, Float[Tensor, "B V"]]:
        """Run each prompt once; its samples, ready for their steps, and the logits of their first tokens."""
        mask, token_ids = pad_left(prompts, self._language_model.pad_token_id, self._language_model.device)
        lengths, width = mask.sum(-1), token_ids.shape[1]
        padded = bool((lengths < width).any())
        arguments: dict[str, Any] = {"attention_mask": mask.long()} if padded else {}
        if self._takes_positions:
            arguments["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self._model(input_ids=token_ids, use_cache=True, **self._last_logits_only, **arguments)
        cache = getattr(output, "past_key_values", None)
        if not hasattr(cache, "layers"):
            raise ValueError(f"{type(self._model).__name__} returns no key/value cache; use another generator for it")
        logits = output.logits[:, -1].index_select(0, row_prompts)
        if self._fixed is not None and serves(self._model, cache):
            self._fixed.load(cache, row_prompts, mask, lengths)
            return self._fixed, logits
        # The last token drawn is never fed back, so it needs no room.
        deal_rows(cache, row_prompts, width + limit - 1)
        rows = torch.arange(len(row_prompts), device=mask.device)
        row_mask = None
        if padded:
            response_mask = mask.new_ones((len(row_prompts), limit))
            row_mask = torch.cat([mask.index_select(0, row_prompts), response_mask], dim=-1).long()
        row_lengths = lengths.index_select(0, row_prompts)[:, None]
        return _GrowingSteps(self._model, self._takes_positions, cache, rows, row_lengths, row_mask, width), logits


def _threads(weight_bytes: int, rows: int) -> int:
    """Into how many pieces the rows of a micro-batch are best dealt."""
    if weight_bytes < TINY_WEIGHTS and (rows < LEAST_ROWS or not program()[1]):
        return 1  # the threads would wait for each other's Python
    return threads_for_pieces(weight_bytes)
