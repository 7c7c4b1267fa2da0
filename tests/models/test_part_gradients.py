from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from model_families import reduced_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bsharp.models import scored_head
from bsharp.models.network import Network, network_of
from bsharp.models.packed import backward, forward
from bsharp.models.packing import Packing, pack
from bsharp.models.part_gradients import GradientSums, PartNorms
from bsharp.models.scored_head import score_and_differentiate

VOCABULARY = 30
TEMPERATURE, MASKED = 0.8, (28, 29)
PROMPTS = [(1, 2, 3, 4, 5), (2,), (1, 2, 3, 4, 5), (3, 1, 4), (2,), (1, 2, 3, 4, 5), (7,)]
LENGTHS = [7, 3, 1, 1, 9, 4, 0]
PARTS = [[4, 1], [6], [2, 0, 5], [3]]  # the second one has no token


def model_of(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    """tied, untied, or untied with a bias of the output layer; Qwen2 has biases in attention, Qwen3 norms of the heads."""
    pad = PROMPTS[1][0] if kind == "tied" else None  # read, but without a gradient where it is
    family = "qwen3" if kind == "tied" else "qwen2_5"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = reduced_config(family, VOCABULARY, tie_word_embeddings=kind == "tied", pad_token_id=pad)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
        if kind == "head bias":
            model.lm_head = nn.Linear(config.hidden_size, VOCABULARY, dtype=torch.float64)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.3 * noise if parameter.ndim == 1 else noise / parameter.shape[1] ** 0.5)
    return model.to(dtype)


def network_in(model: Any) -> Network:
    network = network_of(model)
    assert network is not None
    return network


