"""What the optimum of an objective is, how it moves when the base moves, and how it is read off a tuned model.

J(pi) = E_pi[v] + h H(pi) with v = w r + s N(l_ref) + c l_ref and h = c - o. Policies are (N,) log-probabilities; a
perturbation delta of the base is (N,), nats, need not be autoregressive and is normalised where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Objective, from_paper, sharpening, task_reward, tempered, tilted
from bsharp.theory.policy_gradient import exact_objective
from bsharp.theory.statements.sides import Sides, log_optimum, scalar
from bsharp.theory.targets import covariance, expectation, optimum
from bsharp.theory.world import FiniteWorld

__all__ = [
    "first_order_change",
    "halving_quarters_the_error",
    "knobs_give_this_log_ratio",
    "no_policy_beats_the_optimum",
    "objective_falls_by_a_divergence",
    "odds_are_amplified",
    "regression_reads_the_knobs",
    "reward_optimum_ignores_the_base",
    "sharpened_optimum_jumps",
    "smooth_optimum_moves_this_far_at_most",
]


def objective_falls_by_a_divergence(
    world: FiniteWorld, objective: Objective, log_policies: Float[Tensor, "M N"]
) -> Sides:
    """J(pi) = h log Z - h KL(pi || pi*) for h > 0: the Gibbs variational identity, at M policies.

    pi* = exp(v / h) / Z. It makes pi* the only maximiser (arXiv 2205.11275 for the reward with a KL penalty).
    """
    target, h = optimum(world, objective), objective.entropy_weight
    left = torch.stack([exact_objective(log_policy, world, objective) for log_policy in log_policies])
    divergences = [expectation(log_policy, log_policy - target.log_policy) for log_policy in log_policies]
    return Sides(left, h * (target.log_partition - torch.stack(divergences)), "J(π)", "h log Z − h KL(π‖π*)")


def no_policy_beats_the_optimum(world: FiniteWorld, objective: Objective, log_policies: Float[Tensor, "M N"]) -> Sides:
    """J(pi) <= J(pi*) for every pi; for h <= 0 the optimum is a vertex (or a mixture of tied ones), at M policies."""
    left = torch.stack([exact_objective(log_policy, world, objective) for log_policy in log_policies])
    best = exact_objective(optimum(world, objective).log_policy, world, objective)
    return Sides(left, best.expand_as(left), "J(π)", "J(π*)", "inequality")


# --------------------------------------------------------------------------------------------- (D) a perturbed base


def _odds(log_policy: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return log_policy - log_policy[0]


def odds_are_amplified(world: FiniteWorld, delta: Float[Tensor, " N"], alpha: float, lam: float = 0.0) -> Sides:
    """Every log-odds of pi* ~ pi_ref^alpha exp(lambda r) moves by exactly alpha (delta(y) - delta(y')); alpha = 1: by delta's.

    The odds are to the first response; lambda >= 0.
    """
    objective = tilted(alpha, lam) if lam else tempered(alpha)
    moved = log_optimum(objective, world, world.base_logprob + delta)
    left = _odds(moved) - _odds(log_optimum(objective, world))
    return Sides(left, alpha * _odds(delta), "Δ log-odds of π*", "α Δ log-odds of π_ref")


def _change_and_prediction(
    world: FiniteWorld, delta: Float[Tensor, " N"], alpha: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    before = log_optimum(tempered(alpha), world)
    exact = log_optimum(tempered(alpha), world, world.base_logprob + delta) - before
    return exact, alpha * (delta - expectation(before, delta))


def _spread(delta: Float[Tensor, " N"]) -> float:
    return float(delta.max() - delta.min())


def first_order_change(world: FiniteWorld, delta: Float[Tensor, " N"], alpha: float) -> Sides:
    """Change of log p_alpha(y) = alpha (delta(y) - E_{p_alpha}[delta]) - e, 0 <= e <= (alpha (max delta - min delta))^2 / 8.

    The error is the same for all responses, e = log E[exp(alpha (delta - E delta))], which Hoeffding's lemma bounds.
    """
    exact, predicted = _change_and_prediction(world, delta, alpha)
    bound = (alpha * _spread(delta)) ** 2 / 8
    return Sides(exact, predicted, "Δ log p_α(y)", "α (δ(y) − E_{p_α}[δ])", "limit", bound)


def halving_quarters_the_error(world: FiniteWorld, delta: Float[Tensor, " N"], alpha: float) -> Sides:
    """e(t delta) / e(t delta / 2) -> 4 as t -> 0: the first-order formula errs in second order.

    e(t delta) = t^2 K''(s) / 2 for some s in [0, t], K the cumulant generating function of alpha delta under p_alpha. K'' is
    Var at 0 and changes by at most s R^3 / (6 sqrt 3), R = alpha (max delta - min delta), the largest third central moment in
    a range R. At t = Var 6 sqrt 3 / (10 R^3) that change is a tenth of Var, and the ratio within 4 (1.1 / 0.95 - 1) of 4.
    Raises ValueError where alpha delta has no variance.
    """
    before = log_optimum(tempered(alpha), world)
    variance = alpha**2 * float(covariance(before, delta, delta))
    if variance < 1e-9:
        raise ValueError(f"alpha delta has variance {variance:.3g} under p_alpha, no second order; take another delta")
    t = min(1.0, variance * 6 * math.sqrt(3) / (10 * (alpha * _spread(delta)) ** 3))
    errors = []
    for size in (t, t / 2):
        exact, predicted = _change_and_prediction(world, size * delta, alpha)
        errors.append(float((predicted - exact).mean()))
    bound = 4 * (1.1 / 0.95 - 1)
    return Sides(scalar(errors[0] / errors[1]), scalar(4.0), "error(δ) / error(δ/2)", "4", "limit", bound)


def _total_variation(first: Float[Tensor, " N"], second: Float[Tensor, " N"]) -> Float[Tensor, " 1"]:
    return scalar((first.exp() - second.exp()).abs().sum() / 2)


def sharpened_optimum_jumps(world: FiniteWorld, margin: float = 1e-3) -> Sides:
    """A perturbation of the runner-up by less than the gap moves nothing, by more than the gap all the mass (c = 0, N = sum).

    Left: total variation between the optima of sharpening before and after lifting l_ref of the runner-up by (1 - margin)
    and (1 + margin) times its distance g from the mode; right: 0 and 1. Raises ValueError where g is below 1e-6.
    """
    values, places = world.base_logprob.topk(2)
    gap = float(values[0] - values[1])
    if gap < 1e-6:
        raise ValueError(f"the two likeliest responses differ by {gap:.3g} nats; a jump needs a unique mode")
    before = log_optimum(sharpening(), world)
    moved = []
    for factor in (1 - margin, 1 + margin):
        lifted = world.base_logprob.index_add(0, places[1:], scalar(factor * gap))
        moved.append(_total_variation(before, log_optimum(sharpening(), world, lifted)))
    return Sides(torch.cat(moved), torch.tensor([0.0, 1.0], dtype=torch.float64), "TV(π*, π*′)", "0 below g, 1 above")


def smooth_optimum_moves_this_far_at_most(
    world: FiniteWorld, delta: Float[Tensor, " N"], alpha: float, lam: float = 0.0
) -> Sides:
    """TV(pi*, pi*') <= tanh(alpha (max delta - min delta) / 4) for pi* ~ pi_ref^alpha exp(lambda r): no jump at a finite alpha.

    Log-odds move by at most alpha times the range of delta; two distributions whose log-ratio has range R are within
    tanh(R / 4) of each other, which two responses of odds e^{-R/2} reach. lambda >= 0.
    """
    objective = tilted(alpha, lam) if lam else tempered(alpha)
    left = _total_variation(log_optimum(objective, world), log_optimum(objective, world, world.base_logprob + delta))
    return Sides(left, scalar(math.tanh(alpha * _spread(delta) / 4)), "TV(π*, π*′)", "tanh(α range(δ)/4)", "inequality")


def reward_optimum_ignores_the_base(world: FiniteWorld, delta: Float[Tensor, " N"]) -> Sides:
    """Without KL the optima of the task reward are the distributions on argmax r, whatever the base of full support.

    Left: the mean reward of the library's choice among them for the perturbed base; right: max r. A mean is the maximum only
    where all the mass is on argmax r.
    """
    moved = log_optimum(task_reward(), world, world.base_logprob + delta)
    return Sides(
        scalar(expectation(moved, world.rewards)), scalar(world.rewards.max()), "E[r] under π* from π_ref′", "max r"
    )


# ------------------------------------------------------------------------------------------------ reading a tuned model


def knobs_give_this_log_ratio(world: FiniteWorld, alpha: float, beta_inv: float) -> Sides:
    """log pi* - log pi_ref = -log Z + (alpha - 1) l_ref + beta_inv r for the tilted regime of arXiv 2604.16259.

    Z = E_{pi_ref}[exp((alpha - 1) l_ref + beta_inv r)].
    """
    left = log_optimum(from_paper(alpha, beta_inv, "tilted"), world) - world.base_logprob
    exponent = (alpha - 1) * world.base_logprob + beta_inv * world.rewards
    log_partition = expectation(world.base_logprob, exponent.exp()).log()
    return Sides(left, exponent - log_partition, "log π*/π_ref", "−log Z + (α−1) ℓ_ref + λ r")


def regression_reads_the_knobs(worlds: Sequence[FiniteWorld], alpha: float, beta_inv: float) -> Sides:
    """Least squares of log pi*/pi_ref on l_ref and r, with an intercept per prompt, returns alpha - 1 and lambda exactly.

    It needs l_ref and r to vary within prompts and not along one line in all of them. One world a prompt; every response
    counts once (at the optimum there is no residual, so no weighting matters).
    """
    ratios, rows = [], []
    for index, world in enumerate(worlds):
        ratios.append(log_optimum(tilted(alpha, beta_inv), world) - world.base_logprob)
        intercepts = torch.zeros(world.size, len(worlds), dtype=torch.float64)
        intercepts[:, index] = 1.0
        rows.append(torch.cat([torch.stack([world.base_logprob, world.rewards], -1), intercepts], -1))
    solution = torch.linalg.lstsq(torch.cat(rows), torch.cat(ratios)[:, None]).solution[:2, 0]
    knobs = torch.tensor([alpha - 1, beta_inv], dtype=torch.float64)
    return Sides(solution, knobs, "least-squares coefficients", "(α − 1, λ)")
