from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_families import reduced_config
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig

from bsharp.models import packed
from bsharp.models import packing as packing_module
from bsharp.models.network import Network, network_of
from bsharp.models.packed import backward, forward, hidden_states, prefill
from bsharp.models.packing import Packing, pack

VOCABULARY = 40
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # so that some rotations are slowed down, some partly, some not
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: reduced_config("llama3_2", VOCABULARY, rope_parameters=LLAMA3_ROPE),
    "llama, untied": lambda: reduced_config("llama3_2", VOCABULARY, tie_word_embeddings=False),
    "llama, all biases": lambda: reduced_config("llama3_2", VOCABULARY, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    "qwen2": lambda: reduced_config("qwen2_5", VOCABULARY),
    "qwen3": lambda: reduced_config("qwen3", VOCABULARY),
    "qwen3, a padding token that is read": lambda: reduced_config("qwen3", VOCABULARY),
    "qwen3, untied, one key head": lambda: reduced_config(
        "qwen3", VOCABULARY, num_key_value_heads=1, tie_word_embeddings=False
    ),
}
PROMPTS = [(1, 2, 3, 4, 5), (2,), (1, 2, 3, 4, 5), (3, 1, 4), (2,), (1, 2, 3, 4, 5), (3, 1, 4)]
LENGTHS = [7, 3, 1, 1, 12, 4, 1]
PARTS = [[4, 1, 3, 6], [2, 0, 5]]


@pytest.fixture(autouse=True)
def _several_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module, "LENGTH_STEP", 3)


def model_of(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """Weights, norms and biases all differ from what they are at first."""
    config = CONFIGS[name]()
    config.pad_token_id = PROMPTS[1][0] if "padding" in name else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.3 * noise if parameter.ndim == 1 else noise / parameter.shape[1] ** 0.5)
    return model.to(dtype)


def network_and(model: Any) -> tuple[Network, Packing]:
    network = network_of(model)
    assert network is not None
    ids, mask = responses()
    packing = pack(network, PROMPTS, ids, mask, PARTS)
    assert len(packing.grids) > 4
    return network, packing


def responses() -> tuple[Tensor, Tensor]:
    ids = torch.randint(VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]


def row_by_row(model: Any, packing: Packing) -> Tensor:
    """What transformers' modules say at every token that predicts, each row alone and without a cache: the reference."""
    ids, _ = responses()
    by_place = {}
    for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        text = torch.tensor([[*prompt, *ids[row, :length].tolist()]])
        states = model.base_model(input_ids=text, use_cache=False).last_hidden_state[0]
        by_place |= {row * ids.shape[1] + step: states[len(prompt) - 1 + step] for step in range(length)}
    return torch.stack([by_place[place] for place in packing.places.tolist()])


