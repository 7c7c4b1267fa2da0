"""pass@k and maj@k of a policy itself, not of samples from it: k independent draws from its exact distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.theory.world import FiniteWorld

__all__ = ["answer_distribution", "exact_maj_at_k", "exact_pass_at_k", "plurality_credit"]

LARGEST_K = 128  # k! stays far inside float64, and the cost of maj@k grows like k cubed


def exact_pass_at_k(
    log_policy: Float[Tensor, "*batch N"], world: FiniteWorld, ks: Sequence[int]
) -> Float[Tensor, "*batch ks"]:
    """P(at least one of k independent draws is right) = 1 - (1 - p)^k with p = P(r = 1), for every k in `ks`.

    Several policies at once along the leading axes. Raises ValueError for a k below 1 and rewards other than 0 and 1.
    """
    _check(ks)
    graded = world.rewards[(world.rewards != 0) & (world.rewards != 1)]
    if len(graded):
        raise ValueError(f"pass@k needs rewards of 0 or 1, got {float(graded[0])}; threshold them with with_rewards")
    success = (log_policy.exp() @ world.rewards).clamp(max=1.0)
    # log1p and expm1 keep a tiny success rate that 1 - (1 - p)^k would round away.
    return torch.stack([-torch.expm1(k * torch.log1p(-success)) for k in ks], -1)


def exact_maj_at_k(
    log_policy: Float[Tensor, "*batch N"], world: FiniteWorld, ks: Sequence[int]
) -> Float[Tensor, "*batch ks"]:
    """maj@k of a policy: `plurality_credit` of its `answer_distribution`, for every k in `ks`.

    It is the expectation of `statistics.maj_at_k` over any n >= k independent samples. Several policies at once along
    the leading axes. Raises ValueError for a world without answers and for a k outside 1 to 128.
    """
    return plurality_credit(*answer_distribution(log_policy, world), ks)


def plurality_credit(
    answers: Float[Tensor, "*batch C"],
    credits: Float[Tensor, "*batch C"],
    silence: Float[Tensor, "*batch"],
    ks: Sequence[int],
) -> Float[Tensor, "*batch ks"]:
    """Expected credit of the plurality answer among k independent draws, for every k in `ks`.

    A draw votes for class j with probability p_j = `answers` and for none with probability u = `silence`. Tied classes
    share the credit c_j equally, and with no vote at all it is 0:

        maj@k = k! [x^k] sum_{m >= 1} e^{u x} sum_{S not empty} (mean of c over S) prod_{j in S} (p_j x)^m / m!
                                               prod_{j not in S} sum_{a < m} (p_j x)^a / a!

    where m is the winners' number of votes and S the set of the tied; the sum over S is a recursion over classes. k = 1
    is sum_j p_j c_j; for k to infinity it is the credit of the likeliest class. Raises ValueError for a k outside 1 to
    128.
    """
    _check(ks, LARGEST_K)
    batch, classes = silence.shape, answers.shape[-1]
    answers, credits = (given.reshape(silence.numel(), classes) for given in (answers, credits))
    most = max(ks)
    start = torch.stack([silence.reshape(-1) ** a / _factorial(a) for a in range(most + 1)], -1)
    total = torch.zeros_like(start)
    for votes in range(1, most + 1):
        total = total + _credit_of_winners(answers, credits, start, votes)
    return torch.stack([_factorial(k) * total[:, k] for k in ks], -1).reshape(*batch, len(ks))


def answer_distribution(
    log_policy: Float[Tensor, "*batch N"], world: FiniteWorld
) -> tuple[Float[Tensor, "*batch C"], Float[Tensor, "*batch C"], Float[Tensor, "*batch"]]:
    """(probabilities, credits, silence): P(answer j), E[r | answer j] and P(no answer), for the classes j < C in order.

    The credit of a class that the policy never answers is 0. Raises ValueError for a world without answers.
    """
    if world.answers is None:
        raise ValueError("this world has no answers to vote with; build it with answers=, -1 for responses without one")
    voters = world.answers >= 0
    classes = int(world.answers.max()) + 1
    policy = log_policy.exp()
    member = world.answers[voters]
    nothing = torch.zeros(*policy.shape[:-1], classes, dtype=policy.dtype)
    probability = nothing.index_add(-1, member, policy[..., voters])
    earned = nothing.index_add(-1, member, (policy * world.rewards)[..., voters])
    credit = torch.where(probability > 0, earned / torch.where(probability > 0, probability, 1.0), 0.0)
    return probability, credit, policy[..., ~voters].sum(-1)


def _credit_of_winners(
    answers: Float[Tensor, "B C"], credits: Float[Tensor, "B C"], start: Float[Tensor, "B drawn"], votes: int
) -> Float[Tensor, "B drawn"]:
    """Coefficients of x^0 … of the generating function above for winners of exactly `votes` votes."""
    most = start.shape[-1] - 1
    ties = min(answers.shape[-1], most // votes)
    weight = torch.zeros(start.shape[0], ties + 1, most + 1, dtype=start.dtype)  # by number of tied classes, by draws
    weight[:, 0] = start
    earned = torch.zeros_like(weight)  # the same, times the sum of the tied classes' credits
    for probability, credit in zip(answers.T, credits.T, strict=True):
        tied = (probability**votes / _factorial(votes))[:, None, None]
        below_weight, below_earned = weight.clone(), earned.clone()
        for a in range(1, votes):
            share = (probability**a / _factorial(a))[:, None, None]
            below_weight[..., a:] += share * weight[..., :-a]
            below_earned[..., a:] += share * earned[..., :-a]
        below_earned[:, 1:, votes:] += tied * (earned + credit[:, None, None] * weight)[:, :-1, :-votes]
        below_weight[:, 1:, votes:] += tied * weight[:, :-1, :-votes]
        weight, earned = below_weight, below_earned
    return (earned[:, 1:] / torch.arange(1, ties + 1, dtype=start.dtype)[None, :, None]).sum(1)


def _factorial(n: int) -> float:
    return float(math.factorial(n))  # the exact integer is too long for torch beyond 20!


def _check(ks: Sequence[int], largest: int | None = None) -> None:
    for k in ks:
        if k < 1 or (largest is not None and k > largest):
            allowed = "k >= 1" if largest is None else f"1 <= k <= {largest}"
            raise ValueError(f"a figure at k draws needs {allowed}, got k={k}; change k")
    if not ks:
        raise ValueError("a figure at k draws needs at least one k, got none; give ks=[1], say")
