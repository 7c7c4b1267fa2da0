"""Contexts in which a model may be run: its adapters on or off, its weights where they are needed."""

from __future__ import annotations

import gc
import itertools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

__all__ = [
    "adapter_layers",
    "adapters_switched",
    "brought_to",
    "has_adapter",
    "peft_without_warnings",
    "release_cached_memory",
]

_AWAY: WeakSet[nn.Module] = WeakSet()  # models that are on another device at the moment


def has_adapter(model: nn.Module) -> bool:
    """Whether the model is wrapped by PEFT."""
    return hasattr(model, "peft_config")


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers inside `model` into which PEFT put weights of its own, in order; none where there is no adapter."""
    if "peft" not in sys.modules:  # nothing has an adapter, and importing PEFT takes its time
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def peft_without_warnings() -> Iterator[None]:
    """For the building of adapters: PEFT asks transformers in a deprecated way, and says that it sets GPT-2's fan_in_fan_out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out")
        yield


@contextmanager
def adapters_switched(model: nn.Module, on: bool) -> Iterator[None]:
    """Adapters on or off inside, afterwards as they were. Off, every layer computes what it did before it had any.

    Unlike PEFT's own context this leaves alone which parameters train, and can be entered within itself in any order.
    """
    layers = [layer for layer in adapter_layers(model) if layer.disable_adapters == on]
    trains = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]

    def switch(to: bool) -> None:
        for layer in layers:
            layer.enable_adapters(to)
        for parameter, flag in trains:  # enable_adapters would set it
            parameter.requires_grad_(flag)

    switch(on)
    try:
        yield
    finally:
        switch(not on)


@contextmanager
def brought_to(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Weights and buffers on `device` inside; afterwards the very tensors they were before, without copying back.

    Only for a model that nobody trains: what is written to its weights inside is lost. Within itself it does nothing.
    """
    if model in _AWAY:
        yield
        return
    at_home = [(tensor, tensor.data) for tensor in itertools.chain(model.parameters(), model.buffers())]
    _AWAY.add(model)
    try:
        for tensor, data in at_home:
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in at_home:
            tensor.data = data
        _AWAY.discard(model)


def release_cached_memory() -> None:
    """Free what nothing refers to any more, and give the GPU memory that torch keeps for reuse back to other processes.

    Reference cycles are collected first: whatever holds a tensor in one would keep its memory. A process that has not used
    a GPU does not begin to.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
