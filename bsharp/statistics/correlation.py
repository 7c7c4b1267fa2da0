"""How well likelihood predicts correctness within a problem: the pooled within-problem correlation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsharp.statistics.intervals import ONE_SEED, Estimate, bootstrap_interval

__all__ = ["within_problem_correlation"]


def within_problem_correlation(
    rewards: ArrayLike,
    logprobs: ArrayLike,
    problems: Sequence[Hashable],
    *,
    rng: np.random.Generator,
    seeds: Sequence[Hashable] | None = None,
    strata: Mapping[Hashable, Hashable] | None = None,
    level: float = 0.95,
    replicates: int = 1000,
) -> Estimate:
    """Σ_x Cov_x(r, ℓ) / √(Σ_x Var_x(r) · Σ_x Var_x(ℓ)), pooled over problems BEFORE dividing, in [-1, 1].

    `rewards` (N,) and base sequence log-probabilities `logprobs` (N,), nats, of N samples; `problems` (N,) their problem ids
    and `seeds` (N,) their run seeds. Covariances and variances are unbiased within each (seed, problem) group, averaged over
    a problem's seeds and summed over problems; groups of one sample have none and are left out.

    The interval is that of `bootstrap_interval`: problems are resampled, all seeds of one moving together, within `strata`
    (problem → label), and a t interval over seeds is added. With C, V, W the mean moments over seeds and R = C/√(VW), seed
    s stands for R + C_s/√(VW) - R/2 · (V_s/V + W_s/W): to first order its share in R, and defined where its own correlation
    is not. One seed: problems only, with a note; `seeds` None is a quantity without seeds. NaN with a note where rewards or
    log-probabilities never vary within a problem.
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
    names, moments = _moments_by_problem(r, likelihood, labels)
    if not names:
        return Estimate(math.nan, math.nan, math.nan, 0, "correlation", "no problem has two samples of one seed")

    def by_seed(indices: NDArray[np.intp]) -> NDArray[np.float64]:
        sums = moments[:, indices].sum(axis=1)  # (S, 3)
        covariance, reward_variance, likelihood_variance = sums.mean(axis=0)
        scale = reward_variance * likelihood_variance
        if scale <= 0:
            return np.full(len(sums), math.nan)
        pooled = covariance / math.sqrt(scale)
        own = sums[:, 0] / math.sqrt(scale)
        return np.asarray(pooled + own - pooled / 2 * (sums[:, 1] / reward_variance + sums[:, 2] / likelihood_variance))

    figure = bootstrap_interval(
        by_seed,
        len(names),
        rng=rng,
        level=level,
        unit="correlation",
        strata=None if strata is None else [strata[name] for name in names],
        bounds=(-1.0, 1.0),
        replicates=replicates,
    )
    if seeds is None or len(moments) > 1:
        return figure
    return replace(figure, note=f"{ONE_SEED}; {figure.note}" if figure.note else ONE_SEED)


def _moments_by_problem(
    r: NDArray[np.float64], likelihood: NDArray[np.float64], labels: Sequence[tuple[Hashable, Hashable]]
) -> tuple[list[Hashable], NDArray[np.float64]]:
    """The problems that have moments, and their Cov(r, ℓ), Var(r), Var(ℓ), (seeds, problems, 3)."""
    members: dict[tuple[Hashable, Hashable], list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    found: dict[Hashable, dict[Hashable, tuple[float, float, float]]] = {}
    for (problem, seed), rows in members.items():
        if len(rows) < 2:
            continue
        x, y = r[rows] - r[rows].mean(), likelihood[rows] - likelihood[rows].mean()
        # Identical values may differ from their mean by rounding: without a spread there is no variance.
        x, y = (np.zeros_like(d) if np.ptp(v[rows]) == 0 else d for d, v in ((x, r), (y, likelihood)))
        scale = len(rows) - 1
        of_seed = (float(x @ y) / scale, float(x @ x) / scale, float(y @ y) / scale)
        found.setdefault(problem, {})[seed] = of_seed
    seeds = list(dict.fromkeys(seed for by_seed in found.values() for seed in by_seed))
    table = np.empty((len(seeds), len(found), 3))
    for place, by_seed in enumerate(found.values()):
        # A seed that has no moments of a problem takes the mean of those that have: the average over seeds stays theirs.
        average = np.mean(list(by_seed.values()), axis=0)
        for row, seed in enumerate(seeds):
            table[row, place] = by_seed.get(seed, average)
    return list(found), table
