"""Base and policy of one run: two sets of weights, or one with low-rank adapters that are switched off for the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bsharp.config import ConfigError, WeightsConfig
from bsharp.models.loading import LanguageModel, clone_model, moved_to
from bsharp.models.placement import adapter_layers, has_adapter, peft_without_warnings
from bsharp.models.recompute import recompute_blocks
from bsharp.models.sources import lasting_name
from bsharp.seeding import stream_seed

__all__ = ["check_weights", "linear_layer_names", "make_policy", "prepare_base", "reset_adapter"]


def check_weights(weights: WeightsConfig) -> None:
    """Raises ConfigError for settings that contradict each other."""
    if weights.lora_rank is None:
        for name, value in (("lora_alpha", weights.lora_alpha), ("lora_targets", weights.lora_targets)):
            if value:
                raise ConfigError(
                    f"weights.{name} = {value!r} without weights.lora_rank does nothing; set the rank too"
                )
    elif weights.base_device is not None or weights.offload_base:
        name = "offload_base" if weights.offload_base else "base_device"
        raise ConfigError(
            f"weights.{name} with weights.lora_rank = {weights.lora_rank}: with adapters the base is the policy without them, "
            f"there is no second model to move; leave {name} out"
        )


def prepare_base(language_model: LanguageModel, weights: WeightsConfig) -> LanguageModel:
    """The frozen base of a run, as `weights` wants it.

    With lora_rank: the same model with adapters attached (their B is 0) and, for the base, switched off. PEFT wraps the layers
    in place, so the model handed in is changed; hash its weights before. Otherwise: moved to base_device, or (offload_base)
    to main memory, from where `ready()` brings it to the device it was on. A model that already has an adapter gets it merged
    into its weights first; not with lora_rank, where what is saved would name an adapter as its base. All parameters are frozen.
    Raises ConfigError for contradictory settings, an adapter with lora_rank, lora_targets that name no linear layer, and a
    device that cannot be used.
    """
    check_weights(weights)
    if has_adapter(language_model.model):
        if weights.lora_rank is not None:
            raise ConfigError(
                f"model = {language_model.name!r} is an adapter; merge it into its base and pass that folder, or leave "
                "weights.lora_rank out"
            )
        language_model = replace(language_model, model=_merged(language_model.model), adapter_disabled=False)
    language_model.model.requires_grad_(False)
    if weights.lora_rank is not None:
        return replace(language_model, model=_attached(language_model, weights), adapter_disabled=True)
    here = str(language_model.device)
    if weights.base_device is not None:
        moved = moved_to(language_model, weights.base_device, "weights.base_device")
        language_model = replace(moved, policy_device=here)
    if weights.offload_base:
        compute = str(language_model.device)
        language_model = moved_to(language_model, "cpu", "weights.offload_base")
        language_model = replace(language_model, compute_device=compute, policy_device=here)
    return language_model


def make_policy(base: LanguageModel, weights: WeightsConfig, seed: int) -> LanguageModel:
    """The policy to train from a base that `prepare_base` made, equal to it at first.

    With lora_rank the policy is the base's own model with its adapters switched on, reset from the stream "adapter" of `seed`;
    only they train, and a policy made earlier from this base is reset too. Otherwise it is a copy in which every weight
    trains, on the device the base was on before it was moved or offloaded. With gradient_checkpointing its blocks are
    recomputed in the backward pass. Raises ConfigError where the architecture cannot do that, and ValueError for a base that was
    prepared under other settings.
    """
    check_weights(weights)
    if has_adapter(base.model) != (weights.lora_rank is not None):
        has = "has an" if has_adapter(base.model) else "has no"
        raise ValueError(
            f"the base {has} adapter but lora_rank = {weights.lora_rank}; prepare it with prepare_base first"
        )
    if weights.lora_rank is not None:
        policy = replace(base, adapter_disabled=False)
        reset_adapter(policy.model, seed)
        policy.model.requires_grad_(False)
        for parameter in _adapter_parameters(policy.model):
            parameter.requires_grad_(True)
    else:
        policy = replace(clone_model(base), compute_device=None, policy_device=None)
        if base.policy_device is not None:
            policy = moved_to(policy, base.policy_device, "device")
        policy.model.requires_grad_(True)
    if weights.gradient_checkpointing:
        inner = policy.model.get_base_model() if has_adapter(policy.model) else policy.model
        recompute_blocks(inner, policy.name)
    return policy


def reset_adapter(model: nn.Module, seed: int) -> None:
    """Put the adapters of `model` back to their start: A ~ U(−1/√n, 1/√n) for n inputs of a layer (PEFT's own range), B = 0.

    The same seed gives the same values on every device; torch's global random state is not touched.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, "adapter"))
    with torch.no_grad():
        for layer in adapter_layers(model):
            for name in layer.active_adapters:
                first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
                bound = 1 / math.sqrt(first.shape[1])
                first.copy_(torch.empty(first.shape).uniform_(-bound, bound, generator=generator))
                second.zero_()


def linear_layer_names(model: Any) -> list[str]:
    """Names of the linear layers that can have adapters, as lora_targets takes them: all but the head."""
    head = model.get_output_embeddings()
    return sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module, head)})


def _is_linear(module: nn.Module, head: nn.Module | None) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) and module is not head


def _attached(language_model: LanguageModel, weights: WeightsConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    assert weights.lora_rank is not None
    config = LoraConfig(
        r=weights.lora_rank,
        lora_alpha=weights.lora_alpha or 2 * weights.lora_rank,
        target_modules=_targets(language_model, weights.lora_targets),
        task_type="CAUSAL_LM",
    )
    here = language_model.device
    with torch.random.fork_rng([here] if here.type == "cuda" else []), peft_without_warnings():
        # Adapters of a base in half precision are cast to float32.
        model = get_peft_model(language_model.model, config, autocast_adapter_dtype=True)
    model.peft_config["default"].base_model_name_or_path = lasting_name(language_model.name)
    reset_adapter(model, 0)
    return model.requires_grad_(False).eval()


def _targets(language_model: LanguageModel, targets: Sequence[str]) -> list[str]:
    names = linear_layer_names(language_model.model)
    if not names:
        raise ConfigError(
            f"weights.lora_rank: {language_model.name!r} has no linear layer beside its head; train it whole"
        )
    for target in targets:
        if target not in names:
            raise ConfigError(
                f"weights.lora_targets names {target!r}, which is no linear layer that can have an adapter in "
                f"{language_model.name!r}; there are {', '.join(names)}"
            )
    return list(targets) or names


def _adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if ".lora_" in name]


def _merged(model: Any) -> Any:
    return model.merge_and_unload()
