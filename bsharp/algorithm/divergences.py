"""Divergences in nats. The direction is in every name: `policy_base` is KL(policy || base).

KL(policy || base) = E_policy[log policy - log base]. k1, k2, k3 estimate it from tokens sampled from the policy, with
d = log base - log policy at the sampled token. They are metrics: k3 as a loss has a biased gradient and k1 as a loss
has none in expectation; the penalty belongs in the score.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["entropy", "exact_kl_policy_base", "k1_policy_base", "k2_policy_base", "k3_policy_base"]


def k1_policy_base(
    policy_logprobs: Float[Tensor, "*shape"], base_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k1 = -d = log policy - log base at tokens sampled from the policy: unbiased, of either sign."""
    return policy_logprobs - base_logprobs


def k2_policy_base(
    policy_logprobs: Float[Tensor, "*shape"], base_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k2 = d^2 / 2 at tokens sampled from the policy: biased, small variance, exact to second order near the base."""
    return 0.5 * (base_logprobs - policy_logprobs) ** 2


def k3_policy_base(
    policy_logprobs: Float[Tensor, "*shape"], base_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """k3 = e^d - 1 - d at tokens sampled from the policy: never negative, unbiased where the policy covers the base.

    Heavy-tailed: a token the policy has made rare contributes the ratio base / policy.
    """
    d = base_logprobs - policy_logprobs
    return torch.expm1(d) - d


def exact_kl_policy_base(
    policy_logits: Float[Tensor, "*shape V"], base_logits: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """KL(policy || base) = sum_v p(v) (log p(v) - log q(v)) over the whole vocabulary, in fp32 at least.

    Logits or log-probabilities. Tokens of policy probability 0 (logit -inf) count 0; a token the policy can emit and
    the base cannot makes it +inf.
    """
    policy, base = _log_softmax(policy_logits), _log_softmax(base_logits)
    possible = policy > -torch.inf
    # The inner `where` keeps (-inf) - (-inf) out of the backward pass, where it would turn into NaN.
    difference = torch.where(possible, policy, 0.0) - torch.where(possible, base, 0.0)
    return (policy.exp() * difference).sum(-1)


def entropy(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """Shannon entropy -sum_v p(v) log p(v) of softmax(logits), in fp32 at least. Logits of -inf count 0."""
    logprobs = _log_softmax(logits)
    return -(logprobs.exp() * torch.where(logprobs > -torch.inf, logprobs, 0.0)).sum(-1)


def _log_softmax(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape V"]:
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
