from __future__ import annotations

import copy
import gc
import importlib.util
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from model_families import FAMILIES, reduced_config
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from bsharp.models import head as head_module
from bsharp.models.head import chunked_logprobs, linear_head

D, V, N = 5, 11, 7


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer(dtype: torch.dtype = torch.float64, n: int = N, d: int = D, v: int = V) -> tuple[Tensor, ...]:
    """Hidden states, weight, bias (all to be trained) and a token for each state."""
    token_ids = torch.randint(v, (n,), generator=torch.Generator().manual_seed(9))
    values = (drawn(n, d, seed=1, dtype=dtype), drawn(v, d, seed=2, dtype=dtype), drawn(v, seed=3, dtype=dtype))
    return *(value.requires_grad_() for value in values), token_ids


def plainly(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    temperature: float = 1.0,
    masked: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The definition, with all logits at once."""
    logits = functional.linear(hidden, weight, bias)
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    logits[:, list(masked)] = -torch.inf
    logprobs = logits.log_softmax(-1)
    return logprobs.gather(-1, token_ids[:, None])[:, 0], torch.distributions.Categorical(logits=logits).entropy()


def allowed_tokens(masked: tuple[int, ...]) -> Tensor:
    """Tokens for the N states, none of which is masked."""
    return torch.tensor([token for token in range(V) if token not in masked][:N])


@pytest.mark.parametrize("rows", [1, 3, N])
@pytest.mark.parametrize("masked", [(), (10, 2)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_those_of_finite_differences(rows: int, masked: tuple[int, ...], with_bias: bool) -> None:
    hidden, weight, bias, _ = layer()
    token_ids = allowed_tokens(masked)

    def scores(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return chunked_logprobs(hidden, weight, bias, token_ids, 0.7, masked, chunk_bytes=8 * V * rows)[0]

    assert torch.autograd.gradcheck(scores, (hidden, weight, *([bias] if with_bias else [])))


@pytest.mark.parametrize(("temperature", "masked"), [(1.0, ()), (0.6, ()), (1.7, (0, 4)), (1.0, (3,))])
def test_values_entropies_and_gradients_are_those_of_the_whole_softmax(
    temperature: float, masked: tuple[int, ...]
) -> None:
    hidden, weight, bias, _ = layer()
    token_ids = allowed_tokens(masked)
    upstream = drawn(N, seed=5)
    expected, expected_entropy = plainly(hidden, weight, bias, token_ids, temperature, masked)
    gradients = torch.autograd.grad(expected, (hidden, weight, bias), upstream)
    found, entropy = chunked_logprobs(
        hidden, weight, bias, token_ids, temperature, masked, with_entropy=True, chunk_bytes=8 * V * 2
    )
    assert entropy is not None
    assert not entropy.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=1e-12, atol=1e-12)
    for gradient, other in zip(torch.autograd.grad(found, (hidden, weight, bias), upstream), gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)


def test_a_masked_token_has_probability_zero_and_no_gradient_of_its_own() -> None:
    hidden, weight, bias, _ = layer()
    token_ids = torch.full((N,), 2)
    found, _ = chunked_logprobs(hidden, weight, bias, token_ids, masked_token_ids=(2,))
    assert found.tolist() == [-math.inf] * N
    found.sum().backward()
    assert weight.grad is not None
    assert not weight.grad[2].any()
    assert bool(weight.grad.isfinite().all())


def test_probabilities_of_all_tokens_sum_to_one_however_large_the_logits() -> None:
    hidden, weight, bias, _ = layer(torch.float32)
    logprobs = [
        chunked_logprobs(1e4 * hidden.detach(), weight.detach(), bias.detach(), torch.full((N,), token))[0]
        for token in range(V)
    ]
    torch.testing.assert_close(torch.stack(logprobs).exp().sum(0), torch.ones(N))


def test_one_shared_weight_gets_the_gradient_of_both_its_uses() -> None:
    weight = drawn(V, D).requires_grad_()
    inner, token_ids = drawn(D, D, seed=1), torch.arange(N) % 4

    def of(scores: Any) -> Tensor:
        hidden = functional.embedding(token_ids, weight) @ inner
        return torch.autograd.grad(scores(hidden, weight, None, token_ids + 3)[0].sum(), weight)[0]

    torch.testing.assert_close(of(chunked_logprobs), of(plainly), rtol=1e-12, atol=1e-12)


class Shapes(TorchDispatchMode):
    """Every tensor that an operation gives back while this is active, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.Size, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else [found]:
            if isinstance(value, Tensor):
                self.seen.add((value.shape, value.dtype))
        return found

    @property
    def largest_bytes(self) -> int:
        return max(shape.numel() * dtype.itemsize for shape, dtype in self.seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_output_layer_costs_no_gradient_of_its_weight(dtype: torch.dtype) -> None:
    hidden, weight, bias, token_ids = layer(dtype)
    found, _ = chunked_logprobs(hidden, weight.detach(), bias.detach(), token_ids, chunk_bytes=4 * V * 2)
    with Shapes() as shapes:
        found.sum().backward()
    assert hidden.grad is not None
    # The weight itself is read, transposed; what a gradient of it would be is of its own shape.
    assert (weight.shape, torch.float32) not in shapes.seen
    assert (weight.shape, dtype) not in shapes.seen


def test_bfloat16_logits_are_rounded_once_and_everything_behind_them_is_float32() -> None:
    hidden, weight, bias, token_ids = layer(torch.bfloat16)
    expected, expected_entropy = plainly(hidden, weight, bias, token_ids)
    found, entropy = chunked_logprobs(hidden, weight, bias, token_ids, with_entropy=True, chunk_bytes=4 * V * 2)
    assert entropy is not None
    assert found.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=1e-5, atol=1e-6)


def test_the_bfloat16_weight_gradient_is_summed_over_chunks_in_float32() -> None:
    # 4096 terms of like size and sign: a running sum in bfloat16 stops growing after a few hundred.
    tokens = 4096
    hidden, weight = torch.ones(tokens, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    logprobs, _ = chunked_logprobs(hidden, weight, None, torch.zeros(tokens, dtype=torch.long), chunk_bytes=1)
    logprobs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [tokens / 2, -tokens / 2]


def test_slabs_of_the_weight_gradient_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, token_ids = layer(torch.bfloat16)
    gradients = []
    for slab_bytes in (2**27, 4 * D * 4):  # all rows at once, four at a time
        monkeypatch.setattr(head_module, "CHUNK_BYTES", slab_bytes)
        found, _ = chunked_logprobs(hidden, weight, None, token_ids, chunk_bytes=2**20)
        gradients.append(torch.autograd.grad(found.sum(), weight)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_no_token_at_all_gives_nothing_and_a_gradient_of_zero() -> None:
    hidden, weight, bias, _ = layer()
    nothing = torch.zeros(0, dtype=torch.long)
    found, entropy = chunked_logprobs(hidden[:0], weight, bias, nothing, with_entropy=True)
    assert found.shape == (0,)
    assert entropy is not None
    assert entropy.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    hidden, weight, bias, token_ids = layer()
    found, _ = chunked_logprobs(hidden, weight, bias, token_ids)
    with pytest.raises(ValueError, match="no second derivatives"):
        torch.autograd.grad(found.sum(), hidden, create_graph=True)


def test_no_tensor_comes_near_the_size_of_all_logits() -> None:
    tokens, width, vocabulary = 512, 16, 2048
    hidden, weight, _, token_ids = layer(torch.float32, tokens, width, vocabulary)
    all_logits = tokens * vocabulary * 4
    with Shapes() as shapes:
        found, _ = chunked_logprobs(hidden, weight, None, token_ids, with_entropy=True, chunk_bytes=all_logits // 16)
        found.sum().backward()
    assert shapes.largest_bytes <= all_logits // 16
    with Shapes() as shapes:
        plainly(hidden, weight, None, token_ids)[0].sum().backward()
    assert shapes.largest_bytes == all_logits


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "logprob_memory.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("logprob_memory", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("variant", ["chunks", "entropy"])
def test_a_training_step_of_16_by_1024_tokens_takes_a_third_of_the_memory_at_a_vocabulary_of_152_thousand(
    variant: str, benchmark: ModuleType
) -> None:
    """Bytes of all tensors of a whole step, forward and backward, counted on the meta device: no clock, no allocator."""
    config = benchmark.small_config(256, 2)
    straightforward, chunks = (benchmark.count(name, 16, config) for name in ("straightforward", variant))
    assert chunks["peak"] <= straightforward["peak"] / 3
    all_logits = 16 * 1024 * config.vocab_size * 4
    assert chunks["largest"] <= all_logits / 4
    assert straightforward["largest"] >= all_logits


def tiny(config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "head_dim": 8,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_the_families_logits_are_a_linear_layer_of_the_last_hidden_state(family: str) -> None:
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2) if family == "gpt2" else reduced_config(family)
    model = tiny(config)
    head = linear_head(model)
    assert head is not None
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    expected = model(input_ids=tokens).logits
    found = functional.linear(head.backbone(input_ids=tokens).last_hidden_state, head.output.weight, head.output.bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SHAPE, final_logit_softcapping=30.0),
        CohereConfig(**{name: value for name, value in SHAPE.items() if name != "head_dim"}, logit_scale=0.0625),
        GraniteConfig(**{name: value for name, value in SHAPE.items() if name != "head_dim"}, logits_scaling=8.0),
    ],
    ids=["softcapped", "scaled", "divided"],
)
def test_capped_or_scaled_logits_are_noticed_even_where_a_fresh_model_hides_them(
    config: Any, dtype: torch.dtype
) -> None:
    assert linear_head(tiny(config, dtype)) is None


def lora(model: nn.Module, targets: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT reads a renamed property, and advises against what is tried here
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(drawn(*parameter.shape, seed=len(name)))
    return adapted.eval()


def test_adapters_in_the_backbone_are_on_or_off_as_peft_says_and_one_on_the_output_layer_is_noticed() -> None:
    plain = tiny(reduced_config("qwen2_5"))
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    untouched = plain(input_ids=tokens).logits
    adapted = lora(copy.deepcopy(plain), "all-linear")
    head = linear_head(adapted)
    assert head is not None

    def found() -> Tensor:
        return functional.linear(head.backbone(input_ids=tokens).last_hidden_state, head.output.weight)

    torch.testing.assert_close(found(), adapted(input_ids=tokens).logits, rtol=0, atol=0)
    assert float((found() - untouched).detach().abs().max()) > 0.1
    with adapted.disable_adapter():
        torch.testing.assert_close(found(), untouched, rtol=0, atol=0)
    assert linear_head(lora(copy.deepcopy(plain), ["q_proj", "lm_head"])) is None


def test_tokens_that_peft_puts_before_the_prompt_are_noticed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        model = get_peft_model(tiny(reduced_config("qwen2_5")), config)
    assert linear_head(model.eval()) is None


class Louder(Qwen2ForCausalLM):
    def forward(self, input_ids: Tensor, **inputs: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.lm_head(2 * self.model(input_ids, **inputs).last_hidden_state))


def test_an_output_layer_that_reads_something_else_than_the_last_hidden_state_is_noticed() -> None:
    assert linear_head(Louder(reduced_config("qwen2_5")).eval()) is None


def test_an_output_layer_with_hooks_is_left_to_the_model() -> None:
    model: Any = tiny(reduced_config("qwen2_5"))
    assert linear_head(model) is not None
    hook = model.lm_head.register_forward_hook(lambda *_: None)
    assert linear_head(model) is None
    hook.remove()
    assert linear_head(model) is not None


def test_a_model_is_looked_at_whatever_mode_is_active() -> None:
    class Refusing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(func)

    model = tiny(reduced_config("qwen2_5"))
    model.train()
    with Refusing():
        assert linear_head(model) is not None


def test_a_model_is_looked_at_once_and_forgotten_with_it() -> None:
    model: Any = tiny(reduced_config("qwen2_5"))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    gc.collect()
    before = len(head_module._separable)
    assert linear_head(model) is not None
    assert linear_head(model) is not None
    assert len(calls) == 1
    assert len(head_module._separable) == before + 1
    del model
    gc.collect()
    assert len(head_module._separable) == before
