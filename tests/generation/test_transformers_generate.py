"""What transformers' generate must not change, and the architectures that only it can decode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from small_models import NumberTokenizer, small_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from bsharp.config import ConfigError
from bsharp.generation import Decoder, GenerationRequest, SamplingParams, TransformersGenerator, generator_for
from bsharp.generation.static import plain_step
from bsharp.models.loading import LanguageModel
from bsharp.types import Completion, FinishReason

VOCABULARY = 30
EOS = (1, 7)
ELSEWHERE = ("bloom", "gpt_neox", "mamba", "recurrent_gemma")
"""Architectures that are not the decoder's: relative positions, parallel blocks, recurrent states, both kinds of layer."""


def language_model_of(architecture: str) -> LanguageModel:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    special = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    builders: dict[str, Any] = {
        "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**shape, num_attention_heads=4)),
        "mamba": lambda: MambaForCausalLM(
            MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, **special)
        ),
        "recurrent_gemma": lambda: RecurrentGemmaForCausalLM(
            RecurrentGemmaConfig(
                **shape | {"num_hidden_layers": 3},
                num_attention_heads=4,
                lru_width=32,
                attention_window_size=6,
                **special,
            )
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = builders[architecture]().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and "A_log" not in name:
                    parameter.normal_(0.0, 0.3)
    if architecture != "bloom":  # whose masks become −∞ on the way from float64, and padding then NaN
        model.double()
    model.config.eos_token_id = None
    tokenizer: Any = NumberTokenizer()
    return LanguageModel(model, tokenizer, eos_token_ids=EOS, pad_token_id=1, name=architecture)


def requests_of(num_samples: int = 4) -> list[GenerationRequest]:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(2, VOCABULARY, length).tolist()) for length in (2, 3, 3, 6, 9)]
    return [GenerationRequest(prompt, num_samples, seed=50 + index) for index, prompt in enumerate(prompts)]


def all_completions(groups: list[tuple[Completion, ...]]) -> list[Completion]:
    return list(itertools.chain.from_iterable(groups))


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
@pytest.mark.parametrize("architecture", ELSEWHERE)
def test_logprobs_are_those_of_a_full_forward_without_padding_or_cache(architecture: str) -> None:
    """Padding that entered a recurrent state, or a wrong position, would show in every token."""
    language_model, requests = language_model_of(architecture), requests_of()
    generator = generator_for(language_model)
    assert type(generator) is TransformersGenerator
    groups = generator.generate(requests, SamplingParams(10))
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            row = torch.tensor([request.prompt_token_ids + completion.token_ids])
            with torch.no_grad():
                logits = language_model.model(row).logits[0, len(request.prompt_token_ids) - 1 : -1]
            expected = logits.double().log_softmax(-1)[range(len(completion.token_ids)), list(completion.token_ids)]
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=2e-5, rtol=0)
    completions = all_completions(groups)
    assert len({len(completion.token_ids) for completion in completions}) > 1
    assert {c.token_ids[-1] for c in completions if c.finish_reason is FinishReason.EOS} <= set(EOS)
    alone = [generator.generate([request], SamplingParams(10))[0] for request in requests]
    assert [c.token_ids for c in all_completions(alone)] == [c.token_ids for c in completions]


LEAKS: dict[str, dict[str, Any]] = {
    "restrictions": {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "min_p": 0.5},
    "penalties": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "exponential_decay_length_penalty": (1, 2.0)},
    "forced": {"forced_bos_token_id": 3, "forced_eos_token_id": 4, "suppress_tokens": [2, 5, 6]},
    "lengths": {"max_length": 3, "min_length": 8, "min_new_tokens": 6, "max_new_tokens": 2},
    "ends": {"eos_token_id": [5, 6], "pad_token_id": 5, "stop_strings": ["3"]},
    "ways": {
        "num_beams": 3,
        "num_return_sequences": 2,
        "use_cache": False,
        "output_scores": True,
        "guidance_scale": 2.0,
    },
}


@pytest.mark.parametrize("leak", LEAKS)
def test_nothing_of_the_models_own_generation_config_takes_part(leak: str) -> None:
    language_model, requests = small_model("qwen2", VOCABULARY, eos_token_ids=EOS, dtype=torch.float64), requests_of()
    expected = Decoder(language_model).generate(requests, SamplingParams(10))
    own = GenerationConfig(**LEAKS[leak])
    language_model.model.generation_config = own
    generator = TransformersGenerator(language_model)
    assert [c.token_ids for c in all_completions(generator.generate(requests, SamplingParams(10)))] == [
        c.token_ids for c in all_completions(expected)
    ]
    assert language_model.model.generation_config is own
    with torch.no_grad():
        language_model.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="give no distribution"):
        generator.generate(requests, SamplingParams(10))
    assert language_model.model.generation_config is own, "also after an error"


