"""Laws of the built-in decoder, on random models of several architectures through transformers' ordinary forward."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bsharp.generation import Decoder, GenerationRequest, SamplingParams
from bsharp.models.loading import LanguageModel
from bsharp.types import Completion, FinishReason

VOCABULARY = 40
EOS = (1, 7)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "mistral_sliding_window")


class NumberTokenizer:
    """Decodes ids as numbers; the EOS ids are special."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(str(token) for token in token_ids if not (skip_special_tokens and token in EOS))


def language_model_around(model: Any) -> LanguageModel:
    tokenizer: Any = NumberTokenizer()
    return LanguageModel(model.eval(), tokenizer, eos_token_ids=EOS, pad_token_id=0, name="random")


def random_model(architecture: str, vocabulary: int = VOCABULARY, scale: float = 0.4) -> LanguageModel:
    """Weights far from zero, so that distributions are neither uniform nor one-hot and positions matter."""
    torch.manual_seed(0)
    shared = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": scale,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if architecture == "gpt2":
        config = GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            initializer_range=scale,
            bos_token_id=None,
            eos_token_id=None,
        )
        return language_model_around(GPT2LMHeadModel(config))
    classes: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shared)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shared)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=8)),
        "mistral_sliding_window": lambda: MistralForCausalLM(MistralConfig(**shared, sliding_window=6)),
    }
    return language_model_around(classes[architecture]())


def random_requests(
    count: int = 6, num_samples: int = 4, vocabulary: int = VOCABULARY, lengths: tuple[int, int] = (1, 9), seed: int = 0
) -> list[GenerationRequest]:
    rng = np.random.default_rng(seed)
    prompts = [tuple(rng.integers(2, vocabulary, rng.integers(*lengths)).tolist()) for _ in range(count)]
    return [GenerationRequest(prompt, num_samples, seed=1000 + index) for index, prompt in enumerate(prompts)]


def next_logits(language_model: LanguageModel, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> torch.Tensor:
    """Logits that predict each of `tokens`, (T, V), by one full forward without cache, padding or mask."""
    with torch.no_grad():
        logits = language_model.model(input_ids=torch.tensor([prompt + tokens])).logits[0].double()
    return logits[len(prompt) - 1 : -1]


def assert_logprobs_agree(
    language_model: LanguageModel,
    requests: list[GenerationRequest],
    groups: list[tuple[Completion, ...]],
    transform: Any = lambda logits: logits,
) -> None:
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            logits = transform(next_logits(language_model, request.prompt_token_ids, completion.token_ids))
            expected = logits.log_softmax(-1)[range(len(completion.token_ids)), list(completion.token_ids)]
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=1e-4, rtol=0)


