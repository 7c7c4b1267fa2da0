"""What sharpening and the reward do along their paths: accuracy, entropy, divergence, and what is kept.

The path of sharpening is p_alpha ~ pi_ref exp((alpha - 1) N(l_ref)), which is pi_ref^alpha for N = sum; the path of the
reward is p_lambda ~ pi_ref exp(lambda r). Both start at the base: alpha = 1 and lambda = 0. Left sides are derivatives by
complex step, limits, or sums written out; right sides use the library's closed-form optimum.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Objective, tempered, tilted, weighted
from bsharp.theory.statements.sides import (
    Sides,
    complex_step,
    log_optimum,
    loglikelihood,
    mean_under_weights,
    path_exponent,
    scalar,
)
from bsharp.theory.targets import covariance, expectation, moments
from bsharp.theory.world import FiniteWorld

__all__ = [
    "divergence_grows_along_the_path",
    "entropy_falls_along_the_path",
    "likeliest_of_n_in_closed_form",
    "likelihood_follows_its_variance",
    "log_partition_is_a_generating_function",
    "mean_follows_its_covariance_with_the_score",
    "power_raises_odds_inside",
    "reward_costs_log_p0",
    "reward_follows_its_variance",
    "reward_never_falls",
    "reward_tends_to_one",
    "sharpened_reward_follows_a_covariance",
    "sharpened_reward_tends_to_the_mode",
    "slope_in_alpha",
    "support_never_grows",
    "tempered_regime",
    "tilt_keeps_conditionals",
    "tilted_divergence",
    "tilted_success_in_closed_form",
    "weights_have_this_second_moment",
    "whole_change_is_the_integral",
]

QUADRATURE_NODES = 24


def tempered_regime(alpha: float, rho: float = 0.0) -> Objective:
    """The regime whose optimum is pi_ref exp((alpha - 1) l_ref / T^rho): `tempered` with any length exponent rho."""
    return tempered(alpha, "weighted_mean", rho) if rho else tempered(alpha)


def slope_in_alpha(
    world: FiniteWorld, values: Float[Tensor, " N"], alpha: float, rho: float = 0.0
) -> Float[Tensor, " 1"]:
    """d/d alpha E_{p_alpha}[values] by complex step through the normalised weights."""
    score = loglikelihood(world, rho)
    return complex_step(
        lambda a: mean_under_weights(path_exponent(world.base_logprob - score, score, a), values), alpha
    )


# ------------------------------------------------------------------------------------------ the path of an exponential


def mean_follows_its_covariance_with_the_score(
    world: FiniteWorld, values: Float[Tensor, " N"], alpha: float, lam: float
) -> Sides:
    """d/dt E_{p_t}[f] = Cov_{p_t}(f, v) for p_t ~ q exp(t v) and any f, here at alpha and lambda > 0.

    `values` is f, (N,); v is l_ref along alpha and r along lambda. Both derivatives of E_{pi_ref^alpha exp(lambda r)}[f].
    """
    log_policy = log_optimum(tilted(alpha, lam), world)
    tilt, power = lam * world.rewards, alpha * world.base_logprob
    slopes = [
        complex_step(lambda t: mean_under_weights(path_exponent(tilt, world.base_logprob, t), values), alpha),
        complex_step(lambda t: mean_under_weights(path_exponent(power, world.rewards, t), values), lam),
    ]
    covariances = [covariance(log_policy, values, score) for score in (world.base_logprob, world.rewards)]
    return Sides(torch.cat(slopes), torch.stack(covariances), "d/dt E_{p_t}[f]", "Cov_{p_t}(f, v)")


def log_partition_is_a_generating_function(world: FiniteWorld, alpha: float) -> Sides:
    """d/d alpha log Z(alpha) = E_{p_alpha}[l_ref] with Z(alpha) = sum_y pi_ref(y)^alpha."""
    left = complex_step(lambda a: (a * world.base_logprob).exp().sum().log(), alpha)
    right = expectation(log_optimum(tempered(alpha), world), world.base_logprob)
    return Sides(left, scalar(right), "d/dα log Σ π_ref^α", "E_{p_α}[ℓ_ref]")


def likelihood_follows_its_variance(world: FiniteWorld, alpha: float, rho: float = 0.0) -> Sides:
    """d/d alpha E_{p_alpha}[N(l_ref)] = Var_{p_alpha}(N(l_ref)) >= 0: sharpening always gains what it is paid for."""
    score = loglikelihood(world, rho)
    right = covariance(log_optimum(tempered_regime(alpha, rho), world), score, score)
    return Sides(slope_in_alpha(world, score, alpha, rho), scalar(right), "d/dα E_{p_α}[N]", "Var_{p_α}(N)")


def divergence_grows_along_the_path(world: FiniteWorld, alpha: float, rho: float = 0.0) -> Sides:
    """d/d alpha KL(p_alpha || pi_ref) = (alpha - 1) Var_{p_alpha}(N(l_ref))."""
    score = loglikelihood(world, rho)

    def divergence(a: Tensor) -> Tensor:
        log_policy = path_exponent(world.base_logprob - score, score, a)
        return mean_under_weights(log_policy, log_policy - world.base_logprob)

    right = (alpha - 1) * covariance(log_optimum(tempered_regime(alpha, rho), world), score, score)
    return Sides(complex_step(divergence, alpha), scalar(right), "d/dα KL(p_α‖π_ref)", "(α−1) Var_{p_α}(N)")


def entropy_falls_along_the_path(world: FiniteWorld, alpha: float) -> Sides:
    """d/d alpha H(p_alpha) = -alpha Var_{p_alpha}(l_ref) for N = sum; with N = mean the entropy may rise."""

    def entropy(a: Tensor) -> Tensor:
        log_policy = path_exponent(torch.zeros_like(world.base_logprob), world.base_logprob, a)
        return -mean_under_weights(log_policy, log_policy)

    right = -alpha * covariance(log_optimum(tempered(alpha), world), world.base_logprob, world.base_logprob)
    return Sides(complex_step(entropy, alpha), scalar(right), "d/dα H(p_α)", "−α Var_{p_α}(ℓ_ref)")


# ------------------------------------------------------------------------------------------------------- (A) accuracy


def sharpened_reward_follows_a_covariance(world: FiniteWorld, alpha: float, rho: float = 0.0) -> Sides:
    """d/d alpha E_{p_alpha}[r] = Cov_{p_alpha}(r, N(l_ref)), of any sign (arXiv 2605.04542 for the power distribution)."""
    right = covariance(log_optimum(tempered_regime(alpha, rho), world), world.rewards, loglikelihood(world, rho))
    left = slope_in_alpha(world, world.rewards, alpha, rho)
    return Sides(left, scalar(right), "d/dα E_{p_α}[r]", "Cov_{p_α}(r, N)")


def reward_follows_its_variance(world: FiniteWorld, lam: float) -> Sides:
    """d/d lambda E_{p_lambda}[r] = Var_{p_lambda}(r); lambda > 0."""
    left = complex_step(
        lambda x: mean_under_weights(path_exponent(world.base_logprob, world.rewards, x), world.rewards), lam
    )
    right = covariance(log_optimum(tilted(1.0, lam), world), world.rewards, world.rewards)
    return Sides(left, scalar(right), "d/dλ E_{p_λ}[r]", "Var_{p_λ}(r)")


def reward_never_falls(world: FiniteWorld, lams: Float[Tensor, " M"]) -> Sides:
    """E_{p_lambda}[r] <= E_{p_mu}[r] for lambda <= mu, at neighbours of the increasing positive `lams`."""
    rewards = torch.stack([expectation(log_optimum(tilted(1.0, float(x)), world), world.rewards) for x in lams])
    start = expectation(world.base_logprob, world.rewards).reshape(1)
    grid = torch.cat([start, rewards])
    return Sides(grid[:-1], grid[1:], "E_{p_λ}[r]", "E_{p_μ}[r], μ > λ", "inequality")


def tilted_success_in_closed_form(world: FiniteWorld, lam: float) -> Sides:
    """E_{p_lambda}[r] = p0 e^lambda / (p0 e^lambda + 1 - p0) for binary r with base success p0; lambda > 0."""
    p0 = float(world.base_logprob[world.rewards == 1].exp().sum())
    left = expectation(log_optimum(tilted(1.0, lam), world), world.rewards)
    right = p0 / (p0 + (1 - p0) * math.exp(-lam))
    return Sides(scalar(left), scalar(right), "E_{p_λ}[r]", "p₀e^λ/(p₀e^λ + 1 − p₀)")


def reward_tends_to_one(world: FiniteWorld, lam: float) -> Sides:
    """lim_{lambda -> inf} E_{p_lambda}[r] = 1 for binary r and p0 > 0; the distance is at most e^-lambda (1 - p0)/p0."""
    p0 = float(world.base_logprob[world.rewards == 1].exp().sum())
    left = expectation(log_optimum(tilted(1.0, lam), world), world.rewards)
    bound = (1 - p0) / p0 * math.exp(-lam)
    return Sides(scalar(left), scalar(1.0), "E_{p_λ}[r], λ large", "1", "limit", bound)


def sharpened_reward_tends_to_the_mode(world: FiniteWorld, rho: float = 0.0, decay: float = 12.0) -> Sides:
    """lim_{alpha -> inf} E_{p_alpha}[r] = r(mode), the mode being argmax N(l_ref), here unique.

    The distance is at most e^{-(alpha - 1) g} (1 - pi_ref(mode)) / pi_ref(mode), g the gap in N to the runner-up;
    alpha = 1 + decay / g, at least 1, makes the first factor e^-decay. Raises ValueError where the mode is tied.
    """
    score = loglikelihood(world, rho)
    best, runner_up = score.topk(2).values.tolist()
    if best - runner_up < 1e-9:
        raise ValueError(f"the two best responses differ by {best - runner_up:.3g} nats; the limit needs a unique mode")
    alpha, mode = 1 + decay / (best - runner_up), int(score.argmax())
    p_mode = math.exp(float(world.base_logprob[mode]))
    left = expectation(log_optimum(tempered_regime(alpha, rho), world), world.rewards)
    bound = math.exp(-decay) * (1 - p_mode) / p_mode
    return Sides(scalar(left), world.rewards[mode].reshape(1), "E_{p_α}[r], α large", "r(mode)", "limit", bound)


def whole_change_is_the_integral(world: FiniteWorld, alpha: float, rho: float = 0.0) -> Sides:
    """E_{p_alpha}[r] - E_{pi_ref}[r] = integral of Cov_{p_a}(r, N(l_ref)) over a from 1 to alpha (Gauss-Legendre)."""
    log_policy = log_optimum(tempered_regime(alpha, rho), world)
    left = expectation(log_policy, world.rewards) - expectation(world.base_logprob, world.rewards)
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_NODES)
    half = (alpha - 1) / 2
    score = loglikelihood(world, rho)
    slopes = [
        float(covariance(log_optimum(tempered_regime(1 + half * (1 + x), rho), world), world.rewards, score))
        for x in nodes.tolist()
    ]
    right = half * float(np.dot(weights, slopes))
    return Sides(scalar(left), scalar(right), "E_{p_α}[r] − E_{π_ref}[r]", "∫₁^α Cov_{p_a}(r, N) da")


# ------------------------------------------------------------------------------------------------- (F) what each keeps


def _inside(log_policy: Float[Tensor, " N"], members: Tensor) -> Float[Tensor, " M"]:
    return torch.log_softmax(log_policy[members], -1)


def _levels(world: FiniteWorld) -> list[float]:
    return sorted(set(world.rewards.tolist()))


def tilt_keeps_conditionals(world: FiniteWorld, lam: float) -> Sides:
    """p_lambda(y | r(y) = v) = pi_ref(y | r(y) = v) for every value v of the reward; log-probabilities, lambda > 0."""
    tilt = log_optimum(tilted(1.0, lam), world)
    levels = [world.rewards == value for value in _levels(world)]
    left = torch.cat([_inside(tilt, members) for members in levels])
    right = torch.cat([_inside(world.base_logprob, members) for members in levels])
    return Sides(left, right, "log p_λ(y | r = v)", "log π_ref(y | r = v)")


def power_raises_odds_inside(world: FiniteWorld, alpha: float) -> Sides:
    """log odds of y within its set under p_alpha are alpha times the base's; the set is {r = v}, the odds to its mean.

    log p_alpha(y | v) - mean_v log p_alpha = alpha (log pi_ref(y | v) - mean_v log pi_ref): with alpha != 1 the
    conditional changes wherever it is not uniform.
    """
    power = log_optimum(tempered(alpha), world)
    left, right = [], []
    for value in _levels(world):
        members = world.rewards == value
        inside, base = _inside(power, members), _inside(world.base_logprob, members)
        left.append(inside - inside.mean())
        right.append(alpha * (base - base.mean()))
    return Sides(torch.cat(left), torch.cat(right), "log-odds inside {r=v}, p_α", "α × log-odds inside {r=v}, π_ref")


def support_never_grows(world: FiniteWorld, alpha: float, lam: float) -> Sides:
    """pi_ref(y) = 0 gives pi*(y) = 0 in every regime, shown on the base with its rightmost responses struck out.

    Struck out: every right response but the likeliest right one. Left: the mass the optima of six regimes, with and
    without labels, with and without KL, put there.
    """
    right = world.rewards == world.rewards.max()
    keep = torch.where(right, world.base_logprob, -math.inf).argmax()
    struck = right.index_fill(0, keep, False)
    base = torch.where(struck, -math.inf, world.base_logprob)
    regimes = [
        tilted(alpha, lam),
        tempered(alpha),
        weighted(task=1.0),
        weighted(base_loglikelihood=1.0, normalisation="mean"),
        weighted(task=1.0, base_loglikelihood=0.1),
        weighted(own_loglikelihood=1.0),
    ]
    left = torch.stack([log_optimum(regime, world, base)[struck].exp().sum() for regime in regimes])
    return Sides(left, torch.zeros_like(left), "π*(π_ref = 0)", "0", bound=0.0)


def tilted_divergence(world: FiniteWorld, lam: float) -> Sides:
    """KL(p_lambda || pi_ref) = lambda E_{p_lambda}[r] - log E_{pi_ref}[e^{lambda r}]; lambda > 0."""
    summary = moments(log_optimum(tilted(1.0, lam), world), world)
    partition = torch.logsumexp(world.base_logprob + lam * world.rewards, -1)
    right = lam * summary.reward - partition
    return Sides(scalar(summary.kl_policy_base), scalar(right), "KL(p_λ‖π_ref)", "λ E_{p_λ}[r] − log E_{π_ref}[e^{λr}]")


def reward_costs_log_p0(world: FiniteWorld, lam: float) -> Sides:
    """lim_{lambda -> inf} KL(p_lambda || pi_ref) = -log p0 for binary r: what certainty of success costs, at least.

    With q = 1 - E_{p_lambda}[r] the divergence is that of Bernoulli(1 - q) from Bernoulli(p0), so the distance from the
    limit is at most q (1 + log(1/q) + |log(p0 / (1 - p0))|).
    """
    p0 = float(world.base_logprob[world.rewards == 1].exp().sum())
    wrong = (1 - p0) * math.exp(-lam) / (p0 + (1 - p0) * math.exp(-lam))
    bound = wrong * (1 - math.log(wrong) + abs(math.log(p0 / (1 - p0))))
    left = moments(log_optimum(tilted(1.0, lam), world), world).kl_policy_base
    return Sides(scalar(left), scalar(-math.log(p0)), "KL(p_λ‖π_ref), λ large", "−log p₀", "limit", bound)


# -------------------------------------------------------------------------------------------------- reading it from samples


def weights_have_this_second_moment(world: FiniteWorld, alpha: float) -> Sides:
    """E_{pi_ref}[(p_alpha / pi_ref)^2] = Z(2 alpha - 1) / Z(alpha)^2: n base samples are worth n over this, in the limit.

    Z(a) = sum_y pi_ref(y)^a. The effective sample size (sum w)^2 / sum w^2 of n samples, divided by n, tends to its inverse.
    """
    log_weights = log_optimum(tempered(alpha), world) - world.base_logprob
    left = expectation(world.base_logprob, (2 * log_weights).exp())
    log_right = torch.logsumexp((2 * alpha - 1) * world.base_logprob, -1)
    log_right = log_right - 2 * torch.logsumexp(alpha * world.base_logprob, -1)
    return Sides(scalar(left), scalar(log_right.exp()), "E_{π_ref}[(p_α/π_ref)²]", "Z(2α−1)/Z(α)²")


def likeliest_of_n_in_closed_form(world: FiniteWorld, draws: int) -> Sides:
    """E[r(likeliest of n draws)] = sum_i r(y_i) ((1 - F_{i-1})^n - (1 - F_i)^n), the estimate of the sharpened limit.

    y_1, y_2, ... sorted by falling l_ref, F_i the probability of the first i. Left: all N^n samples listed, with their
    probabilities; of equally likely responses the earlier in the sort counts. As n grows it tends to r(mode).
    """
    order = world.base_logprob.sort(descending=True, stable=True).indices
    probability, reward = world.base_logprob[order].exp(), world.rewards[order]
    ranks = torch.cartesian_prod(*([torch.arange(world.size)] * draws)).reshape(-1, draws)
    left = (probability[ranks].prod(-1) * reward[ranks.amin(-1)]).sum()
    tail = (1 - probability.cumsum(0)).clamp(min=0.0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), tail[:-1]])
    right = (reward * (before**draws - tail**draws)).sum()
    return Sides(scalar(left), scalar(right), "E[r(likeliest of n draws)]", "Σ r(y_i)((1 − F_{i−1})ⁿ − (1 − F_i)ⁿ)")
