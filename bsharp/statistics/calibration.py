"""Calibration of the vote: does the share of samples that agree say how often the agreed answer is right?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsharp.statistics.intervals import Estimate, bootstrap_interval

__all__ = ["expected_calibration_error"]


def expected_calibration_error(
    confidences: ArrayLike, credits: ArrayLike, *, rng: np.random.Generator, bins: int = 10, level: float = 0.95
) -> Estimate:
    """ECE = Σ_b |B_b| / P · |mean credit in b - mean confidence in b|  (arXiv 1706.04599), a share, over `bins` equal bins.

    `confidences` (P,) in [0, 1], for example each problem's winning vote share, and `credits` (P,) in [0, 1] of the
    answer it speaks for (`vote_share` gives both). Bins are (b/bins, (b+1)/bins], 0 in the first. An absolute value
    cannot average out, so ECE is biased upwards by chance; the interval is the pivotal bootstrap (2 · estimate - quantiles),
    which moves against that bias, cut to [0, 1], and may lie below the estimate; near a true ECE of 0 it can still miss 0. One
    problem: no interval.
    """
    confidence, credit = np.asarray(confidences, dtype=np.float64), np.asarray(credits, dtype=np.float64)
    if confidence.shape != credit.shape or confidence.ndim != 1 or not confidence.size:
        raise ValueError(
            f"calibration needs one confidence and one credit per problem, got shapes {confidence.shape} and {credit.shape}"
        )
    for name, values in (("confidences", confidence), ("credits", credit)):
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"calibration needs {name} in [0, 1]; got {values.min()} to {values.max()}")
    if bins < 1:
        raise ValueError(f"calibration needs at least 1 bin, got {bins}")
    # Rounded, because a vote share of 3/10 must fall into the bin that 0.3 closes.
    bin_index = np.clip(np.ceil(np.round(confidence * bins, 9)).astype(int) - 1, 0, bins - 1)

    def error(indices: NDArray[np.intp]) -> float:
        gaps = np.bincount(bin_index[indices], weights=(credit - confidence)[indices], minlength=bins)
        return float(np.abs(gaps).sum() / len(indices))

    plain = bootstrap_interval(error, len(confidence), rng=rng, level=level, unit="share")
    low, high = 2 * plain.estimate - plain.high, 2 * plain.estimate - plain.low
    return Estimate(
        plain.estimate, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)), plain.n, plain.unit, plain.note
    )
