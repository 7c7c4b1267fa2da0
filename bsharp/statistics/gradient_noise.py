"""How noisy a batch gradient is, from the squared norms of the contributions it is the sum of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["GradientNoise", "gradient_noise"]


@dataclass(frozen=True)
class GradientNoise:
    """Squared Euclidean figures of one batch gradient ĝ = E[ĝ] + noise, in (score per parameter)²."""

    norm_squared: float  # ‖ĝ‖²
    variance: float  # tr Cov(ĝ), unbiased
    signal_squared: float  # ‖E ĝ‖², unbiased, and so sometimes negative

    @property
    def signal_to_noise(self) -> float:
        """‖E ĝ‖² / tr Cov(ĝ); NaN without variance."""
        return self.signal_squared / self.variance if self.variance > 0 else math.nan


def gradient_noise(norms_squared: Sequence[float], shares: Sequence[float], norm_squared: float) -> GradientNoise:
    """Noise of a batch gradient ĝ = Σ_p g_p, a sum of independent contributions, from ‖g_p‖² and ‖ĝ‖².

        ‖E ĝ‖² = (‖ĝ‖² − Σ_p ‖g_p‖²) / (1 − Σ_p s_p²),    tr Cov(ĝ) = ‖ĝ‖² − ‖E ĝ‖²

    s_p are the shares of the batch (its rows), scaled here to sum to 1. Both are unbiased where every g_p/s_p has the
    same expectation, as it has where the problems of a batch are drawn at random, whatever the covariance of each:
    ‖ĝ‖² − Σ_p ‖g_p‖² is the sum of ⟨g_p, g_q⟩ over p ≠ q. With equal shares 1/P this is the sample covariance,
    tr Cov(ĝ) = (P Σ_p ‖g_p‖² − ‖ĝ‖²) / (P − 1); compare McCandlish et al. 2018, arXiv 1812.06162, appendix A.
    Raises ValueError for fewer than two contributions and for a share that is not positive.
    """
    if len(norms_squared) < 2:
        raise ValueError(f"gradient noise needs at least 2 contributions, got {len(norms_squared)}; give more problems")
    if len(shares) != len(norms_squared) or not min(shares) > 0:
        raise ValueError(f"gradient noise needs one positive share per contribution, got {list(shares)}")
    total = math.fsum(shares)
    own = math.fsum((share / total) ** 2 for share in shares)
    signal = (norm_squared - math.fsum(norms_squared)) / (1.0 - own)
    return GradientNoise(norm_squared, norm_squared - signal, signal)
