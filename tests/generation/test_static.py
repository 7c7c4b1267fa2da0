"""Fixed shapes: few of them, nothing that moves, steps that may be repeated, and decoding that survives a failed capture."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_model
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from bsharp.generation import Decoder, GenerationRequest, SamplingParams
from bsharp.generation.static import CudaGraphs, graphs_for, plain_step, row_buckets
from bsharp.models.loading import LanguageModel
from bsharp.models.network import without_network

VOCABULARY, EOS = 30, (1, 7)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "mistral")


def language_model_of(architecture: str, attention: str = "sdpa") -> LanguageModel:
    if architecture != "mistral":
        language_model = small_model(architecture, VOCABULARY, eos_token_ids=EOS)
        language_model.model.set_attn_implementation(attention)
        return language_model
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**shape, **heads, initializer_range=0.4)).double().eval()
    return replace(small_model("llama", VOCABULARY, eos_token_ids=EOS), model=model)


def requests_of(num_samples: int = 6, lengths: tuple[int, ...] = (1, 4, 9, 14)) -> list[GenerationRequest]:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(2, VOCABULARY, length).tolist()) for length in lengths]
    return [GenerationRequest(prompt, num_samples, seed=50 + index) for index, prompt in enumerate(prompts)]


def tokens_and_logprobs(groups: list[Any]) -> tuple[list[tuple[int, ...]], np.ndarray]:
    completions = list(itertools.chain(*groups))
    return [c.token_ids for c in completions], np.array([sum(c.logprobs) for c in completions])


def assert_equal_samples(left: list[Any], right: list[Any]) -> None:
    (tokens, logprobs), (other_tokens, other_logprobs) = tokens_and_logprobs(left), tokens_and_logprobs(right)
    assert tokens == other_tokens
    np.testing.assert_allclose(logprobs, other_logprobs, atol=1e-5, rtol=0)


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Growing steps are those of the model's own modules here, as the fixed ones are."""
    with without_network():
        yield


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fixed_shapes_decode_what_growing_ones_do(architecture: str) -> None:
    language_model, params = language_model_of(architecture), SamplingParams(20)
    for requests in (requests_of(), requests_of(lengths=(9, 9))):
        expected = Decoder(language_model).generate(requests, params)
        for max_rows in (512, 5):
            fixed = Decoder(language_model, max_rows, capture=plain_step).generate(requests, params)
            assert_equal_samples(fixed, expected)


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_fixed_shapes_grow_with_long_responses(architecture: str) -> None:
    """Columns 64, then 128: the step at place 64 is the first of the wider ones."""
    language_model, params = language_model_of(architecture), SamplingParams(70, fixed_length=True)
    requests = requests_of(num_samples=1)
    expected = Decoder(language_model).generate(requests, params)
    assert_equal_samples(Decoder(language_model, capture=plain_step).generate(requests, params), expected)


def test_fixed_shapes_serve_attention_whose_masks_are_numbers_to_add() -> None:
    """In float32: transformers' eager masks become −∞ on the way from float64, and padding then NaN, in any decoding."""
    language_model, params = language_model_of("qwen3", "eager"), SamplingParams(20)
    language_model.model.float()
    expected = Decoder(language_model).generate(requests_of(), params)
    assert_equal_samples(Decoder(language_model, capture=plain_step).generate(requests_of(), params), expected)


def test_the_rows_and_columns_that_steps_are_run_on_take_few_values_and_shrink_with_the_rows() -> None:
    """Of 70, 35, 18, 9 and 5 rows the fewest that hold those still going."""
    language_model = language_model_of("qwen3")
    shapes: list[tuple[int, ...]] = []
    captured = 0

    def capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        nonlocal captured
        captured += 1
        return step

    requests = [GenerationRequest((3, 4, 5), 70, seed=0)]
    expected = Decoder(language_model).generate(requests, SamplingParams(120))
    handle = language_model.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: shapes.append(tuple(inputs[0].shape))
    )
    groups = Decoder(language_model, capture=capture).generate(requests, SamplingParams(120))
    handle.remove()
    assert_equal_samples(groups, expected)
    assert row_buckets(70) == (70, 35, 18, 9, 5)
    assert shapes[0] == (1, 3)
    lengths = [len(completion.token_ids) for completion in groups[0]]
    for step, (rows, width) in enumerate(shapes[1:], start=1):
        alive = sum(length > step for length in lengths)
        assert width == 1
        assert rows == min(bucket for bucket in row_buckets(70) if bucket >= alive)
    assert captured <= len(row_buckets(70)) + 1, "one more where 64 columns become 128"
    assert captured < len(shapes) / 3


