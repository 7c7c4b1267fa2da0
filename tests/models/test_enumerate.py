"""Every response of a real causal LM: the same log-probabilities as teacher forcing, adding up to 1, constrained or not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

import pytest
import torch
from small_models import every_response, plain_logprob, small_model

from bsharp.masking import pad_right
from bsharp.models.enumerate import enumerate_responses, number_of_responses
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.logprobs import response_logprobs
from bsharp.rewards import reward_for
from bsharp.tasks import load_task
from bsharp.theory.targets import moments
from bsharp.theory.world import from_arrays
from bsharp.types import Completion, FinishReason

PROMPT = (1, 2)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "gpt2"])
def test_unconstrained_responses_are_all_there_once_with_the_teacher_forced_logprobs(
    family: str, temperature: float
) -> None:
    model = small_model(family, vocab_size=4, eos_token_ids=(0, 3), pad_token_id=3)
    found = enumerate_responses(model, PROMPT, 3, temperature=temperature, microbatch_rows=5)
    expected = every_response(4, 3, (0, 3))
    responses = found.responses()
    assert len(responses) == len(set(responses)) == found.size
    assert set(responses) == set(expected)
    assert float(found.sequence_logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    scored = response_logprobs(model, [PROMPT] * found.size, found.token_ids, found.mask, temperature)
    torch.testing.assert_close(found.token_logprobs, scored, rtol=0, atol=1e-6)
    assert not bool(found.token_logprobs[~found.mask].any())
    assert found.ended.tolist() == [response[-1] in (0, 3) for response in responses]


def test_at_a_fixed_length_no_response_ends_early_and_probabilities_are_those_of_the_renormalised_model() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0, 3))
    found = enumerate_responses(model, PROMPT, 3, fixed_length=True)
    assert set(found.responses()) == set(itertools.product((1, 2), repeat=3))
    assert not bool(found.ended.any())
    scored = response_logprobs(model, [PROMPT] * found.size, found.token_ids, found.mask, fixed_length=True)
    torch.testing.assert_close(found.token_logprobs, scored, rtol=0, atol=1e-6)
    assert float(found.sequence_logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def constrained_logprob(
    model: LanguageModel, prompt: Sequence[int], response: Sequence[int], allowed: Sequence[Collection[int]]
) -> float:
    """Σ_t log of the share of y_t's probability among the tokens allowed at place t; one row, no padding."""
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    places = [logits[len(prompt) - 1 + t].softmax(-1) for t in range(len(response))]
    shares = [
        places[t][token] / places[t][sorted(allowed[t])].sum()
        for t, token in enumerate(response)
        if len(allowed[t]) > 1
    ]
    return sum(math.log(float(share)) for share in shares)