class Sums:
    """The plainest of sinks: the gradient of every weight, over all packed tokens."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.found: dict[Tensor, Tensor] = {}

    def _add(self, weight: Tensor, gradient: Tensor) -> None:
        assert weight.requires_grad
        self.found[weight] = self.found.get(weight, 0.0) + gradient

    def product(self, weight: Tensor, of_outputs: Tensor, inputs: Tensor) -> None:
        self._add(weight, of_outputs.T @ inputs)

    def vector(self, weight: Tensor, terms: Tensor) -> None:
        self._add(weight, terms.flatten(0, -2).sum(0).to(weight.dtype))

    def rows(self, weight: Tensor, of_rows: Tensor) -> None:
        self._add(weight, torch.zeros_like(weight).index_add_(0, self.packing.token_ids, of_rows))


def gradients(network: Network, packing: Packing) -> dict[Tensor, Tensor]:
    """Of Σ upstream · hidden states of the tokens that predict, by the packed backward pass."""
    hidden, activations = forward(network, packing)
    of_hidden = torch.zeros_like(hidden).index_add_(0, packing.predictor, upstream(packing, hidden))
    sums = Sums(packing)
    backward(network, packing, activations, of_hidden, sums)
    return sums.found


def upstream(packing: Packing, hidden: Tensor) -> Tensor:
    shape = (len(packing.predictor), hidden.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(hidden.dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_those_of_the_models_own_modules(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = model_of(name, dtype)
    network, packing = network_and(model)
    with torch.no_grad():
        expected = row_by_row(model, packing)
    found = hidden_states(network, packing)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert relative(found[packing.predictor], expected) < tolerance
    kept, activations = forward(network, packing)
    assert torch.equal(kept, found)
    assert len(activations.blocks) == len(network.blocks)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_of_every_weight_is_the_one_that_autograd_finds(name: str) -> None:
    model = model_of(name)
    network, packing = network_and(model)
    found = gradients(network, packing)
    expected = row_by_row(model, packing)
    (expected * upstream(packing, expected)).sum().backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(found) == set(trained.values())
    assert set(model.parameters()) - set(found) == ({network.head.weight} if not network.tied else set())
    errors = {
        key: float((found[parameter] - parameter.grad).norm())
        / max(float(parameter.grad.norm()), 1e-6 * float(network.embedding.grad.norm()))
        for key, parameter in trained.items()
    }
    # The bias of the keys shifts all scores of a query alike: its own gradient is small, what remains is rounding.
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_in_a_narrower_type_gradients_are_as_near_as_its_rounding_allows(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, exact = model_of(name, dtype), model_of(name, dtype).double()
    found = gradients(*network_and(model))
    expected = gradients(*network_and(exact))
    for narrow, wide in zip(model.parameters(), exact.parameters(), strict=True):
        largest = max(float(gradient.norm()) for gradient in expected.values())
        assert float((found[narrow].double() - expected[wide]).norm()) < tolerance * max(
            float(expected[wide].norm()), 0.02 * largest
        )


def test_a_part_of_the_packing_has_the_gradient_that_it_has_alone() -> None:
    network, packing = network_and(model_of("qwen3"))
    ids, mask = responses()
    hidden, activations = forward(network, packing)
    weights = torch.ones_like(hidden)
    weights[packing.parts[0][0]] = 0.0
    both, alone = Sums(packing), Sums(pack(network, PROMPTS, ids, mask, PARTS[1:]))
    backward(network, packing, activations, weights, both)
    hidden, activations = forward(network, alone.packing)
    backward(network, alone.packing, activations, torch.ones_like(hidden), alone)
    for weight, gradient in alone.found.items():
        assert relative(both.found[weight], gradient) < 1e-10


def test_with_frozen_weights_nothing_is_handed_over() -> None:
    model = model_of("qwen2").requires_grad_(False)
    assert gradients(*network_and(model)) == {}


@pytest.mark.parametrize("kept", ["q_norm", "down_proj", "k_proj.weight", "v_proj.bias", "embed_tokens", "norm.weight"])
def test_what_trains_has_the_same_gradient_whatever_else_is_frozen(kept: str) -> None:
    name = "qwen3" if kept == "q_norm" else "qwen2"
    every = model_of(name)
    expected = gradients(*network_and(every))
    model = model_of(name).requires_grad_(False)
    trained = {key: parameter.requires_grad_() for key, parameter in model.named_parameters() if kept in key}
    found = gradients(*network_and(model))
    assert set(found) == set(trained.values())
    for key, parameter in trained.items():
        torch.testing.assert_close(found[parameter], expected[every.get_parameter(key)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_prefilled_keys_and_values_are_those_of_the_models_cache(name: str) -> None:
    model = model_of(name)
    network, packing = network_and(model)
    hidden, states = prefill(network, packing)
    assert torch.equal(hidden, hidden_states(network, packing))
    ids, _ = responses()
    row = 4  # its prompt stands first in its part, its own tokens behind it
    text = torch.tensor([[*PROMPTS[row], *ids[row, : LENGTHS[row] - 1].tolist()]])
    with torch.no_grad():
        cache = model(input_ids=text, use_cache=True).past_key_values
    assert packing.token_ids[: text.shape[1]].tolist() == text[0].tolist()
    assert len(states) == len(cache.layers)
    for (keys, values), layer in zip(states, cache.layers, strict=True):
        assert keys.shape == (len(packing.token_ids), network.kv_heads, network.head_size) == values.shape
        assert relative(keys[: text.shape[1]], layer.keys[0].transpose(0, 1)) < 1e-6
        assert relative(values[: text.shape[1]], layer.values[0].transpose(0, 1)) < 1e-6


def test_prompts_alone_can_be_run() -> None:
    model = model_of("qwen3")
    network, _ = network_and(model)
    ids, mask = responses()
    packing = pack(network, PROMPTS[2:4], ids[2:4, :1], mask[2:4, :1])
    assert len(packing.token_ids) == len(PROMPTS[2]) + len(PROMPTS[3])
    with torch.no_grad():
        states = [model.base_model(torch.tensor([prompt])).last_hidden_state[0] for prompt in PROMPTS[2:4]]
    assert relative(hidden_states(network, packing), torch.cat(states)) < 1e-6
    assert set(gradients(network, packing)) == set(model.parameters())


def test_a_gradient_through_a_norm_that_has_overflowed_is_not_finite() -> None:
    values = torch.full((1, 4), 1e25)
    found, normed = packed._norm(values, torch.ones(4), 1e-6)
    assert bool((found == 0).all())  # 1e50 is no float32

    class Sink:
        def vector(self, weight: torch.Tensor, terms: torch.Tensor) -> None: ...

    gradient = packed._norm_backward(torch.ones(1, 4), normed, found, torch.ones(4), Sink())  # type: ignore[arg-type]
    assert not bool(torch.isfinite(gradient).any())


def test_rows_without_a_token_can_be_run_and_have_no_gradient() -> None:
    network, _ = network_and(model_of("qwen3"))
    ids, mask = responses()
    packing = pack(network, PROMPTS, ids, torch.zeros_like(mask), PARTS)
    assert hidden_states(network, packing).shape == (0, network.embedding.shape[1])
    assert all(keys.shape[0] == values.shape[0] == 0 for keys, values in prefill(network, packing)[1])
    assert not any(gradient.any() for gradient in gradients(network, packing).values())
