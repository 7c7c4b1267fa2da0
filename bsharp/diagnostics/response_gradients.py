"""How the log-probabilities of given responses move along directions in weight space, and their gradients in blocks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bsharp.diagnostics.objective_gradients import trained_parameters
from bsharp.masking import masked_sum
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import forward_responses, scoring_microbatches
from bsharp.statistics import Estimate

__all__ = ["ResponseRows", "ResponseScorer", "cosine_over_blocks", "directional_derivatives"]

Array = NDArray[np.float64]
Inputs = tuple[list[Sequence[int]], Int[Tensor, "b t"], Bool[Tensor, "b t"]]


@dataclass(frozen=True)
class ResponseRows:
    """Responses to score, one a row, behind their prompts."""

    prompts: Sequence[Sequence[int]]
    token_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]

    def __len__(self) -> int:
        return len(self.prompts)

    def microbatches(self, chosen: Sequence[int], size: int) -> Iterator[tuple[list[int], Inputs]]:
        """The chosen rows, at most `size` at a time: their numbers, and their prompts, responses and masks."""
        prompts, lengths = [self.prompts[row] for row in chosen], self.mask[list(chosen)].sum(-1).tolist()
        for part in scoring_microbatches(prompts, lengths, size):
            rows = [chosen[place] for place in part]
            width = max(1, *(lengths[place] for place in part))
            yield rows, ([self.prompts[row] for row in rows], self.token_ids[rows, :width], self.mask[rows, :width])


def directional_derivatives(
    language_model: LanguageModel,
    rows: ResponseRows,
    directions: Mapping[str, Float[Tensor, " N"]],
    microbatch_rows: int = 64,
    *,
    temperature: float = 1.0,
    fixed_length: bool = False,
) -> dict[str, Array]:
    """d/dt log π_{θ + t·g/‖g‖}(y|x) at t = 0 of every row, = ⟨∇ log π(y|x), g⟩ / ‖g‖, (B,)
    nats per unit length.

    By forward-mode differentiation (Jacobian-vector products), exact up to rounding, all directions in one pass; no gradient
    per row is formed. `directions` are (N,), in the order of the parameters that are trainable, or of all where none is.
    NaN for a direction that is 0 or not finite. π is the distribution at `temperature`, and under `fixed_length` without any
    EOS: masked out and renormalised, as in sampling.
    """
    scorer = ResponseScorer(language_model, temperature, fixed_length)
    lengths = {name: float(torch.linalg.vector_norm(direction.double())) for name, direction in directions.items()}
    usable = [name for name, length in lengths.items() if length > 0 and math.isfinite(length)]
    result = {name: np.full(len(rows), np.nan) for name in directions}
    if not usable:
        return result
    tangents = scorer.split(torch.stack([directions[name].double() / lengths[name] for name in usable]))
    everything = list(range(len(rows)))
    # The fused attention kernels have no forward-mode derivative; the plain one does.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # Forward mode scripts torch's own decompositions at first use, which torch deprecates.
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", DeprecationWarning)
        for part, inputs in rows.microbatches(everything, microbatch_rows):

            def logprobs(parameters: dict[str, Tensor], inputs: tuple[Any, ...] = inputs) -> Tensor:
                return scorer.at(parameters, inputs)

            def derivative(tangent: dict[str, Tensor], logprobs: Callable[..., Tensor] = logprobs) -> Tensor:
                change: Tensor = jvp(logprobs, (scorer.values,), (tangent,))[1]
                return change

            values = vmap(derivative)(tangents).double().cpu().numpy()
            for name, row_values in zip(usable, values, strict=True):
                result[name][part] = row_values
    return result


class ResponseScorer(nn.Module):
    """Rows → log π of their responses, as a module, so that its parameters can be handed in from outside.

    π is the distribution at `temperature`, and under `fixed_length` without any EOS: masked out and renormalised.
    """

    def __init__(self, language_model: LanguageModel, temperature: float = 1.0, fixed_length: bool = False) -> None:
        super().__init__()
        self._generates = (temperature, fixed_length)
        self.model = language_model.model
        self._language_model = language_model
        named = trained_parameters(self.model) or dict(self.model.named_parameters())
        self.values = {f"model.{name}": parameter.detach() for name, parameter in named.items()}

    def forward(
        self, prompts: Sequence[Sequence[int]], token_ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, " B"]:
        token_logprobs = forward_responses(
            self._language_model, prompts, token_ids, mask, *self._generates
        ).token_logprobs
        return masked_sum(token_logprobs, mask.to(token_logprobs.device))

    def at(self, parameters: dict[str, Tensor], inputs: tuple[Any, ...]) -> Float[Tensor, " B"]:
        """What `forward` gives with other parameters."""
        values: Tensor = functional_call(self, parameters, inputs)
        return values

    def split(self, vectors: Float[Tensor, "O N"]) -> dict[str, Tensor]:
        """Vectors over all parameters as one tensor per parameter, (O, *shape)."""
        sizes = [value.numel() for value in self.values.values()]
        parts = torch.split(vectors, sizes, dim=-1)
        return {
            name: part.reshape(-1, *value.shape).to(device=value.device, dtype=value.dtype)
            for (name, value), part in zip(self.values.items(), parts, strict=True)
        }

    def gradient(self, rows: ResponseRows, chosen: Sequence[int], microbatch_rows: int) -> Float[Tensor, " N"]:
        """∇ Σ log π over the chosen rows, (N,)."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.values.items()}
        # Sums over many rows: in bfloat16 the later ones would be rounded away.
        total = [
            torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
            for value in self.values.values()
        ]
        for _, inputs in rows.microbatches(chosen, microbatch_rows):
            logprobs = self.at(leaves, inputs)
            gradients = torch.autograd.grad(logprobs.sum(), list(leaves.values()), materialize_grads=True)
            torch._foreach_add_(total, gradients)
        return torch.cat([value.reshape(-1) for value in total])