def responses() -> tuple[Tensor, Tensor]:
    ids = torch.randint(MASKED[0], (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]


def coefficients() -> Tensor:
    """What each response token's log-probability counts in the loss."""
    return torch.randn(responses()[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def packed_pass(network: Network, parts: Sequence[Sequence[int]], sums: GradientSums) -> list[float]:
    """Add the gradient of these parts' Σ c log q; the squared norm of each one's own."""
    packing: Packing = pack(network, PROMPTS, *responses(), parts)
    counts = coefficients().flatten()[packing.places]
    sink = PartNorms(network, packing, sums)
    hidden, activations = forward(network, packing)
    _, of_predicting = score_and_differentiate(
        hidden[packing.predictor],
        network.head,
        packing.targets,
        lambda tokens, _: counts[tokens],
        [predicted for _, predicted in packing.parts],
        sink,
        TEMPERATURE,
        MASKED,
    )
    sink.finish_head()
    of_hidden = torch.zeros_like(hidden).index_add_(0, packing.predictor, of_predicting)
    backward(network, packing, activations, of_hidden, sink)
    return sink.norms_squared()


def by_autograd(model: Any, part: Sequence[int]) -> dict[Tensor, Tensor]:
    """The gradient of one part alone, through the model's own modules: the reference."""
    model.zero_grad()
    ids, counts = responses()[0], coefficients()
    for row in part:
        if length := LENGTHS[row]:
            text = torch.tensor([[*PROMPTS[row], *ids[row, :length].tolist()]])
            logits = model(input_ids=text, use_cache=False).logits[0, len(PROMPTS[row]) - 1 : -1].double() / TEMPERATURE
            logprobs = logits.index_fill(-1, torch.tensor(MASKED), -torch.inf).log_softmax(-1)
            (logprobs[torch.arange(length), ids[row, :length]] * counts[row, :length]).sum().backward()
    return {p: torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()}


def norm_squared(gradient: dict[Tensor, Tensor]) -> float:
    return float(sum(terms.double().square().sum() for terms in gradient.values()))


def check_sums(sums: GradientSums, gradients: Sequence[dict[Tensor, Tensor]], tolerance: float = 1e-6) -> None:
    total = {weight: sum(gradient[weight] for gradient in gradients) for weight in gradients[0]}
    largest = max(float(terms.norm()) for terms in total.values())
    for weight, terms in total.items():
        found = sums.get(weight)
        assert found is not None
        assert float((found - terms).norm()) <= tolerance * max(float(terms.norm()), 1e-3 * largest)
    assert sums.norm_squared() == pytest.approx(norm_squared(total), rel=10 * tolerance)


@pytest.fixture(params=["whole", "two tokens at a time", "gradients of five tokens at a time"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "whole":
        return
    monkeypatch.setattr(scored_head, "LEAST_TOKENS", 2)
    monkeypatch.setattr(scored_head, "LOGIT_BYTES", 1)
    monkeypatch.setattr(scored_head, "PRODUCT_BYTES", 8 * VOCABULARY * (5 if "five" in request.param else 0))


@pytest.mark.parametrize("kind", ["tied", "untied", "head bias"])
@pytest.mark.usefixtures("_chunks")
def test_the_norm_of_every_parts_own_gradient_and_the_sum_of_all_are_those_of_autograd(kind: str) -> None:
    model = model_of(kind)
    sums = GradientSums()
    norms = packed_pass(network_in(model), PARTS, sums)
    gradients = [by_autograd(model, part) for part in PARTS]
    assert norms == pytest.approx([norm_squared(gradient) for gradient in gradients], rel=1e-5)
    assert norms[1] == 0.0
    check_sums(sums, gradients)


@pytest.mark.parametrize("kind", ["tied", "head bias"])
def test_sums_of_several_passes_add_up_and_each_knows_its_own_norms(kind: str) -> None:
    model = model_of(kind)
    network, sums = network_in(model), GradientSums()
    norms = [packed_pass(network, [part], sums)[0] for part in PARTS]
    assert norms == pytest.approx(packed_pass(network, PARTS, GradientSums()), rel=1e-10)
    check_sums(sums, [by_autograd(model, part) for part in PARTS])


@pytest.mark.parametrize("kind", ["tied", "head bias"])
def test_merged_sums_are_those_of_one_pass(kind: str) -> None:
    network = network_in(model_of(kind))
    whole, merged = GradientSums(), GradientSums()
    packed_pass(network, PARTS, whole)
    for part in PARTS:
        other = GradientSums()
        packed_pass(network, [part], other)
        packed_pass(network, [part], other)
        merged.take(other)
        assert other.norm_squared() == 0.0
        packed_pass(network, [part], other)  # what is added to the used-up sums later does not reach the merged ones
    for weight in {network.embedding, network.head.weight, network.final_norm, network.blocks[0].down.weight}:
        found, expected = merged.get(weight), whole.get(weight)
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found, 2.0 * expected, rtol=1e-9, atol=1e-9)
    assert merged.norm_squared() == pytest.approx(4.0 * whole.norm_squared(), rel=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("kind", ["tied", "head bias"])
@pytest.mark.usefixtures("_chunks")
def test_norms_and_sums_of_narrower_types_are_near_and_float32(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    model, exact = model_of(kind, dtype), model_of(kind, dtype).double()
    sums, expected = GradientSums(), GradientSums()
    norms = packed_pass(network_in(model), PARTS, sums)
    assert norms == pytest.approx(packed_pass(network_in(exact), PARTS, expected), rel=tolerance)
    assert sums.norm_squared() == pytest.approx(expected.norm_squared(), rel=tolerance)
    largest = expected.norm_squared() ** 0.5
    for weight, same in zip(model.parameters(), exact.parameters(), strict=True):
        found, right = sums.get(weight), expected.get(same)
        assert found is not None
        assert right is not None
        assert found.dtype == torch.float32
        assert float((found - right).norm()) <= tolerance * max(float(right.norm()), 1e-2 * largest)


@pytest.mark.parametrize("frozen", ["embed_tokens", "lm_head", "layers"])
def test_weights_that_do_not_train_count_for_nothing(frozen: str) -> None:
    model = model_of("head bias")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    sums = GradientSums()
    norms = packed_pass(network_in(model), PARTS, sums)
    gradients = [by_autograd(model, part) for part in PARTS]
    assert norms == pytest.approx([norm_squared(gradient) for gradient in gradients], rel=1e-5)
    for parameter in model.parameters():
        assert (sums.get(parameter) is not None) == parameter.requires_grad


def test_memory_handed_back_is_used_again_and_never_that_of_a_sum() -> None:
    sums, weight, other = GradientSums(), torch.zeros(3, 2), torch.zeros(3, 2)
    first, second = torch.ones(3, 2), torch.full((3, 2), 2.0)
    sums.add(weight, first)
    sums.add(weight, second)
    assert sums.get(weight) is first
    assert sums.space(other) is second
    assert sums.space(other) is not second
    second.fill_(7.0)
    assert torch.equal(sums.get(weight), torch.full((3, 2), 3.0))
