"""Does likelihood predict correctness? Covariances and correlations within and between problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from bsharp.diagnostics.forecast.figures import REPLICATES, STREAM, mean_over_problems, reworded, share
from bsharp.diagnostics.forecast.samples import BaseSamples, ProblemSamples
from bsharp.seeding import generator
from bsharp.statistics import Estimate, bootstrap_interval, within_problem_correlation
from bsharp.statistics.samples import BOOTSTRAP_SEED

__all__ = ["LENGTH_EXPONENTS", "family_correlation", "likelihood_figures", "problem_covariance"]

Array = NDArray[np.float64]

LENGTH_EXPONENTS = {"sum": 0.0, "mean": 1.0}
ALIKE = "all samples are right or all are wrong"
EQUAL = "all samples have the same log-probability"


def likelihood_figures(samples: BaseSamples) -> dict[str, Any]:
    """{"sum" | "mean": {"within": {"covariance", "correlation"}, "between": {"correlation"}, "positive_share"}}.

    With r correctness and N the log-likelihood or the log-likelihood per token:

        within.covariance    mean over problems of the unbiased Cov_x(r, N), the slope of the accuracy at α = 1 (0 where all
                             samples of a problem are alike; without interval where that is so of every problem)
        within.correlation   Σ_x Cov_x / √(Σ_x Var_x r · Σ_x Var_x N), pooled before dividing
        between.correlation  over problems, of the accuracy with the mean N
        positive_share       among problems with right and wrong samples, those with Cov_x > 0
    """
    return {name: _of_normalisation(samples, exponent) for name, exponent in LENGTH_EXPONENTS.items()}


def _of_normalisation(samples: BaseSamples, exponent: float) -> dict[str, Any]:
    families = samples.families
    covariances = np.array([_covariance(p.correct, _scaled(p, exponent)) for p in samples.problems])
    mixed = np.array([0.0 < p.accuracy < 1.0 for p in samples.problems])
    covariance = mean_over_problems(covariances, families, "nats" if exponent == 0 else "nats/token")
    if not mixed.any():
        # Zeros of every problem are no measurement of a slope of 0.
        covariance = replace(covariance, low=math.nan, high=math.nan, note=f"{ALIKE}: no interval")
    positive = np.where(mixed, (covariances > 0).astype(np.float64), np.nan)
    return {
        "within": {
            "covariance": covariance.as_json(),
            "correlation": _pooled(samples.problems, exponent).as_json(),
        },
        "between": {"correlation": _between(samples, exponent).as_json()},
        "positive_share": share(positive, families, reason=ALIKE).as_json(),
    }


def family_correlation(problems: Sequence[ProblemSamples]) -> Estimate:
    """The pooled within-problem correlation (`sum`) of one family's problems."""
    return _pooled(problems, 0.0)


def problem_covariance(problem: ProblemSamples, level: float = 0.95) -> tuple[Estimate, Estimate]:
    """Cov(r, ℓ) and Corr(r, ℓ) among the samples of ONE problem, with delete-one jackknife intervals over its samples.

    Standard error √((n - 1)/n Σ (θ_(-i) - mean)²), times t with n - 1 degrees of freedom; correlations are cut to [-1, 1].
    Undefined where r or ℓ does not vary, without interval where leaving one sample out makes it so.
    """
    units = ("nats", "correlation")
    r, likelihood = problem.correct, problem.logprobs
    for values, reason in ((r, ALIKE), (likelihood, EQUAL)):
        if np.ptp(values) == 0:
            covariance, correlation = (Estimate(math.nan, math.nan, math.nan, problem.size, u, reason) for u in units)
            return covariance, correlation
    n = problem.size
    every = np.ones(n)
    left = 1.0 - np.eye(n)  # row i leaves out sample i
    found = _moments(r, likelihood, every[None])[0]
    without = _moments(r, likelihood, left) if n > 2 else np.full((n, 2), math.nan)
    reach = float(stdtrit(n - 1, (1 + level) / 2)) * np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0))
    bounds = ((-math.inf, math.inf), (-1.0, 1.0))
    covariance, correlation = (
        Estimate(
            float(found[i]),
            float(max(found[i] - reach[i], bounds[i][0])),
            float(min(found[i] + reach[i], bounds[i][1])),
            n,
            units[i],
            "" if math.isfinite(reach[i]) else "without one of the samples all are alike: no interval",
        )
        for i in range(2)
    )
    return covariance, correlation


def _moments(r: Array, likelihood: Array, kept: Array) -> Array:
    """(rows, 2): unbiased covariance and correlation of the samples that each row of `kept` weighs 1; NaN where undefined."""
    count = kept.sum(1)
    x = r - (kept @ r / count)[:, None]
    y = likelihood - (kept @ likelihood / count)[:, None]
    cross, first, second = ((kept * product).sum(1) for product in (x * y, x * x, y * y))
    scale = np.sqrt(first * second)
    # Rounding leaves a spread of about 1e-15 where there is none.
    defined = (first > 1e-12) & (second > 1e-18 * (1 + likelihood @ likelihood))
    correlation = np.divide(cross, scale, out=np.full(len(kept), math.nan), where=defined)
    return np.stack([cross / (count - 1), np.clip(correlation, -1.0, 1.0)], axis=1)


def _scaled(problem: ProblemSamples, exponent: float) -> Array:
    return problem.logprobs / problem.lengths**exponent


def _covariance(r: Array, likelihood: Array) -> float:
    if np.ptp(r) == 0 or np.ptp(likelihood) == 0:
        return 0.0
    return float((r - r.mean()) @ (likelihood - likelihood.mean())) / (len(r) - 1)


def _pooled(problems: Sequence[ProblemSamples], exponent: float) -> Estimate:
    ids = [problem.problem_id for problem in problems for _ in range(problem.size)]
    found = within_problem_correlation(
        np.concatenate([problem.correct for problem in problems]),
        np.concatenate([_scaled(problem, exponent) for problem in problems]),
        ids,
        rng=generator(BOOTSTRAP_SEED, "interval", STREAM),
        strata={problem.problem_id: problem.family for problem in problems},
        replicates=REPLICATES,
    )
    return reworded(found)


def _between(samples: BaseSamples, exponent: float) -> Estimate:
    accuracy = np.array([problem.accuracy for problem in samples.problems])
    likelihood = np.array([_scaled(problem, exponent).mean() for problem in samples.problems])

    def correlation(indices: NDArray[np.intp]) -> float:
        a, b = accuracy[indices], likelihood[indices]
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            return math.nan
        return float(np.corrcoef(a, b)[0, 1])

    found = bootstrap_interval(
        correlation,
        len(accuracy),
        rng=generator(BOOTSTRAP_SEED, "interval", STREAM),
        unit="correlation",
        strata=samples.families,
        bounds=(-1.0, 1.0),
        replicates=REPLICATES,
    )
    return reworded(found)
