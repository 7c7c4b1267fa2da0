"""The weights of a Llama-like transformer, read out of the transformers model that holds them, and nothing else of it.

Llama, Mistral, Qwen2, Qwen3: a stack of blocks, each attention and a gated MLP behind RMS norms, rotary positions, grouped
keys and values, a linear output layer. `bsharp.models.packed` runs them forward and backward, `bsharp.generation.network_steps`
decodes with them. Every other architecture, adapters and other devices than the CPU are run by transformers' own modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bsharp.models.allocator import keep_freed_memory
from bsharp.models.head import linear_head

__all__ = ["Block", "Linear", "Network", "network_of", "without_network"]

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotations that depend on the position of a token only, not on the length of the text around it."""
TOLERANCE = 2e-2
"""Largest difference of hidden states, relative to the largest of them, between this reading and the model's own forward pass.
Far above rounding in bfloat16, far below what a wrong reading gives."""

_disabled = False


@dataclass(frozen=True, eq=False)
class Linear:
    """y = W x + b."""

    weight: Float[Tensor, "N K"]
    bias: Float[Tensor, " N"] | None


@dataclass(frozen=True, eq=False)
class Block:
    """x + attention(norm(x)), then x + down(silu(gate(norm(x))) · up(norm(x)))."""

    attention_norm: Float[Tensor, " D"]
    query: Linear
    key: Linear
    value: Linear
    query_norm: Float[Tensor, " K"] | None  # over each head, before the rotation
    key_norm: Float[Tensor, " K"] | None
    output: Linear
    mlp_norm: Float[Tensor, " D"]
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, eq=False)
class Network:
    """D hidden numbers, `heads` query heads of K numbers each, `kv_heads` of keys and values, V tokens."""

    embedding: Float[Tensor, "V D"]
    blocks: tuple[Block, ...]
    final_norm: Float[Tensor, " D"]
    head: Linear
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float  # of every norm
    padding_token: int | None  # its row of the embedding gets no gradient where it is read, as torch has it
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embedding."""
        return self.head.weight is self.embedding

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights of the blocks and of the output layer."""
        blocks = sum(
            linear.weight.nbytes
            for block in self.blocks
            for linear in (block.query, block.key, block.value, block.output, block.gate, block.up, block.down)
        )
        return blocks + self.head.weight.nbytes

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def rotation(self, positions: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N 1 K"], Float[Tensor, "N 1 K"]]:
        """cos and signed sin of the rotation R(x) = x·cos + roll(x, K/2)·sin; the inverse is the one with −sin."""
        cos, sin = self.rotary(self.embedding, positions[None])
        half = self.head_size // 2
        signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        return cos[0, :, None], signed[0, :, None]


_networks: WeakKeyDictionary[nn.Module, Network | None] = WeakKeyDictionary()


def network_of(model: Any) -> Network | None:
    """The network of a model on the CPU, or None where transformers' own modules are to run it.

    Found out once for a model, by looking at its parts and by running both on a few tokens. The weights are the model's own
    tensors: whatever trains them trains these.
    """
    if _disabled or getattr(model, "device", None) != torch.device("cpu"):
        return None
    known = _networks.get(model)
    if known is not None and known.embedding is not model.get_input_embeddings().weight:  # it has been resized
        del _networks[model]
    if model not in _networks:
        keep_freed_memory()
        with torch._C.DisableTorchFunction(), torch.inference_mode():
            _networks[model] = _checked(model)
    return _networks[model]


class without_network:
    """Context in which `network_of` gives None: every model is run by transformers' own modules, the reference."""

    def __enter__(self) -> None:
        global _disabled
        self._before, _disabled = _disabled, True

    def __exit__(self, *_: object) -> None:
        global _disabled
        _disabled = self._before


def _checked(model: nn.Module) -> Network | None:
    network = _read(model)
    if network is None or linear_head(model) is None:
        return None
    from bsharp.models.packed import hidden_states
    from bsharp.models.packing import pack

    vocabulary = len(network.embedding)
    first, second = ([(step * place + 1) % vocabulary for place in range(4)] for step in (7, 11))
    packing = pack(network, [first], torch.tensor([[*second, 0]]), torch.ones((1, 5), dtype=torch.bool))
    try:
        found = hidden_states(network, packing).float()
    except RuntimeError:  # shapes that are not what they are elsewhere in the family
        return None
    tokens = torch.tensor([first + second])
    backbone: Any = getattr(model, str(getattr(model, "base_model_prefix", "")))
    expected = backbone(input_ids=tokens, use_cache=False).last_hidden_state[0].float()
    return network if bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max()) else None


def _read(model: Any) -> Network | None:
    """The network, or None where a part of the model is not what it is elsewhere in its family."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) not in FAMILIES or hasattr(model, "peft_config"):
        return None
    try:
        backbone = getattr(model, model.base_model_prefix)
        if (getattr(config, "rope_parameters", None) or {}).get("rope_type") not in ROPE_TYPES:
            return None
        if config.hidden_act != "silu" or set(getattr(config, "layer_types", None) or ["full_attention"]) != {
            "full_attention"
        }:
            return None
        if getattr(config, "sliding_window", None) is not None or getattr(config, "attention_dropout", None):
            return None
        if any(_is_changed(module) for module in model.modules()):
            return None
        blocks = tuple(_block(layer) for layer in backbone.layers)
        attention = backbone.layers[0].self_attn
        head = model.get_output_embeddings()
        return Network(
            embedding=backbone.embed_tokens.weight,
            blocks=blocks,
            final_norm=backbone.norm.weight,
            head=_linear(head),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=attention.head_dim,
            epsilon=backbone.norm.variance_epsilon,
            padding_token=backbone.embed_tokens.padding_idx,
            rotary=backbone.rotary_emb,
        )
    except (AttributeError, IndexError, TypeError):
        return None


def _is_changed(module: nn.Module) -> bool:
    """Hooks, or a forward put over the module's own: what they do would be left out."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _block(layer: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Block(
        attention_norm=layer.input_layernorm.weight,
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        query_norm=None if query_norm is None else query_norm.weight,
        key_norm=None if key_norm is None else key_norm.weight,
        output=_linear(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
    )


def _linear(module: Any) -> Linear:
    if type(module) is not nn.Linear:
        raise TypeError(f"{type(module).__name__} is not a plain linear layer")
    return Linear(module.weight, module.bias)
