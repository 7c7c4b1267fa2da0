"""What exact learning does on the way: the natural-gradient flow, and the variance of what is learned from.

Left sides differentiate along the natural gradient or integrate the replicator equation numerically; right sides are
closed forms. Times are in 1 / units of the score.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from bsharp.algorithm import Objective, sharpening, task_reward, tempered, tilted
from bsharp.theory.dynamics import natural_gradient_flow
from bsharp.theory.natural import natural_gradient
from bsharp.theory.policy_gradient import LogPolicy, exact_scores, score_jacobian
from bsharp.theory.statements.length import memoryless_base
from bsharp.theory.statements.sides import Sides, log_optimum, scalar
from bsharp.theory.targets import expectation, moments, optimum
from bsharp.theory.world import FiniteWorld

__all__ = [
    "divergence_tends_to_the_modes_surprise",
    "flow_of_sharpening_is_the_power",
    "flow_of_the_reward_is_the_tilt",
    "flow_relaxes_to_the_optimum",
    "gaps_grow_linearly",
    "natural_gradient_is_the_replicator",
    "point_mass_costs_its_surprise",
    "return_variance_grows_with_length",
    "reward_variance_is_at_most_a_quarter",
]

INTEGRATED = 1e-8
"""Accepted error of a numerically integrated flow; the integrator's tolerances are 1e-12."""


def natural_gradient_is_the_replicator(
    world: FiniteWorld, objective: Objective, log_policy: LogPolicy, parameters: Tensor
) -> Sides:
    """Along F^+ grad J the policy moves by d pi(y)/dt = pi(y) (R(y) - E_pi[R]): the replicator equation.

    For any parametrisation that reaches all policies on the world; Amari 1998, Hofbauer & Sigmund 1998.
    """
    direction = natural_gradient(log_policy, parameters, world, objective)
    values = log_policy(parameters)
    velocity = score_jacobian(log_policy, parameters) @ direction.flatten()
    scores = exact_scores(values, world, objective)
    right = values.exp() * (scores - expectation(values, scores))
    return Sides(values.exp() * velocity, right, "dπ along F⁺∇J", "π (R − E_π[R])")


