"""One forward and backward pass over several problems that keeps the gradients of the problems apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["NotSeparable", "StackedParameters"]

_MULTIPLICATIONS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)


class NotSeparable(Exception):
    """The model uses a parameter in a way that is not known to be separable; run the problems one by one."""


class StackedParameters(TorchFunctionMode):
    """While active, every problem runs on a copy of the parameters that is its own, so that autograd keeps them apart.

    Parameters W are replaced by leaves of shape (problems, *W.shape) that repeat W without storing it again. The rows of every
    pass must be ordered by problem, equally many of each. Known uses are linear maps, embeddings and elementwise products, with
    the rows along the first of at least three dimensions (two for token ids): those of Llama, Qwen2, Qwen3 and their like.
    Any other use raises NotSeparable, at once or, where it hid behind a view, from `gradients`. Values and the sum over
    problems are those of an ordinary pass in any case.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], problems: int) -> None:
        super().__init__()
        self._parameters = parameters
        self._problems = problems
        self._stacked = {
            id(parameter): parameter.detach().expand(problems, *parameter.shape).requires_grad_()
            for parameter in parameters
        }
        for own in self._stacked.values():
            own.grad_dtype = torch.promote_types(own.dtype, torch.float32)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not any(id(value) in self._stacked for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":
            return func(*args)
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is functional.embedding:
            return self._embedding(*args, **kwargs)
        if func in _MULTIPLICATIONS and not kwargs:
            return self._product(*args)
        raise NotSeparable(f"a parameter is used by {getattr(func, '__name__', func)}")

    def gradients(self) -> list[Tensor | None]:
        """After the backward pass: (problems, *shape) per parameter, None where it took no part."""
        if any(parameter.grad is not None for parameter in self._parameters):
            raise NotSeparable("a parameter was used through a view of it")
        return [self._stacked[id(parameter)].grad for parameter in self._parameters]

    def _rows(self, values: Tensor, least_dimensions: int) -> Tensor:
        """(problems, rows of each, …) from (rows of all, …)."""
        if values.ndim < least_dimensions or len(values) % self._problems:
            raise NotSeparable(f"a parameter meets values of shape {tuple(values.shape)}")
        return values.reshape(self._problems, -1, *values.shape[1:])

    def _linear(self, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        own_weight, own_bias = self._stacked.get(id(weight)), None if bias is None else self._stacked.get(id(bias))
        if own_weight is None or (bias is not None and own_bias is None):
            raise NotSeparable("a linear map is trained in part")
        flat = self._rows(values, 3).flatten(1, -2)
        result = (
            torch.bmm(flat, own_weight.mT)
            if own_bias is None
            else torch.baddbmm(own_bias[:, None], flat, own_weight.mT)
        )
        return result.reshape(*values.shape[:-1], -1)

    def _embedding(
        self,
        token_ids: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        own = self._stacked.get(id(weight))
        if own is None or max_norm is not None or scale_grad_by_freq or sparse:
            raise NotSeparable("an embedding that is renormalised, scaled by frequency or sparse")
        ids = self._rows(token_ids, 2)
        first = torch.arange(self._problems, device=ids.device).reshape(-1, *[1] * (ids.ndim - 1)) * len(weight)
        found = functional.embedding(ids + first, own.reshape(-1, weight.shape[1])).reshape(*token_ids.shape, -1)
        if padding_idx is None:
            return found
        # The row of the padding token gets no gradient.
        return torch.where((token_ids == padding_idx % len(weight))[..., None], found.detach(), found)

    def _product(self, first: Tensor, second: Tensor) -> Tensor:
        weight, values = (first, second) if id(first) in self._stacked else (second, first)
        if not isinstance(values, Tensor) or id(values) in self._stacked or weight.ndim != 1:
            raise NotSeparable("a product of parameters")
        rows = self._rows(values, 3)
        own = self._stacked[id(weight)].reshape(self._problems, *[1] * (rows.ndim - 2), -1)
        return (own * rows).reshape(values.shape)
