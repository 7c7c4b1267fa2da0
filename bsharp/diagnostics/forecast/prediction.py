"""What the optimum of ANY objective makes of a problem, from the base's samples alone.

With c the weight of the KL to the base and o that of the policy's own log-likelihood, the optimum π* of J is known in closed
form (`optimum_log_weights`), up to a constant, at every response of known log-probability. Figures are averages over the
different responses S among the n samples,

    f* = Σ_S w(y) f(y) / Σ_S w(y),    w(y) = b(y) π*(y)/π_ref(y),    b(y) = π_ref(y) / (1 - (1 - π_ref(y))^n)

where 1 - (1 - π_ref)^n is the probability that y is among n samples: numerator and denominator are unbiased (Horvitz,
Thompson 1952, JASA 47:663). A response far rarer than 1/n has b = 1/n, so that among responses that never repeat this is
self-normalised importance sampling; a frequent one counts with its exact probability however often it was drawn. Where records
do not tell which samples are the same response, b = 1/n for every sample.

    c > o    π* is smooth: π*/π_ref as above
    c <= o   π* sits on the best responses: w = b on the best ones sampled, 0 elsewhere. An objective of the reward alone so keeps
             the base's distribution among them; the likelihood picks the likeliest sample
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, gammaln

from bsharp.algorithm import Objective, optimum_log_weights
from bsharp.diagnostics.forecast.samples import ProblemSamples, Responses

__all__ = ["BaseFigures", "Prediction", "base_figures", "best_of_k", "optimum_weights", "predict"]

Array = NDArray[np.float64]

NEGLIGIBLE = 1e-12  # of the weight: below it a sum of the other weights has lost its digits


@dataclass(frozen=True)
class BaseFigures:
    """One problem under the base, estimated as predictions are: with the weights b."""

    accuracy: float  # share of right responses
    length: float  # tokens, EOS included
    entropy: float  # -E[ℓ_ref], nats per response


@dataclass(frozen=True)
class Prediction:
    """One problem under the optimum of an objective."""

    accuracy: float  # share of right responses
    length: float  # tokens, EOS included
    kl: float  # KL(π*‖π_ref), nats
    effective_samples: float  # of n draws, between 1 and n
    bias: float  # of `accuracy`, by the jackknife: (n - 1)(mean leave-one-out figure - figure)
    unseen: float  # what right responses nobody drew could add to the change of accuracy


def base_figures(problem: ProblemSamples) -> BaseFigures:
    """The base itself: Σ b f / Σ b over the different responses; the mean over samples where none is known to repeat."""
    found = problem.responses
    weights = _normalised(_log_base_weights(found, problem.size))
    return BaseFigures(
        accuracy=float(weights @ found.correct),
        length=float(weights @ found.lengths),
        entropy=float(weights @ -found.logprobs),
    )


def optimum_weights(problem: ProblemSamples, objective: Objective) -> Array:
    """(D,) weights of the different responses (`ProblemSamples.responses`) under π*, summing to 1; see the module."""
    return _normalised(_log_ratio(objective, problem.responses) + _log_base_weights(problem.responses, problem.size))


def predict(problem: ProblemSamples, objective: Objective) -> Prediction:
    """The figures of one problem under the optimum of `objective`, with normalised weights w and base weights b.

    accuracy, length     Σ w f
    kl                   Σ w log(w / b); where the likelihood picks a set A of responses, -log Σ_{y in A} π_ref(y)
    effective_samples    (Σ v)² / Σ v² over all n samples, v = π*/π_ref: samples of the base that would say as much
                         about E_π* as n do about the base
    """
    found, n = problem.responses, problem.size
    log_ratio, log_base = _log_ratio(objective, found), _log_base_weights(found, n)
    weights = _normalised(log_ratio + log_base)
    ratio = np.exp(log_ratio - log_ratio.max())
    return Prediction(
        accuracy=float(weights @ found.correct),
        length=float(weights @ found.lengths),
        kl=_kl_to_base(objective, found, weights, _normalised(log_base)),
        effective_samples=float((found.counts @ ratio) ** 2 / (found.counts @ ratio**2)),
        bias=_jackknife_bias(objective, found, n, log_ratio, float(weights @ found.correct)),
        unseen=0.0 if problem.correct.any() else _unseen(objective, n),
    )


def _normalised(log_weights: Array) -> Array:
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


def _log_base_weights(found: Responses, n: int) -> Array:
    """log b, up to a constant."""
    if not found.merged:
        return np.zeros(len(found.counts))
    # 1 - (1 - π)^n by log1p and expm1: π may be 1e-300, or 1.
    missed = n * np.log1p(-np.minimum(np.exp(found.logprobs), 1.0 - 1e-15))
    rare = missed > -1e-12
    included = np.where(rare, found.logprobs + math.log(n), np.log(-np.expm1(np.where(rare, -1.0, missed))))
    return np.asarray(found.logprobs - included)


def _log_ratio(objective: Objective, found: Responses) -> Array:
    """log π*/π_ref up to a constant where π* is smooth; 0 on the best responses and -inf elsewhere where it is not."""
    log_optimum = optimum_log_weights(
        objective, torch.as_tensor(found.logprobs), torch.as_tensor(found.lengths), torch.as_tensor(found.rewards)
    ).numpy()
    return np.asarray(log_optimum - found.logprobs if objective.entropy_weight > 0 else log_optimum)


def _kl_to_base(objective: Objective, found: Responses, weights: Array, base_weights: Array) -> float:
    chosen = weights > 0
    likelihood_picks = (
        objective.base_loglikelihood != 0 or objective.kl_to_base != 0 or objective.own_loglikelihood != 0
    )
    if objective.entropy_weight <= 0 and likelihood_picks:
        # Samples of equal log-probability and length are the same response where records do not tell.
        listed = set(zip(found.logprobs[chosen].tolist(), found.lengths[chosen].tolist(), strict=True))
        mass = math.fsum(math.exp(logprob) for logprob, _ in listed)
        return max(0.0, -math.log(min(1.0, mass))) if mass > 0 else -max(logprob for logprob, _ in listed)
    return max(0.0, float(weights[chosen] @ np.log(weights[chosen] / base_weights[chosen])))


def _unseen(objective: Objective, n: int) -> float:
    if objective.task <= 0:
        return 0.0
    tilt = objective.task / objective.entropy_weight if objective.entropy_weight > 0 else math.inf
    # The odds of p are 1 : 2n + 1.
    return float(expit(tilt - math.log(2 * n + 1))) - 1.0 / (2 * n + 2)


def _jackknife_bias(objective: Objective, found: Responses, n: int, log_ratio: Array, figure: float) -> float:
    """(n - 1)(mean of the figures without one sample each - the figure); the part of the bias that falls like 1/n.

    Without one sample of a response that was drawn twice the same responses are left, and n - 1 draws to weight them.
    """
    log_weights = log_ratio + _log_base_weights(found, n - 1)
    weights = _normalised(log_weights)
    once = found.counts == 1
    total = float((n - once.sum()) * (weights @ found.correct))
    if once.any():
        # What is left without a response, as prefix plus suffix: subtracting from the sum would cancel.
        without, right = _sums_without_one(weights), _sums_without_one(weights * found.correct)
        left = once & (without > NEGLIGIBLE)
        total += float((right[left] / without[left]).sum())
        for place in np.flatnonzero(once & ~left).tolist():
            total += _figure_without(objective, found, log_weights, n, place)
    return (n - 1) * (total / n - figure)


def _figure_without(objective: Objective, found: Responses, log_weights: Array, n: int, place: int) -> float:
    """The figure without the response that holds all the weight."""
    kept = np.arange(len(found.counts)) != place
    if objective.entropy_weight > 0:
        return float(_normalised(log_weights[kept]) @ found.correct[kept])
    rest = Responses(
        found.counts[kept],
        found.logprobs[kept],
        found.lengths[kept],
        found.rewards[kept],
        found.correct[kept],
        found.merged,
    )
    return float(_normalised(_log_ratio(objective, rest) + _log_base_weights(rest, n - 1)) @ rest.correct)


def _sums_without_one(values: Array) -> Array:
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    after = np.concatenate([np.cumsum(values[::-1])[::-1][1:], [0.0]])
    return np.asarray(before + after)


def best_of_k(values: Array, credits: Array, ks: Sequence[int]) -> Array:
    """Expected credit of the sample of highest value among k of the n drawn without replacement, for every k in `ks`.

    `values` (n,) and `credits` (n,); equal values share equally. Samples sorted by value, a tier of m equals with b samples
    above it holds the best of the k with probability [C(n - b, k) - C(n - b - m, k)] / C(n, k): exact, no draw.
    Returns (len(ks),). Raises ValueError unless 1 <= k <= n.
    """
    n = len(values)
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(f"best_of_k needs 1 <= k <= n, got k={k} with n={n}; draw more samples or lower k")
    levels, tier = np.unique(-np.asarray(values, dtype=np.float64), return_inverse=True)
    sizes = np.bincount(tier, minlength=len(levels))
    worth = np.bincount(tier, weights=credits, minlength=len(levels)) / sizes
    below = n - np.concatenate([[0], np.cumsum(sizes)])  # samples at or below each tier, then 0
    results = []
    for k in ks:
        none_above = _subset_share(below, n, k)
        results.append(float(worth @ (none_above[:-1] - none_above[1:])))
    return np.array(results)


def _subset_share(sizes: NDArray[np.intp], n: int, k: int) -> Array:
    """C(size, k) / C(n, k)."""
    fits = sizes >= k
    size = np.where(fits, sizes, n)
    logs = gammaln(size + 1) - gammaln(size - k + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return np.where(fits, np.exp(logs), 0.0)
