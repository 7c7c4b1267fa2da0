"""How rows are dealt to pieces and micro-batches, and how rows that go on close ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bsharp.generation import GenerationRequest
from bsharp.generation.batching import Segment, fill_holes, micro_batches, row_uniforms, split_segments


def rows_of(segments: list[Segment]) -> list[tuple[int, int]]:
    return [(one.request, one.first + place) for one in segments for place in range(one.count)]


def random_segments(seed: int) -> list[Segment]:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    return [Segment(request, int(rng.integers(4)), int(rng.integers(1, 10))) for request in range(count)]


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 16])
def test_pieces_hold_every_row_once_in_order_and_are_at_most_as_many_as_asked_for(pieces: int) -> None:
    for seed in range(200):
        segments = random_segments(seed)
        dealt = split_segments(segments, pieces)
        assert 1 <= len(dealt) <= pieces
        assert all(dealt)
        assert [row for piece in dealt for row in rows_of(piece)] == rows_of(segments)
        assert all(one.count > 0 for piece in dealt for one in piece)


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_pieces_are_as_large_as_each_other_to_within_a_request(pieces: int) -> None:
    for seed in range(200):
        segments = random_segments(seed)
        if len(segments) < pieces:
            continue
        sizes = [len(rows_of(piece)) for piece in split_segments(segments, pieces)]
        even = sum(sizes) / pieces
        largest = max(one.count for one in segments)
        assert max(sizes) < even + largest
        assert len(sizes) < pieces or min(sizes) > even - largest


def test_requests_as_many_as_pieces_stay_whole() -> None:
    for seed in range(100):
        segments = random_segments(seed)
        for pieces in range(1, len(segments) + 1):
            assert [one for piece in split_segments(segments, pieces) for one in piece] == segments


@pytest.mark.parametrize(
    ("count", "pieces", "sizes"), [(10, 2, [5, 5]), (7, 3, [3, 3, 1]), (2, 4, [1, 1]), (1, 2, [1])]
)
def test_a_single_request_is_cut(count: int, pieces: int, sizes: list[int]) -> None:
    dealt = split_segments([Segment(4, 3, count)], pieces)
    assert [len(rows_of(piece)) for piece in dealt] == sizes
    assert [row for piece in dealt for row in rows_of(piece)] == [(4, 3 + row) for row in range(count)]


def test_the_uniforms_of_a_cut_request_are_those_of_its_rows() -> None:
    requests = [GenerationRequest((2,), 9, seed=3), GenerationRequest((4, 5), 4, seed=8)]
    whole = [Segment(0, 0, 9), Segment(1, 0, 4)]
    cut = [Segment(0, 0, 2), Segment(0, 2, 7), Segment(1, 0, 1), Segment(1, 1, 3)]
    np.testing.assert_array_equal(row_uniforms(requests, whole, 6), row_uniforms(requests, cut, 6))


@pytest.mark.parametrize("max_rows", [1, 4, 7, 100])
def test_micro_batches_hold_every_row_once_and_no_more_than_fit(max_rows: int) -> None:
    requests = [GenerationRequest((2,) * (1 + i % 4), 1 + 3 * (i % 3), seed=i) for i in range(9)]
    batches = list(micro_batches(requests, max_rows))
    assert max(len(rows_of(batch)) for batch in batches) <= max_rows
    found = sorted(row for batch in batches for row in rows_of(batch))
    assert found == [(index, row) for index, request in enumerate(requests) for row in range(request.num_samples)]


def test_rows_that_go_on_keep_their_place_or_fill_a_hole() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        ended = torch.rand(int(torch.randint(1, 12, (1,), generator=draw)), generator=draw) < 0.4
        kept = fill_holes(ended)
        assert sorted(kept.tolist()) == (~ended).nonzero().flatten().tolist()
        stays = [row for row in range(len(kept)) if not ended[row]]
        assert kept[stays].tolist() == stays
