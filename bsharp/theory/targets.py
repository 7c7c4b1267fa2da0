"""What a regime asks for, exactly: the distribution over a finite world that maximises its objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Normalisation, Objective, optimum_log_weights, weighted
from bsharp.theory.world import FiniteWorld

__all__ = [
    "Moments",
    "Target",
    "correlation",
    "covariance",
    "expectation",
    "moments",
    "optimum",
    "power",
    "tilt",
    "variance",
]

Number = float | int
ROUNDING = 1e-14  # relative; a standard deviation below this is that of a constant


@dataclass(frozen=True)
class Target:
    """The maximiser of J over all distributions on a world."""

    log_policy: Float[Tensor, " N"]  # normalised; -inf for responses of probability 0
    log_partition: float  # log of the sum of exp(optimum_log_weights); for a linear J the log of the number of ties
    value: float  # J(pi*), the most that any policy on the world reaches

    @property
    def policy(self) -> Float[Tensor, " N"]:
        """Probabilities of the N responses."""
        return self.log_policy.exp()


@dataclass(frozen=True)
class Moments:
    """What a policy over a finite world is like; nats and tokens per response."""

    reward: float  # E[r]
    length: float  # E[T]
    base_loglikelihood: float  # E[l_ref]
    entropy: float  # H(pi) = -E[l]
    kl_policy_base: float  # KL(pi || pi_ref) = E[l - l_ref]


def optimum(world: FiniteWorld, objective: Objective) -> Target:
    """pi* = exp(w) / Z with w from `optimum_log_weights`: smooth where c > o, else a point mass or a uniform over ties.

    J(pi*) = (c - o) log Z where c > o, else the score of the best response under a point mass on it. Ties of a linear
    objective share the mass equally: one optimum among all mixtures of them.
    """
    log_weights = optimum_log_weights(objective, world.base_logprob, world.lengths, world.rewards)
    log_partition = torch.logsumexp(log_weights, -1)
    if objective.entropy_weight > 0:
        value = objective.entropy_weight * log_partition
    else:
        certain = torch.zeros_like(world.base_token_logprobs)  # l = 0: a point mass gives its response probability 1
        value = objective.score(world.score_inputs(certain))[log_weights.argmax()]
    return Target(log_weights - log_partition, float(log_partition), float(value))


def power(
    world: FiniteWorld, alpha: Number, normalisation: Normalisation | str = "sum", rho: Number | None = None
) -> Float[Tensor, " N"]:
    """log p_alpha of each response, p_alpha ~ pi_ref exp((alpha - 1) N(l_ref)), which is pi_ref^alpha for N = sum.

    Any real alpha: 1 is the base, 0 (with `sum`) uniform over what the base can say, alpha < 0 prefers the unlikely.
    """
    return optimum(world, weighted(0.0, alpha - 1.0, 1.0, normalisation=normalisation, rho=rho)).log_policy


def tilt(world: FiniteWorld, lam: Number, alpha: Number = 1.0) -> Float[Tensor, " N"]:
    """log p_lambda of each response, p_lambda ~ pi_ref^alpha exp(lam r); any real lam, 0 and alpha = 1 give the base.

    Responses of equal reward keep their probabilities relative to each other.
    """
    return optimum(world, weighted(lam, alpha - 1.0, 1.0)).log_policy


def expectation(log_policy: Float[Tensor, " N"], values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """E_pi[values] = sum_y pi(y) values(y); responses of probability 0 count 0 whatever their value."""
    possible = log_policy > -torch.inf
    return (log_policy.exp() * torch.where(possible, values, 0.0)).sum()


def covariance(log_policy: Float[Tensor, " N"], a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Cov_pi(a, b) = E[(a - E[a]) (b - E[b])]; responses of probability 0 count 0 whatever their value."""
    centred = a - expectation(log_policy, a)
    return expectation(log_policy, centred * (b - expectation(log_policy, b)))


def variance(log_policy: Float[Tensor, " N"], values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Var_pi(values) = E[(values - E[values])^2]."""
    return covariance(log_policy, values, values)


def correlation(log_policy: Float[Tensor, " N"], a: Float[Tensor, " N"], b: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Corr_pi(a, b) = Cov(a, b) / sqrt(Var(a) Var(b)); NaN where a or b is constant, to rounding, under the policy."""
    spreads = []
    for values in (a, b):
        spread = variance(log_policy, values).sqrt()
        size = torch.where(log_policy > -torch.inf, values, 0.0).abs().max()
        spreads.append(torch.where(spread > ROUNDING * size, spread, torch.nan))
    return covariance(log_policy, a, b) / (spreads[0] * spreads[1])


def moments(log_policy: Float[Tensor, " N"], world: FiniteWorld) -> Moments:
    """Expected reward, length, base log-likelihood, entropy and KL to the base of a distribution on the world."""
    loglikelihood = float(expectation(log_policy, log_policy))
    base_loglikelihood = float(expectation(log_policy, world.base_logprob))
    return Moments(
        reward=float(expectation(log_policy, world.rewards)),
        length=float(expectation(log_policy, world.lengths.to(log_policy.dtype))),
        base_loglikelihood=base_loglikelihood,
        entropy=-loglikelihood,
        kl_policy_base=loglikelihood - base_loglikelihood,
    )
