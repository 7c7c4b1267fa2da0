"""Prompts and responses of a micro-batch as one row of tokens without padding, and where attention finds them.

Every distinct prompt stands once, whatever the number of its responses. The last token of a response predicts nothing and is
left out, so that N = Σ prompt lengths + Σ (response lengths − 1) tokens go through the network. Attention runs on padded
grids of sequences of similar length, which are gathered from the packed tokens and gathered back by index tensors made here.

Worked example: prompt (7, 8) with responses (3, 4, 1) and (5, 1):

    token_ids  7 8 | 3 4 | 5        positions  0 1 | 2 3 | 2
    predictor  1 2 3 1 4            targets    3 4 1 5 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from bsharp.models.network import Network

__all__ = ["Grid", "Packing", "pack"]

LENGTH_STEP = 16
"""Sequences whose lengths fall into the same step of so many tokens share a grid."""


@dataclass(frozen=True, eq=False)
class Grid:
    """R sequences whose last Q tokens ask and whose S tokens are asked, both filled up to the longest."""

    queries: Int[Tensor, " R*H*Q"]  # query head (token · heads + head) at each place
    keys: Int[Tensor, " R*G*S"]  # key head (token · kv_heads + head) at each place
    forbidden: Float[Tensor, "R 1 Q S"]  # 0, or −∞ where a key comes after the query
    filler: Bool[Tensor, "R 1 Q 1"] | None  # queries that stand for no token; None where there are none
    shape: tuple[int, int, int]  # R, Q, S


@dataclass(frozen=True, eq=False)
class Packing:
    """N packed tokens, M predicted ones; `parts` are consecutive problems, each with its slice of both."""

    token_ids: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]
    predictor: Int[Tensor, " M"]  # the packed token whose hidden state predicts each response token
    targets: Int[Tensor, " M"]  # the response tokens
    places: Int[Tensor, " M"]  # where they stand in the (B, T) responses, flattened
    parts: tuple[tuple[slice, slice], ...]  # of packed tokens, of predicted tokens
    grids: tuple[Grid, ...]
    query_places: Int[Tensor, " N*H"]  # where the grids, one after the other, hold each query head
    kv_heads: int

    @cached_property
    def key_places(self) -> tuple[Int[Tensor, " E"], Int[Tensor, " N*G"]]:
        """Where the grids hold each key head, E places in all, and where the places of each key head begin among these."""
        if not self.grids:
            return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        keys = torch.cat([grid.keys for grid in self.grids])
        real = torch.cat([_real_keys(grid, self.kv_heads) for grid in self.grids]).nonzero().squeeze(-1)
        owners, order = keys[real].sort(stable=True)
        return real[order], torch.searchsorted(owners, torch.arange(len(self.token_ids) * self.kv_heads))

    def spread(self, values: Float[Tensor, " M"], shape: tuple[int, int]) -> Float[Tensor, "B T"]:
        """Values of the predicted tokens at their places in the responses, 0 elsewhere."""
        return values.new_zeros(shape[0] * shape[1]).index_copy_(0, self.places, values).view(shape)


def pack(
    network: Network,
    prompts: Sequence[Sequence[int]],
    responses: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    parts: Sequence[Sequence[int]] | None = None,
) -> Packing:
    """Pack B rows; `parts` deals them, by default all are one part. A prompt that two parts have in common stands twice.

    Rows of a part need not share a prompt. A row without a token adds nothing. Raises ValueError for an empty prompt.
    """
    if min((len(prompt) for prompt in prompts), default=1) < 1:
        raise ValueError("every prompt needs at least one token, got an empty one; add a BOS token or prompt text")
    lengths = mask.sum(-1).numpy()
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predictor: list[np.ndarray] = []
    rows_in_order: list[int] = []
    slices: list[tuple[slice, slice]] = []
    prompt_spans: list[tuple[int, int]] = []  # first token, length
    spans: list[
        tuple[int, int, int, int]
    ] = []  # of each row: first token of the prompt, its length, first own, their number
    count = predicted = 0
    ids = responses.numpy()
    for part in parts if parts is not None else [range(len(prompts))]:
        first_token, first_predicted = count, predicted
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for row in part:
            if lengths[row]:
                by_prompt.setdefault(tuple(prompts[row]), []).append(row)
        for prompt, rows in by_prompt.items():
            start, size = count, len(prompt)
            prompt_spans.append((start, size))
            tokens.append(np.asarray(prompt))
            positions.append(np.arange(size))
            count += size
            for row in rows:
                own = int(lengths[row]) - 1
                tokens.append(ids[row, :own])
                positions.append(np.arange(size, size + own))
                predictor.append(np.concatenate([[start + size - 1], np.arange(count, count + own)]))
                spans.append((start, size, count, own))
                count += own
                predicted += own + 1
            rows_in_order += rows
        slices.append((slice(first_token, count), slice(first_predicted, predicted)))
    width = responses.shape[1]
    places = [row * width + np.arange(lengths[row]) for row in rows_in_order]
    asked = [(start, size, start, size) for start, size in prompt_spans], [span for span in spans if span[3]]
    grids = [grid for sequences in asked for grid in _grids(network, np.asarray(sequences).reshape(-1, 4))]
    return Packing(
        token_ids=_joined(tokens),
        positions=_joined(positions),
        predictor=_joined(predictor),
        targets=responses.reshape(-1).index_select(0, _joined(places)),
        places=_joined(places),
        parts=tuple(slices),
        grids=tuple(grid for grid, _ in grids),
        query_places=_query_places(network, count, [grid for grid, _ in grids], [real for _, real in grids]),
        kv_heads=network.kv_heads,
    )


def _joined(pieces: list[np.ndarray]) -> Int[Tensor, " N"]:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, dtype=np.int64))


def _grids(network: Network, sequences: np.ndarray) -> list[tuple[Grid, Tensor]]:
    """Grids over sequences (first token of the prompt, its length, first own token, number of own tokens).

    A prompt by itself counts as its own tokens: its queries see what comes before them among these.
    """
    steps = (sequences[:, 3] + LENGTH_STEP - 1) // LENGTH_STEP
    return [_grid(network, sequences[steps == step]) for step in np.unique(steps)]


def _grid(network: Network, sequences: np.ndarray) -> tuple[Grid, Tensor]:
    """A grid, and which of its queries stand for a token, (R, Q)."""
    prompt, before, own, number = (torch.from_numpy(column)[:, None] for column in sequences.T)
    alone = prompt == own  # a prompt by itself
    before = torch.where(alone, 0, before)
    asking, asked = int(number.max()), int((before + number).max())
    query, key = torch.arange(asking)[None, :], torch.arange(asked)[None, :]
    real = query < number
    query_tokens = torch.where(real, own + query, own)
    key_tokens = torch.where(key < before, prompt + key, torch.where(key < before + number, own + key - before, own))
    later = key[:, None, :] > before[:, :, None] + query[:, :, None]
    if bool((before == before[0]).all()):
        later = later[:1]
    forbidden = torch.zeros(later.shape, dtype=torch.promote_types(network.dtype, torch.float32))
    forbidden.masked_fill_(later, -torch.inf)
    queries = query_tokens[:, None, :] * network.heads + torch.arange(network.heads)[None, :, None]
    keys = key_tokens[:, None, :] * network.kv_heads + torch.arange(network.kv_heads)[None, :, None]
    filler = None if bool(real.all()) else ~real[:, None, :, None]
    shape = (len(sequences), asking, asked)
    return Grid(queries.reshape(-1), keys.reshape(-1), forbidden[:, None], filler, shape), real


def _query_places(network: Network, tokens: int, grids: list[Grid], real: list[Tensor]) -> Int[Tensor, " N*H"]:
    places = torch.empty(tokens * network.heads, dtype=torch.long)
    first = 0
    for grid, stands in zip(grids, real, strict=True):
        here = stands[:, None, :].expand(-1, network.heads, -1).reshape(-1).nonzero().squeeze(-1)
        places[grid.queries[here]] = first + here
        first += len(grid.queries)
    return places


def _real_keys(grid: Grid, kv_heads: int) -> Bool[Tensor, " R*G*S"]:
    """Keys that some query is allowed to see; the others only fill up."""
    rows, _, asked = grid.shape
    seen = torch.isfinite(grid.forbidden) if grid.filler is None else torch.isfinite(grid.forbidden) & ~grid.filler
    return seen.any(2)[:, 0].expand(rows, asked)[:, None, :].expand(-1, kv_heads, -1).reshape(-1)
