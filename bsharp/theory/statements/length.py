"""What sharpening does to the length of responses: short by the sum, long by the mean, neither at a fixed length."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import weighted
from bsharp.theory.statements.paths import slope_in_alpha, tempered_regime
from bsharp.theory.statements.sides import Sides, log_optimum, loglikelihood, scalar
from bsharp.theory.targets import covariance
from bsharp.theory.world import FiniteWorld, tabular_token_logprobs

__all__ = [
    "loop_mean_tends_to_zero",
    "memoryless_base",
    "memoryless_length_covariance",
    "one_path_at_fixed_length",
    "sharpened_length_follows_a_covariance",
    "stronger_normalisation_is_longer",
]


def sharpened_length_follows_a_covariance(world: FiniteWorld, alpha: float, rho: float = 0.0) -> Sides:
    """d/d alpha E_{p_alpha}[T] = Cov_{p_alpha}(T, N(l_ref))."""
    lengths = world.lengths.to(torch.float64)
    right = covariance(log_optimum(tempered_regime(alpha, rho), world), lengths, loglikelihood(world, rho))
    return Sides(slope_in_alpha(world, lengths, alpha, rho), scalar(right), "d/dα E_{p_α}[T]", "Cov_{p_α}(T, N)")


def memoryless_base(world: FiniteWorld, next_token_logprobs: Float[Tensor, " V"]) -> FiniteWorld:
    """The world's responses under a base that draws every token from one distribution; nats, (V,)."""
    table = next_token_logprobs.expand(world.num_prefixes, world.vocab_size)
    return dataclasses.replace(world, base_token_logprobs=tabular_token_logprobs(world, table))


def memoryless_length_covariance(world: FiniteWorld, next_token_logprobs: Float[Tensor, " V"], eos: int) -> Sides:
    """Cov(T, l_ref) = -u Var(T) + (log 1/q - H) Cov(T, 1{T = L}) for a memoryless base cut at L tokens.

    q is the probability of EOS, H the entropy of a token and u = -sum_{v != EOS} b_v log b_v / (1 - q) the mean
    surprise of a token that goes on, nats. Without the cut only -u Var(T) <= 0 is left: likelihood prefers the short.
    The right side sums over the geometric lengths and never lists a response.
    """
    base = memoryless_base(world, next_token_logprobs)
    left = covariance(base.base_logprob, base.lengths.to(torch.float64), base.base_logprob)
    probs = next_token_logprobs.exp()
    q, own = float(probs[eos]), -(probs * next_token_logprobs)
    entropy = float(own.sum())
    surprise = (entropy - float(own[eos])) / (1 - q)
    longest = int(base.lengths.max())
    length = torch.arange(1, longest + 1, dtype=torch.float64)
    share = (1 - q) ** (length - 1)
    share[:-1] *= q  # at the limit any token ends the response
    mean = (share * length).sum()
    variance = (share * (length - mean) ** 2).sum()
    with_cut = share[-1] * (longest - mean)
    right = -surprise * variance + (-math.log(q) - entropy) * with_cut
    return Sides(scalar(left), scalar(right), "Cov(T, ℓ_ref)", "−u Var(T) + (log 1/q − H) Cov(T, 1{T=L})")


def stronger_normalisation_is_longer(world: FiniteWorld, rhos: Float[Tensor, " M"]) -> Sides:
    """T(argmax l_ref / T^rho) never falls in rho: the limit of `mean` is at least as long as that of `sum`.

    If y wins at rho and z at sigma > rho, then |l(y)| T(z)^rho <= |l(z)| T(y)^rho and |l(z)| T(y)^sigma <= |l(y)|
    T(z)^sigma; multiplied, T(y)^(sigma - rho) <= T(z)^(sigma - rho). `rhos` increase; ties go to the shortest.
    """
    longest = []
    for rho in rhos.tolist():
        score = loglikelihood(world, rho)
        ties = score >= score.max() - 1e-12
        longest.append(world.lengths[ties].min().to(torch.float64))
    grid = torch.stack(longest)
    return Sides(grid[:-1], grid[1:], "T(argmax ℓ_ref/T^ρ)", "T(argmax ℓ_ref/T^σ), σ > ρ", "inequality")


def one_path_at_fixed_length(world: FiniteWorld, alpha: float) -> Sides:
    """Where every response has T tokens, `mean` at 1 + T (alpha - 1) is `sum` at alpha: one path, one ordering.

    Raises ValueError where lengths differ.
    """
    tokens = int(world.lengths[0])
    if bool((world.lengths != tokens).any()):
        raise ValueError(f"lengths run from {int(world.lengths.min())} to {int(world.lengths.max())}; fix the length")
    weight = tokens * (alpha - 1)  # tempered(1 + weight, "mean"), which refuses 1 + weight <= 0
    mean = log_optimum(weighted(base_loglikelihood=weight, kl_to_base=1.0, normalisation="mean"), world)
    power = alpha * world.base_logprob
    return Sides(mean, power - torch.logsumexp(power, -1), "log p of mean at 1 + T(α−1)", "log p of sum at α")


def loop_mean_tends_to_zero(world: FiniteWorld, surprise: float) -> Sides:
    """sup l_ref / T = 0 is approached by a loop: at L tokens its mean is within surprise / L of 0, and `mean` picks it.

    `surprise` bounds -l_ref of one response of L tokens for every L, as where the probability of going on tends to 1 fast
    enough to be summed. Left: the largest mean log-probability, taken by a response of L tokens; NaN where a shorter one has it.
    """
    mean = loglikelihood(world, 1.0)
    longest = int(world.lengths.max())
    best = int(mean.argmax())
    left = mean[best] if int(world.lengths[best]) == longest else torch.tensor(math.nan)
    return Sides(scalar(left), scalar(0.0), "max ℓ_ref/T, at L tokens", "0", "limit", surprise / longest)
