"""The weights of a model as one vector, and its difference to the base as a small file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bsharp.models.placement import has_adapter

__all__ = ["flat_weights", "load_difference", "save_difference", "set_flat_weights"]


def flat_weights(model: nn.Module) -> Float[Tensor, " N"]:
    """All N parameters as one new vector on the CPU, in the order of `named_parameters`; tied weights are in it once.

    float32, or float64 where a parameter is. Buffers are left out: they do not train. Raises ValueError for a model
    without parameters.
    """
    pieces = [parameter.detach().to(_at_least_float32(parameter)).reshape(-1).cpu() for parameter in model.parameters()]
    if not pieces:
        raise ValueError("the model has no parameters; give a model with weights")
    return torch.cat(pieces).clone()


def set_flat_weights(model: nn.Module, weights: Float[Tensor, " N"]) -> None:
    """Overwrite all parameters in place with `weights`, in the order of `flat_weights`, rounded to their own types.

    Raises ValueError where `weights` is no vector of the model's size; the model is then unchanged.
    """
    parameters = list(model.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    if weights.shape != (size,):
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} for a model of {size} parameters; give a vector from flat_weights"
        )
    with torch.no_grad():
        pieces = torch.split(weights, [parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))


def save_difference(policy: nn.Module, base: nn.Module, path: str | Path) -> None:
    """Write policy − base of every trainable parameter of `policy` to one safetensors file, in one step.

    Each tensor is kept in float16 after division by a power of two near its largest entry, which is in the file's
    metadata: early differences are as small as the learning rate, where plain float16 has no digits left. The error of an
    entry is at most 2⁻¹¹ of it or 2⁻²⁴ of the tensor's largest. Tied weights are written once.

    Raises ValueError where the two have other names or shapes, where a difference is not finite, and for a policy with an
    adapter: it has no weights of its own beside the adapter, which is saved as a whole.
    """
    _refuse_adapter(policy)
    base_parameters = dict(base.named_parameters())
    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for name, parameter in policy.named_parameters():
        if not parameter.requires_grad:
            continue
        of_base = base_parameters.get(name)
        if of_base is None or of_base.shape != parameter.shape:
            found = "no such parameter" if of_base is None else f"shape {tuple(of_base.shape)}"
            raise ValueError(
                f"{name} of shape {tuple(parameter.shape)}: the base has {found}; give the base the policy started from"
            )
        dtype = torch.promote_types(_at_least_float32(parameter), _at_least_float32(of_base))
        difference = parameter.detach().to(dtype) - of_base.detach().to(parameter.device, dtype)
        largest = float(difference.abs().max()) if difference.numel() else 0.0
        if not math.isfinite(largest):
            raise ValueError(f"{name}: the difference to the base is not finite; restore the last finite weights")
        scales[name] = 2.0 ** math.frexp(largest)[1]
        tensors[name] = (difference.cpu() / scales[name]).to(torch.float16).contiguous()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    save_file(tensors, temporary, metadata={"scales": json.dumps(scales)})
    os.replace(temporary, target)


def load_difference(path: str | Path, like: nn.Module) -> Float32[Tensor, " N"]:
    """The vector policy − base that `save_difference` wrote, in the order of `flat_weights(like)`.

    A parameter that is not in the file did not train: its difference is 0. Raises ValueError where the file cannot be
    read, or holds a name or a shape that `like` does not have, and where `like` has an adapter.
    """
    _refuse_adapter(like)
    parameters = dict(like.named_parameters())
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            scales = json.loads((file.metadata() or {}).get("scales", "{}"))
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                found[name] = file.get_tensor(name).float() * float(scales[name])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no snapshot of weights ({error}); delete it, or train the run again") from None
    for name, tensor in found.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} of shape {tuple(tensor.shape)} is not in this model; give the base it was taken from"
            )
    return torch.cat(
        [
            found[name].reshape(-1) if name in found else torch.zeros(parameter.numel())
            for name, parameter in parameters.items()
        ]
    )


def _refuse_adapter(model: nn.Module) -> None:
    if has_adapter(model):
        raise ValueError(
            "a model with an adapter has no difference to its base but the adapter; save and load that with save_language_model "
            "and load_language_model"
        )


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