def token_ids(groups: list[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in groups]


# --- what is sampled, and what is reported about it -------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("max_new_tokens", [1, 5, 20])
def test_logprobs_equal_those_of_a_teacher_forced_full_forward(architecture: str, max_new_tokens: int) -> None:
    language_model, requests = random_model(architecture), random_requests()
    groups = Decoder(language_model).generate(requests, SamplingParams(max_new_tokens))
    assert_logprobs_agree(language_model, requests, groups)
    lengths = {len(completion.token_ids) for group in groups for completion in group}
    assert max_new_tokens == 1 or len(lengths) > 1, "no ragged lengths: this would not test compaction"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers_generate_token_by_token(architecture: str) -> None:
    language_model, requests = random_model(architecture), random_requests(count=8, num_samples=1)
    groups = Decoder(language_model).generate(requests, SamplingParams(16, greedy=True))
    for request, (completion,) in zip(requests, groups, strict=True):
        reference = language_model.model.generate(
            torch.tensor([request.prompt_token_ids]),
            attention_mask=torch.ones(1, len(request.prompt_token_ids), dtype=torch.long),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=list(EOS),
            pad_token_id=0,
        )
        assert completion.token_ids == tuple(reference[0, len(request.prompt_token_ids) :].tolist())
    assert_logprobs_agree(language_model, requests, groups)


def enumerated_probabilities(
    language_model: LanguageModel, prompt: tuple[int, ...], limit: int, transform: Any, vocabulary: int
) -> dict[tuple[int, ...], float]:
    """Probability of every response: ended by an EOS id within `limit` tokens, or cut there."""
    responses: dict[tuple[int, ...], float] = {}
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            ended = tokens[-1] in language_model.eos_token_ids
            if any(token in language_model.eos_token_ids for token in tokens[:-1]) or not (ended or length == limit):
                continue
            logprobs = transform(next_logits(language_model, prompt, tokens)).log_softmax(-1)
            responses[tokens] = float(logprobs[range(length), list(tokens)].sum().exp())
    return responses


def mask_eos(language_model: LanguageModel) -> Any:
    def transform(logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor(language_model.eos_token_ids), -torch.inf)

    return transform


def keep_most_probable(top_p: float, top_k: int | None) -> Any:
    """The restriction written out token by token."""

    def transform(logits: torch.Tensor) -> torch.Tensor:
        restricted = torch.full_like(logits, -torch.inf)
        for row, row_logits in enumerate(logits):
            order = sorted(range(len(row_logits)), key=lambda token: (-float(row_logits[token]), token))[:top_k]
            mass = row_logits[order].softmax(-1)
            for rank, token in enumerate(order):
                if float(mass[:rank].sum()) < top_p:
                    restricted[row, token] = row_logits[token]
        return restricted

    return transform


SAMPLERS: dict[str, tuple[SamplingParams, Any]] = {
    "plain": (SamplingParams(3), lambda lm: lambda z: z),
    "temperature": (SamplingParams(3, temperature=1.7), lambda lm: lambda z: z / 1.7),
    "fixed_length": (SamplingParams(3, fixed_length=True), mask_eos),
    "top_k": (SamplingParams(3, top_k=3), lambda lm: keep_most_probable(1.0, 3)),
    "top_p": (SamplingParams(3, top_p=0.8), lambda lm: keep_most_probable(0.8, None)),
    "all": (
        SamplingParams(3, temperature=1.7, fixed_length=True, top_p=0.9, top_k=3),
        lambda lm: lambda z: keep_most_probable(0.9, 3)(mask_eos(lm)(z) / 1.7),
    ),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_follow_the_enumerated_probabilities(sampler: str) -> None:
    """χ² over every response of a 5-word model up to length 3; each case alarms falsely with probability 0.001."""
    params, transform = SAMPLERS[sampler]
    language_model = replace(random_model("qwen3", vocabulary=5, scale=0.3), eos_token_ids=(1, 3))
    prompt, num_samples = (2, 4), 20_000
    probabilities = enumerated_probabilities(language_model, prompt, 3, transform(language_model), vocabulary=5)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
    requests = [GenerationRequest((4,), 1, seed=3), GenerationRequest(prompt, num_samples, seed=5)]
    _, group = Decoder(language_model, max_rows=num_samples + 1).generate(requests, params)
    counts = Counter(completion.token_ids for completion in group)
    assert all(probabilities.get(tokens, 0) > 0 for tokens in counts), "an impossible response was drawn"
    # Responses expected less than 5 times go into one cell: χ² needs expected counts that are not tiny.
    common = [tokens for tokens, p in probabilities.items() if p * num_samples >= 5]
    observed = [counts[tokens] for tokens in common]
    expected = [probabilities[tokens] * num_samples for tokens in common]
    rest = num_samples - sum(expected)
    if rest > 5:
        observed, expected = [*observed, num_samples - sum(observed)], [*expected, rest]
    else:
        expected = [value * sum(observed) / sum(expected) for value in expected]
    assert len(observed) >= 3
    assert stats.chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_logprobs_are_those_of_the_distribution_sampled_from(sampler: str) -> None:
    params, transform = SAMPLERS[sampler]
    language_model, requests = random_model("llama"), random_requests()
    groups = Decoder(language_model).generate(requests, replace(params, max_new_tokens=8))
    assert_logprobs_agree(language_model, requests, groups, transform(language_model))


def test_greedy_reports_logprobs_at_temperature_one_whatever_the_other_settings() -> None:
    language_model, requests = random_model("llama"), random_requests(num_samples=1)
    decoder = Decoder(language_model)
    plain = decoder.generate(requests, SamplingParams(8, greedy=True))
    assert decoder.generate(requests, SamplingParams(8, greedy=True, temperature=0.3, top_k=1)) == plain
    fixed = decoder.generate(requests, SamplingParams(8, greedy=True, fixed_length=True))
    assert_logprobs_agree(language_model, requests, fixed, mask_eos(language_model))
    assert all(len(completion.token_ids) == 8 for group in fixed for completion in group)


# --- where a completion ends ------------------------------------------------------------------------------------------


def test_a_completion_ends_with_the_first_eos_id_and_contains_it() -> None:
    language_model = random_model("qwen3")
    groups = Decoder(language_model).generate(random_requests(count=20, num_samples=8), SamplingParams(12))
    completions = [completion for group in groups for completion in group]
    for completion in completions:
        assert len(completion.logprobs) == len(completion.token_ids) <= 12
        assert not set(completion.token_ids[:-1]) & set(EOS)
        ended = completion.token_ids[-1] in EOS
        assert completion.finish_reason is (FinishReason.EOS if ended else FinishReason.LENGTH)
        assert ended or len(completion.token_ids) == 12
        assert completion.text == language_model.decode(completion.token_ids)
    last_tokens = {completion.token_ids[-1] for completion in completions}
    assert last_tokens >= set(EOS), "every EOS id must have ended some completion"
    assert any(completion.truncated for completion in completions)
    at_the_limit = [c for c in completions if len(c.token_ids) == 12 and not c.truncated]
    assert at_the_limit, "EOS as the last allowed token counts as EOS"


def test_fixed_length_draws_exactly_the_limit_and_never_an_eos() -> None:
    params = SamplingParams(9, fixed_length=True)
    groups = Decoder(random_model("qwen3")).generate(random_requests(num_samples=16), params)
    for completion in itertools.chain.from_iterable(groups):
        assert len(completion.token_ids) == 9
        assert not set(completion.token_ids) & set(EOS)
        assert completion.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("pad_token_id", [0, 7, 1, 12])
def test_the_pad_id_changes_nothing_even_where_it_is_eos_or_a_word(pad_token_id: int) -> None:
    language_model, requests = random_model("qwen3"), random_requests()
    expected = Decoder(language_model).generate(requests, SamplingParams(10))
    other_padding = replace(language_model, pad_token_id=pad_token_id)
    assert Decoder(other_padding).generate(requests, SamplingParams(10)) == expected


# --- what the samples do not depend on --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_do_not_depend_on_the_other_requests_their_order_or_the_batch_size(architecture: str) -> None:
    """Padding, micro-batches, compaction and shared prompts are invisible; log-probabilities agree to rounding."""
    language_model, requests = random_model(architecture), random_requests(count=5, num_samples=5)
    requests.append(replace(requests[2], seed=77))  # an equal prompt shares its prefill
    params = SamplingParams(12)
    together = Decoder(language_model).generate(requests, params)
    alone = [Decoder(language_model).generate([request], params)[0] for request in requests]
    backwards = Decoder(language_model).generate(requests[::-1], params)[::-1]
    for max_rows in (3, 11):
        small = Decoder(language_model, max_rows=max_rows).generate(requests, params)
        assert token_ids(small) == token_ids(together)
    assert token_ids(alone) == token_ids(together) == token_ids(backwards)
    for left, right in zip(itertools.chain(*alone), itertools.chain(*together), strict=True):
        np.testing.assert_allclose(left.logprobs, right.logprobs, atol=1e-4)
        assert (left.text, left.finish_reason) == (right.text, right.finish_reason)


def test_more_samples_keep_the_first_ones() -> None:
    decoder, (request,) = Decoder(random_model("qwen3"), max_rows=16), random_requests(count=1, num_samples=40)
    (many,) = decoder.generate([request], SamplingParams(10))
    (few,) = decoder.generate([replace(request, num_samples=3)], SamplingParams(10))
    assert token_ids([many[:3]]) == token_ids([few])


def test_different_seeds_and_samples_differ() -> None:
    request = GenerationRequest((5, 6), 4, seed=1)
    first, second = Decoder(random_model("qwen3")).generate([request, replace(request, seed=2)], SamplingParams(10))
    assert len({completion.token_ids for completion in first + second}) == 8


def test_equal_calls_are_equal_bit_for_bit() -> None:
    decoder, requests = Decoder(random_model("qwen3")), random_requests()
    assert decoder.generate(requests, SamplingParams(20)) == decoder.generate(requests, SamplingParams(20))


def test_a_prompt_is_prefilled_once_and_finished_rows_leave_the_batch_once_they_are_an_eighth() -> None:
    language_model = random_model("qwen3")
    shapes: list[tuple[int, int]] = []
    handle = language_model.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(inputs[0].shape))
    )
    request = GenerationRequest((3, 4, 5), 30, seed=0)
    groups = Decoder(language_model).generate([request, replace(request, seed=1)], SamplingParams(12))
    handle.remove()
    assert shapes[0] == (1, 3)
    lengths = [len(completion.token_ids) for group in groups for completion in group]
    for step, (rows, width) in enumerate(shapes[1:], start=1):
        assert width == 1
        going = sum(length > step for length in lengths)
        assert going <= rows < going + rows / 8


