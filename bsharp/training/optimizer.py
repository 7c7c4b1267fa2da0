"""Any torch optimizer, its learning-rate schedule, and its state as safetensors."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bsharp.config import ConfigError, OptimizerConfig

__all__ = ["MasterWeights", "build_optimizer", "learning_rate_factor", "load_optimizer", "save_optimizer"]


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """`torch.optim.<name>` over the parameters, on `MasterWeights` where one of them is less precise than float32.

    Raises ConfigError for an unknown name or an option it does not take.
    """
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
        kind_of: Callable[..., torch.optim.Optimizer] = kind
        build = functools.partial(kind_of, lr=config.learning_rate, **dict(config.options))
        weights = list(parameters)
        return MasterWeights(weights, build) if any(map(_low_precision, weights)) else build(weights)
    except (TypeError, ValueError) as error:
        options = dict(config.options)
        raise ConfigError(f"optimizer.options = {options!r} do not fit torch.optim.{config.name}: {error}") from None


class MasterWeights(torch.optim.Optimizer):
    """Any optimizer, on float32 copies of the parameters that are less precise; each step is rounded into these at its end.

    A bfloat16 weight has 8 significant bits: an update below 1/512 of it would be lost, at learning rates like 1e-6 every one.
    In the copies updates add up as they do in a float32 run, and the weights are that run's, rounded. Gradients are
    taken from the parameters' `.grad` and may be float32 there. 4 bytes a weight more than the optimizer alone.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        build: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self._weights = list(parameters)
        self.masters = [nn.Parameter(p.detach().float()) if _low_precision(p) else p for p in self._weights]
        self._inner = build(self.masters)
        # The very dictionaries of the inner optimizer: a learning rate set here is set there.
        super().__init__(self._inner.param_groups, self._inner.defaults)
        self.state = self._inner.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of the inner optimizer from the parameters' gradients, without a closure."""
        assert closure is None
        pairs = [(p, master) for p, master in zip(self._weights, self.masters, strict=True) if p is not master]
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        self._inner.step()
        with torch.no_grad():
            for parameter, master in pairs:
                master.grad = None
                parameter.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self._weights:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._inner.load_state_dict(state_dict)
        self.param_groups, self.state = self._inner.param_groups, self._inner.state

    def restart(self) -> None:
        """Take the parameters' present values as the float32 weights."""
        with torch.no_grad():
            for parameter, master in zip(self._weights, self.masters, strict=True):
                master.copy_(parameter)


def _low_precision(parameter: nn.Parameter) -> bool:
    return parameter.dtype in (torch.bfloat16, torch.float16)


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
    """Tensors of the state to `path`.safetensors, master weights among them, the rest to `path`.json: nothing is pickled."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    if isinstance(optimizer, MasterWeights):
        tensors |= {f"master.{index}": master.detach().contiguous() for index, master in enumerate(optimizer.masters)}
    save_file(tensors, path.with_suffix(".safetensors"))
    rest = {"scalars": scalars, "param_groups": state["param_groups"]}
    path.with_suffix(".json").write_text(json.dumps(rest), encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Restore what `save_optimizer` wrote, bit for bit."""
    rest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["scalars"].items()}
    for key, tensor in load_file(path.with_suffix(".safetensors")).items():
        index, _, name = key.partition(".")
        if index == "master":
            assert isinstance(optimizer, MasterWeights)
            optimizer.masters[int(name)].data.copy_(tensor)
        else:
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": rest["param_groups"]})
