"""Calibration of the vote: does the share of samples that agree say how often the agreed answer is right?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsharp.statistics.intervals import Estimate, bootstrap_interval_of_sums
from bsharp.statistics.resampling import Strata

__all__ = ["calibration_bins", "calibration_error_change", "expected_calibration_error"]

Array = NDArray[np.float64]


def expected_calibration_error(
    confidences: ArrayLike,
    credits: ArrayLike,
    *,
    rng: np.random.Generator,
    bins: int = 10,
    level: float = 0.95,
    strata: Strata | None = None,
    replicates: int = 2000,
) -> Estimate:
    """ECE = Σ_b |B_b| / P · |mean credit in b - mean confidence in b|  (arXiv 1706.04599), a share, over `bins` equal bins.

    `confidences` (P,) in [0, 1], for example each problem's winning vote share, and `credits` (P,) in [0, 1] of the
    answer it speaks for (`vote_share` gives both). Bins are (b/bins, (b+1)/bins], 0 in the first. With (S, P), one row per
    training seed, it is the mean of the seeds' ECE, and the interval covers new problems and seeds. `strata` (P,) labels
    families, within which problems are resampled.

    An absolute value cannot average out, so ECE is biased upwards by chance; the interval is the pivotal bootstrap
    (2 · estimate - quantiles), which moves against that bias, cut to [0, 1], and may lie below the estimate; near a true ECE
    of 0 it can still miss 0. One problem: no interval.
    """
    confidence, credit = _checked(confidences, credits)
    seeds, problems = confidence.shape
    plain = bootstrap_interval_of_sums(
        lambda sums: _error(sums, seeds, problems),
        _gaps(confidence, credit, bins),
        rng=rng,
        level=level,
        unit="share",
        strata=strata,
        replicates=replicates,
    )
    return _pivotal(plain, 0.0)


def calibration_error_change(
    confidences: ArrayLike,
    credits: ArrayLike,
    base_confidences: ArrayLike,
    base_credits: ArrayLike,
    *,
    rng: np.random.Generator,
    bins: int = 10,
    level: float = 0.95,
    strata: Strata | None = None,
    replicates: int = 2000,
) -> Estimate:
    """ECE of a model minus ECE of its base on the same problems, in [-1, 1]; see `expected_calibration_error`.

    The model's arguments are (P,) or (S, P), the base's (P,). The same resampled problems go into both errors, whose biases
    partly cancel; the interval is pivotal against what is left.
    """
    confidence, credit = _checked(confidences, credits)
    base_confidence, base_credit = _checked(base_confidences, base_credits)
    if base_confidence.shape != (1, confidence.shape[1]):
        raise ValueError(
            f"the change of the calibration needs a base on the same problems, got {confidence.shape[1]} problems and "
            f"a base of shape {np.shape(base_confidences)}"
        )
    seeds, problems = confidence.shape

    def change(sums: Array) -> Array:
        return _error(sums[:, : seeds * bins], seeds, problems) - _error(sums[:, seeds * bins :], 1, problems)

    plain = bootstrap_interval_of_sums(
        change,
        np.hstack([_gaps(confidence, credit, bins), _gaps(base_confidence, base_credit, bins)]),
        rng=rng,
        level=level,
        unit="share",
        strata=strata,
        replicates=replicates,
    )
    return _pivotal(plain, -1.0)


def calibration_bins(confidences: Array, bins: int = 10) -> NDArray[np.intp]:
    """Index of each confidence's bin (b/bins, (b+1)/bins], 0 in the first; the shape of `confidences`."""
    if bins < 1:
        raise ValueError(f"calibration needs at least 1 bin, got {bins}")
    # Rounded, because a vote share of 3/10 must fall into the bin that 0.3 closes.
    return np.clip(np.ceil(np.round(confidences * bins, 9)).astype(np.intp) - 1, 0, bins - 1)


def _checked(confidences: ArrayLike, credits: ArrayLike) -> tuple[Array, Array]:
    """Both as (S, P)."""
    confidence, credit = np.asarray(confidences, dtype=np.float64), np.asarray(credits, dtype=np.float64)
    if confidence.shape != credit.shape or confidence.ndim not in (1, 2) or not confidence.size:
        raise ValueError(
            f"calibration needs one confidence and one credit per problem, got shapes {confidence.shape} and {credit.shape}"
        )
    for name, values in (("confidences", confidence), ("credits", credit)):
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"calibration needs {name} in [0, 1]; got {values.min()} to {values.max()}")
    return np.atleast_2d(confidence), np.atleast_2d(credit)


def _gaps(confidence: Array, credit: Array, bins: int) -> Array:
    """(P, S · bins): each problem's credit minus confidence in the bin of its confidence, 0 in the others."""
    seeds, problems = confidence.shape
    table = np.zeros((problems, seeds, bins))
    index = calibration_bins(confidence, bins)
    np.put_along_axis(table, index.T[..., None], (credit - confidence).T[..., None], axis=2)
    return table.reshape(problems, seeds * bins)


def _error(sums: Array, seeds: int, problems: int) -> Array:
    """(R, S): ECE of each replicate and seed from the sums of `_gaps` over its problems."""
    return np.asarray(np.abs(sums.reshape(len(sums), seeds, -1)).sum(axis=2) / problems)


def _pivotal(plain: Estimate, lowest: float) -> Estimate:
    low, high = 2 * plain.estimate - plain.high, 2 * plain.estimate - plain.low
    return Estimate(
        plain.estimate, float(np.clip(low, lowest, 1)), float(np.clip(high, lowest, 1)), plain.n, plain.unit, plain.note
    )
