"""The two-step search of a large vocabulary against the plain inverse CDF in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bsharp.generation import LogitsError, SamplingParams
from bsharp.generation.sampling import BLOCK, choose_tokens

JUST_BELOW_ONE = 1.0 - 2.0**-53
SIZES = (1024, 1025, 1280, 1281, 1535, 5000, 20_000)
"""From the largest that is searched in one step on; multiples of a block, one more, one less, and none of these."""
BOUNDARY = 1e-6
"""Relative distance of u from a value of the CDF within which the two searches may differ."""


def choose(logits: torch.Tensor, uniforms: torch.Tensor, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
    assert uniforms.dtype == torch.float64
    return choose_tokens(logits, uniforms, SamplingParams(1, **settings), (1,))  # type: ignore[arg-type]


def same(rows: int, uniform: float) -> torch.Tensor:
    return torch.full((rows,), uniform, dtype=torch.float64)


def plain_cdf(row: torch.Tensor) -> np.ndarray:
    """Of weights in fp32, as documented: their own rounding is none of the search's."""
    running = (row - row.max()).exp().double().cumsum(0)
    return (running / running[-1]).numpy()


def random_logits(rows: int, vocabulary: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn((rows, vocabulary), generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, 12.0])
def test_the_token_is_the_one_of_the_plain_inverse_cdf(vocabulary: int, scale: float) -> None:
    logits = random_logits(3, vocabulary, scale=scale)
    uniforms = torch.linspace(0, 1, 400, dtype=torch.float64)[:-1]
    agreed = 0
    for row in logits:
        tokens, logprobs = choose(row.expand(len(uniforms), -1), uniforms)
        cdf = plain_cdf(row)
        expected = np.searchsorted(cdf, uniforms.numpy(), side="right")
        for token, other, u in zip(tokens.tolist(), expected.tolist(), uniforms.tolist(), strict=True):
            if token != other:
                edges = cdf[min(token, other) : max(token, other)]
                assert np.abs(edges - u).min() <= BOUNDARY * max(u, 1e-30), (token, other, u)
            agreed += token == other
        torch.testing.assert_close(logprobs, row.double().log_softmax(-1)[tokens], atol=1e-6, rtol=1e-7)
    assert agreed > 0.97 * 3 * len(uniforms)


def test_an_even_grid_hits_each_token_in_proportion_also_within_the_tail_block() -> None:
    vocabulary, count = 5 * BLOCK + 3, 200_000
    row = random_logits(1, vocabulary, seed=4, scale=1.0)[0]
    row[-3:] = 6.0
    hits = torch.zeros(vocabulary)
    for uniforms in ((torch.arange(count, dtype=torch.float64) + 0.5) / count).split(20_000):
        hits += torch.bincount(choose(row.expand(len(uniforms), -1), uniforms)[0], minlength=vocabulary)
    assert float((hits - count * row.double().softmax(-1)).abs().max()) <= 1.5


def holes(vocabulary: int) -> dict[str, torch.Tensor]:
    """Which tokens have weight 0."""
    places = torch.arange(vocabulary)
    block = places // BLOCK
    last = (vocabulary - 1) // BLOCK
    random = torch.rand(vocabulary, generator=torch.Generator().manual_seed(9)) < 0.98
    return {
        "first_blocks": block < 2,
        "middle_blocks": (block >= 1) & (block < last - 1),
        "last_blocks": block >= last - 1,
        "tail_block": block == last,
        "all_but_the_tail_block": block != last,
        "ends_of_blocks": (places % BLOCK < 5) | (places % BLOCK >= BLOCK - 5) | (places >= vocabulary - 5),
        "nearly_all": random,
        "all_but_one": places != vocabulary // 2,
        "all_but_the_last": places != vocabulary - 1,
        "all_but_the_first": places != 0,
    }


