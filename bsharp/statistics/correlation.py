"""How well likelihood predicts correctness within a problem: the pooled within-problem correlation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsharp.statistics.intervals import ONE_SEED, Estimate, bootstrap_interval_of_sums

__all__ = ["within_problem_correlation"]

Array = NDArray[np.float64]
Labels = Sequence[Hashable] | NDArray[np.intp]


def within_problem_correlation(
    rewards: ArrayLike,
    logprobs: ArrayLike,
    problems: Labels,
    *,
    rng: np.random.Generator,
    seeds: Labels | None = None,
    strata: Mapping[Hashable, Hashable] | None = None,
    level: float = 0.95,
    replicates: int = 1000,
) -> Estimate:
    """Σ_x Cov_x(r, ℓ) / √(Σ_x Var_x(r) · Σ_x Var_x(ℓ)), pooled over problems BEFORE dividing, in [-1, 1].

    `rewards` (N,) and base sequence log-probabilities `logprobs` (N,), nats, of N samples; `problems` (N,) their problem ids
    and `seeds` (N,) their run seeds, labels or integer arrays. Covariances and variances are unbiased within each (seed,
    problem) group, averaged over a problem's seeds and summed over problems; groups of one sample have none and are left out.

    The interval is that of `bootstrap_interval`: problems are resampled, all seeds of one moving together, within `strata`
    (problem → label), and a t interval over seeds is added. With C, V, W the mean moments over seeds and R = C/√(VW), seed
    s stands for R + C_s/√(VW) - R/2 · (V_s/V + W_s/W): to first order its share in R, and defined where its own correlation
    is not. One seed: problems only, with a note; `seeds` None is a quantity without seeds. NaN with a note where rewards or
    log-probabilities never vary within a problem.
    """
    r, likelihood = np.asarray(rewards, dtype=np.float64), np.asarray(logprobs, dtype=np.float64)
    of_problem, of_seed = _coded(problems), _coded(seeds if seeds is not None else np.zeros(len(problems), np.intp))
    if not (r.shape == likelihood.shape == of_problem.shape == of_seed.shape):
        raise ValueError(
            f"within_problem_correlation needs one reward, log-probability and problem per sample, got shapes {r.shape}, "
            f"{likelihood.shape} and {len(problems)} problems"
        )
    if not (np.isfinite(r).all() and np.isfinite(likelihood).all()):
        raise ValueError("within_problem_correlation needs finite values; leave out samples without a reward")
    kept, moments = _moments_by_problem(r, likelihood, of_problem, of_seed)
    if not len(kept):
        return Estimate(math.nan, math.nan, math.nan, 0, "correlation", "no problem has two samples of one seed")
    number = len(moments)

    def by_seed(sums: Array) -> Array:
        own = sums.reshape(len(sums), number, 3)
        covariance, reward_variance, likelihood_variance = np.moveaxis(own.mean(axis=1, keepdims=True), 2, 0)  # (R, 1)
        scale = reward_variance * likelihood_variance
        with np.errstate(divide="ignore", invalid="ignore"):  # without a spread there is no correlation
            pooled = covariance / np.sqrt(scale)
            moved = own[..., 1] / reward_variance + own[..., 2] / likelihood_variance
            return np.asarray(np.where(scale > 0, pooled + own[..., 0] / np.sqrt(scale) - pooled / 2 * moved, math.nan))

    names = _names_at(problems, of_problem, kept) if strata is not None else []
    figure = bootstrap_interval_of_sums(
        by_seed,
        np.moveaxis(moments, 0, 1).reshape(len(kept), -1),
        rng=rng,
        level=level,
        unit="correlation",
        strata=None if strata is None else [strata[name] for name in names],
        bounds=(-1.0, 1.0),
        replicates=replicates,
    )
    if seeds is None or number > 1:
        return figure
    return replace(figure, note=f"{ONE_SEED}; {figure.note}" if figure.note else ONE_SEED)


def _coded(labels: Labels) -> NDArray[np.intp]:
    """Integers that are equal where labels are."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "i":
        return labels
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels], dtype=np.intp)


def _names_at(problems: Labels, of_problem: NDArray[np.intp], kept: NDArray[np.intp]) -> list[Hashable]:
    """The labels of the problems with the codes `kept`."""
    codes, first = np.unique(of_problem, return_index=True)
    places = first[np.searchsorted(codes, kept)]
    return list(problems[places].tolist() if isinstance(problems, np.ndarray) else (problems[at] for at in places))


def _moments_by_problem(
    r: Array, likelihood: Array, of_problem: NDArray[np.intp], of_seed: NDArray[np.intp]
) -> tuple[NDArray[np.intp], Array]:
    """The codes of the problems that have moments, and their Cov(r, ℓ), Var(r), Var(ℓ), (seeds, problems, 3).

    Problems and seeds in order of their first sample in a group of two.
    """
    order = np.lexsort((of_seed, of_problem))
    problem, seed = of_problem[order], of_seed[order]
    begins = np.ones(len(order), dtype=np.bool_)
    begins[1:] = (problem[1:] != problem[:-1]) | (seed[1:] != seed[:-1])
    starts = np.flatnonzero(begins)
    sizes = np.diff(np.append(starts, len(order)))
    found = np.full((len(starts), 3), math.nan)
    for size in np.unique(sizes[sizes > 1]).tolist():
        groups = np.flatnonzero(sizes == size)
        rows = order[starts[groups][:, None] + np.arange(size)]
        x, y = _deviations(r[rows]), _deviations(likelihood[rows])
        products = ((x, y), (x, x), (y, y))
        found[groups] = np.stack([(a[:, None] @ b[..., None])[:, 0, 0] for a, b in products], axis=1) / (size - 1)
    usable = np.flatnonzero(sizes > 1)
    usable = usable[np.argsort(order[starts[usable]], kind="stable")]  # groups by their first sample
    kept, seeds = _in_order(problem[starts[usable]]), _in_order(seed[starts[usable]])
    table = np.full((len(seeds), len(kept), 3), math.nan)
    row = np.argsort(seeds)[np.searchsorted(np.sort(seeds), seed[starts[usable]])]
    column = np.argsort(kept)[np.searchsorted(np.sort(kept), problem[starts[usable]])]
    table[row, column] = found[usable]
    # A seed that has no moments of a problem takes the mean of those that have: the average over seeds stays theirs.
    return kept, np.where(np.isnan(table), np.nanmean(table, axis=0), table)


def _deviations(values: Array) -> Array:
    """Each row less its mean; exactly 0 where a row's values are equal, whatever their mean is rounded to."""
    centred: Array = values - values.mean(axis=1, keepdims=True)
    centred[np.ptp(values, axis=1) == 0] = 0.0
    return centred


def _in_order(codes: NDArray[np.intp]) -> NDArray[np.intp]:
    """The different codes in order of appearance."""
    return np.asarray(codes[np.sort(np.unique(codes, return_index=True)[1])])
