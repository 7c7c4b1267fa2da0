"""The noise of a step's gradient, from the contribution of every part of its problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from bsharp.models.part_gradients import GradientSums
from bsharp.statistics.gradient_noise import GradientNoise, gradient_noise

__all__ = ["PartGradients"]


class PartGradients:
    """Adds up the gradients of the parts of a batch, each kept apart until then, and keeps their squared norms.

    The parameters' `.grad` is empty from the start and after every `record`; `finish` leaves the sum there. One norm
    and one addition per part; no extra pass and no copy. Gradients of parameters of lower precision become float32 as
    they arrive, so that what micro-batches and parts add up to is rounded in float32 only.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: list[Tensor | None] = [None] * len(parameters)
        self._norms_squared: list[float] = []
        self._rows: list[int] = []
        self.discard()
        for parameter in parameters:
            if parameter.dtype != _gradient_dtype(parameter):
                parameter.grad_dtype = _gradient_dtype(parameter)

    def record(self, rows: int) -> None:
        """Call after the backward passes of each part; `rows` of it could have a gradient, and without any it is no part.

        A part may go without backward passes where its gradient is 0.
        """
        contributions = [parameter.grad for parameter in self._parameters]
        self._note(rows, _squared_norm(contributions))
        self._add(contributions)
        self.discard()

    def record_all(self, rows: Sequence[int], contributions: Sequence[Tensor | None]) -> None:
        """The same for several parts at once, from their own gradients, (parts, *shape) for every parameter."""
        present = [contribution.flatten(1) for contribution in contributions if contribution is not None]
        norms = torch.stack([torch.linalg.vector_norm(contribution, dim=1).cpu() for contribution in present])
        for count, norm_squared in zip(rows, norms.double().square().sum(dim=0).tolist(), strict=True):
            self._note(count, norm_squared)
        self._add([None if contribution is None else contribution.sum(dim=0) for contribution in contributions])

    def record_known(self, rows: Sequence[int], norms_squared: Sequence[float]) -> None:
        """Parts whose squared norms are known and whose gradients come later, as sums, by `take`."""
        for count, norm_squared in zip(rows, norms_squared, strict=True):
            self._note(count, norm_squared)

    def take(self, sums: GradientSums) -> None:
        """Add gradients of any number of parts that are summed already."""
        self._add([sums.get(parameter) for parameter in self._parameters])

    def discard(self) -> None:
        """Forget what the backward passes since the last part have left."""
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self, zeros: bool = False) -> GradientNoise | None:
        """Put the sum into `.grad`; its noise, or None with fewer than two parts, where it cannot be known.

        With `zeros` a sum without any backward pass is 0 and not None: an optimizer with momentum takes its step then.
        """
        nothing = zeros and all(total is None for total in self._sums)
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.grad = torch.zeros_like(parameter, dtype=_gradient_dtype(parameter)) if nothing else total
        if len(self._rows) < 2:
            return None
        return gradient_noise(self._norms_squared, self._rows, _squared_norm(self._sums))

    def _note(self, rows: int, norm_squared: float) -> None:
        if rows:
            self._rows.append(rows)
            self._norms_squared.append(norm_squared)

    def _add(self, contributions: Sequence[Tensor | None]) -> None:
        for place, contribution in enumerate(contributions):
            held = self._sums[place]
            if contribution is not None:
                self._sums[place] = contribution if held is None else held.add_(contribution)


def _gradient_dtype(parameter: nn.Parameter) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _squared_norm(tensors: Sequence[Tensor | None]) -> float:
    return float(get_total_norm([tensor for tensor in tensors if tensor is not None])) ** 2
