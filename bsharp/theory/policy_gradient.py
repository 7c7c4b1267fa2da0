"""The objective and its gradient by enumeration: the reference that sampled gradients are compared with.

Written out here term by term and differentiated through every probability; the training scores are not used, except
in `exact_scores` and `leave_one_out_noise`, which speak of what a training step would see.

A policy is any differentiable function from parameters to the log-probabilities of the N responses. Two softmax
parametrisations are named: `tabular`, one logit a response, and `autoregressive`, one row of next-token logits a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Normalisation, Objective
from bsharp.statistics.gradient_noise import GradientNoise
from bsharp.theory.targets import expectation
from bsharp.theory.world import FiniteWorld, tabular_token_logprobs

__all__ = [
    "LogPolicy",
    "autoregressive_log_policy",
    "autoregressive_table",
    "exact_gradient",
    "exact_objective",
    "exact_scores",
    "leave_one_out_noise",
    "leave_one_out_variance",
    "score_jacobian",
    "tabular_log_policy",
]

LogPolicy = Callable[[Tensor], Tensor]  # parameters -> (N,) log-probabilities, nats, differentiable

MAX_JACOBIAN = 20_000_000  # entries, 160 MB of float64


def tabular_log_policy(logits: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """log pi(y) = logit(y) - log sum_y' exp logit(y'): one free logit a response, so every distribution is reached."""
    return torch.log_softmax(logits, -1)


def autoregressive_log_policy(world: FiniteWorld) -> LogPolicy:
    """The map from a (K, V) table of next-token logits to log pi(y) = sum_t log softmax(table[y_<t])[y_t], (N,)."""
    return lambda table: tabular_token_logprobs(world, table).sum(-1)


def autoregressive_table(world: FiniteWorld, log_policy: Float[Tensor, " N"]) -> Float[Tensor, "K V"]:
    """The next-token log-probabilities of a distribution on the responses: the inverse of `autoregressive_log_policy`.

    log p(v | prefix) = log sum of pi(y) over the responses that go on with v, minus the same over all that hold the
    prefix. Tokens no response holds get -inf; a prefix of probability 0 has no conditional distribution and gets the
    uniform one.
    """
    return world.with_base(log_policy).base_table()


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
    log_policy: LogPolicy,
    parameters: Float[Tensor, "*shape"],
    world: FiniteWorld,
    objective: Objective,
) -> Float[Tensor, "*shape"]:
    """grad J at `parameters`, where log_policy(parameters) gives the (N,) log-probabilities of the world's responses."""
    leaf = parameters.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(exact_objective(log_policy(leaf), world, objective), leaf)
    return gradient


def exact_scores(log_policy: Float[Tensor, " N"], world: FiniteWorld, objective: Objective) -> Float[Tensor, " N"]:
    """R(y) = w r + s N(l_ref) + c (l_ref - l) + o l of every response as `Objective.score` gives it to a training step.

    E_pi[R grad l] is grad J. Responses of policy probability 0 are never scored and get 0.
    """
    # The score takes the sum of a row's log-probabilities, so l may sit on the first token.
    behaviour = torch.zeros_like(world.base_token_logprobs).index_copy(1, torch.tensor([0]), log_policy[:, None])
    return torch.where(log_policy > -math.inf, objective.score(world.score_inputs(behaviour)), 0.0)


def score_jacobian(log_policy: LogPolicy, parameters: Float[Tensor, "*shape"]) -> Float[Tensor, "N D"]:
    """Row y is grad log pi(y) with respect to the D parameters, flattened. Raises ValueError beyond 2e7 entries."""
    size = len(log_policy(parameters.detach()))
    entries = size * parameters.numel()
    if entries > MAX_JACOBIAN:
        raise ValueError(
            f"{size} responses x {parameters.numel()} parameters make {entries} derivatives, more than {MAX_JACOBIAN}; "
            "take a smaller world"
        )
    jacobian: Tensor = torch.func.jacrev(log_policy)(parameters.detach())
    return jacobian.reshape(size, parameters.numel())


def leave_one_out_variance(
    log_policy: Float[Tensor, " N"],
    scores: Float[Tensor, " N"],
    squared_norms: Float[Tensor, " N"],
    gradient_norm_squared: float,
    group_size: int,
) -> float:
    """tr Cov of the leave-one-out gradient (1/G) sum_i (R_i - mean_{j != i} R_j) grad l_i over one group of G samples.

        tr Cov = A / G + (B Var R - (G - 2) |g|^2) / (G (G - 1))
        A = E[(R - E R)^2 |grad l|^2],   B = E|grad l|^2 = tr F,   g = grad J = E[R grad l]

    It is a U-statistic with the kernel (R_1 - R_2)(grad l_1 - grad l_2) / 2, whose variance Hoeffding (1948) gives.
    `squared_norms` are |grad l(y)|^2. M independent groups divide it by M. 0 at a smooth optimum, where every score is
    the same. Raises ValueError for group_size < 2.
    """
    if group_size < 2:
        raise ValueError(f"leave-one-out needs group_size >= 2, got {group_size}; raise it")
    deviation = (scores - expectation(log_policy, scores)) ** 2
    weighted = float(expectation(log_policy, deviation * squared_norms))
    spread = float(expectation(log_policy, deviation)) * float(expectation(log_policy, squared_norms))
    pairs = group_size * (group_size - 1)
    return weighted / group_size + (spread - (group_size - 2) * gradient_norm_squared) / pairs


def leave_one_out_noise(
    log_policy: LogPolicy,
    parameters: Float[Tensor, "*shape"],
    world: FiniteWorld,
    objective: Objective,
    group_size: int,
    groups: int = 1,
) -> GradientNoise:
    """Signal |grad J|^2 and noise tr Cov of the leave-one-out gradient from `groups` groups of `group_size`, exactly.

    See `leave_one_out_variance`. `norm_squared` of the result is the expected squared norm, signal plus noise.
    """
    values = log_policy(parameters.detach())
    gradient = exact_gradient(log_policy, parameters, world, objective)
    signal = float(gradient.square().sum())
    norms = score_jacobian(log_policy, parameters).square().sum(-1)
    scores = exact_scores(values, world, objective)
    variance = leave_one_out_variance(values, scores, norms, signal, group_size) / groups
    return GradientNoise(signal + variance, variance, signal)
