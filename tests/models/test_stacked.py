from __future__ import annotations

import pytest
import torch
from small_models import every_response, small_model
from torch import nn

from bsharp.masking import pad_right
from bsharp.models.logprobs import forward_responses
from bsharp.models.stacked import NotSeparable, StackedParameters

RESPONSES = every_response(4, 3, (0,))
PROMPTS = ((1, 2), (3,), (2, 2, 1))


def rows_of(problem: int) -> tuple[list[tuple[int, ...]], torch.Tensor, torch.Tensor]:
    token_ids, mask = pad_right([RESPONSES[(5 * problem + 7 * k) % len(RESPONSES)] for k in range(4)], 0)
    token_ids, mask = (nn.functional.pad(x, (0, 3 - x.shape[1])) for x in (token_ids, mask))
    return [PROMPTS[problem]] * 4, token_ids, mask


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("padding", [False, True])
def test_one_pass_gives_the_gradients_of_passes_over_single_problems(
    family: str, share_prompts: bool, padding: bool
) -> None:
    language_model = small_model(family, vocab_size=4, seed=1)
    if padding:
        language_model.model.get_input_embeddings().padding_idx = 2
    parameters = list(language_model.model.parameters())
    problems = [rows_of(problem) for problem in range(3)]
    prompts = [prompt for rows in problems for prompt in rows[0]]
    token_ids, mask = (torch.cat([rows[k] for rows in problems]) for k in (1, 2))
    stacked = StackedParameters(parameters, 3)
    with stacked:
        together = forward_responses(language_model, prompts, token_ids, mask, share_prompts=share_prompts)
    weights = torch.arange(1.0, 13.0)[:, None] * mask
    (together.token_logprobs * weights).sum().backward()
    found = torch.cat([gradient.flatten(1) for gradient in stacked.gradients()], dim=1)
    for problem, rows in enumerate(problems):
        plain = forward_responses(language_model, *rows, share_prompts=share_prompts)
        mine = slice(4 * problem, 4 * problem + 4)
        torch.testing.assert_close(
            torch.where(rows[2], together.token_logprobs[mine], 0.0), torch.where(rows[2], plain.token_logprobs, 0.0)
        )
        pieces = torch.autograd.grad((plain.token_logprobs * weights[mine]).sum(), parameters)
        expected = torch.cat([piece.flatten() for piece in pieces])
        assert float((found[problem] - expected).norm() / expected.norm()) < 1e-6


def test_a_model_whose_parameters_are_used_in_other_ways_is_refused() -> None:
    language_model = small_model("gpt2", vocab_size=4, seed=1)
    prompts, token_ids, mask = rows_of(0)
    with pytest.raises(NotSeparable), StackedParameters(list(language_model.model.parameters()), 2):
        forward_responses(language_model, prompts, token_ids, mask)


def test_uses_that_would_mix_up_the_problems_are_refused() -> None:
    linear, norm = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
    parameters = [*linear.parameters(), norm]
    with StackedParameters(parameters, 2):
        for use in (
            lambda: linear(torch.ones(4, 3)),  # rows and tokens in one dimension may be in any order
            lambda: linear(torch.ones(3, 2, 3)),  # not equally many rows of each problem
            lambda: norm * norm,
            lambda: norm.float() * torch.ones(2, 1, 3),
            lambda: nn.functional.linear(torch.ones(2, 1, 3), torch.ones(3, 3), linear.bias),
            lambda: nn.functional.embedding(torch.zeros(2, 1, dtype=torch.long), linear.weight, max_norm=1.0),
        ):
            with pytest.raises(NotSeparable):
                use()


def test_a_use_through_a_view_is_found_out_after_the_backward_pass() -> None:
    linear = nn.Linear(3, 3, bias=False)
    stacked = StackedParameters([linear.weight], 2)
    with stacked:
        value = (torch.ones(2, 1, 3) @ linear.weight.T).sum()
    value.backward()
    with pytest.raises(NotSeparable, match="view"):
        stacked.gradients()


def test_gradients_of_bfloat16_parameters_are_added_up_in_float32() -> None:
    # 1 + 3 · 1/256 in steps: bfloat16 would stay at 1.
    linear = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    stacked = StackedParameters([linear.weight], 2)
    for value in (1.0, 1 / 256, 1 / 256, 1 / 256):
        with stacked:
            result = linear(torch.full((2, 1, 1), value, dtype=torch.bfloat16)).sum()
        result.backward()
    (gradient,) = stacked.gradients()
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.flatten().tolist() == [1 + 3 / 256] * 2
