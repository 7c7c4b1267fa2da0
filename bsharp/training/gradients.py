"""How noisy the gradient of a step is, from disjoint sub-batches of its problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["GradientNoise", "SubbatchGradients", "gradient_noise", "gradient_vector"]


@dataclass(frozen=True)
class GradientNoise:
    """Squared Euclidean figures of one batch gradient ĝ = E[ĝ] + noise, in (score per parameter)²."""

    norm_squared: float  # ‖ĝ‖²
    variance: float  # tr Cov(ĝ), unbiased
    signal_squared: float  # ‖E ĝ‖², unbiased, and so sometimes negative

    @property
    def signal_to_noise(self) -> float:
        """‖E ĝ‖² / tr Cov(ĝ). Average numerator and denominator over steps before dividing, not this."""
        return self.signal_squared / self.variance if self.variance > 0 else float("nan")


def gradient_noise(subbatch_norms_squared: Sequence[float], norm_squared: float) -> GradientNoise:
    """Noise of a batch gradient that is the sum of S independent, equally distributed contributions g_s.

    With ĝ = Σ_s g_s:  tr Cov(ĝ) = S/(S−1) · (Σ_s ‖g_s‖² − ‖ĝ‖²/S),  ‖E ĝ‖² = ‖ĝ‖² − tr Cov(ĝ).
    Both are unbiased where the g_s are independent with equal means (sub-batches of equally many problems); compare
    McCandlish et al. 2018, arXiv 1812.06162, appendix A. Raises ValueError for S < 2.
    """
    count = len(subbatch_norms_squared)
    if count < 2:
        raise ValueError(f"gradient noise needs at least 2 sub-batches, got {count}; raise prompts_per_step")
    variance = count / (count - 1) * (sum(subbatch_norms_squared) - norm_squared / count)
    return GradientNoise(norm_squared, variance, norm_squared - variance)


def gradient_vector(parameters: Sequence[nn.Parameter]) -> Float[Tensor, " N"]:
    """The accumulated gradient as one vector; a parameter without gradient counts as 0."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])


class SubbatchGradients:
    """Reads the contribution of each sub-batch off the accumulating gradient: one extra copy of it, no extra pass."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._before: Tensor | None = None
        self._norms_squared: list[float] = []

    def record(self) -> None:
        """Call after the backward passes of each sub-batch."""
        now = gradient_vector(self._parameters)
        contribution = now if self._before is None else now - self._before
        self._norms_squared.append(float(contribution.double().square().sum()))
        self._before = now

    def noise(self) -> GradientNoise | None:
        """The noise of the sum; None with fewer than two sub-batches, where it cannot be known."""
        if len(self._norms_squared) < 2 or self._before is None:
            return None
        return gradient_noise(self._norms_squared, float(self._before.double().square().sum()))
