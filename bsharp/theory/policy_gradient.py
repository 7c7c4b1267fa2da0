"""The objective and its gradient by enumeration: the reference that sampled gradients are compared with.

Written out here term by term and differentiated through every probability; the training scores are not used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Normalisation, Objective
from bsharp.theory.targets import expectation
from bsharp.theory.world import FiniteWorld

__all__ = ["exact_gradient", "exact_objective"]


def exact_objective(log_policy: Float[Tensor, " N"], world: FiniteWorld, objective: Objective) -> Float[Tensor, ""]:
    """J(pi) = sum_y pi(y) [ w r + s N(l_ref) + o l ] - c sum_y pi(y) [ l - l_ref ], differentiable in `log_policy`.

    `log_policy` holds log pi(y) of all N responses, nats. Away from the optimum its gradient with respect to a policy's
    parameters is the policy gradient, with no score-function argument in between.
    """
    lengths = world.lengths.to(log_policy.dtype)
    if objective.normalisation is Normalisation.SUM:
        likelihood = world.base_logprob
    elif objective.normalisation is Normalisation.MEAN:
        likelihood = world.base_logprob / lengths
    else:
        likelihood = world.base_logprob / lengths ** (objective.rho or 0.0)
    reward = expectation(log_policy, world.rewards)
    sharpness = expectation(log_policy, likelihood)
    own = expectation(log_policy, log_policy)
    kl_policy_base = own - expectation(log_policy, world.base_logprob)
    return (
        objective.task * reward
        + objective.base_loglikelihood * sharpness
        + objective.own_loglikelihood * own
        - objective.kl_to_base * kl_policy_base
    )


def exact_gradient(
    log_policy: Callable[[Tensor], Tensor],
    parameters: Float[Tensor, "*shape"],
    world: FiniteWorld,
    objective: Objective,
) -> Float[Tensor, "*shape"]:
    """grad J at `parameters`, where log_policy(parameters) gives the (N,) log-probabilities of the world's responses."""
    leaf = parameters.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(exact_objective(log_policy(leaf), world, objective), leaf)
    return gradient
