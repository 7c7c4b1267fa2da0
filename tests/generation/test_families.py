"""The generators on real folders of each family, against transformers' plain generate and against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_families import FAMILIES, make_folder
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from bsharp.config import WeightsConfig
from bsharp.generation import (
    Decoder,
    GenerationRequest,
    Generator,
    SamplingParams,
    TransformersGenerator,
    generator_for,
)
from bsharp.generation.sampling import request_uniforms
from bsharp.generation.static import plain_step
from bsharp.models.adapters import make_policy, prepare_base
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.types import Completion

LIMIT = 20
GENERATORS: dict[str, Callable[[LanguageModel], Generator]] = {
    "decoder": Decoder,
    "decoder_in_fixed_shapes": lambda language_model: Decoder(language_model, capture=plain_step),
    "transformers": TransformersGenerator,
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def language_model(folder: Path) -> LanguageModel:
    return load_language_model(str(folder))


def ragged_requests(num_samples: int = 1, lengths: tuple[int, ...] = (1, 3, 16, 17, 31)) -> list[GenerationRequest]:
    """Prompts shorter than, as long as and longer than the sliding window of the reduced Gemma, which is 16."""
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(10, 480, length).tolist()) for length in lengths]
    return [GenerationRequest(prompt, num_samples, seed=100 + index) for index, prompt in enumerate(prompts)]


def ending_often(language_model: LanguageModel) -> LanguageModel:
    """With a quarter of the vocabulary as EOS ids beside the family's own, so that rows end at many different steps."""
    return replace(language_model, eos_token_ids=(*language_model.eos_token_ids, *range(40, 480, 16)))


def plain_greedy(language_model: LanguageModel, request: GenerationRequest) -> tuple[tuple[int, ...], Tensor]:
    """Tokens and logits (T, V) of transformers' generate for one prompt, without any of the folder's own settings."""
    prompt = torch.tensor([request.prompt_token_ids])
    output = language_model.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=LIMIT,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=list(language_model.eos_token_ids),
        pad_token_id=language_model.pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return tuple(output.sequences[0, prompt.shape[1] :].tolist()), torch.cat(output.logits).float()


def assert_same_samples(
    left: list[tuple[Completion, ...]], right: list[tuple[Completion, ...]], tolerance: float
) -> None:
    for one, other in zip(itertools.chain(*left), itertools.chain(*right), strict=True):
        assert one.token_ids == other.token_ids
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=tolerance, rtol=0)


def assert_same_samples_but_for_rounding(
    language_model: LanguageModel,
    requests: list[GenerationRequest],
    left: list[tuple[Completion, ...]],
    right: list[tuple[Completion, ...]],
) -> None:
    """Where tokens part, the uniform was within 1e-5 of the edge between the two; log-probabilities agree to 1e-5 until then."""
    for request, group, other_group in zip(requests, left, right, strict=True):
        uniforms = request_uniforms(request.seed, request.num_samples, LIMIT)
        for row, (one, other) in enumerate(zip(group, other_group, strict=True)):
            pairs = zip(one.token_ids, other.token_ids, strict=False)
            same = next((step for step, (token, rival) in enumerate(pairs) if token != rival), None)
            np.testing.assert_allclose(one.logprobs[:same], other.logprobs[:same], atol=1e-5, rtol=0)
            if same is not None:
                before = torch.tensor([request.prompt_token_ids + one.token_ids[:same]])
                with torch.no_grad():
                    cumulative = language_model.model(before).logits[0, -1].double().softmax(-1).cumsum(-1)
                edge = cumulative[min(one.token_ids[same], other.token_ids[same])]
                assert abs(edge - uniforms[row, same]) < 1e-5
            else:
                assert one.token_ids == other.token_ids


# --- greedy decoding is transformers' own -----------------------------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS)
def test_greedy_tokens_in_float32_are_those_of_plain_generate_prompt_by_prompt(
    language_model: LanguageModel, generator: str
) -> None:
    requests = ragged_requests()
    groups = GENERATORS[generator](language_model).generate(requests, SamplingParams(LIMIT, greedy=True))
    for request, (completion,) in zip(requests, groups, strict=True):
        expected, logits = plain_greedy(language_model, request)
        assert completion.token_ids == expected
        logprobs = logits.double().log_softmax(-1)[range(len(expected)), list(expected)]
        np.testing.assert_allclose(completion.logprobs, logprobs.numpy(), atol=5e-5, rtol=0)


