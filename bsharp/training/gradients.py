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


def gradient_noise(
    subbatch_norms_squared: Sequence[float], shares: Sequence[float], norm_squared: float
) -> GradientNoise:
    """Noise of a batch gradient ĝ = Σ_s g_s of S independent contributions with the shares p_s of the batch (Σ p_s = 1).

        tr Cov(ĝ) = (Σ_s ‖g_s‖²/p_s − ‖ĝ‖²) / (S − 1),    ‖E ĝ‖² = ‖ĝ‖² − tr Cov(ĝ)

    Both are unbiased where rows are dealt to the sub-batches at random, so that every mean g_s/p_s estimates the same
    gradient; compare McCandlish et al. 2018, arXiv 1812.06162, appendix A. Raises ValueError for S < 2.
    """
    count = len(subbatch_norms_squared)
    if count < 2:
        raise ValueError(f"gradient noise needs at least 2 sub-batches, got {count}; raise prompts_per_step")
    spread = sum(norm / share for norm, share in zip(subbatch_norms_squared, shares, strict=True))
    variance = (spread - norm_squared) / (count - 1)
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
        self._rows: list[int] = []

    def record(self, rows: int) -> None:
        """Call after the backward passes of each sub-batch of `rows` rows; one without rows says nothing."""
        if rows == 0:
            return
        now = gradient_vector(self._parameters)
        contribution = now if self._before is None else now - self._before
        self._rows.append(rows)
        self._norms_squared.append(float(contribution.double().square().sum()))
        self._before = now

    def noise(self) -> GradientNoise | None:
        """The noise of the sum; None with fewer than two sub-batches, where it cannot be known."""
        if len(self._norms_squared) < 2 or self._before is None:
            return None
        shares = [rows / sum(self._rows) for rows in self._rows]
        return gradient_noise(self._norms_squared, shares, float(self._before.double().square().sum()))
