"""The in-place cache layer against transformers' own, and the caches that cannot be decoded row by row."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache, LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

from bsharp.generation.cache import deal_rows


def test_in_place_rows_equal_those_of_the_concatenating_cache() -> None:
    """Prefill, deal, then steps with rows dropped and reordered: the same states at every point."""
    generator = torch.Generator().manual_seed(0)
    reference, in_place = DynamicCache(), DynamicCache()
    prompt = torch.randn(3, 2, 5, 4, generator=generator)
    row_sources = torch.tensor([0, 0, 2, 1, 1, 1])
    for layer in range(2):
        for cache in (reference, in_place):
            cache.update(prompt + layer, -prompt - layer, layer)
    reference.batch_select_indices(row_sources)
    deal_rows(in_place, row_sources, capacity=10)
    for selection in ([0, 1, 2, 3, 4, 5], [0, 5, 2, 4], [3, 1, 1], [2], [0]):
        step = torch.randn(reference.layers[0].keys.shape[0], 2, 1, 4, generator=generator)
        for layer in range(2):
            expected = reference.update(step, 2 * step, layer)
            actual = in_place.update(step, 2 * step, layer)
            for left, right in zip(actual, expected, strict=True):
                assert torch.equal(left, right)
        assert in_place.get_seq_length() == reference.get_seq_length()
        assert in_place.get_mask_sizes(1, 0) == reference.get_mask_sizes(1, 0)
        for cache in (reference, in_place):
            cache.batch_select_indices(torch.tensor(selection))
        assert torch.equal(in_place.layers[1].values, reference.layers[1].values)
    assert in_place.layers[0].keys.untyped_storage().nbytes() == 6 * 2 * 10 * 4 * 4, "steps write into one buffer"


@pytest.mark.parametrize("layer_class", [LinearAttentionLayer, LinearAttentionAndFullAttentionLayer])
def test_a_recurrent_state_is_refused_by_name(layer_class: type) -> None:
    cache = DynamicCache()
    cache.layers.append(layer_class())
    with pytest.raises(ValueError, match=rf"keeps a {layer_class.__name__}.*another generator"):
        deal_rows(cache, torch.tensor([0, 0]), capacity=4)