def bfloat16_tolerance(logits: Tensor) -> float:
    """Eight units in the last place of bfloat16 at the largest logit: 0.5 where that is between 8 and 16.

    bfloat16 keeps 8 significant bits, and its sums are rounded in another order with other rows beside them, in every layer:
    each of the two best logits may move by some units. Three were seen between them on these models.
    """
    return 8 * 2.0 ** (math.floor(math.log2(float(logits.abs().max()))) - 7)


@pytest.mark.parametrize("generator", GENERATORS)
def test_greedy_tokens_in_bfloat16_are_those_of_plain_generate_until_two_logits_are_too_close_to_tell(
    folder: Path, generator: str
) -> None:
    language_model = load_language_model(str(folder), dtype="bfloat16")
    assert language_model.model.dtype == torch.bfloat16
    requests, compared = ragged_requests(), 0
    groups = GENERATORS[generator](language_model).generate(requests, SamplingParams(LIMIT, greedy=True))
    for request, (completion,) in zip(requests, groups, strict=True):
        expected, logits = plain_greedy(language_model, request)
        for step, (token, other) in enumerate(itertools.zip_longest(completion.token_ids, expected)):
            if token != other:
                best, second = logits[step].topk(2).values.tolist()
                assert best - second < bfloat16_tolerance(logits[step]), f"step {step}: {token}, not {other}"
                break
            compared += 1
    assert compared > len(requests) * LIMIT / 2, "hardly anything was compared"


# --- the same samples from every generator ----------------------------------------------------------------------------

SAMPLERS = {
    "plain": SamplingParams(LIMIT),
    "restricted": SamplingParams(LIMIT, temperature=1.3, top_p=0.9, top_k=30),
    "fixed_length": SamplingParams(LIMIT, fixed_length=True),
}


@pytest.fixture(scope="module")
def in_float64(folder: Path) -> LanguageModel:
    """float32 leaves about one draw in ten thousand to rounding, where a uniform meets the edge between two tokens."""
    language_model = load_language_model(str(folder))
    language_model.model.double()
    return ending_often(language_model)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_generator_draws_the_same_tokens_with_the_same_logprobs(in_float64: LanguageModel, sampler: str) -> None:
    """Rows end at many different steps, so that rows are dropped, moved and, by transformers, carried along."""
    params, requests = SAMPLERS[sampler], ragged_requests(num_samples=4)
    expected = Decoder(in_float64).generate(requests, params)
    lengths = {len(completion.token_ids) for group in expected for completion in group}
    assert lengths == {LIMIT} if sampler == "fixed_length" else len(lengths) > 6
    for other in (Decoder(in_float64, max_rows=9, capture=plain_step), TransformersGenerator(in_float64, max_rows=16)):
        assert_same_samples(other.generate(requests, params), expected, 1e-6)


def test_in_float32_generators_draw_the_same_tokens_but_on_the_edge_between_two(language_model: LanguageModel) -> None:
    model, requests = ending_often(language_model), ragged_requests(num_samples=4)
    expected = Decoder(model).generate(requests, SamplingParams(LIMIT))
    for other in (TransformersGenerator(model, max_rows=9), Decoder(model, max_rows=9, capture=plain_step)):
        groups = other.generate(requests, SamplingParams(LIMIT))
        assert_same_samples_but_for_rounding(model, requests, groups, expected)