def test_allowed_tokens_are_renormalised_at_every_place_and_must_end_leaves_the_last_to_ending_tokens() -> None:
    model = small_model(vocab_size=7, eos_token_ids=(0,))
    digits, close = (1, 3, 4), 6
    for must_end in (False, True):
        found = enumerate_responses(model, (5, 2), 3, (*digits, close), (close,), must_end)
        bodies = [body for length in range(3) for body in itertools.product(digits, repeat=length)]
        expected = {(*body, close) for body in bodies}
        expected |= set() if must_end else set(itertools.product(digits, repeat=3))
        assert set(found.responses()) == expected
        assert found.size == len(expected)
        assert float(found.sequence_logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        anywhere = {*digits, close}
        allowed = [anywhere, anywhere, {close} if must_end else anywhere]
        for response, logprob in zip(found.responses(), found.sequence_logprobs.tolist(), strict=True):
            assert logprob == pytest.approx(constrained_logprob(model, (5, 2), response, allowed), abs=1e-6)
        assert bool(found.ended.all()) == must_end


def test_micro_batches_change_nothing_and_a_token_of_probability_0_begins_no_branch() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0,))
    whole, pieces = (enumerate_responses(model, PROMPT, 3, microbatch_rows=rows) for rows in (1000, 2))
    assert torch.equal(whole.token_ids, pieces.token_ids)
    torch.testing.assert_close(whole.token_logprobs, pieces.token_logprobs, rtol=0, atol=1e-6)

    def forbid(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([2]), -torch.inf)

    hook = model.model.get_output_embeddings().register_forward_hook(forbid)
    without = enumerate_responses(model, PROMPT, 3)
    hook.remove()
    named = enumerate_responses(model, PROMPT, 3, allowed_token_ids=(0, 1, 3))
    assert torch.equal(without.token_ids, named.token_ids)
    torch.testing.assert_close(without.token_logprobs, named.token_logprobs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("must_end", [False, True])
def test_the_number_of_responses_is_what_listing_them_counts(must_end: bool) -> None:
    model = small_model(vocab_size=5, eos_token_ids=(0, 4))
    for limit in (1, 2, 4):
        found = enumerate_responses(model, PROMPT, limit, must_end=must_end)
        assert found.size == number_of_responses(5, 2, limit, must_end)
        if not must_end:
            assert found.size == len(every_response(5, limit, (0, 4)))


def test_too_many_responses_are_refused_before_the_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(vocab_size=5)
    monkeypatch.setattr(type(model.model), "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=r"5 of 5 tokens and max_new_tokens = 8 make 87381 responses.*name fewer"):
        enumerate_responses(model, PROMPT, 8, max_responses=80_000)


def test_what_cannot_be_enumerated_is_one_clear_line() -> None:
    model = small_model(vocab_size=5)
    for message, arguments in {
        "token id 7 is outside the model's vocabulary of 5": {"allowed_token_ids": (1, 7)},
        "token id -1 is outside": {"end_token_ids": (-1,)},
        "no token is left to choose from": {"allowed_token_ids": (0,), "fixed_length": True},
        "no ending token is left": {"allowed_token_ids": (1, 2), "must_end": True},
        "max_new_tokens = 0": {"max_new_tokens": 0},
        "at least one token, got an empty one": {"prompt_token_ids": ()},
    }.items():
        with pytest.raises(ValueError, match=message):
            enumerate_responses(
                **({"language_model": model, "prompt_token_ids": PROMPT, "max_new_tokens": 2} | arguments)
            )
    with torch.no_grad():
        model.model.get_output_embeddings().weight[2, 0] = torch.nan
    with pytest.raises(ValueError, match="logits give no distribution"):
        enumerate_responses(model, PROMPT, 2)


def test_the_boxed_answers_of_a_real_problem_are_a_finite_world_graded_by_its_reward_function() -> None:
    model, task = load_language_model("embedded:tiny"), load_task("math_mini")
    reward, (problem,) = reward_for(task), task.problems("test", 1, 0, families=["add"], difficulties=[1])
    opening, digits, close = " \\boxed{", [model.encode(str(digit))[0] for digit in range(10)], model.encode("}")
    prompt = model.encode(task.prompt(problem) + opening)
    found = enumerate_responses(model, prompt, 4, [*digits, *close], close, must_end=True)
    assert found.size == 1111
    texts = [opening + model.decode(response) for response in found.responses()]
    completions = [
        Completion(response, tuple(row[: len(response)]), FinishReason.EOS, text)
        for response, row, text in zip(found.responses(), found.token_logprobs.tolist(), texts, strict=True)
    ]
    grades = reward([problem] * found.size, completions)
    world = from_arrays(found.token_ids, found.mask, found.token_logprobs, [grade.reward for grade in grades])
    right = [text for text, rewarded in zip(texts, world.rewards, strict=True) if rewarded == 1]
    assert f"{opening}{problem.answer}}}" in right
    assert all(int(text.removeprefix(opening).rstrip("}")) == int(problem.answer) for text in right)  # 7, 07 and 007
    everywhere = {*digits, *close}
    expected = sum(
        math.exp(
            constrained_logprob(model, prompt, (*model.encode(text.removeprefix(opening)),), [everywhere] * 3 + [close])
        )
        for text in right
    )
    assert moments(world.base_logprob, world).reward == pytest.approx(expected, rel=1e-4)
    assert float(plain_logprob(model, prompt, found.responses()[5]).detach()) < float(found.sequence_logprobs[5])
    token_ids, mask = pad_right(found.responses(), model.pad_token_id)
    assert torch.equal(token_ids, found.token_ids)
    assert torch.equal(mask, found.mask)