# --- the model is left as it was --------------------------------------------------------------------------------------


def test_dropout_is_off_while_sampling_and_every_module_returns_to_its_mode() -> None:
    language_model = random_model("gpt2")
    requests = random_requests()
    expected = Decoder(language_model).generate(requests, SamplingParams(6))
    language_model.model.train()
    language_model.model.transformer.h[0].eval()
    modes = [module.training for module in language_model.model.modules()]
    assert Decoder(language_model).generate(requests, SamplingParams(6)) == expected
    assert [module.training for module in language_model.model.modules()] == modes


def test_sync_weights_copies_the_policy_and_stamps_its_version() -> None:
    requests = random_requests()
    decoder, other = Decoder(random_model("qwen3")), random_model("qwen3")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.3)
    before = decoder.generate(requests, SamplingParams(6))
    decoder.sync_weights(other.model, version=4)
    after = decoder.generate(requests, SamplingParams(6))
    assert token_ids(after) == token_ids(Decoder(other).generate(requests, SamplingParams(6))) != token_ids(before)
    assert decoder.policy_version == 4
    assert {c.policy_version for group in after for c in group} == {4}
    assert {c.policy_version for group in before for c in group} == {0}


def test_training_works_after_generation() -> None:
    language_model = random_model("qwen3")
    Decoder(language_model).generate(random_requests(), SamplingParams(4))
    language_model.model(input_ids=torch.tensor([[2, 3, 4]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in language_model.model.parameters())


# --- errors -----------------------------------------------------------------------------------------------------------


def test_no_requests_give_no_completions() -> None:
    assert Decoder(random_model("qwen3")).generate([], SamplingParams(4)) == []


def test_errors_say_what_to_do() -> None:
    language_model = random_model("qwen3")
    decoder = Decoder(language_model)
    with pytest.raises(ValueError, match="outside the model's vocabulary of 40"):
        decoder.generate([GenerationRequest((3, 40), 1, seed=0)], SamplingParams(4))
    with pytest.raises(ValueError, match="exceed the model's 64 positions"):
        decoder.generate([GenerationRequest((3,) * 60, 1, seed=0)], SamplingParams(5))
    with pytest.raises(ValueError, match="max_rows = 0"):
        Decoder(language_model, max_rows=0)
    with torch.no_grad():
        language_model.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="give no distribution"):
        decoder.generate([GenerationRequest((3,), 1, seed=0)], SamplingParams(4))
