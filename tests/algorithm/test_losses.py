"""Token losses and their reductions: gradients by closed form, clipping by table, micro-batches that add up."""

from __future__ import annotations

import math

import pytest
import torch

from bsharp.algorithm import (
    RatioStatistics,
    Reduction,
    gae,
    ppo_clip,
    reduction_weights,
    reinforce,
    sampler_mismatch,
    task_reward,
    truncated_importance_weights,
    value_loss,
    weighted,
    weighted_sum,
)
from bsharp.algorithm import ScoreInputs as Inputs

NAN = float("nan")
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
VALID = torch.tensor([True, True, True, False])


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked_nan(values: torch.Tensor) -> torch.Tensor:
    return torch.where(MASK, values, NAN)


@pytest.mark.parametrize("per_token", [False, True])
def test_reinforce_pushes_each_logprob_by_its_advantage(per_token: bool) -> None:
    logprobs = masked_nan(random(0, 4, 4)).requires_grad_(True)
    advantages = masked_nan(random(1, 4, 4)) if per_token else random(1, 4)
    reinforce(logprobs, advantages, MASK).sum().backward()
    spread = advantages if per_token else advantages[:, None].expand(4, 4)
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.where(MASK, -spread, 0.0))


@pytest.mark.parametrize("per_token", [False, True])
def test_ppo_at_ratio_one_has_the_gradient_of_reinforce(per_token: bool) -> None:
    advantages = random(1, 4, 4) if per_token else random(1, 4)
    values = masked_nan(random(0, 4, 4))
    gradients = []
    for loss in (
        lambda x: reinforce(x, advantages, MASK),
        lambda x: ppo_clip(x, values, advantages, MASK, 0.2, 0.3)[0],
    ):
        leaf = values.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(loss(leaf).sum(), leaf)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected_term", "expected_slope"),
    [
        # Inside the range: the plain importance-weighted term, slope -A rho.
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        # Moving further in the direction of A is cut: upper bound for A > 0, lower bound for A < 0.
        (1.5, 2.0, -2.6, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        # Coming back is not.
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
        # 1.25 lies inside [0.8, 1.3]: a symmetric clip of 0.2 would have cut it.
        (1.25, 2.0, -2.5, -2.5),
        (1.25, 0.0, 0.0, 0.0),
    ],
)
def test_asymmetric_clip_table(ratio: float, advantage: float, expected_term: float, expected_slope: float) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    old, weight = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    terms, statistics = ppo_clip(logprobs, old, weight, mask, clip_low=0.2, clip_high=0.3)
    (slope,) = torch.autograd.grad(terms.sum(), logprobs)
    assert (terms.item(), slope.item()) == pytest.approx((expected_term, expected_slope))
    cut = expected_slope == 0 and advantage != 0
    assert statistics.clipped_high == (cut and advantage > 0)
    assert statistics.clipped_low == (cut and advantage < 0)
    assert statistics.ratio_max == pytest.approx(ratio)
    assert statistics.kl_old_policy_sum == pytest.approx(ratio - 1 - math.log(ratio))


def test_ratio_statistics_of_parts_add_up_to_the_whole() -> None:
    logprobs, old, advantages = masked_nan(random(0, 4, 4)), masked_nan(random(1, 4, 4)), random(2, 4)
    whole = ppo_clip(logprobs, old, advantages, MASK)[1]
    parts = [
        ppo_clip(logprobs[rows], old[rows], advantages[rows], MASK[rows])[1] for rows in (slice(0, 1), slice(1, 4))
    ]
    assert sum(parts, RatioStatistics()).as_metrics() == pytest.approx(whole.as_metrics())
    ratios = (logprobs - old)[MASK].exp()
    assert whole.tokens == int(MASK.sum())
    assert whole.as_metrics()["importance_ratio/mean"] == pytest.approx(float(ratios.mean()))
    assert whole.as_metrics()["importance_ratio/max"] == pytest.approx(float(ratios.max()))
    nothing = ppo_clip(logprobs, old, advantages, torch.zeros_like(MASK))[1].as_metrics()
    assert set(nothing.values()) == {0.0}


