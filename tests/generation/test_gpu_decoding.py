"""Decoding on CUDA: steps captured as graphs against steps that are not, on reduced models of every family."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_families import FAMILIES, make_folder

from bsharp.generation import Decoder, GenerationRequest, SamplingParams, TransformersGenerator
from bsharp.generation.static import CudaGraphs
from bsharp.models.loading import LanguageModel, load_language_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # a driver or a GPU may warn of what nothing here can change
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PARAMS = SamplingParams(40)


@pytest.fixture(scope="module", params=FAMILIES)
def language_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """In float64, so that no draw is left to rounding."""
    folder: Path = make_folder(request.param, tmp_path_factory.mktemp(request.param))
    loaded = load_language_model(str(folder), device="cuda")
    loaded.model.double()
    return loaded


def requests_of(num_samples: int = 9) -> list[GenerationRequest]:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(10, 480, length).tolist()) for length in (1, 9, 17, 60)]
    return [GenerationRequest(prompt, num_samples, seed) for seed, prompt in enumerate(prompts)]


def assert_same_samples(left: list[Any], right: list[Any]) -> None:
    for one, other in zip(itertools.chain(*left), itertools.chain(*right), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-6, rtol=0)


def test_captured_steps_decode_what_growing_steps_and_generate_do(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = CudaGraphs(language_model.device)
    captured = Decoder(language_model, max_rows=20, capture=graphs).generate(requests_of(), PARAMS)
    assert graphs.failure is None
    assert_same_samples(TransformersGenerator(language_model).generate(requests_of(), PARAMS), captured)
    monkeypatch.setattr("bsharp.generation.static.ATTENTION", ())
    assert_same_samples(Decoder(language_model).generate(requests_of(), PARAMS), captured)


def test_weights_changed_in_place_between_calls_are_seen(language_model: LanguageModel) -> None:
    decoder = Decoder(language_model)
    before = decoder.generate(requests_of(), PARAMS)
    weights = {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            parameter.mul_(1.1)
    after = decoder.generate(requests_of(), PARAMS)
    expected = TransformersGenerator(language_model).generate(requests_of(), PARAMS)
    language_model.model.load_state_dict(weights)
    assert_same_samples(after, expected)
    assert [c.token_ids for group in after for c in group] != [c.token_ids for group in before for c in group]
