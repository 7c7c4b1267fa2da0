"""Requests cut into micro-batches of rows, whatever decodes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bsharp.generation.interface import GenerationRequest
from bsharp.generation.sampling import request_uniforms

__all__ = ["Segment", "distinct_prompts", "fill_holes", "micro_batches", "pad_left", "row_uniforms", "split_segments"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows first … first + count − 1 of one request: what a micro-batch is made of."""

    request: int
    first: int
    count: int


def micro_batches(
    requests: Sequence[GenerationRequest], max_rows: int, pad_prompts: bool = True
) -> Iterator[list[Segment]]:
    """Requests from short to long prompts, equal prompts side by side, in batches of at most max_rows rows.

    Without `pad_prompts` the prompts of a batch have one length.
    """
    prompts = [request.prompt_token_ids for request in requests]
    order = sorted(range(len(requests)), key=lambda index: (len(prompts[index]), prompts[index]))
    batch: list[Segment] = []
    rows = 0
    for request in order:
        for first in range(0, requests[request].num_samples, max_rows):
            count = min(max_rows, requests[request].num_samples - first)
            ragged = bool(batch) and len(prompts[batch[0].request]) != len(prompts[request])
            if batch and (rows + count > max_rows or (ragged and not pad_prompts)):
                yield batch
                batch, rows = [], 0
            batch.append(Segment(request, first, count))
            rows += count
    if batch:
        yield batch


def split_segments(segments: Sequence[Segment], pieces: int) -> list[list[Segment]]:
    """The rows of a micro-batch in at most so many pieces of about equally many rows, in order; a request is cut only where
    there are fewer requests than pieces."""
    if len(segments) < pieces:
        segments = [
            Segment(whole.request, whole.first + start, min(size, whole.count - start))
            for whole in segments
            for size in [-(-whole.count // pieces)]
            for start in range(0, whole.count, size)
        ]
    rows = sum(segment.count for segment in segments)
    dealt: list[list[Segment]] = [[] for _ in range(pieces)]
    before = 0
    for segment in segments:
        dealt[min(pieces - 1, (before + segment.count // 2) * pieces // rows)].append(segment)
        before += segment.count
    return [piece for piece in dealt if piece]


def distinct_prompts(
    requests: Sequence[GenerationRequest], segments: Sequence[Segment]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """The different prompts of a micro-batch, and for each of its rows which of them it continues."""
    numbers: dict[tuple[int, ...], int] = {}
    row_prompts: list[int] = []
    for segment in segments:
        number = numbers.setdefault(requests[segment.request].prompt_token_ids, len(numbers))
        row_prompts.extend([number] * segment.count)
    return list(numbers), row_prompts


def row_uniforms(requests: Sequence[GenerationRequest], segments: Sequence[Segment], max_new_tokens: int) -> np.ndarray:
    """The uniforms of all rows of a micro-batch, (B, T) float64."""
    blocks = []
    for segment in segments:
        end = segment.first + segment.count
        blocks.append(request_uniforms(requests[segment.request].seed, end, max_new_tokens)[segment.first :])
    return np.concatenate(blocks)


def pad_left(
    prompts: Sequence[tuple[int, ...]], value: int, device: torch.device
) -> tuple[Bool[Tensor, "P T"], Int[Tensor, "P T"]]:
    """Mask and token ids of the prompts, aligned on the right so that every row's last position is its last token."""
    width = max(len(prompt) for prompt in prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    token_ids = torch.tensor([[value] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.arange(width)[None, :] >= (width - lengths)[:, None]
    return mask.to(device), token_ids.to(device)


def fill_holes(ended: Bool[Tensor, " rows"]) -> Int[Tensor, " kept"]:
    """Which old row each kept row is: rows that go on stay where they are, and the last ones fill the holes."""
    survivors = (~ended).nonzero().squeeze(-1)
    kept = torch.arange(len(survivors), device=ended.device)
    kept[ended[: len(survivors)]] = survivors[survivors >= len(survivors)]
    return kept