def test_more_samples_keep_the_first_ones_and_equal_calls_are_equal() -> None:
    language_model = small_model("qwen3", VOCABULARY, eos_token_ids=EOS)
    generator, requests = TransformersGenerator(language_model, max_rows=6), requests_of(num_samples=9)
    many = generator.generate(requests, SamplingParams(8))
    assert many == generator.generate(requests, SamplingParams(8))
    few = generator.generate(requests_of(num_samples=2), SamplingParams(8))
    assert [[c.token_ids for c in group[:2]] for group in many] == [[c.token_ids for c in group] for group in few]


def test_no_scores_are_kept_and_the_weights_and_version_are_the_policys() -> None:
    language_model, other = (
        small_model("qwen3", VOCABULARY, eos_token_ids=EOS),
        small_model("qwen3", VOCABULARY, seed=1),
    )
    generator, seen = TransformersGenerator(language_model), []
    inner = language_model.model.generate

    def watched(*arguments: Any, **named: Any) -> Any:
        output = inner(*arguments, **named)
        seen.append(output)
        return output

    language_model.model.generate = watched  # type: ignore[method-assign]
    before = generator.generate(requests_of(), SamplingParams(6))
    assert all(isinstance(output, torch.Tensor) for output in seen), "token ids alone, no scores"
    generator.sync_weights(other.model, version=3)
    after = generator.generate(requests_of(), SamplingParams(6))
    assert before != after
    assert {completion.policy_version for completion in all_completions(after)} == {3}
    expected = Decoder(small_model("qwen3", VOCABULARY, seed=1, eos_token_ids=EOS)).generate(
        requests_of(), SamplingParams(6)
    )
    assert [c.token_ids for c in all_completions(after)] == [c.token_ids for c in all_completions(expected)]


def test_generate_stops_with_the_last_row_whichever_eos_id_ended_it() -> None:
    language_model, runs = small_model("qwen3", VOCABULARY, eos_token_ids=EOS), []
    language_model.model.register_forward_pre_hook(lambda *_: runs.append(1))
    ends = set()
    for seed in range(30):
        runs.clear()
        request = GenerationRequest((3, 4), 1, seed)
        ((completion,),) = TransformersGenerator(language_model).generate([request], SamplingParams(20))
        assert len(runs) == len(completion.token_ids)
        ends.add(completion.token_ids[-1])
    assert ends >= set(EOS)


def test_the_model_is_run_inside_ready_only() -> None:
    inside, runs = [0], []

    class Watched(LanguageModel):
        @contextmanager
        def ready(self) -> Iterator[None]:
            inside[0] += 1
            with super().ready():
                yield
            inside[0] -= 1

    plain = small_model("qwen3", VOCABULARY, eos_token_ids=EOS)
    model, tokenizer = plain.model, plain.tokenizer
    model.register_forward_pre_hook(lambda *_: runs.append(inside[0]))
    watched = Watched(model, tokenizer, EOS, 0, "watched")
    generators = (Decoder(watched), Decoder(watched, capture=plain_step), TransformersGenerator(watched))
    for generator in generators:
        runs.clear()
        generator.generate(requests_of(), SamplingParams(4))
        assert runs
        assert set(runs) == {1}


@pytest.mark.parametrize("architecture", ["mamba", "recurrent_gemma"])
def test_the_decoder_refuses_by_name_what_it_cannot_serve(architecture: str) -> None:
    with pytest.raises(ConfigError, match=f"backend = 'decoder'.*{architecture}.*transformers") as error:
        generator_for(language_model_of(architecture), backend="decoder")
    assert "\n" not in str(error.value)


def test_the_decoder_takes_an_architecture_outside_its_families_where_it_is_asked_for() -> None:
    language_model, requests = language_model_of("gpt_neox"), requests_of()
    by_decoder = generator_for(language_model, backend="decoder").generate(requests, SamplingParams(8))
    by_transformers = generator_for(language_model).generate(requests, SamplingParams(8))
    for one, other in zip(all_completions(by_decoder), all_completions(by_transformers), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5, rtol=0)


def test_errors_of_requests_are_those_of_the_decoder() -> None:
    generator = TransformersGenerator(small_model("qwen3", VOCABULARY))
    assert generator.generate([], SamplingParams(4)) == []
    with pytest.raises(ValueError, match=f"outside the model's vocabulary of {VOCABULARY}"):
        generator.generate([GenerationRequest((VOCABULARY,), 1, seed=0)], SamplingParams(4))
    with pytest.raises(ValueError, match="max_rows = 0"):
        TransformersGenerator(small_model("qwen3"), max_rows=0)
