"""The two sides of a statement, and the routes that several statements share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from bsharp.algorithm import Objective, optimum_log_weights
from bsharp.theory.world import FiniteWorld

__all__ = [
    "EXACT",
    "Kind",
    "Sides",
    "complex_step",
    "joined",
    "log_optimum",
    "loglikelihood",
    "mean_under_weights",
    "path_exponent",
    "scalar",
]

Kind = Literal["equality", "inequality", "limit"]

EXACT = 1e-10
"""Rounding allowed between two exact routes in float64; both sides of every statement are of order 1 to 100."""
STEP = 1e-30
"""Imaginary step of a complex-step derivative. Nothing is subtracted, so it may be as small as floats go."""


@dataclass(frozen=True)
class Sides:
    """Both sides of a statement at M places, computed by different routes.

    `equality`: left = right. `inequality`: left <= right. `limit`: |left - right| <= bound, where the bound is itself a
    theorem about the distance from the limit: part of the statement, not a tolerance. All are held to within rounding.
    """

    left: Float[Tensor, " M"]
    right: Float[Tensor, " M"]
    left_name: str
    right_name: str
    kind: Kind = "equality"
    bound: float = EXACT

    @property
    def errors(self) -> Float[Tensor, " M"]:
        """|left - right|, or max(left - right, 0) for an inequality; 0 where both are the same infinity."""
        gap = torch.where(self.left == self.right, 0.0, self.left - self.right)
        return gap.clamp(min=0.0) if self.kind == "inequality" else gap.abs()

    @property
    def worst(self) -> int:
        """The place where the statement is furthest from true; for an inequality that holds, where it is tightest.

        Tightest relative to its size: of -1e-40 <= 0 and 0.9 <= 1 the second says more.
        """
        errors = self.errors
        if self.kind == "inequality" and not bool((errors != 0).any()):
            size = torch.maximum(self.left.abs(), self.right.abs())
            return int(((self.left - self.right) / size).nan_to_num(nan=-1.0).argmax())  # 0 <= 0 says nothing
        return int(errors.argmax())  # argmax takes NaN for the largest

    @property
    def error(self) -> float:
        """The largest of `errors`; NaN where a side is NaN."""
        return float(self.errors[self.worst])

    @property
    def holds(self) -> bool:
        """Whether every error stays within the bound, for a limit within the bound and rounding; False for NaN."""
        return self.error <= self.bound + (EXACT if self.kind == "limit" else 0.0)


def joined(sides: Sequence[Sides]) -> Sides:
    """The same statement at several settings as one, place after place; not for limits, whose bounds differ."""
    first = sides[0]
    if any(item.kind != first.kind or item.kind == "limit" for item in sides):
        raise ValueError("only equalities, or only inequalities, can be joined; report limits one by one")
    left, right = torch.cat([item.left for item in sides]), torch.cat([item.right for item in sides])
    bound = max(item.bound for item in sides)
    return Sides(left, right, first.left_name, first.right_name, first.kind, bound)


def scalar(value: float | Tensor) -> Float[Tensor, " 1"]:
    """A number as one place of a statement."""
    return torch.as_tensor(value, dtype=torch.float64).reshape(1)


def loglikelihood(world: FiniteWorld, rho: float = 0.0) -> Float[Tensor, " N"]:
    """N(l_ref) = l_ref / T^rho: rho = 0 is the sum, rho = 1 the mean; nats."""
    return world.base_logprob / world.lengths.to(torch.float64) ** rho


def log_optimum(
    objective: Objective, world: FiniteWorld, base_logprob: Float[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """log pi* of an objective, from the library's closed form; `base_logprob` replaces the world's own base.

    A replacement need not be autoregressive, may hold -inf and is normalised here.
    """
    base = world.base_logprob if base_logprob is None else torch.log_softmax(base_logprob, -1)
    return torch.log_softmax(optimum_log_weights(objective, base, world.lengths, world.rewards), -1)


def complex_step(function: Callable[[Tensor], Tensor], at: float) -> Float[Tensor, " 1"]:
    """f'(at) = Im f(at + ih) / h, exact to rounding because nothing is subtracted; f must be analytic (no abs, no max)."""
    return scalar(function(torch.tensor(complex(at, STEP), dtype=torch.complex128)).imag / STEP)


def path_exponent(
    start: Float[Tensor, " N"], direction: Float[Tensor, " N"], t: Complex[Tensor, ""]
) -> Complex[Tensor, " N"]:
    """log p_t(y) = start + t direction - log Z_t at a complex t: the path from `start` in the direction of a score."""
    exponent = start + t * direction
    shift = exponent.real.max()
    return exponent - shift - (exponent - shift).exp().sum().log()


def mean_under_weights(log_policy: Complex[Tensor, " N"], values: Tensor) -> Complex[Tensor, ""]:
    """sum_y p(y) values(y) at complex log p; values real or complex, (N,)."""
    return (log_policy.exp() * values).sum()
