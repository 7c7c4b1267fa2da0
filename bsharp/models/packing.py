"""Prompts and responses of a micro-batch as one row of tokens without padding, and where attention finds them.

What texts begin with stands once: a prompt, whatever the number of its responses, and the tokens with which several of
these begin alike. The last token of a response predicts nothing and is left out. So the N packed tokens are the nodes of a
tree of prefixes, at most Σ prompt lengths + Σ (response lengths − 1) of them. Attention runs on padded grids of sequences of
similar length, which are gathered from the packed tokens and gathered back by index tensors made here.

Worked example: prompt (7, 8) with responses (3, 4, 1), (5, 1) and (3, 4, 6, 1):

    token_ids  7 8 | 3 4 | 6 | 5            positions  0 1 | 2 3 | 4 | 2
    predictor  1 2 3 | 1 2 3 4 | 1 5        targets    3 4 1 | 3 4 6 1 | 5 1
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

from bsharp.models.parallel import SMALL_WEIGHTS, TINY_WEIGHTS

if TYPE_CHECKING:
    from bsharp.models.network import Network

__all__ = ["Grid", "Packing", "bundles", "pack"]

LENGTH_STEP = 16
"""Sequences whose lengths fall into the same step of so many tokens share a grid."""

TINY_BUNDLE = 2**12
"""Tokens that tiny models run at once: fewer would not pay for the operations. Small ones, whose bundles are dealt to threads,
run no more: with larger pieces memory is asked for and cleared all the time."""
LEAST_BUNDLE = 2**9
"""Tokens below which a bundle is not cut to give every thread one."""


@dataclass(frozen=True, eq=False)
class Grid:
    """R sequences whose last Q tokens ask and whose S tokens are asked, both filled up to the longest."""

    queries: Int[Tensor, " R*H*Q"]  # query head (token · heads + head) at each place
    keys: Int[Tensor, " R*G*S"]  # key head (token · kv_heads + head) at each place
    forbidden: Float[Tensor, "R 1 Q S"]  # 0, or −∞ where a key comes after the query
    filler: Bool[Tensor, "R 1 Q 1"] | None  # queries that stand for no token; None where there are none
    seen: Bool[Tensor, "R S"]  # keys that some query may see; the others only fill up
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
        seen = [grid.seen[:, None, :].expand(-1, self.kv_heads, -1).reshape(-1) for grid in self.grids]
        real = torch.cat(seen).nonzero().squeeze(-1)
        owners, order = keys[real].sort(stable=True)
        return real[order], torch.searchsorted(owners, torch.arange(len(self.token_ids) * self.kv_heads))

    def spread(self, values: Float[Tensor, " M"], shape: tuple[int, int]) -> Float[Tensor, "B T"]:
        """Values of the predicted tokens at their places in the responses, 0 elsewhere."""
        return values.new_zeros(shape[0] * shape[1]).index_copy_(0, self.places, values).view(shape)


def bundles(
    network: Network,
    prompts: Sequence[Sequence[int]],
    mask: Bool[Tensor, "B T"],
    parts: Sequence[Sequence[int]],
    microbatch_rows: int,
    threads: int,
) -> list[list[int]]:
    """Which parts to run together, as places in `parts`: consecutive ones, of about as many tokens each.

    A bundle holds at most `microbatch_rows` rows, or more where prompts and responses together have no more tokens than so many
    of the longest responses (TINY_BUNDLE has the exceptions for small models); a part that is larger stands alone. The number
    of bundles is a multiple of `threads` where that leaves them long enough.
    """
    lengths, longest = mask.sum(-1).tolist(), mask.shape[1]
    costs = []
    for part in parts:
        tokens = sum(lengths[row] for row in part) + sum(
            len(prompt) for prompt in {tuple(prompts[row]) for row in part}
        )
        costs.append(min(tokens, len(part) * longest))
    limit = microbatch_rows * longest
    if network.weight_bytes < TINY_WEIGHTS:
        limit = TINY_BUNDLE
    elif network.weight_bytes <= SMALL_WEIGHTS:
        limit = min(limit, TINY_BUNDLE)
    number = max(1, -(-sum(costs) // limit))
    number = max(1, min(-(-number // threads) * threads, sum(costs) // LEAST_BUNDLE))
    share = sum(costs) / number
    dealt: list[list[int]] = []
    used = before = 0
    for place, cost in enumerate(costs):
        if not dealt or used + cost > limit or before + cost / 2 > share * len(dealt):
            dealt.append([])
            used = 0
        dealt[-1].append(place)
        used, before = used + cost, before + cost
    return dealt


def pack(
    network: Network,
    prompts: Sequence[Sequence[int]],
    responses: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    parts: Sequence[Sequence[int]] | None = None,
) -> Packing:
    """Pack B rows; `parts` deals them, by default all are one part. A prompt that two parts have in common stands twice.

    Rows of a part need not share a prompt. A row without a token adds nothing. Rows of a prompt come in an order in which those
    that begin alike are neighbours. Raises ValueError for an empty prompt.
    """
    if min((len(prompt) for prompt in prompts), default=1) < 1:
        raise ValueError("every prompt needs at least one token, got an empty one; add a BOS token or prompt text")
    lengths = mask.sum(-1).numpy()
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predictor: list[np.ndarray] = []
    rows_in_order: list[int] = []
    slices: list[tuple[slice, slice]] = []
    asking_prompts: list[_Sequence] = []
    asking_rows: list[_Sequence] = []
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
            asking_prompts.append((np.arange(start, start + size), size))
            tokens.append(np.asarray(prompt))
            positions.append(np.arange(size))
            count += size
            path = np.arange(start, start + size)
            order, shared = _by_prefix([ids[row, : lengths[row] - 1] for row in rows])
            for place, alike in zip(order, shared, strict=True):
                row = rows[place]
                own = int(lengths[row]) - 1 - alike
                tokens.append(ids[row, alike : alike + own])
                positions.append(np.arange(size + alike, size + alike + own))
                path = np.concatenate([path[: size + alike], np.arange(count, count + own)])
                predictor.append(path[size - 1 :])
                if own:
                    asking_rows.append((path, own))
                count += own
                predicted += alike + own + 1
                rows_in_order.append(row)
        slices.append((slice(first_token, count), slice(first_predicted, predicted)))
    width = responses.shape[1]
    places = [row * width + np.arange(lengths[row]) for row in rows_in_order]
    grids = [grid for sequences in (asking_prompts, asking_rows) for grid in _grids(network, sequences)]
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


_Sequence = tuple[np.ndarray, int]
"""The packed tokens of a text from its beginning on, and how many of its last ones ask: those before it ask elsewhere."""


def _by_prefix(rows: list[np.ndarray]) -> tuple[list[int], list[int]]:
    """An order of the rows and how many tokens each then shares with the one before it, the most it shares with any before.

    The order is that of the bytes of the tokens: any in which equal beginnings are neighbours will do. Where nothing is shared
    the rows stay in theirs.
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row].tobytes())
    shared = [0] * len(rows)
    for place in range(1, len(rows)):
        one, other = rows[order[place - 1]], rows[order[place]]
        size = min(len(one), len(other))
        differ = (one[:size] != other[:size]).nonzero()[0]
        shared[place] = int(differ[0]) if len(differ) else size
    return (order, shared) if any(shared) else (list(range(len(rows))), shared)


