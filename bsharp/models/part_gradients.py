"""Gradients of weights, summed over all parts of a packing, with the squared norm of every part's own."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bsharp.models.network import Network
from bsharp.models.packing import Packing

__all__ = ["GradientSums", "PartNorms"]


class GradientSums:
    """The gradient of a loss, added up weight by weight over any number of passes; float32 at least."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, Tensor] = {}
        self._spare: dict[torch.Size, Tensor] = {}

    def get(self, weight: Tensor) -> Tensor | None:
        """The sum so far, None where there was nothing."""
        return self._sums.get(weight)

    def space(self, weight: Tensor) -> Tensor:
        """Memory of the size of a weight, for what is added next; its content means nothing."""
        spare = self._spare.pop(weight.shape, None)
        return torch.empty_like(weight, dtype=_wide(weight)) if spare is None else spare

    def norm_squared(self) -> float:
        """‖g‖² over all weights."""
        lengths = [_length(terms) for terms in self._sums.values()]
        return float(torch.stack(lengths).double().square().sum()) if lengths else 0.0

    def take(self, others: GradientSums) -> None:
        """Add the sums of `others`, which are used up."""
        for weight, terms in others._sums.items():
            self.add(weight, terms)
        others._sums.clear()

    def add(self, weight: Tensor, terms: Tensor) -> None:
        """Add to the sum. `terms` are the caller's no more: the first ones become the sum, later ones are reused."""
        held = self._sums.get(weight)
        if held is None:
            self._sums[weight] = terms.to(_wide(weight))
            return
        held.add_(terms)
        if terms.dtype == held.dtype and terms.is_contiguous():
            self._spare[terms.shape] = terms