def test_every_eos_id_of_the_family_ends_a_row_also_where_it_is_the_pad_id(language_model: LanguageModel) -> None:
    assert len(language_model.eos_token_ids) > 1
    prompt, params = ragged_requests()[2].prompt_token_ids, SamplingParams(4)
    boosted = load_language_model(language_model.name)
    with torch.no_grad():  # the tied head gives each EOS id the direction of the hidden state, so they come often
        hidden = boosted.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0, -1]
        weight = boosted.model.get_output_embeddings().weight
        weight[list(boosted.eos_token_ids)] = 4.0 * hidden / hidden.norm() ** 2 * math.log(weight.shape[0])
    request = GenerationRequest(prompt, 60, seed=1)
    for pad_token_id in {boosted.pad_token_id, *boosted.eos_token_ids}:
        model = replace(boosted, pad_token_id=pad_token_id)
        for make in GENERATORS.values():
            (group,) = make(model).generate([request], params)
            assert {c.token_ids[-1] for c in group if not c.truncated} == set(boosted.eos_token_ids)
            assert not any(set(c.token_ids[:-1]) & set(boosted.eos_token_ids) for c in group)


# --- fixed shapes -----------------------------------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Refuses to look at the value of a tensor from Python, which waits for the device and ends a capture."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default), func
        return func(*args, **(kwargs or {}))


def test_a_step_of_fixed_shape_reads_no_value_in_python(in_float64: LanguageModel) -> None:
    def watched(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with NoReading():
                return step()

        return run

    Decoder(in_float64, capture=watched).generate(ragged_requests(), SamplingParams(4))
    with pytest.raises(AssertionError), NoReading():
        torch.ones(3).sum().item()


def traced(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A stand-in for a CUDA graph: the operations of one run, with every Python number and address in them frozen."""
    graph = make_fx(step)()
    return lambda: graph()


def test_a_frozen_step_replayed_decodes_like_the_step_itself(in_float64: LanguageModel) -> None:
    """What a CUDA graph needs: a step that depends on its buffers only. A length read in Python would be frozen too."""
    frozen = []

    def capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        frozen.append(traced(step))
        return frozen[-1]

    requests, params = ragged_requests(lengths=(1, 9, 17, 31)), SamplingParams(LIMIT)
    expected = Decoder(in_float64).generate(requests, params)
    assert_same_samples(Decoder(in_float64, capture=capture).generate(requests, params), expected, 1e-6)
    assert len(frozen) == 1, "four rows and fewer, at most 64 columns: one shape"


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS)
def test_with_an_adapter_the_policy_decodes_with_it_and_the_base_as_if_there_were_none(
    language_model: LanguageModel, folder: Path, generator: str
) -> None:
    requests, params = ragged_requests(num_samples=2), SamplingParams(LIMIT)
    untouched = GENERATORS[generator](language_model).generate(requests, params)
    weights = WeightsConfig(lora_rank=4, gradient_checkpointing=True)
    base = prepare_base(load_language_model(str(folder)), weights)
    policy = make_policy(base, weights, seed=0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    assert isinstance(generator_for(policy), Decoder), "the family is seen through PEFT's wrapper"
    captured: list[Callable[[], Tensor]] = []
    Decoder(policy, capture=lambda step: captured.append(step) or step).generate(requests, SamplingParams(2))
    assert captured, "an adapter leaves the steps their fixed shapes"
    by_policy = GENERATORS[generator](policy).generate(requests, params)
    for request, group in zip(requests, by_policy, strict=True):
        for completion in group:
            row = torch.tensor([request.prompt_token_ids + completion.token_ids])
            with torch.no_grad(), policy.ready():
                logits = policy.model(row).logits[0, len(request.prompt_token_ids) - 1 : -1].double()
            expected = logits.log_softmax(-1)[range(len(completion.token_ids)), list(completion.token_ids)]
            np.testing.assert_allclose(completion.logprobs, expected.numpy(), atol=5e-5, rtol=0)
    assert [c.token_ids for c in by_policy[3]] != [c.token_ids for c in untouched[3]]
    by_base = GENERATORS[generator](base).generate(requests, params)
    assert_same_samples_but_for_rounding(language_model, requests, by_base, untouched)


# --- which generator --------------------------------------------------------------------------------------------------


def test_auto_takes_the_decoder_for_the_families_it_serves(language_model: LanguageModel) -> None:
    assert type(generator_for(language_model)) is Decoder
    assert type(generator_for(language_model, backend="decoder")) is Decoder
    other = generator_for(language_model, max_rows=3, backend="transformers", policy_version=5)
    assert type(other) is TransformersGenerator
    assert other.policy_version == 5