def _grids(network: Network, sequences: list[_Sequence]) -> list[tuple[Grid, Tensor]]:
    """Grids over sequences whose asking tokens are about equally many."""
    by_step: dict[int, list[_Sequence]] = {}
    for sequence in sequences:
        by_step.setdefault(-(-sequence[1] // LENGTH_STEP), []).append(sequence)
    return [_grid(network, by_step[step]) for step in sorted(by_step)]


def _grid(network: Network, sequences: list[_Sequence]) -> tuple[Grid, Tensor]:
    """A grid, and which of its queries stand for a token, (R, Q)."""
    number = torch.tensor([[own] for _, own in sequences])
    before = torch.tensor([[len(path) - own] for path, own in sequences])
    asking, asked = int(number.max()), int((before + number).max())
    # What fills up is a token of the row.
    key_tokens = torch.tensor([[int(path[-own])] for path, own in sequences]).repeat(1, asked)
    for row, (path, _) in enumerate(sequences):
        key_tokens[row, : len(path)] = torch.from_numpy(path)
    query, key = torch.arange(asking)[None, :], torch.arange(asked)[None, :]
    real = query < number
    query_tokens = key_tokens.gather(1, before + torch.where(real, query, 0))
    later = key[:, None, :] > before[:, :, None] + query[:, :, None]
    if bool((before == before[0]).all()):
        later = later[:1]
    forbidden = torch.zeros(later.shape, dtype=torch.promote_types(network.dtype, torch.float32))
    forbidden.masked_fill_(later, -torch.inf)
    queries = query_tokens[:, None, :] * network.heads + torch.arange(network.heads)[None, :, None]
    keys = key_tokens[:, None, :] * network.kv_heads + torch.arange(network.kv_heads)[None, :, None]
    filler = None if bool(real.all()) else ~real[:, None, :, None]
    shape = (len(sequences), asking, asked)
    seen = key < before + number
    return Grid(queries.reshape(-1), keys.reshape(-1), forbidden[:, None], filler, seen, shape), real


def _query_places(network: Network, tokens: int, grids: list[Grid], real: list[Tensor]) -> Int[Tensor, " N*H"]:
    places = torch.empty(tokens * network.heads, dtype=torch.long)
    first = 0
    for grid, stands in zip(grids, real, strict=True):
        here = stands[:, None, :].expand(-1, network.heads, -1).reshape(-1).nonzero().squeeze(-1)
        places[grid.queries[here]] = first + here
        first += len(grid.queries)
    return places
