from __future__ import annotations

import pytest
import torch
from small_models import every_response, plain_logprob, small_model

from bsharp.masking import pad_right
from bsharp.models.logprobs import forward_responses, response_logprobs, scoring_microbatches

FAMILIES = ("qwen3", "qwen2", "llama", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_forced_logprobs_are_those_of_each_row_alone(family: str) -> None:
    model = small_model(family, vocab_size=7)
    prompts = [(1, 2, 3), (4,), (5, 6), (1, 1, 1, 1, 2)]
    responses = [(2, 0), (3, 3, 3, 0), (0,), (6, 5, 4)]
    token_ids, mask = pad_right(responses, model.pad_token_id)
    found = response_logprobs(model, prompts, token_ids, mask, microbatch_rows=3)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert float(found[row].sum()) == pytest.approx(
            float(plain_logprob(model, prompt, response).detach()), abs=1e-9
        )
    assert not bool(found[~mask].any())


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_of_all_responses_sum_to_one_with_every_eos_counted(family: str) -> None:
    model = small_model(family, vocab_size=4, eos_token_ids=(0, 3), pad_token_id=3)
    responses = every_response(4, 3, (0, 3))
    token_ids, mask = pad_right(responses, model.pad_token_id)
    logprobs = response_logprobs(model, [(1, 2)] * len(responses), token_ids, mask).sum(-1)
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_with_eos_masked_the_full_length_responses_alone_sum_to_one() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0, 3))
    responses = [r for r in every_response(4, 3, (0, 3)) if r[-1] not in (0, 3)]
    token_ids, mask = pad_right(responses, model.pad_token_id)
    logprobs = response_logprobs(model, [(1, 2)] * len(responses), token_ids, mask, fixed_length=True).sum(-1)
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_entropy_is_that_of_the_next_token_distribution_and_finite_with_eos_masked() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0,))
    token_ids, mask = pad_right([(1, 2, 3), (2,)], model.pad_token_id)
    for fixed_length in (False, True):
        result = forward_responses(model, [(1,), (3, 2)], token_ids, mask, fixed_length=fixed_length, with_entropy=True)
        logits = model.model(input_ids=torch.tensor([[1, 1, 2, 3]])).logits[0, :3]
        logits = logits[:, 1:] if fixed_length else logits
        expected = torch.distributions.Categorical(logits=logits).entropy()
        assert result.entropy is not None
        torch.testing.assert_close(result.entropy[0].detach(), expected.detach())


def test_masked_eos_sends_no_nan_into_the_gradient() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0,))
    token_ids, mask = pad_right([(1, 2, 3), (2,)], 0)
    result = forward_responses(model, [(1,), (3, 2)], token_ids, mask, fixed_length=True)
    torch.where(mask, result.token_logprobs, 0.0).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.model.parameters() if p.grad is not None)


def test_an_empty_prompt_is_one_clear_line() -> None:
    token_ids, mask = pad_right([(1,)], 0)
    with pytest.raises(ValueError, match="at least one token, got an empty one"):
        forward_responses(small_model(), [()], token_ids, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_prompts_changes_neither_log_probabilities_nor_gradients(family: str) -> None:
    model = small_model(family, vocab_size=7)
    prompts = [(1, 2, 3), (4,), (1, 2, 3), (5, 6), (4,), (1, 2, 3)]
    responses = [(2, 0), (3, 3, 3, 0), (0,), (6, 5, 4, 2, 1), (2, 2), (5, 0)]
    token_ids, mask = pad_right(responses, model.pad_token_id)
    found = []
    for share in (True, False):
        model.model.zero_grad()
        result = forward_responses(
            model, prompts, token_ids, mask, with_entropy=True, with_hidden=True, share_prompts=share
        )
        weights = torch.arange(1.0, 7.0)[:, None] * mask
        (torch.where(mask, result.token_logprobs, 0.0) * weights).sum().backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.model.parameters() if p.grad is not None])
        found.append(
            (result.token_logprobs[mask].detach(), result.entropy[mask], result.hidden[mask].detach(), gradient)
        )
    # transformers' norms and rotations run in fp32 whatever the model's type, hence 1e-6 and not 1e-12.
    for shared, plain in zip(*found, strict=True):
        assert float((shared - plain).norm() / plain.norm()) < 1e-6


def test_micro_batches_deal_every_row_once_and_keep_to_their_size() -> None:
    prompts = [(i % 11,) * (1 + i % 5) for i in range(100)]
    batches = list(scoring_microbatches(prompts, [i % 7 for i in range(100)], 16))
    assert sorted(row for batch in batches for row in batch) == list(range(100))
    assert max(len(batch) for batch in batches) <= 16