@pytest.mark.parametrize("vocabulary", [1281, 1536, 5000])
@pytest.mark.parametrize("hole", holes(1281))
def test_a_token_of_weight_zero_is_never_drawn(vocabulary: int, hole: str) -> None:
    without = holes(vocabulary)[hole]
    logits = random_logits(60, vocabulary, seed=2)
    for nothing in (-torch.inf, -1e6):  # masked, and so improbable that its weight is 0 in fp32
        row = logits.masked_fill(without, nothing)
        for u in (0.0, 1e-300, 1e-12, 0.25, 0.5, 0.999999, JUST_BELOW_ONE):
            tokens, logprobs = choose(row, same(60, u))
            assert not without[tokens].any(), (u, nothing)
            assert torch.isfinite(logprobs).all()
    # u = 0 gives the first, the largest u the last of those that have a weight in fp32.
    possible = (~without).nonzero().flatten()
    flat = torch.zeros(1, vocabulary).masked_fill(without, -torch.inf)
    assert choose(flat, same(1, 0.0))[0].item() == possible[0]
    assert choose(flat, same(1, JUST_BELOW_ONE))[0].item() == possible[-1]


def test_a_grid_up_to_the_edge_of_every_block_draws_no_token_of_weight_zero() -> None:
    vocabulary = 5 * BLOCK + 100
    without = holes(vocabulary)["ends_of_blocks"]
    row = random_logits(1, vocabulary, seed=6, scale=2.0)[0].masked_fill(without, -torch.inf)
    edges = torch.from_numpy(plain_cdf(row))[BLOCK - 1 :: BLOCK]
    near = torch.cat([edges * (1 + step) for step in (-1e-7, -1e-9, -1e-16, 0.0, 1e-16, 1e-9, 1e-7)])
    near = near.clamp(0.0, JUST_BELOW_ONE)
    assert not without[choose(row.expand(len(near), -1), near)[0]].any()


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("bad", ["nan", "inf", "all_masked"])
@pytest.mark.parametrize("vocabulary", [1281, 1536])
def test_rows_without_a_distribution_are_an_error(greedy: bool, bad: str, vocabulary: int) -> None:
    logits = random_logits(4, vocabulary)
    if bad == "all_masked":
        logits[2] = -torch.inf
    else:
        logits[2, vocabulary - 1] = float(bad)
    for u in (0.0, 0.5, JUST_BELOW_ONE):
        with pytest.raises(LogitsError, match="no distribution"):
            choose(logits, same(4, u), greedy=greedy)


def test_the_greedy_choice_is_the_most_probable_token_whatever_u() -> None:
    logits = random_logits(20, 1281)
    logits[3, [40, 1280]] = 50.0
    for u in (0.0, 0.7, JUST_BELOW_ONE):
        tokens, logprobs = choose(logits, same(20, u), greedy=True)
        assert torch.equal(tokens, logits.argmax(-1))
        assert tokens[3] == 40
        torch.testing.assert_close(
            logprobs, logits.double().log_softmax(-1)[torch.arange(20), tokens], atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("settings", [{"temperature": 0.6}, {"top_k": 300}, {"top_p": 0.7}, {"fixed_length": True}])
def test_restrictions_and_temperature_come_before_the_search(settings: dict[str, object]) -> None:
    logits, uniforms = random_logits(200, 1300, seed=8), torch.linspace(0.001, 0.998, 200, dtype=torch.float64)
    tokens, logprobs = choose(logits, uniforms, **settings)
    wide = logits.double() / float(settings.get("temperature", 1.0))  # type: ignore[arg-type]
    order = wide.argsort(-1, descending=True)
    if "top_k" in settings:
        wide.scatter_(-1, order[:, 300:], -torch.inf)
    if "top_p" in settings:
        ordered = wide.softmax(-1).gather(-1, order)
        wide.scatter_(-1, order, wide.gather(-1, order).masked_fill(ordered.cumsum(-1) - ordered >= 0.7, -torch.inf))
    if "fixed_length" in settings:
        wide[:, 1] = -torch.inf
    torch.testing.assert_close(logprobs, wide.log_softmax(-1)[torch.arange(200), tokens], atol=2e-6, rtol=0)
    cdf = wide.softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cdf, uniforms[:, None], right=True)[:, 0]
    assert int((tokens != expected).sum()) <= 1
