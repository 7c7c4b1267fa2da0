"""Decoding with the weights alone against decoding through the model's own modules: the same tokens, the same figures."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bsharp.config import EMBEDDED_MODEL
from bsharp.generation import Decoder, GenerationRequest, SamplingParams, decoder, network_steps, step_program
from bsharp.generation.step_program import program, step_logits
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.network import network_of, without_network
from bsharp.types import Completion

VOCABULARY = 40
EOS = (1, 7, 9, 11)
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_tied")
SETTINGS: dict[str, SamplingParams] = {
    "plain": SamplingParams(12),
    "one_token": SamplingParams(1),
    "greedy": SamplingParams(12, greedy=True),
    "temperature": SamplingParams(12, temperature=1.7),
    "fixed_length": SamplingParams(12, fixed_length=True),
    "top_k": SamplingParams(12, top_k=5),
    "top_p": SamplingParams(12, top_p=0.8),
    "all": SamplingParams(12, temperature=0.7, fixed_length=True, top_p=0.9, top_k=6),
}

Groups = list[tuple[Completion, ...]]


class NumberTokenizer:
    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, token_ids))


def random_model(family: str, dtype: torch.dtype = torch.float32, scale: float = 0.25) -> LanguageModel:
    """Weights far from zero, norms far from 1 and biases far from 0: a term left out shows."""
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "initializer_range": scale,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    classes: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shared, attention_bias=True, mlp_bias=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shared)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=12)),
        "qwen3_tied": lambda: Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=8, tie_word_embeddings=True)),
    }
    model = classes[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    tokenizer: Any = NumberTokenizer()
    language_model = LanguageModel(model.to(dtype), tokenizer, eos_token_ids=EOS, pad_token_id=0, name=family)
    assert network_of(language_model.model) is not None, "this would compare the modules with themselves"
    return language_model


def random_requests(count: int = 7, num_samples: int = 5, longest: int = 20) -> list[GenerationRequest]:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(2, VOCABULARY, rng.integers(1, longest)).tolist()) for _ in range(count)]
    prompts[3] = prompts[1]
    return [GenerationRequest(prompt, num_samples + index % 3, seed=50 + index) for index, prompt in enumerate(prompts)]


def assert_same(found: Groups, expected: Groups, tolerance: float = 1e-5) -> None:
    assert [[one.token_ids for one in group] for group in found] == [
        [one.token_ids for one in group] for group in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=tolerance, rtol=0)
            assert one.finish_reason is other.finish_reason


def by_modules(language_model: LanguageModel, requests: list[GenerationRequest], params: SamplingParams) -> Groups:
    """What the model's own modules draw in float64: both ways round sums in float32, each in an order of its own."""
    exact = dataclasses.replace(language_model, model=copy.deepcopy(language_model.model).double())
    with without_network():
        return Decoder(exact).generate(requests, params)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many threads of torch: as many pieces."""
    monkeypatch.setattr(decoder, "LEAST_ROWS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_weights_alone_draw_what_the_models_own_modules_draw(family: str, setting: str) -> None:
    language_model, requests, params = random_model(family), random_requests(), SETTINGS[setting]
    expected = by_modules(language_model, requests, params)
    found = Decoder(language_model).generate(requests, params)
    assert_same(found, expected)
    lengths = {len(one.token_ids) for group in found for one in group}
    assert params.fixed_length or params.max_new_tokens == 1 or len(lengths) > (1 if params.greedy else 3), (
        "rows that end early are what is hard"
    )
    if setting == "all":
        assert lengths == {12}


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_threads_nor_the_size_of_micro_batches_change_what_is_drawn(family: str, threads: int) -> None:
    language_model, requests = random_model(family), random_requests()
    expected = by_modules(language_model, requests, SETTINGS["plain"])
    for max_rows in (1, 4, 500):
        assert_same(Decoder(language_model, max_rows=max_rows).generate(requests, SETTINGS["plain"]), expected)


def test_a_request_cut_between_threads_keeps_its_samples(threads: int) -> None:
    language_model = random_model("qwen3")
    request = [GenerationRequest((3, 4, 5), 41, seed=8)]
    assert_same(
        Decoder(language_model).generate(request, SETTINGS["plain"]),
        by_modules(language_model, request, SETTINGS["plain"]),
    )


def test_more_rows_than_fast_products_need_draw_the_same() -> None:
    language_model, requests = random_model("qwen2"), random_requests(num_samples=40)
    assert_same(
        Decoder(language_model).generate(requests, SETTINGS["plain"]),
        by_modules(language_model, requests, SETTINGS["plain"]),
    )


def test_the_samples_of_a_request_do_not_depend_on_the_other_requests(threads: int) -> None:
    language_model, requests = random_model("llama"), random_requests()
    together = Decoder(language_model).generate(requests, SETTINGS["plain"])
    for index, request in enumerate(requests):
        assert_same(Decoder(language_model).generate([request], SETTINGS["plain"]), together[index : index + 1])
    backwards = Decoder(language_model).generate(requests[::-1], SETTINGS["plain"])
    assert_same(backwards[::-1], together)


def test_equal_calls_are_equal_bit_for_bit(threads: int) -> None:
    language_model, requests = random_model("qwen3"), random_requests()
    first, second = (Decoder(language_model).generate(requests, SETTINGS["plain"]) for _ in range(2))
    assert first == second


def test_weights_that_changed_between_calls_are_the_ones_that_decode() -> None:
    language_model, requests = random_model("qwen3"), random_requests()
    decoder = Decoder(language_model)
    before = decoder.generate(requests, SETTINGS["plain"])
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            parameter.mul_(1.1)
    after = decoder.generate(requests, SETTINGS["plain"])
    assert after != before
    assert_same(after, by_modules(language_model, requests, SETTINGS["plain"]))


@pytest.mark.parametrize("setting", ["plain", "greedy", "temperature", "fixed_length"])
def test_the_embedded_model_draws_the_same(setting: str) -> None:
    language_model = load_language_model(EMBEDDED_MODEL)
    assert network_of(language_model.model) is not None
    texts = ("3 + 4 = ?", "12 * 5 = ?", "What is 17 - 9?")
    requests = [GenerationRequest(tuple(language_model.encode(text)), 6, seed=i) for i, text in enumerate(texts)]
    params = SETTINGS[setting]
    assert_same(
        Decoder(language_model).generate(requests, params), by_modules(language_model, requests, params), tolerance=3e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_logprobs_of_equal_prefixes_agree(family: str) -> None:
    language_model = random_model(family, torch.bfloat16, scale=0.1)
    requests = random_requests()
    found = Decoder(language_model).generate(requests, SETTINGS["plain"])
    expected = by_modules(language_model, requests, SETTINGS["plain"])
    compared = 0
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            pairs = zip(one.token_ids, other.token_ids, strict=False)
            equal = next(
                (place for place, (a, b) in enumerate(pairs) if a != b), min(map(len, (one.token_ids, other.token_ids)))
            )
            np.testing.assert_allclose(one.logprobs[:equal], other.logprobs[:equal], atol=0.05, rtol=0)
            compared += equal
    assert compared > 50


compiled = pytest.mark.skipif(not program()[1], reason="this release of torch or Python cannot compile the step")


@compiled
@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in FAMILIES]
    + [(family, torch.bfloat16) for family in ("llama", "qwen2", "qwen3_tied")],
)
def test_the_compiled_step_gives_what_its_python_gives_to_the_last_bit(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model, requests = random_model(family, dtype), random_requests()
    found = Decoder(language_model).generate(requests, SETTINGS["plain"])
    monkeypatch.setattr(network_steps, "program", lambda: (step_logits, False))
    assert Decoder(language_model).generate(requests, SETTINGS["plain"]) == found


@pytest.mark.parametrize("has_compiled", [True, False])
def test_rows_of_a_tiny_model_are_dealt_where_the_step_runs_without_python_and_pays(
    has_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model, pieces = random_model("qwen3"), []
    deal = decoder.split_segments
    monkeypatch.setattr(decoder, "program", lambda: (step_logits, has_compiled))
    monkeypatch.setattr(decoder, "threads_for_pieces", lambda _: 2)
    monkeypatch.setattr(decoder, "split_segments", lambda *call: pieces.append(call[1]) or deal(*call))
    for rows in (decoder.LEAST_ROWS - 1, decoder.LEAST_ROWS):
        Decoder(language_model).generate([GenerationRequest((3, 4), rows, 0)], SamplingParams(2))
    assert pieces == ([1, 2] if has_compiled else [1, 1])


@pytest.mark.parametrize("library", ["default", "onednn"])
def test_no_piece_runs_prompts_while_another_decodes_where_the_library_of_products_would_have_to_change(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The choice holds for the whole process: with oneDNN for large products only, a piece would decode with it by chance.
    language_model, where = random_model("qwen3"), []
    prefill = network_steps.prefill
    monkeypatch.setattr(decoder, "product_library", lambda _: library)
    monkeypatch.setattr(decoder, "threads_for_pieces", lambda _: 2)
    monkeypatch.setattr(
        network_steps, "prefill", lambda *call: where.append(threading.current_thread()) or prefill(*call)
    )
    Decoder(language_model).generate(random_requests(num_samples=12), SamplingParams(2))
    assert len(where) == 2
    assert [thread is threading.main_thread() for thread in where] == [library == "onednn"] * 2


@pytest.mark.parametrize(
    ("least_fast", "dtype", "by_onednn"),
    [
        (-1, torch.float32, False),
        (5 * 7 * 16, torch.float32, True),
        (5 * 7 * 16 + 1, torch.float32, False),
        (0, torch.bfloat16, False),
        (0, torch.float64, False),
    ],
)
def test_only_float32_products_that_are_large_enough_go_to_onednn(
    least_fast: int, dtype: torch.dtype, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, weight, bias = (
        torch.randn((5, 16), dtype=dtype),
        torch.randn((7, 16), dtype=dtype),
        torch.randn(7, dtype=dtype),
    )
    layout = network_steps.StepWeights(network_of(random_model("qwen3").model)).layout._replace(least_fast=least_fast)
    asked = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(step_program, "onednn_linear", lambda *call: asked.append(call) or linear(*call))
    assert torch.equal(step_program.linear(layout, inputs, weight, bias), linear(inputs, weight, bias))
    assert bool(asked) is by_onednn
