from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_families import reduced_config
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, PretrainedConfig, Qwen3Config

from bsharp.models import network as network_module
from bsharp.models.network import network_of, without_network

V = 40


def model_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else noise / parameter.shape[1] ** 0.5)
    return model.to(dtype)


def mistral(**changes: Any) -> MistralConfig:
    shape = {"vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}
    return MistralConfig(**shape | heads | changes)


def qwen3(**changes: Any) -> Any:
    return reduced_config("qwen3", V, **changes)


READ: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: reduced_config("llama3_2", V),
    "mistral": mistral,
    "qwen2": lambda: reduced_config("qwen2_5", V),
    "qwen3": qwen3,
    "untied": lambda: qwen3(tie_word_embeddings=False),
    "linear rope": lambda: qwen3(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "yarn": lambda: qwen3(
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        max_position_embeddings=256,
    ),
    "eager attention": lambda: qwen3(attn_implementation="eager"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", READ)
def test_llama_like_models_have_a_network_of_their_own_tensors(name: str, dtype: torch.dtype) -> None:
    model = model_of(READ[name](), dtype)
    network = network_of(model)
    assert network is not None
    assert network_of(model) is network
    linears = [
        getattr(block, part)
        for block in network.blocks
        for part in ("query", "key", "value", "output", "gate", "up", "down")
    ]
    held = [network.embedding, network.final_norm]
    for linear in (*linears, network.head):
        held += [linear.weight] + ([] if linear.bias is None else [linear.bias])
    for block in network.blocks:
        norms = (block.attention_norm, block.mlp_norm, block.query_norm, block.key_norm)
        held += [norm for norm in norms if norm is not None]
    assert set(held) == set(model.parameters())
    assert network.tied == model.config.tie_word_embeddings
    assert network.dtype == dtype
    assert network.weight_bytes == sum(linear.weight.nbytes for linear in (*linears, network.head))


def scaled(model: Any) -> Any:
    model.model.layers[1].self_attn.scaling *= 3.0
    return model


def other_epsilon(model: Any) -> Any:
    model.model.layers[0].post_attention_layernorm.variance_epsilon = 3.0
    return model


def doubled(model: Any) -> Any:
    """A class of its own, whose parts look the same."""
    layer = model.model.layers[0]  # not the last: the norm behind that one would hide it

    class Doubled(type(layer)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2.0 * super().forward(*args, **kwargs)

    layer.__class__ = Doubled
    return model


def hooked(model: Any) -> Any:
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    return model


def hooked_before(model: Any) -> Any:
    model.model.norm.register_forward_pre_hook(lambda *_: None)
    return model


def overlaid(model: Any) -> Any:
    own = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


def other_linear(model: Any) -> Any:
    class Noisy(nn.Linear):
        pass

    model.model.layers[0].mlp.up_proj.__class__ = Noisy
    return model


def adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def adapted_inside(model: Any) -> Any:
    return adapted(model).base_model.model


PEFT_ASKS = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"

LEFT: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: model_of(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
    "gemma3": lambda: model_of(reduced_config("gemma3", V)),
    "adapter": lambda: adapted(model_of(qwen3())),
    "inside an adapter": lambda: adapted_inside(model_of(qwen3())),
    "hook": lambda: hooked(model_of(qwen3())),
    "hook before": lambda: hooked_before(model_of(qwen3())),
    "forward put over": lambda: overlaid(model_of(qwen3())),
    "another linear layer": lambda: other_linear(model_of(qwen3())),
    "sliding window": lambda: model_of(mistral(sliding_window=8)),
    "sliding layers": lambda: model_of(
        Qwen3Config(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=1,
        )
    ),
    "other activation": lambda: model_of(qwen3(hidden_act="gelu")),
    "dropout": lambda: model_of(qwen3(attention_dropout=0.1)),
    "rotation by length": lambda: model_of(
        qwen3(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    ),
    "scaled attention": lambda: scaled(model_of(qwen3())),
    "another epsilon": lambda: other_epsilon(model_of(qwen3())),
    "scaled hidden states": lambda: doubled(model_of(qwen3())),
    "no language model": lambda: nn.Linear(3, 4),
    "another device": lambda: model_of(qwen3()).to("meta"),
}


@pytest.mark.filterwarnings(PEFT_ASKS)
@pytest.mark.parametrize("name", LEFT)
def test_whatever_else_is_left_to_its_own_modules(name: str) -> None:
    assert network_of(LEFT[name]()) is None


def test_without_network_every_model_is_left_to_its_own_modules_until_the_outermost_ends() -> None:
    model = model_of(qwen3())
    with without_network():
        assert network_of(model) is None
        with without_network():
            assert network_of(model) is None
        assert network_of(model) is None
    network = network_of(model)
    assert network is not None
    with pytest.raises(LookupError), without_network():
        raise LookupError
    assert network_of(model) is network


def test_what_trains_the_model_trains_its_network() -> None:
    model = model_of(qwen3())
    network = network_of(model)
    assert network is not None
    before = network.blocks[0].down.weight.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(network.blocks[0].down.weight, before + 1.0)
    assert network_of(model) is network


def test_a_model_that_nobody_holds_any_more_is_let_go() -> None:
    model = model_of(qwen3())
    assert network_of(model) is not None
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_a_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(network_module, "_checked", lambda model: looked.append(model))
    model = model_of(qwen3())
    assert network_of(model) is None
    assert network_of(model) is None
    assert looked == [model]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_rotations_turn_pairs_of_numbers_by_an_angle_that_grows_with_the_position(name: str) -> None:
    network = network_of(model_of(READ[name](), torch.float64))
    assert network is not None
    cos, sin = network.rotation(torch.tensor([0, 1, 2]))
    half = network.head_size // 2
    assert cos.shape == sin.shape == (3, 1, network.head_size)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin[..., :half], -sin[..., half:])
    assert not sin[0].any()
    assert bool((sin[1, 0, half:] > 0).all())
