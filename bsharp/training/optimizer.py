"""Any torch optimizer, its learning-rate schedule, and its state as safetensors."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bsharp.config import ConfigError, OptimizerConfig

__all__ = ["build_optimizer", "learning_rate_factor", "load_optimizer", "save_optimizer"]


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """`torch.optim.<name>` over the parameters. Raises ConfigError for an unknown name or an option it does not take."""
    kind = getattr(torch.optim, config.name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
        known = sorted(
            name
            for name, value in vars(torch.optim).items()
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer"
        )
        raise ConfigError(f"optimizer.name = {config.name!r} is not in torch.optim; known: {', '.join(known)}")
    if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ConfigError(
            f"optimizer.name = {config.name!r} evaluates the loss several times a step, which one batch of rollouts cannot "
            "serve; choose a first-order one such as AdamW"
        )
    try:
        build: Callable[..., torch.optim.Optimizer] = kind
        return build(list(parameters), lr=config.learning_rate, **dict(config.options))
    except (TypeError, ValueError) as error:
        options = dict(config.options)
        raise ConfigError(f"optimizer.options = {options!r} do not fit torch.optim.{config.name}: {error}") from None


def learning_rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate used in the update after which `step` updates are done (step = 1, 2, …).

    Warm-up rises linearly from `warmup_start` at the first update to 1 at update `warmup_steps` + 1; after it the
    schedule is constant, or falls (linear, cosine) and would reach 0 at update `total_steps` + 1.
    """
    if step <= config.warmup_steps:
        return config.warmup_start + (1.0 - config.warmup_start) * (step - 1) / config.warmup_steps
    progress = (step - 1 - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    if config.schedule == "linear":
        return 1.0 - progress
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Tensors of the state to `path`.safetensors, everything else to `path`.json: nothing is pickled."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    save_file(tensors, path.with_suffix(".safetensors"))
    rest = {"scalars": scalars, "param_groups": state["param_groups"]}
    path.with_suffix(".json").write_text(json.dumps(rest), encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Restore what `save_optimizer` wrote, bit for bit."""
    rest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["scalars"].items()}
    for key, tensor in load_file(path.with_suffix(".safetensors")).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})
