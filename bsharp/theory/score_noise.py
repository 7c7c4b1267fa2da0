"""How noisy a score and its sampled gradient are, exactly, and how that goes with the length of responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from bsharp.algorithm import Objective, sharpening, task_reward
from bsharp.statistics.gradient_noise import GradientNoise
from bsharp.theory.policy_gradient import (
    autoregressive_log_policy,
    exact_gradient,
    exact_scores,
    leave_one_out_variance,
    tabular_log_policy,
)
from bsharp.theory.targets import expectation, variance
from bsharp.theory.world import FiniteWorld, random_world

__all__ = [
    "NoiseByLength",
    "ScoreByLength",
    "fixed_length_world",
    "noise_by_length",
    "score_by_length",
    "softmax_gradient_noise",
    "softmax_squared_norms",
]


@dataclass(frozen=True)
class ScoreByLength:
    """The variance of a score under a policy, and what of it the response's length explains; arrays over lengths."""

    length: NDArray[np.int64]  # tokens, EOS included; only lengths of positive probability
    probability: NDArray[np.float64]
    mean: NDArray[np.float64]  # E[score | T]
    variance: NDArray[np.float64]  # Var(score | T)
    total_variance: float  # Var(score) = within + between
    within: float  # E[Var(score | T)]
    between: float  # Var(E[score | T]): the part that is about length alone


def score_by_length(world: FiniteWorld, log_policy: Float[Tensor, " N"], scores: Float[Tensor, " N"]) -> ScoreByLength:
    """Mean and variance of `scores` given the length T, under a policy: Var(s) = E[Var(s | T)] + Var(E[s | T]).

    With scores = l_ref and a base of entropy rate h nats a token, E[l_ref | T] falls about as -h T, which makes `between`.
    """
    policy = log_policy.exp()
    scores = torch.where(policy > 0, scores, 0.0)
    lengths = np.unique(world.lengths[policy > 0].numpy())
    rows = []
    for length in lengths.tolist():
        here = torch.where(world.lengths == length, log_policy, -torch.inf)
        given = torch.log_softmax(here, -1)
        rows.append((float(here.exp().sum()), float(expectation(given, scores)), float(variance(given, scores))))
    probability, means, variances = np.array(rows, dtype=np.float64).T
    centre = float(expectation(log_policy, scores))
    return ScoreByLength(
        length=lengths,
        probability=probability,
        mean=means,
        variance=variances,
        total_variance=float(variance(log_policy, scores)),
        within=float(probability @ variances),
        between=float(probability @ (means - centre) ** 2),
    )


def softmax_squared_norms(
    world: FiniteWorld, parameters: Float[Tensor, " N"] | Float[Tensor, "K V"]
) -> Float[Tensor, " N"]:
    """‖grad log pi(y)‖² of a softmax policy with one logit per response (N,) or a row of logits per prefix (K, V).

    (N,):    1 - 2 pi(y) + sum_z pi(z)^2
    (K, V):  sum_t (1 - 2 pi(y_t | y_<t) + sum_a pi(a | y_<t)^2)
    """
    rows = torch.softmax(parameters, -1)
    if rows.ndim == 1:
        return 1 - 2 * rows + (rows**2).sum()
    squares = 1 - 2 * rows + (rows**2).sum(-1, keepdim=True)
    return torch.where(world.mask, squares[world.prefix_index, world.token_ids], 0.0).sum(-1)


def softmax_gradient_noise(
    world: FiniteWorld, objective: Objective, parameters: Float[Tensor, " N"] | Float[Tensor, "K V"], group_size: int
) -> GradientNoise:
    """`leave_one_out_noise` of a softmax policy without its Jacobian, so that larger worlds fit in memory.

    ‖grad J‖² against tr Cov of the gradient of one group of `group_size` samples with leave-one-out advantages, both exact
    and in the Euclidean norm of the logits `parameters`: one per response (N,), or one row per prefix (K, V). `norm_squared`
    is the expected squared norm. Raises ValueError for group_size < 2.
    """
    log_policy_of = tabular_log_policy if parameters.ndim == 1 else autoregressive_log_policy(world)
    log_policy = log_policy_of(parameters.detach())
    signal = float(exact_gradient(log_policy_of, parameters, world, objective).square().sum())
    scores = exact_scores(log_policy, world, objective)
    norms = softmax_squared_norms(world, parameters.detach())
    noise = leave_one_out_variance(log_policy, scores, norms, signal, group_size)
    return GradientNoise(norm_squared=signal + noise, variance=noise, signal_squared=signal)


@dataclass(frozen=True)
class NoiseByLength:
    """The task reward and the base log-likelihood as scores at the base policy; arrays (lengths, worlds)."""

    length: NDArray[np.int64]  # (lengths,): tokens of every response
    reward_variance: NDArray[np.float64]  # Var(r) <= 1/4
    likelihood_variance: NDArray[np.float64]  # Var(l_ref), nats^2
    reward_snr: NDArray[np.float64]  # ‖E g_hat‖² / tr Cov(g_hat) of the task reward
    likelihood_snr: NDArray[np.float64]  # the same of sharpening


def fixed_length_world(seed: int, length: int) -> FiniteWorld:
    """A random base of 3 tokens whose responses all have `length` tokens; 30 % of them are right, at random."""
    return random_world(seed, 3, length, eos=None)


def noise_by_length(
    lengths: Sequence[int],
    seeds: Sequence[int],
    build: Callable[[int, int], FiniteWorld] = fixed_length_world,
    group_size: int = 8,
    autoregressive: bool = True,
) -> NoiseByLength:
    """Variance of the score and signal-to-noise of its gradient against the length, on bases build(seed, length), exactly.

    At fixed length the variance of l_ref grows with the length, that of r stays below 1/4. Whether the gradient of l_ref
    is noisier relative to its signal is no consequence of that, because the signal grows too; it depends on the reward's
    relation to the tokens, and is read off here. `autoregressive` chooses logits per prefix, else one per response.
    """
    table = np.empty((4, len(lengths), len(seeds)))
    for row, length in enumerate(lengths):
        for column, seed in enumerate(seeds):
            world = build(seed, length)
            base = world.base_logprob
            parameters = world.base_table() if autoregressive else base
            reward, sharp = (
                softmax_gradient_noise(world, objective, parameters, group_size).signal_to_noise
                for objective in (task_reward(), sharpening())
            )
            table[:, row, column] = float(variance(base, world.rewards)), float(variance(base, base)), reward, sharp
    return NoiseByLength(np.array(lengths, dtype=np.int64), *table)