def _integrated(
    world: FiniteWorld, objective: Objective, initial: Float[Tensor, " N"], time: float
) -> Float[Tensor, " N"]:
    """log pi_t by integrating d log pi/dt = R - E_pi[R] numerically, R = R_0 + (c - o)(log pi_0 - log pi)."""
    start = initial.detach().numpy()
    scores, h = exact_scores(initial, world, objective).numpy(), objective.entropy_weight

    def velocity(_: float, log_policy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        score = scores + h * (start - log_policy)
        moved: npt.NDArray[np.float64] = score - np.exp(log_policy) @ score
        return moved

    solution = solve_ivp(velocity, (0.0, time), start, "DOP853", t_eval=[time], rtol=1e-12, atol=1e-12)
    return torch.as_tensor(np.ascontiguousarray(solution.y[:, -1]))


def gaps_grow_linearly(world: FiniteWorld, objective: Objective, initial: Float[Tensor, " N"], time: float) -> Sides:
    """log pi_t(y)/pi_t(y') = log pi_0(y)/pi_0(y') + t (R(y) - R(y')) where R does not depend on pi: ratios grow exponentially.

    For objectives with c = o = 0; the odds are to the first response. Raises ValueError for others.
    """
    if objective.kl_to_base or objective.own_loglikelihood:
        raise ValueError(f"{objective.describe()} has a score that moves with the policy; give one with c = o = 0")
    scores = exact_scores(initial, world, objective)
    left = _integrated(world, objective, initial, time)
    right = initial + time * scores
    return Sides(
        left - left[0], right - right[0], "log-odds at t, integrated", "log-odds at 0 + t ΔR", bound=INTEGRATED
    )


def flow_of_sharpening_is_the_power(world: FiniteWorld, time: float) -> Sides:
    """The natural-gradient flow of E[l_ref] from the base is p_{1 + t} at time t: training walks the path of powers."""
    left = natural_gradient_flow(world.base_logprob, world, sharpening(), [time]).log_policies[0]
    return Sides(left, log_optimum(tempered(1 + time), world), "log π_t, R = ℓ_ref", "log p_{α = 1 + t}")


def flow_of_the_reward_is_the_tilt(world: FiniteWorld, time: float) -> Sides:
    """The natural-gradient flow of E[r] from the base is p_lambda with lambda = t > 0: training walks the path of tilts."""
    left = natural_gradient_flow(world.base_logprob, world, task_reward(), [time]).log_policies[0]
    return Sides(left, log_optimum(tilted(1.0, time), world), "log π_t, R = r", "log p_{λ = t}")


def flow_relaxes_to_the_optimum(
    world: FiniteWorld, objective: Objective, initial: Float[Tensor, " N"], time: float
) -> Sides:
    """log pi_t - log pi* = e^{-ht} (log pi_0 - log pi*) + const for h = c - o > 0: a smooth optimum is approached at rate h.

    The constant is left out by taking odds to the first response. Raises ValueError for h <= 0.
    """
    h = objective.entropy_weight
    if h <= 0:
        raise ValueError(f"{objective.describe()} has entropy weight {h:g}; only h > 0 has a smooth optimum")
    target = optimum(world, objective).log_policy
    left = _integrated(world, objective, initial, time) - target
    right = math.exp(-h * time) * (initial - target)
    return Sides(left - left[0], right - right[0], "log-odds of π_t/π*, integrated", "e^{−ht} × at 0", bound=INTEGRATED)


def point_mass_costs_its_surprise(world: FiniteWorld) -> Sides:
    """KL(point mass on the mode || pi_ref) = -l_ref(mode), at the optimum of sharpening; the mode is unique."""
    left = moments(optimum(world, sharpening()).log_policy, world).kl_policy_base
    return Sides(scalar(left), scalar(-world.base_logprob.max()), "KL(π*‖π_ref)", "−ℓ_ref(mode)")


def divergence_tends_to_the_modes_surprise(world: FiniteWorld, decay: float = 12.0) -> Sides:
    """KL(pi_t || pi_ref) -> -l_ref(mode) and along with it H(pi_t) -> 0, under the flow of sharpening from the base.

    With g the gap from mode to runner-up and t = decay / g > 1 / g, both are off by at most
    (1 + decay + decay / t) e^-decay (1 - p) / p, p = pi_ref(mode). Raises ValueError where g is below 1e-9.
    """
    best, runner_up = world.base_logprob.topk(2).values.tolist()
    gap = best - runner_up
    if gap < 1e-9:
        raise ValueError(f"the two likeliest responses differ by {gap:.3g} nats; the limit needs a unique mode")
    time = decay / gap
    summary = natural_gradient_flow(world.base_logprob, world, sharpening(), [time]).moments[0]
    bound = (1 + decay + decay / time) * math.exp(-decay) * (1 - math.exp(best)) / math.exp(best)
    left = torch.tensor([summary.kl_policy_base, summary.entropy], dtype=torch.float64)
    right = torch.tensor([-best, 0.0], dtype=torch.float64)
    return Sides(left, right, "(KL(π_t‖π_ref), H(π_t)), t large", "(−ℓ_ref(mode), 0)", "limit", bound)


def reward_variance_is_at_most_a_quarter(world: FiniteWorld, lams: Float[Tensor, " M"]) -> Sides:
    """Var_pi(r) <= 1/4 for a reward in [0, 1], here along the tilt; equality for a binary reward at E[r] = 1/2."""
    left = []
    for lam in lams.tolist():
        log_policy = torch.log_softmax(world.base_logprob + lam * world.rewards, -1)
        mean = expectation(log_policy, world.rewards)
        left.append(expectation(log_policy, (world.rewards - mean) ** 2))
    return Sides(torch.stack(left), torch.full_like(lams, 0.25), "Var_π(r)", "1/4", "inequality")


def return_variance_grows_with_length(world: FiniteWorld, next_token_logprobs: Float[Tensor, " V"]) -> Sides:
    """Var(l_ref) = T Var_1 for a memoryless base at fixed length T: at T = 1, 2, ... up to the world's length.

    Var_1 is the variance of one token's log-probability. Raises ValueError where lengths differ.
    """
    tokens = int(world.lengths[0])
    if bool((world.lengths != tokens).any()):
        raise ValueError(f"lengths run from {int(world.lengths.min())} to {int(world.lengths.max())}; fix the length")
    base = memoryless_base(world, next_token_logprobs)
    cumulative = base.base_token_logprobs.cumsum(-1)
    # The first t tokens are the response of the world of length t, with the probability summed over what follows.
    left = []
    for prefix in cumulative.unbind(-1):
        mean = expectation(base.base_logprob, prefix)
        left.append(expectation(base.base_logprob, (prefix - mean) ** 2))
    surprise = next_token_logprobs - next_token_logprobs.exp() @ next_token_logprobs
    variance = next_token_logprobs.exp() @ surprise**2
    times = torch.arange(1, tokens + 1, dtype=torch.float64)
    return Sides(torch.stack(left), times * variance, "Var(ℓ_ref) at T tokens", "T Var₁")
