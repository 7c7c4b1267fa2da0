"""Losses per token, and the weights that reduce them to one number.

A loss function returns (B, T) terms; `reduction_weights` is computed ONCE for the whole batch; the loss is
`weighted_sum(terms, weights)`. Micro-batches take their rows of both and add up to the same loss and gradient.
Masked-out positions may hold NaN and come out as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bsharp.algorithm.divergences import k3_policy_base

__all__ = [
    "RatioStatistics",
    "Reduction",
    "ppo_clip",
    "reduction_weights",
    "reinforce",
    "sampler_mismatch",
    "truncated_importance_weights",
    "value_loss",
    "weighted_sum",
]

# exp beyond this overflows towards inf, and inf times a gradient of 0 is NaN.
MAX_LOG_RATIO = 20.0


class Reduction(StrEnum):
    """How token terms become one loss; see `reduction_weights`."""

    SEQUENCE_SUM = "sequence_sum"
    SEQUENCE_MEAN = "sequence_mean"
    TOKEN_MEAN = "token_mean"
    CONSTANT_LENGTH = "constant_length"


def reinforce(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """REINFORCE token terms -A_t log pi(y_t); the expected gradient of their row sum is minus the policy gradient.

    `logprobs` in nats carry the gradient; `advantages` are constants, one per row or one per token.
    """
    return -_token_advantages(advantages, mask) * torch.where(mask, logprobs, 0.0)


@dataclass(frozen=True)
class RatioStatistics:
    """Sums over response tokens of the ratio rho = pi / pi_old, so that micro-batches can be added exactly."""

    tokens: int = 0
    clipped_low: int = 0  # rho < 1 - clip_low and A < 0: the gradient is cut
    clipped_high: int = 0  # rho > 1 + clip_high and A > 0: the gradient is cut
    ratio_sum: float = 0.0
    ratio_max: float = 0.0
    kl_old_policy_sum: float = 0.0  # k3 estimate of KL(old || policy), nats, from tokens sampled from old

    def __add__(self, other: RatioStatistics) -> RatioStatistics:
        return RatioStatistics(
            self.tokens + other.tokens,
            self.clipped_low + other.clipped_low,
            self.clipped_high + other.clipped_high,
            self.ratio_sum + other.ratio_sum,
            max(self.ratio_max, other.ratio_max),
            self.kl_old_policy_sum + other.kl_old_policy_sum,
        )

    def as_metrics(self) -> dict[str, float]:
        """Means per token under the names readers know; 0 throughout where there is no token."""
        tokens = max(self.tokens, 1)
        return {
            "clip_ratio/low_mean": self.clipped_low / tokens,
            "clip_ratio/high_mean": self.clipped_high / tokens,
            "importance_ratio/mean": self.ratio_sum / tokens,
            "importance_ratio/max": self.ratio_max,
            "approx_kl(old||policy)/k3_nats_per_token": self.kl_old_policy_sum / tokens,
        }


def ppo_clip(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> tuple[Float[Tensor, "B T"], RatioStatistics]:
    """PPO token terms -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) with rho = pi / pi_old (arXiv 1707.06347).

    clip_high > clip_low is the asymmetric clip of DAPO (arXiv 2503.14476). `old_logprobs` and `advantages` are constants. At
    rho = 1 the gradient is that of `reinforce`. The log-ratio is cut at +-20 nats, beyond which there is no gradient.
    The statistics count the masked-in tokens of every row given: leave invalid rows out of `mask`.
    """
    token_advantages = _token_advantages(advantages, mask)
    log_ratio = torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs.detach(), 0.0)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    terms = -torch.minimum(ratio * token_advantages, clipped * token_advantages)
    with torch.no_grad():
        # Old samples, so KL(old || policy): `old` plays the policy of k3 and the policy its base.
        kl = k3_policy_base(-log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), torch.zeros_like(log_ratio))
        statistics = RatioStatistics(
            tokens=int(mask.sum()),
            clipped_low=int((mask & (ratio < 1.0 - clip_low) & (token_advantages < 0)).sum()),
            clipped_high=int((mask & (ratio > 1.0 + clip_high) & (token_advantages > 0)).sum()),
            ratio_sum=float(ratio[mask].double().sum()),
            ratio_max=float(ratio[mask].max()) if bool(mask.any()) else 0.0,
            kl_old_policy_sum=float(kl[mask].double().sum()),
        )
    return terms, statistics


def truncated_importance_weights(
    trainer_logprobs: Float[Tensor, "B T"],
    sampler_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    cap: float,
) -> Float[Tensor, "B T"]:
    """Truncated importance sampling (TIS): w_t = min(cap, pi(y_t | y_<t) / mu(y_t | y_<t)), constants; 0 outside the mask.

    pi is the policy before the update as the trainer computes it, mu the one that sampled, as the sampler reported it; they
    differ where the sampler has other kernels, another precision or older weights. The token terms of the loss are
    multiplied by w_t, after Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    known as TIS in verl and TRL; arXiv 2604.16259 uses cap = 20.

    What is exact, with cap = inf and any baseline that does not depend on the row's own tokens: the expected gradient is
    that of sum_t E[R] with y_<t ~ mu, y_t ~ pi, y_>t ~ mu. For responses of one token this is the policy gradient; for
    longer ones it ignores how prefix and rest differ between pi and mu (weights of whole sequences would not, at a variance
    that grows exponentially with the length). A finite cap lets tokens count less where pi > cap mu: biased, of bounded
    variance. At pi = mu every weight is 1. Raises ValueError for a cap that is not positive.
    """
    if not cap > 0:
        raise ValueError(f"importance cap = {cap}; give a positive number such as 20, or inf for no truncation")
    log_ratio = torch.where(mask, trainer_logprobs.detach(), 0.0) - torch.where(mask, sampler_logprobs.detach(), 0.0)
    return torch.where(mask, log_ratio.exp().clamp(max=cap), 0.0)


def sampler_mismatch(
    trainer_logprobs: Float[Tensor, "B T"],
    sampler_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    cap: float | None = None,
) -> dict[str, float]:
    """How far the trainer's log-probabilities are from the sampler's, over the masked-in tokens; 0 where there is none.

    `sampling_logp_difference`: |log pi - log mu| in nats. `importance_sampling_ratio`: pi / mu before any truncation, and
    in /capped the share of tokens where it exceeds `cap` (0 without one).
    """
    trainer, sampler = torch.where(mask, trainer_logprobs, 0.0), torch.where(mask, sampler_logprobs, 0.0)
    difference = (trainer - sampler).abs()
    ratio = (trainer - sampler).exp()[mask]
    tokens = ratio.numel()
    return {
        "sampling_logp_difference/mean": float(difference.sum()) / max(1, tokens),
        "sampling_logp_difference/max": float(difference.max()) if difference.numel() else 0.0,
        "importance_sampling_ratio/mean": float(ratio.double().mean()) if tokens else 0.0,
        "importance_sampling_ratio/min": float(ratio.min()) if tokens else 0.0,
        "importance_sampling_ratio/max": float(ratio.max()) if tokens else 0.0,
        "importance_sampling_ratio/capped": float((ratio > cap).double().mean()) if tokens and cap is not None else 0.0,
    }


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip: float = 0.2,
) -> Float[Tensor, "B T"]:
    """Clipped value terms max((V - R)^2, (V_clip - R)^2) / 2 with V_clip = V_old + clip(V - V_old, -clip, clip).

    `clip` is in units of the score. The maximum never rewards a jump away from the old value: beyond the range the
    gradient is cut only where moving on would bring V closer to its return than the clipped value is.
    """
    value, old, target = (torch.where(mask, x, 0.0) for x in (values, old_values.detach(), returns.detach()))
    clipped = old + (value - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target) ** 2, (clipped - target) ** 2)


def reduction_weights(
    mask: Bool[Tensor, "B T"],
    reduction: Reduction | str,
    valid: Bool[Tensor, " B"],
    max_length: int | None = None,
) -> Float[Tensor, "B T"]:
    """Weights of the token terms in the loss, over the WHOLE batch: n valid rows of T_i tokens each.

        sequence_sum      1 / n              the policy gradient of the objective, unbiased whatever the lengths
        sequence_mean     1 / (n T_i)        GRPO (arXiv 2402.03300): tokens of short responses weigh more
        token_mean        1 / sum_i T_i      DAPO (arXiv 2503.14476): sequence_sum over the batch's mean length
        constant_length   1 / (n max_length) Dr. GRPO (arXiv 2503.20783): sequence_sum over a constant

    Masked-out tokens and invalid rows weigh 0; without a valid row all weights are 0. fp32. Raises ValueError for an
    unknown reduction, and for constant_length without max_length >= 1.
    """
    try:
        kind = Reduction(reduction)
    except ValueError:
        known = ", ".join(item.value for item in Reduction)
        raise ValueError(f"unknown reduction {str(reduction)!r}; choose one of {known}") from None
    counted = mask & valid[:, None]
    rows = valid.sum().clamp(min=1)
    lengths = counted.sum(-1, keepdim=True).clamp(min=1)
    if kind is Reduction.SEQUENCE_SUM:
        denominator = rows * torch.ones_like(lengths)
    elif kind is Reduction.SEQUENCE_MEAN:
        denominator = rows * lengths
    elif kind is Reduction.TOKEN_MEAN:
        denominator = counted.sum().clamp(min=1) * torch.ones_like(lengths)
    else:
        if max_length is None or max_length < 1:
            raise ValueError(f"reduction constant_length needs max_length >= 1, got {max_length}; give the token limit")
        denominator = rows * max_length * torch.ones_like(lengths)
    return counted.float() / denominator.float()


def weighted_sum(terms: Float[Tensor, "B T"], weights: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
    """sum_{i,t} weights terms, in the type of the terms; terms of weight 0 may hold NaN."""
    return (torch.where(weights != 0, terms, 0.0) * weights.to(terms.dtype)).sum()


def _token_advantages(
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    spread = advantages[:, None].expand(mask.shape) if advantages.ndim == 1 else advantages
    return torch.where(mask, spread.detach(), 0.0)
