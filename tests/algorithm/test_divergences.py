"""KL estimators against the enumerated KL, in the named direction."""

from __future__ import annotations

import math

import pytest
import torch

from bsharp.algorithm import entropy, exact_kl_policy_base, k1_policy_base, k2_policy_base, k3_policy_base


def logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


POLICY, BASE = logits(0).log_softmax(-1), logits(1).log_softmax(-1)


def test_exact_kl_is_the_policys_expectation_of_the_log_ratio() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = log(2/sqrt 3); the other direction is another number."""
    policy, base = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert exact_kl_policy_base(policy, base).item() == pytest.approx(math.log(2 / math.sqrt(3)))
    assert exact_kl_policy_base(base, policy).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    torch.testing.assert_close(
        exact_kl_policy_base(POLICY, BASE),
        torch.nn.functional.kl_div(BASE, POLICY, reduction="none", log_target=True).sum(-1),
    )


def test_exact_kl_and_entropy_take_unnormalised_logits() -> None:
    torch.testing.assert_close(exact_kl_policy_base(POLICY + 3, BASE - 5), exact_kl_policy_base(POLICY, BASE))
    torch.testing.assert_close(entropy(POLICY + 3), entropy(POLICY))


@pytest.mark.parametrize("estimator", [k1_policy_base, k3_policy_base])
def test_k1_and_k3_are_unbiased(estimator) -> None:  # type: ignore[no-untyped-def]
    expected = (POLICY.exp() * estimator(POLICY, BASE)).sum(-1)
    torch.testing.assert_close(expected, exact_kl_policy_base(POLICY, BASE))


def test_k3_is_never_negative_and_k2_is_exact_to_second_order() -> None:
    assert (k3_policy_base(POLICY, BASE) >= 0).all()
    assert (k1_policy_base(POLICY, BASE) < 0).any()
    near = (POLICY + 1e-4 * BASE).log_softmax(-1)
    expected = (POLICY.exp() * k2_policy_base(POLICY, near)).sum(-1)
    torch.testing.assert_close(expected, exact_kl_policy_base(POLICY, near), rtol=1e-2, atol=0)
    torch.testing.assert_close(k2_policy_base(POLICY, BASE), 0.5 * (POLICY - BASE) ** 2)


def test_impossible_tokens_count_zero_and_give_finite_gradients() -> None:
    """A masked EOS has logit -inf under both models; one only the base lacks makes the KL infinite."""
    policy = torch.tensor([[0.3, -0.2, -math.inf]], requires_grad=True)
    base = torch.tensor([[0.0, 0.0, -math.inf]])
    divergence = exact_kl_policy_base(policy, base)
    torch.testing.assert_close(divergence, exact_kl_policy_base(policy[:, :2], base[:, :2]))
    torch.testing.assert_close(entropy(policy), entropy(policy[:, :2]))
    (divergence.sum() + entropy(policy).sum()).backward()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()
    assert exact_kl_policy_base(torch.zeros(1, 3), base).item() == math.inf


def test_entropy_of_a_uniform_distribution_is_log_v() -> None:
    assert entropy(torch.zeros(2, 7)).tolist() == pytest.approx([math.log(7)] * 2)
    assert entropy(torch.zeros(1, 7, dtype=torch.bfloat16)).dtype == torch.float32
