"""How well likelihood predicts correctness within a problem: the pooled within-problem correlation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsharp.statistics.intervals import Estimate, bootstrap_interval

__all__ = ["within_problem_correlation"]


def within_problem_correlation(
    rewards: ArrayLike,
    logprobs: ArrayLike,
    problems: Sequence[Hashable],
    *,
    rng: np.random.Generator,
    seeds: Sequence[Hashable] | None = None,
    level: float = 0.95,
    replicates: int = 1000,
) -> Estimate:
    """Σ_x Cov_x(r, ℓ) / √(Σ_x Var_x(r) · Σ_x Var_x(ℓ)), pooled over problems BEFORE dividing, in [-1, 1].

    `rewards` (N,) and base sequence log-probabilities `logprobs` (N,), nats, of N samples; `problems` (N,) their problem ids
    and `seeds` (N,) their run seeds. Covariances and variances are unbiased within each (seed, problem) group, averaged over
    a problem's seeds and summed over problems; groups of one sample have none and are left out. The interval bootstraps
    problems, all seeds of one moving together. NaN with a note where rewards or log-probabilities never vary within a problem.
    """
    r, likelihood = np.asarray(rewards, dtype=np.float64), np.asarray(logprobs, dtype=np.float64)
    labels = list(zip(problems, seeds if seeds is not None else [0] * len(problems), strict=True))
    if not (r.shape == likelihood.shape == (len(labels),)):
        raise ValueError(
            f"within_problem_correlation needs one reward, log-probability and problem per sample, got shapes {r.shape}, "
            f"{likelihood.shape} and {len(labels)} problems"
        )
    if not (np.isfinite(r).all() and np.isfinite(likelihood).all()):
        raise ValueError("within_problem_correlation needs finite values; leave out samples without a reward")
    moments = _moments_by_problem(r, likelihood, labels)
    if not len(moments):
        return Estimate(math.nan, math.nan, math.nan, 0, "correlation", "no problem has two samples of one seed")

    def pooled(indices: NDArray[np.intp]) -> float:
        covariance, reward_variance, likelihood_variance = moments[indices].sum(axis=0)
        scale = reward_variance * likelihood_variance
        return float(covariance / math.sqrt(scale)) if scale > 0 else math.nan

    return bootstrap_interval(
        pooled, len(moments), rng=rng, level=level, unit="correlation", bounds=(-1.0, 1.0), replicates=replicates
    )


def _moments_by_problem(
    r: NDArray[np.float64], likelihood: NDArray[np.float64], labels: Sequence[tuple[Hashable, Hashable]]
) -> NDArray[np.float64]:
    """(problems, 3): Cov(r, ℓ), Var(r), Var(ℓ) of each problem, averaged over its seeds."""
    members: dict[tuple[Hashable, Hashable], list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    by_problem: dict[Hashable, list[tuple[float, float, float]]] = {}
    for (problem, _), rows in members.items():
        if len(rows) < 2:
            continue
        x, y = r[rows] - r[rows].mean(), likelihood[rows] - likelihood[rows].mean()
        # Identical values may differ from their mean by rounding: without a spread there is no variance.
        x, y = (np.zeros_like(d) if np.ptp(v[rows]) == 0 else d for d, v in ((x, r), (y, likelihood)))
        scale = len(rows) - 1
        by_problem.setdefault(problem, []).append((float(x @ y) / scale, float(x @ x) / scale, float(y @ y) / scale))
    return np.array([np.mean(moments, axis=0) for moments in by_problem.values()]).reshape(-1, 3)