class PartNorms:
    """A `GradientSink` and `HeadSink` over one packing: adds to `sums`, and knows ‖g_p‖² of every part p.

    Products are made part by part in the same memory, so that no part's gradient is held as a whole. A tied embedding gets
    its gradient in two pieces, H at the output layer and E at the bottom: ‖H + E‖² = ‖H‖² + Σ_v (2 H_v·E_v + ‖E_v‖²) over the
    tokens v that the part reads, whose H_v are noted.
    """

    def __init__(self, network: Network, packing: Packing, sums: GradientSums) -> None:
        self._network, self._packing, self._sums = network, packing, sums
        self._norms = torch.zeros(len(packing.parts), dtype=torch.float64)
        self._lengths: list[list[Tensor]] = [[] for _ in packing.parts]  # ‖g‖ of weights, squared and added at the end
        self._tokens = [part.stop - part.start for part, _ in packing.parts]
        self._head: tuple[int, Tensor] | None = None  # the part whose gradient of the output layer is being made
        self._head_rows: dict[int, Tensor] = {}
        self._begins = torch.arange(len(packing.token_ids)), torch.tensor([part.start for part, _ in packing.parts])
        self._bias: Tensor | None = None

    def norms_squared(self) -> list[float]:
        """Of every part, after the backward pass."""
        for part, lengths in enumerate(self._lengths):
            if lengths:
                self._norms[part] += torch.stack(lengths).double().square().sum()
                lengths.clear()
        values: list[float] = self._norms.tolist()
        return values

    def product(self, weight: Tensor, of_outputs: Float[Tensor, "N K"], inputs: Float[Tensor, "N J"]) -> None:
        of_parts = zip(
            torch.split(of_outputs, self._tokens), torch.split(inputs, self._tokens), self._lengths, strict=True
        )
        for of_part, inputs_of_part, lengths in of_parts:
            if len(of_part):
                terms = self._product(weight, of_part, inputs_of_part)
                lengths.append(_length(terms))
                self._sums.add(weight, terms)

    def vector(self, weight: Tensor, terms: Float[Tensor, "N ... K"]) -> None:
        tokens, begins = self._begins
        wide = terms.flatten(1).to(_wide(weight))
        of_parts = functional.embedding_bag(tokens, wide, begins, mode="sum")  # sums of slices
        if terms.ndim > 2:
            of_parts = of_parts.view(len(begins), *terms.shape[1:]).sum(1)
        self._note_vectors(weight, of_parts)

    def rows(self, weight: Tensor, of_rows: Float[Tensor, "N K"]) -> None:
        held = self._sums.get(weight)
        if held is None:
            held = torch.zeros_like(weight, dtype=_wide(weight))
            self._sums.add(weight, held)
        for part, (tokens, _) in enumerate(self._packing.parts):
            read, which = torch.unique(self._packing.token_ids[tokens], return_inverse=True)
            terms = torch.zeros((len(read), of_rows.shape[1]), dtype=held.dtype)
            terms.index_add_(0, which, of_rows[tokens].to(held.dtype))
            self._lengths[part].append(_length(terms))
            if self._network.tied and part in self._head_rows:
                self._norms[part] += 2.0 * torch.dot(self._head_rows[part].flatten(), terms.flatten()).double()
            held.index_add_(0, read, terms)

    def head_product(self, part: int | None, of_logits: Float[Tensor, "N V"], hidden: Float[Tensor, "N D"]) -> None:
        if part is None:
            for number, (_, predicted) in enumerate(self._packing.parts):
                if predicted.start < predicted.stop:
                    self.head_product(number, of_logits[predicted], hidden[predicted])
                    self._finish_head()
            return
        weight = self._network.head.weight
        if self._head is not None and self._head[0] == part:
            _add_product(self._head[1], of_logits, hidden)
            return
        self._finish_head()
        self._head = (part, self._product(weight, of_logits, hidden))

    def head_bias(self, part: int | None, of_logits: Float[Tensor, "N V"]) -> None:
        bias = self._network.head.bias
        assert bias is not None
        if self._bias is None:
            self._bias = torch.zeros((len(self._packing.parts), len(bias)), dtype=_wide(bias))
        for number, (_, predicted) in enumerate(self._packing.parts):
            if part is None or part == number:
                self._bias[number] += of_logits[predicted if part is None else slice(None)].sum(0, dtype=_wide(bias))

    def finish_head(self) -> None:
        """Call once after the output layer."""
        self._finish_head()
        if self._bias is not None and self._network.head.bias is not None:
            self._note_vectors(self._network.head.bias, self._bias)

    def _finish_head(self) -> None:
        if self._head is None:
            return
        part, terms = self._head
        self._lengths[part].append(_length(terms))
        if self._network.tied:
            tokens, _ = self._packing.parts[part]
            self._head_rows[part] = terms.index_select(0, torch.unique(self._packing.token_ids[tokens])).to(
                _wide(terms)
            )
        self._sums.add(self._network.head.weight, terms)
        self._head = None

    def _note_vectors(self, weight: Tensor, terms: Float[Tensor, "parts K"]) -> None:
        self._norms += terms.double().square().sum(-1)
        self._sums.add(weight, terms.sum(0))

    def _product(self, weight: Tensor, of_outputs: Float[Tensor, "N K"], inputs: Float[Tensor, "N J"]) -> Tensor:
        space = self._sums.space(weight)
        if of_outputs.dtype == space.dtype:
            return torch.mm(of_outputs.T, inputs, out=space)
        return space.copy_(of_outputs.T @ inputs)  # once, for the norm and the sum


def _add_product(total: Tensor, of_outputs: Float[Tensor, "N K"], inputs: Float[Tensor, "N J"]) -> None:
    if total.dtype == inputs.dtype:
        total.addmm_(of_outputs.T, inputs)
    else:
        total += of_outputs.T @ inputs


def _wide(weight: Tensor) -> torch.dtype:
    return _at_least_float32(weight.dtype)


@functools.cache
def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _length(values: Tensor) -> Float[Tensor, ""]:
    """‖values‖, float32 at least."""
    length: Tensor = torch.linalg.vector_norm(values, dtype=_wide(values))
    return length
