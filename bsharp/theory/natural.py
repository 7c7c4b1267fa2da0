"""Fisher matrices, natural gradients and cosines between gradients, by enumeration.

The natural gradient (Amari 1998) is the direction of steepest ascent when distance between policies is measured by KL
instead of by their parameters. In the tabular softmax parametrisation it is R(y) - E_pi[R], up to a constant that no
policy feels; in the autoregressive one it is Q(prefix, token) - V(prefix), whatever the prefix's probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Objective
from bsharp.theory.policy_gradient import (
    LogPolicy,
    autoregressive_log_policy,
    exact_gradient,
    exact_objective,
    score_jacobian,
    tabular_log_policy,
)
from bsharp.theory.world import FiniteWorld

__all__ = [
    "Alignment",
    "alignment",
    "autoregressive_at_base",
    "cosine",
    "fisher_matrix",
    "natural_gradient",
    "tabular_at_base",
]


def fisher_matrix(log_policy: LogPolicy, parameters: Float[Tensor, "*shape"]) -> Float[Tensor, "D D"]:
    """F = sum_y pi(y) grad l(y) grad l(y)^T over the D parameters, flattened: the second order of KL(pi || pi + d).

    Singular for a softmax: adding a constant to a row of logits moves nothing.
    """
    jacobian = score_jacobian(log_policy, parameters)
    return jacobian.T @ (log_policy(parameters.detach()).exp()[:, None] * jacobian)


def natural_gradient(
    log_policy: LogPolicy, parameters: Float[Tensor, "*shape"], world: FiniteWorld, objective: Objective
) -> Float[Tensor, "*shape"]:
    """F^+ grad J, the shortest of the vectors d with F d = grad J (F^+ the pseudo-inverse; Amari 1998).

    Solved as the least-squares fit of the centred scores by d . grad l(y) under pi, which is the same vector (Kakade
    2001) at the square root of F's condition number; responses rarer than about 1e-26 fall below its tolerance. Along
    it J rises at the rate grad J^T F^+ grad J >= 0; 0 at the optimum and at every point mass.
    """
    values = log_policy(parameters.detach())
    leaf = values.detach().clone().requires_grad_(True)
    (pull,) = torch.autograd.grad(exact_objective(leaf, world, objective), leaf)  # pi(y) (R(y) + constant)
    root = (values / 2).exp()
    target = torch.where(root > 0, pull / root.clamp(min=1e-300), 0.0)
    target = target - root * (root @ target)
    design = root[:, None] * score_jacobian(log_policy, parameters)
    solution: Tensor = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution
    return solution[:, 0].reshape(parameters.shape)


def cosine(
    first: Tensor | Sequence[Tensor],
    second: Tensor | Sequence[Tensor],
    metric: Tensor | Sequence[Tensor] | None = None,
) -> float:
    """cos = sum_x a_x^T M_x b_x / sqrt(sum_x a_x^T M_x a_x . sum_x b_x^T M_x b_x); M the identity without a metric.

    One vector a prompt x (or a single one): the products are pooled before they are divided, as for gradients of
    policies that share no parameter. It is not the mean of the prompts' cosines. Natural gradients take the metric F,
    gradients F^+: both give the same cosine. NaN where a side is 0.
    """
    left = [first] if isinstance(first, Tensor) else list(first)
    right = [second] if isinstance(second, Tensor) else list(second)
    matrices = [None] * len(left) if metric is None else [metric] if isinstance(metric, Tensor) else list(metric)
    if not len(left) == len(right) == len(matrices) or not left:
        raise ValueError(
            f"cosine got {len(left)}, {len(right)} vectors and {len(matrices)} metrics; give one of each a prompt"
        )
    inner, left_square, right_square = 0.0, 0.0, 0.0
    for a, b, matrix in zip(left, right, matrices, strict=True):
        u, v = a.flatten(), b.flatten()
        mapped_u, mapped_v = (u, v) if matrix is None else (matrix @ u, matrix @ v)
        inner += float(u @ mapped_v)
        left_square += float(u @ mapped_u)
        right_square += float(v @ mapped_v)
    return _ratio(inner, left_square, right_square)


def _ratio(inner: float, left_square: float, right_square: float) -> float:
    return inner / math.sqrt(left_square * right_square) if left_square > 0 and right_square > 0 else math.nan


@dataclass(frozen=True)
class Alignment:
    """How two objectives' gradients agree over prompts; means of inner products, cosines of pooled ones."""

    natural_inner: float  # E_x[ grad J_1^T F^+ grad J_2 ]
    natural: float  # its cosine
    euclidean_inner: float  # E_x[ grad J_1 . grad J_2 ]
    euclidean: float  # its cosine; depends on the parametrisation


def tabular_at_base(world: FiniteWorld) -> tuple[LogPolicy, Tensor]:
    """The tabular parametrisation and the logits at which it is the base."""
    return tabular_log_policy, world.base_logprob


def autoregressive_at_base(world: FiniteWorld) -> tuple[LogPolicy, Tensor]:
    """The autoregressive parametrisation and the table at which it is the base."""
    return autoregressive_log_policy(world), world.base_table()


def alignment(
    worlds: Sequence[FiniteWorld],
    first: Objective,
    second: Objective,
    at: Callable[[FiniteWorld], tuple[LogPolicy, Tensor]] = tabular_at_base,
) -> Alignment:
    """Inner products and cosines of grad J_1 and grad J_2 at the policies `at(world)`, one world a prompt.

    At the base the natural figures are likelihood's relation to the reward: for the task reward and sharpening by sum

        E_x[Cov_x(r, l_ref)]   and   E_x[Cov_x] / sqrt(E_x[Var_x r] E_x[Var_x l_ref])

    in every parametrisation that reaches all distributions. The Euclidean ones are other quantities and may differ
    in sign. NaN cosines where one objective has no gradient at all. Raises ValueError without a world.
    """
    if not worlds:
        raise ValueError("alignment got no world; give at least one")
    euclidean, natural = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for world in worlds:
        log_policy, parameters = at(world)
        gradients = [
            exact_gradient(log_policy, parameters, world, objective).flatten() for objective in (first, second)
        ]
        raised = [natural_gradient(log_policy, parameters, world, objective).flatten() for objective in (first, second)]
        for index, (i, j) in enumerate(((0, 1), (0, 0), (1, 1))):
            euclidean[index] += float(gradients[i] @ gradients[j]) / len(worlds)
            natural[index] += float(gradients[i] @ raised[j]) / len(worlds)
    return Alignment(natural[0], _ratio(*natural), euclidean[0], _ratio(*euclidean))