def cosine_over_blocks(gram: Array, along: Array, unit: str = "cosine", level: float = 0.95) -> Estimate:
    """cos(g, E G) for a known direction g and K independent unbiased estimates G_b of a gradient; n is K.

        mean_b ⟨G_b, g⟩/‖g‖  /  √( mean_{a≠b} ⟨G_a, G_b⟩ )

    `gram` (K, K) are the inner products of the G_b, `along` (K,) their components along g. Products of different blocks
    alone make the squared norm unbiased: with their own squares, noise would lengthen the mean gradient and pull the
    cosine towards 0. The interval is the jackknife over blocks (Efron 1982) with t_{K-1}, cut to [-1, 1]. Undefined, with a
    note, for fewer than 2 blocks, a g without direction (NaN in `along`) and an estimated squared norm that is not positive,
    where the blocks agree on no direction; without interval where that is so after leaving out one block.
    """
    blocks = len(along)
    undefined = Estimate(math.nan, math.nan, math.nan, blocks, unit)
    if not np.isfinite(along).all():
        return replace(undefined, note="the given gradient is 0 or not finite")
    if blocks < 2:
        return replace(undefined, note="one block of problems: the noise cannot be told from the gradient")
    everything = np.arange(blocks)
    estimate = _debiased_cosine(gram, along, everything)
    if not math.isfinite(estimate):
        return replace(undefined, note="lost in noise: the blocks of problems do not agree on a direction")
    left_out = np.array([_debiased_cosine(gram, along, np.delete(everything, block)) for block in everything])
    reach = math.nan
    if np.isfinite(left_out).all():
        error = math.sqrt((blocks - 1) / blocks * float(((left_out - left_out.mean()) ** 2).sum()))
        reach = error * float(special.stdtrit(blocks - 1, (1 + level) / 2))
    low, centre, high = np.clip([estimate - reach, estimate, estimate + reach], -1.0, 1.0).tolist()
    note = "" if math.isfinite(reach) else "lost in noise without one block: no interval"
    return Estimate(centre, low, high, blocks, unit, note)


def _debiased_cosine(gram: Array, along: Array, blocks: NDArray[np.intp]) -> float:
    part, count = gram[np.ix_(blocks, blocks)], len(blocks)
    if count < 2:
        return math.nan
    squared = float(part.sum() - np.trace(part)) / (count * (count - 1))
    return float(along[blocks].mean()) / math.sqrt(squared) if squared > 0 else math.nan