def test_a_huge_ratio_gives_finite_terms_and_gradients() -> None:
    logprobs = torch.zeros(1, 2, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for advantage in (1.0, -1.0):
        terms, _ = ppo_clip(logprobs, torch.tensor([[-500.0, 500.0]]), torch.tensor([advantage]), mask)
        (gradient,) = torch.autograd.grad(terms.sum(), logprobs)
        assert terms.isfinite().all()
        assert gradient.isfinite().all()


def naive_loss(terms: torch.Tensor, reduction: str, max_length: int) -> float:
    rows = [[float(x) for x, keep in zip(*pair, strict=True) if keep] for pair in zip(terms, MASK, strict=True)]
    rows = [row for row, valid in zip(rows, VALID.tolist(), strict=True) if valid]
    if reduction == "sequence_sum":
        return sum(sum(row) for row in rows) / len(rows)
    if reduction == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    if reduction == "token_mean":
        return sum(sum(row) for row in rows) / sum(len(row) for row in rows)
    return sum(sum(row) / max_length for row in rows) / len(rows)


@pytest.mark.parametrize("reduction", list(Reduction))
def test_reductions_match_naive_loops_and_micro_batches_add_up(reduction: Reduction) -> None:
    terms = masked_nan(random(3, 4, 4))
    terms[3] = NAN  # the invalid row
    weights = reduction_weights(MASK, reduction, VALID, max_length=9)
    whole = weighted_sum(terms, weights)
    assert float(whole) == pytest.approx(naive_loss(terms, reduction, 9), rel=1e-6)
    parts = sum(weighted_sum(terms[rows], weights[rows]) for rows in ([2], [0, 3], [1]))
    torch.testing.assert_close(parts, whole)
    assert (weights[~MASK] == 0).all()
    assert (weights[3] == 0).all()


@pytest.mark.parametrize("reduction", list(Reduction))
def test_reductions_of_a_batch_without_a_valid_row_are_zero(reduction: Reduction) -> None:
    weights = reduction_weights(MASK, reduction, torch.zeros(4, dtype=torch.bool), max_length=4)
    assert (weights == 0).all()


def test_micro_batches_add_up_to_the_same_gradient() -> None:
    advantages = random(4, 4)
    weights = reduction_weights(MASK, Reduction.TOKEN_MEAN, VALID).double()
    whole = masked_nan(random(0, 4, 4)).requires_grad_(True)
    weighted_sum(reinforce(whole, advantages, MASK), weights).backward()
    split = whole.detach().clone().requires_grad_(True)
    for rows in ([0, 2], [1], [3]):
        weighted_sum(reinforce(split[rows], advantages[rows], MASK[rows]), weights[rows]).backward()
    torch.testing.assert_close(split.grad, whole.grad)


def test_unusable_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown reduction 'mean'; choose one of sequence_sum"):
        reduction_weights(MASK, "mean", VALID)
    for max_length in (None, 0):
        with pytest.raises(ValueError, match="constant_length needs max_length"):
            reduction_weights(MASK, "constant_length", VALID, max_length)


def test_gae_without_critic_gives_the_reinforce_gradient_of_scores_on_the_last_token() -> None:
    """The task reward sits on the last token, so every token's reward-to-go is the reward of its row."""
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.25], dtype=torch.float64)
    logprobs = masked_nan(random(0, 4, 4))
    scores = task_reward().token_scores(Inputs(rewards, logprobs, logprobs, MASK))
    advantages, _ = gae(scores, torch.zeros(4, 4, dtype=torch.float64), MASK, 1.0, 1.0)
    torch.testing.assert_close(reinforce(logprobs, advantages, MASK), reinforce(logprobs, rewards, MASK))


def test_the_score_still_to_come_at_the_first_token_is_the_whole_score() -> None:
    objective = weighted(task=1.0, base_loglikelihood=0.5, kl_to_base=0.2, normalisation="mean")
    inputs = Inputs(random(0, 4), random(1, 4, 4), random(2, 4, 4), MASK)
    advantages, _ = gae(objective.token_scores(inputs), torch.zeros(4, 4, dtype=torch.float64), MASK, 1.0, 1.0)
    torch.testing.assert_close(advantages[:, 0], objective.score(inputs))