def test_a_step_may_be_run_any_number_of_times() -> None:
    """Captures run a step beforehand: it must leave no trace but what running it once leaves."""

    def thrice(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def repeated() -> Tensor:
            step()
            step()
            return step()

        return repeated

    for architecture in ("qwen3", "mistral"):
        language_model, params = language_model_of(architecture), SamplingParams(20)
        expected = Decoder(language_model, capture=plain_step).generate(requests_of(), params)
        assert Decoder(language_model, capture=thrice).generate(requests_of(), params) == expected


def test_what_was_never_written_is_zero_since_masked_values_still_enter_the_sums() -> None:
    """Uninitialised memory is filled with NaN here: read with weight 0 it would make every sum NaN."""
    requests, params = requests_of(), SamplingParams(20)
    language_model = language_model_of("llama")
    expected = Decoder(language_model).generate(requests, params)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        groups = Decoder(language_model, capture=plain_step).generate(requests, params)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_samples(groups, expected)


def test_every_call_captures_anew_so_that_weights_may_be_changed_or_moved_between_calls() -> None:
    language_model, other = language_model_of("qwen3"), small_model("qwen3", VOCABULARY, seed=3, eos_token_ids=EOS)
    captured: list[Callable[[], Tensor]] = []

    def capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        captured.append(step)
        return step

    decoder = Decoder(language_model, capture=capture)
    before = decoder.generate(requests_of(), SamplingParams(8))
    first = len(captured)
    decoder.sync_weights(other.model, version=2)
    after = decoder.generate(requests_of(), SamplingParams(8))
    assert tokens_and_logprobs(after)[0] != tokens_and_logprobs(before)[0]
    assert_equal_samples(after, Decoder(other).generate(requests_of(), SamplingParams(8)))
    assert len(captured) > first > 0


def test_a_capture_that_fails_is_logged_once_with_its_reason_and_decoding_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model, params = language_model_of("qwen3"), SamplingParams(20)
    graphs = CudaGraphs(torch.device("cpu"))

    def refused(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nstack")

    monkeypatch.setattr(graphs, "_graph", refused)
    expected = Decoder(language_model).generate(requests_of(), params)
    with caplog.at_level(logging.WARNING, logger="bsharp.generation.static"):
        assert_equal_samples(Decoder(language_model, capture=graphs).generate(requests_of(), params), expected)
    (record,) = caplog.records
    assert "without CUDA graphs" in record.getMessage()
    assert "RuntimeError: operation not permitted when stream is capturing" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_capture_that_failed_is_not_tried_again_by_the_decoder_and_one_that_did_not_is_new_for_each_call(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is captured is the model's own forward pass.
    monkeypatch.setattr("bsharp.generation.decoder.network_of", lambda model: None)
    language_model, params = language_model_of("qwen3"), SamplingParams(20)
    expected = Decoder(language_model).generate(requests_of(), params)
    assert graphs_for(torch.device("cpu")) is None
    assert isinstance(graphs_for(torch.device("cuda")), CudaGraphs)
    made: list[Any] = []

    class Graphs(CudaGraphs):
        tries = 0

        def _graph(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
            self.tries += 1
            if len(made) == 2:
                raise RuntimeError("out of memory")
            return step

    def graphs(device: torch.device) -> CudaGraphs:
        made.append(Graphs(device))
        return made[-1]

    monkeypatch.setattr("bsharp.generation.decoder.graphs_for", graphs)
    decoder = Decoder(language_model)
    with caplog.at_level(logging.WARNING, logger="bsharp.generation.static"):
        for _ in range(4):
            assert_equal_samples(decoder.generate(requests_of(), params), expected)
    assert len(made) == 2  # a pool whose graphs are gone cannot be used again
    assert made[0].tries > 1
    assert made[1].tries == 1
    assert len(caplog.records) == 1


def test_an_attention_that_needs_its_own_masks_decodes_in_growing_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model, params = language_model_of("qwen3"), SamplingParams(8)
    expected = Decoder(language_model).generate(requests_of(), params)
    monkeypatch.setattr("bsharp.generation.static.ATTENTION", ())

    def never(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise AssertionError("a step of fixed shape was asked for")

    assert Decoder(language_model, capture=never).generate(requests_of(), params) == expected
