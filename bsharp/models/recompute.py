"""Gradient checkpointing for a policy that stays in eval mode: blocks forget their activations and compute them again."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from bsharp.config import ConfigError
from bsharp.models.placement import adapter_layers

__all__ = ["recompute_blocks"]


def recompute_blocks(model: Any, name: str) -> None:
    """Let every block of `model` be run again in the backward pass instead of keeping its activations.

    Values and gradients stay the same. transformers recomputes a block only where the block itself is in training mode, while the
    policy is run in eval mode: so the flag is set on the blocks alone, not on what is inside them, and taken back while a
    block runs, so that no dropout comes alive. Without gradients, and where the adapters are off, nothing is recomputed: the
    backward pass comes after the switch has gone back. Raises ConfigError for an architecture that cannot do it.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks or not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"weights.gradient_checkpointing: the architecture of {name!r} cannot recompute its blocks; leave it out"
        )
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = _Recomputed(block)
        block.training = True


class _Recomputed:
    """How a block runs its forward pass. It is kept by the block, so it must not keep the block: no one would free a cycle."""

    def __init__(self, block: torch.nn.Module) -> None:
        self._block = weakref.ref(block)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Recomputed:
        # A weak reference is copied as it is: the copy of a block would switch the flag of the original.
        block = self._block()
        assert block is not None  # it is being copied, and this with it
        return _Recomputed(copy.deepcopy(block, memo))

    def __call__(self, forward: Callable[..., Any], *args: Any) -> Any:
        block = self._block()
        assert block is not None  # it is being run

        def in_eval_mode(*inputs: Any) -> Any:
            block.training = False
            try:
                return forward(*inputs)
            finally:
                block.training = True

        if not torch.is_grad_enabled() or any(layer.disable_adapters for layer in adapter_layers(block)):
            return in_eval_mode(*args)
        return checkpoint(in_eval_mode, *args, use_reentrant=False, preserve_rng_state=False)