@pytest.mark.parametrize(
    ("value", "expected", "slope"),
    [
        (0.1, 0.5 * 0.9**2, -0.9),  # inside the range
        (0.5, 0.5 * 0.8**2, 0.0),  # past it towards the return: no further reward for moving
        (-0.5, 0.5 * 1.5**2, -1.5),  # away from it: full slope back
        (2.5, 0.5 * 1.5**2, 1.5),  # past the return: full slope back
    ],
)
def test_value_loss_table(value: float, expected: float, slope: float) -> None:
    """Old value 0, return 1, clip 0.2."""
    values = torch.tensor([[value, NAN]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([[0.0, NAN]], dtype=torch.float64), torch.tensor([[1.0, NAN]], dtype=torch.float64)
    terms = value_loss(values, old, returns, torch.tensor([[True, False]]), clip=0.2)
    (gradient,) = torch.autograd.grad(terms.sum(), values)
    assert terms.tolist() == [pytest.approx([expected, 0.0])]
    assert gradient.tolist() == [pytest.approx([slope, 0.0])]


@pytest.mark.parametrize(
    ("policy", "sampler", "cap", "weight"),
    [
        (0.3, 0.3, 20.0, 1.0),
        (0.6, 0.2, 20.0, 3.0),
        (0.6, 0.2, math.inf, 3.0),
        (0.6, 0.2, 2.0, 2.0),  # the cap binds
        (0.1, 0.4, 2.0, 0.25),  # tokens that the sampler likes better are never capped
        (0.1, 0.4, 0.2, 0.2),
    ],
)
def test_truncated_importance_weight_table(policy: float, sampler: float, cap: float, weight: float) -> None:
    mask = torch.tensor([[True, False]])
    trainer = torch.tensor([[math.log(policy), NAN]], requires_grad=True)
    found = truncated_importance_weights(trainer, torch.tensor([[math.log(sampler), NAN]]), mask, cap)
    assert found.tolist() == [pytest.approx([weight, 0.0])]
    assert not found.requires_grad


def test_a_ratio_beyond_all_numbers_is_capped_and_a_cap_that_is_not_positive_is_refused() -> None:
    one = torch.ones(1, 1, dtype=torch.bool)
    assert float(truncated_importance_weights(torch.zeros(1, 1), torch.full((1, 1), -500.0), one, 20.0)) == 20.0
    for cap in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match=r"importance cap = .*give a positive number"):
            truncated_importance_weights(torch.zeros(1, 1), torch.zeros(1, 1), one, cap)


def test_importance_weights_without_a_cap_make_single_draws_from_another_distribution_exact() -> None:
    # E_mu[w f(y) d log pi(y)] = d E_pi[f] for responses of one token, by enumeration; without weights it is not.
    logits = random(5, 6).requires_grad_(True)
    logprobs, behaviour, values = logits.log_softmax(0)[:, None], random(6, 6).log_softmax(0)[:, None], random(7, 6)
    mask = torch.ones(6, 1, dtype=torch.bool)
    (exact,) = torch.autograd.grad((logprobs[:, 0].exp() * values).sum(), logits, retain_graph=True)
    for cap, is_exact in ((math.inf, True), (1.1, False)):
        weights = truncated_importance_weights(logprobs, behaviour, mask, cap)
        terms = reinforce(logprobs, values, mask) * weights * behaviour.exp()
        (found,) = torch.autograd.grad(terms.sum(), logits, retain_graph=True)
        assert torch.allclose(-found, exact, rtol=1e-12, atol=1e-12) is is_exact


def test_the_mismatch_of_the_sampler_is_that_of_the_untruncated_ratio_over_response_tokens() -> None:
    trainer = torch.tensor([[0.6, 0.1, NAN], [0.2, NAN, NAN]]).log()
    sampler = torch.tensor([[0.2, 0.4, 0.5], [0.2, NAN, 0.1]]).log()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    found = sampler_mismatch(trainer, sampler, mask, cap=2.0)
    assert found == pytest.approx(
        {
            "sampling_logp_difference/mean": (math.log(3) + math.log(4)) / 3,
            "sampling_logp_difference/max": math.log(4),
            "importance_sampling_ratio/mean": (3 + 0.25 + 1) / 3,
            "importance_sampling_ratio/min": 0.25,
            "importance_sampling_ratio/max": 3.0,
            "importance_sampling_ratio/capped": 1 / 3,
        }
    )
    assert sampler_mismatch(trainer, sampler, mask) == found | {"importance_sampling_ratio/capped": 0.0}
    assert set(sampler_mismatch(trainer, sampler, torch.zeros_like(mask), cap=2.0).values()) == {0.0}
