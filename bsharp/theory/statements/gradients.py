"""The policy gradient as training forms it, and what the gradients of two objectives have in common.

Left sides differentiate the enumerated J and build the Fisher matrix; right sides are moments of scores under a policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Objective, sharpening, task_reward
from bsharp.theory.natural import alignment, autoregressive_at_base, tabular_at_base
from bsharp.theory.policy_gradient import autoregressive_log_policy, exact_gradient, score_jacobian
from bsharp.theory.statements.sides import Sides, loglikelihood, scalar
from bsharp.theory.targets import expectation
from bsharp.theory.world import FiniteWorld, from_arrays, tabular_token_logprobs

__all__ = [
    "cosine_is_a_correlation",
    "cosine_pools_before_it_divides",
    "euclidean_cosine_can_have_the_other_sign",
    "euclidean_product_weights_by_squares",
    "fisher_product_is_a_covariance",
    "score_has_mean_zero",
    "scores_give_the_gradient",
    "where_the_cosines_part",
]

Parametrisation = Literal["tabular", "autoregressive"]
PARAMETRISATIONS = {"tabular": tabular_at_base, "autoregressive": autoregressive_at_base}


def scores_give_the_gradient(world: FiniteWorld, objective: Objective, table: Float[Tensor, "K V"]) -> Sides:
    """grad J(pi) = E_pi[R grad l] with the training score R, in which l is a constant; autoregressive table, flattened."""
    log_policy = autoregressive_log_policy(world)
    left = exact_gradient(log_policy, table, world, objective).flatten()
    token_logprobs = tabular_token_logprobs(world, table)
    scores = objective.score(world.score_inputs(token_logprobs))
    leaf = table.detach().clone().requires_grad_(True)
    (right,) = torch.autograd.grad(log_policy(leaf), leaf, token_logprobs.sum(-1).exp() * scores)
    return Sides(left, right.flatten(), "∇J(π)", "E_π[R ∇ℓ]")


def score_has_mean_zero(world: FiniteWorld, table: Float[Tensor, "K V"]) -> Sides:
    """E_pi[grad l] = 0: why the derivative of l inside the score, and any baseline, drop out; flattened."""
    log_policy = autoregressive_log_policy(world)
    left = log_policy(table).exp() @ score_jacobian(log_policy, table)
    return Sides(left, torch.zeros_like(left), "E_π[∇ℓ]", "0")


def _second_moments(world: FiniteWorld, rho: float) -> tuple[float, float, float]:
    """Cov(r, N), Var(r), Var(N) under the base."""
    reward, score = world.rewards, loglikelihood(world, rho)
    reward = reward - expectation(world.base_logprob, reward)
    score = score - expectation(world.base_logprob, score)
    products = (reward * score, reward**2, score**2)
    covariance, reward_variance, score_variance = (float(expectation(world.base_logprob, x)) for x in products)
    return covariance, reward_variance, score_variance


def _sharpening(rho: float) -> Objective:
    return sharpening("weighted_mean", rho) if rho else sharpening()


def fisher_product_is_a_covariance(
    world: FiniteWorld, rho: float = 0.0, parametrisation: Parametrisation = "tabular"
) -> Sides:
    """<grad J_task, grad J_sharp>_{F^-1} = Cov_{pi_ref}(r, N(l_ref)) at pi = pi_ref, in any parametrisation of all policies."""
    at_base = PARAMETRISATIONS[parametrisation]
    left = alignment([world], task_reward(), _sharpening(rho), at_base).natural_inner
    return Sides(scalar(left), scalar(_second_moments(world, rho)[0]), "∇J_task ᵀF⁻¹ ∇J_sharp", "Cov_{π_ref}(r, N)")


def cosine_is_a_correlation(
    world: FiniteWorld, rho: float = 0.0, parametrisation: Parametrisation = "tabular"
) -> Sides:
    """cos_{F^-1}(grad J_task, grad J_sharp) = Corr_{pi_ref}(r, N(l_ref)); NaN where the reward is constant."""
    left = alignment([world], task_reward(), _sharpening(rho), PARAMETRISATIONS[parametrisation]).natural
    covariance, *variances = _second_moments(world, rho)
    right = covariance / math.sqrt(math.prod(variances)) if math.prod(variances) > 0 else math.nan
    return Sides(scalar(left), scalar(right), "cosine of natural gradients", "Corr_{π_ref}(r, N)")


def cosine_pools_before_it_divides(worlds: Sequence[FiniteWorld], rho: float = 0.0) -> Sides:
    """Over prompts the cosine is E_x[Cov_x] / sqrt(E_x[Var_x r] E_x[Var_x N]), not the mean of the correlations."""
    left = alignment(worlds, task_reward(), _sharpening(rho)).natural
    covariance, reward_variance, score_variance = (
        sum(values) for values in zip(*(_second_moments(world, rho) for world in worlds), strict=True)
    )
    right = covariance / math.sqrt(reward_variance * score_variance)
    return Sides(scalar(left), scalar(right), "cosine over prompts", "Σ Cov / √(Σ Var r · Σ Var N)")


def euclidean_product_weights_by_squares(world: FiniteWorld, rho: float = 0.0) -> Sides:
    """<grad J_task, grad J_sharp> = sum_y pi_ref(y)^2 (r - E r)(N - E N) for one logit a response: not a covariance."""
    left = alignment([world], task_reward(), _sharpening(rho)).euclidean_inner
    policy = world.base_logprob.exp()
    reward, score = world.rewards, loglikelihood(world, rho)
    right = (policy**2 * (reward - policy @ reward) * (score - policy @ score)).sum()
    return Sides(scalar(left), scalar(right), "∇J_task · ∇J_sharp (logits)", "Σ π_ref² (r − E r)(N − E N)")


def where_the_cosines_part() -> FiniteWorld:
    """Three one-token responses of probability 0.49, 0.44 and 0.07, the middle one right: Corr is 0.14, the cosine -0.14."""
    probabilities = torch.tensor([0.49, 0.44, 0.07], dtype=torch.float64)
    ids = torch.arange(3)[:, None]
    return from_arrays(ids, torch.ones_like(ids, dtype=torch.bool), probabilities.log()[:, None], [0.0, 1.0, 0.0])


def euclidean_cosine_can_have_the_other_sign(world: FiniteWorld) -> Sides:
    """cos(grad J_task, grad J_sharp) . Corr_{pi_ref}(r, l_ref) < 0 in some worlds: the two cosines are different quantities.

    An existence statement: true of `where_the_cosines_part`, not of every world.
    """
    both = alignment([world], task_reward(), sharpening())
    return Sides(scalar(both.euclidean * both.natural), scalar(0.0), "Euclidean × natural cosine", "0", "inequality")
