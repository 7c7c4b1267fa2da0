from __future__ import annotations

import torch

from bsharp.masking import gather_token_logprobs, masked_mean, masked_sum, pad_right


def test_what_is_masked_out_may_be_nan_and_counts_nothing() -> None:
    values = torch.tensor([[1.0, 2.0, torch.nan], [3.0, torch.inf, torch.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(values, mask).tolist() == [3.0, 3.0]
    assert float(masked_mean(values, mask)) == 2.0


def test_the_gradient_of_a_masked_sum_is_the_mask() -> None:
    values = torch.tensor([[1.0, 2.0, torch.nan]], requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    masked_sum(values, mask).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_a_batch_without_tokens_has_mean_zero() -> None:
    assert float(masked_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))) == 0.0


def test_padding_is_known_from_lengths_even_where_the_pad_value_is_a_real_token() -> None:
    token_ids, mask = pad_right([[5, 7, 7], [7], []], value=7)
    assert token_ids.tolist() == [[5, 7, 7], [7, 7, 7], [7, 7, 7]]
    assert mask.sum(-1).tolist() == [3, 1, 0]


def test_gathered_logprobs_are_log_softmax_at_the_temperature() -> None:
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(9, (3, 4), generator=torch.Generator().manual_seed(1))
    for temperature in (0.6, 1.0, 2.0):
        expected = (logits.double() / temperature).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        found = gather_token_logprobs(logits, tokens, temperature).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_low_precision_logits_are_scored_in_fp32() -> None:
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = gather_token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), logits.double().log_softmax(-1)[..., 0], rtol=0, atol=1e-6)
