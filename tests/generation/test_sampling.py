"""Laws of the choice of one token from logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bsharp.generation import SamplingParams
from bsharp.generation.sampling import choose_tokens, request_uniforms

JUST_BELOW_ONE = float(np.nextafter(1.0, 0.0))


def choose(logits: torch.Tensor, uniforms: list[float], **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
    eos_token_ids = settings.pop("eos_token_ids", (1,))
    params = SamplingParams(1, **settings)  # type: ignore[arg-type]
    return choose_tokens(logits, torch.tensor(uniforms, dtype=torch.float64), params, eos_token_ids)  # type: ignore[arg-type]


def test_an_even_grid_of_uniforms_hits_each_token_in_proportion_to_its_probability() -> None:
    """Inverse CDF: N uniforms spaced 1/N give each token N·p times, to within one."""
    count = 20_000
    row = torch.tensor([0.3, -2.0, 1.1, -torch.inf, 0.0, -4.0])
    tokens, logprobs = choose(row.expand(count, -1), ((np.arange(count) + 0.5) / count).tolist())
    hits = torch.bincount(tokens, minlength=6)
    expected = count * row.double().softmax(-1)
    assert ((hits - expected).abs() <= 1).all()
    assert torch.equal(tokens, tokens.sort().values), "a larger uniform never gives a lower id"
    torch.testing.assert_close(logprobs, row.double().log_softmax(-1)[tokens], atol=1e-6, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, JUST_BELOW_ONE])
def test_no_uniform_draws_a_token_of_probability_zero(uniform: float) -> None:
    """The masked EOS ids sit first and last, where rounding of u times the total could reach them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 33, generator=generator) * 4
    tokens, logprobs = choose(logits, [uniform] * 4000, fixed_length=True, eos_token_ids=(0, 31, 32))
    assert not torch.isin(tokens, torch.tensor([0, 31, 32])).any()
    assert torch.isfinite(logprobs).all()
    lone = torch.full((2, 5), -torch.inf)
    lone[:, 2] = 3.0
    tokens, logprobs = choose(lone, [uniform] * 2)
    assert tokens.tolist() == [2, 2]
    assert logprobs.tolist() == [0.0, 0.0]


def test_bfloat16_logits_are_normalised_in_single_precision() -> None:
    logits = (torch.randn(50, 200, generator=torch.Generator().manual_seed(1)) * 3).bfloat16()
    tokens, logprobs = choose(logits, np.linspace(0, 0.999, 50).tolist())
    expected = logits.double().log_softmax(-1)[torch.arange(50), tokens]
    torch.testing.assert_close(logprobs, expected, atol=1e-6, rtol=0)


def test_of_equal_logits_greedy_and_top_k_take_the_lower_ids() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0, 0.0]])
    tokens, logprobs = choose(logits, [0.9], greedy=True)
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item(), abs=1e-6)
    assert {choose(logits, [u], top_k=2)[0].item() for u in (0.0, 0.4, 0.6, 0.99)} == {1, 2}
    assert choose(logits, [0.7], top_k=2)[1].item() == pytest.approx(np.log(0.5), abs=1e-6)


def test_top_p_keeps_the_token_that_reaches_the_mass_and_always_one() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    grid = np.linspace(0, 0.9999, 50).tolist()
    for top_p, kept in (
        (0.01, {0}),
        (0.49, {0}),
        (0.6, {0, 1}),
        (0.79, {0, 1}),
        (0.9, {0, 1, 2}),
        (0.99, {0, 1, 2, 3}),
    ):
        assert set(choose(logits.expand(50, -1), grid, top_p=top_p)[0].tolist()) == kept
    assert choose(logits, [0.0], top_p=0.6)[1].item() == pytest.approx(np.log(0.5 / 0.8), abs=1e-6)
    # top_p counts the mass that top_k has left: 0.5 of 0.8 reaches 0.6, so the second token goes.
    assert set(choose(logits.expand(50, -1), grid, top_p=0.6, top_k=2)[0].tolist()) == {0}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("greedy", [True, False])
def test_logits_without_a_distribution_are_an_error(bad: float, greedy: bool) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="no distribution"):
        choose(logits, [0.1, 0.2, 0.3], greedy=greedy)


def test_masking_every_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="every token masked"):
        choose(torch.zeros(1, 2), [0.5], fixed_length=True, eos_token_ids=(0, 1))


def test_a_request_keeps_its_first_uniforms_when_it_grows_and_its_stream_is_its_seed() -> None:
    few, many = request_uniforms(3, 2, 7), request_uniforms(3, 9, 7)
    np.testing.assert_array_equal(few, many[:2])
    assert not np.isin(request_uniforms(4, 9, 7), many).any()
    assert len(np.unique(many)) == many.size
    assert ((many >= 0) & (many < 1)).all()


@pytest.mark.parametrize("settings", [{}, {"greedy": True}, {"top_p": 0.7, "top_k": 5, "temperature": 1.4}])
def test_rows_taken_in_parts_give_what_they_give_together(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(11, 40, generator=torch.Generator().manual_seed(2)) * 3
    uniforms = np.linspace(0.01, 0.99, 11).tolist()
    tokens, logprobs = choose(logits, uniforms, **settings)
    for entries in (1, 40 * 4, 40 * 4 + 39):
        monkeypatch.setattr("bsharp.generation.sampling.ENTRIES_AT_ONCE", entries)
        for part, whole in zip(choose(logits, uniforms, **settings), (tokens, logprobs), strict=True):
            assert torch.equal(part, whole)
