"""What a regime asks for, exactly: the distribution over a finite world that maximises its objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Objective, optimum_log_weights
from bsharp.theory.world import FiniteWorld

__all__ = ["Moments", "Target", "expectation", "moments", "optimum"]


@dataclass(frozen=True)
class Target:
    """The maximiser of J over all distributions on a world."""

    log_policy: Float[Tensor, " N"]  # normalised; -inf for responses of probability 0
    log_partition: float  # log of the sum of exp(optimum_log_weights); for a linear J the log of the number of ties

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

    Where c > o the objective is worth J(pi*) = (c - o) log Z. Ties of a linear objective share the mass equally: one
    optimum among all mixtures of them.
    """
    log_weights = optimum_log_weights(objective, world.base_logprob, world.lengths, world.rewards)
    log_partition = torch.logsumexp(log_weights, -1)
    return Target(log_weights - log_partition, float(log_partition))


def expectation(log_policy: Float[Tensor, " N"], values: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """E_pi[values] = sum_y pi(y) values(y); responses of probability 0 count 0 whatever their value."""
    possible = log_policy > -torch.inf
    return (log_policy.exp() * torch.where(possible, values, 0.0)).sum()


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
