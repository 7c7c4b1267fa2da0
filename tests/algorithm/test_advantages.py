"""Advantages against naive loops; ragged groups, invalid rows, equal scores."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsharp.algorithm import (
    ADVANTAGES,
    batch_normalised,
    gae,
    group_z_score,
    leave_one_out,
    no_baseline,
    zero_variance_groups,
)

NAN = float("nan")
Rows = list[tuple[float, int, bool]]

rows_strategy = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, -3.25]), st.integers(0, 3), st.booleans()), min_size=1, max_size=12
).filter(lambda rows: max([group for _, group, _ in rows].count(g) for g in range(4)) >= 2)


def tensors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = torch.tensor([score if valid else NAN for score, _, valid in rows], dtype=torch.float64)
    return scores, torch.tensor([group for _, group, _ in rows]), torch.tensor([valid for _, _, valid in rows])


def naive(rows: Rows, rule: Callable[[float, list[float]], float], whole_batch: bool = False) -> list[float]:
    """rule(score, valid scores of its group) for each valid row with company, else 0."""
    result = []
    for score, group, valid in rows:
        peers = [s for s, g, v in rows if v and (whole_batch or g == group)]
        result.append(rule(score, peers) if valid and len(peers) >= 2 else 0.0)
    return result


def loo_rule(score: float, peers: list[float]) -> float:
    others = list(peers)
    others.remove(score)
    return score - statistics.fmean(others)


def z_rule(eps: float) -> Callable[[float, list[float]], float]:
    return lambda score, peers: (score - statistics.fmean(peers)) / (statistics.stdev(peers) + eps)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(rows=rows_strategy)
def test_sequence_advantages_match_naive_loops(rows: Rows) -> None:
    references = {
        leave_one_out: naive(rows, loo_rule),
        group_z_score: naive(rows, z_rule(1e-4)),
        batch_normalised: naive(rows, z_rule(1e-8), whole_batch=True),
    }
    for function, expected in references.items():
        actual = function(*tensors(rows))
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    plain = no_baseline(*tensors(rows))
    assert plain.tolist() == [score if valid else 0.0 for score, _, valid in rows]


def test_leave_one_out_is_the_group_mean_advantage_times_g_over_g_minus_1() -> None:
    scores = torch.tensor([0.1, 0.9, 0.4, 0.2, 1.0, 0.3], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 0, 1, 1])
    means = torch.tensor([0.4] * 4 + [0.65] * 2, dtype=torch.float64)
    factor = torch.tensor([4 / 3] * 4 + [2.0] * 2, dtype=torch.float64)
    torch.testing.assert_close(leave_one_out(scores, group, torch.ones(6, dtype=torch.bool)), factor * (scores - means))


@pytest.mark.parametrize("name", ["leave_one_out", "group_z_score", "batch_normalised"])
def test_equal_scores_give_exactly_zero_even_where_their_mean_rounds(name: str) -> None:
    for rows in range(2, 20):
        scores = torch.full((rows,), -20.1, dtype=torch.float64)
        group, valid = torch.zeros(rows, dtype=torch.long), torch.ones(rows, dtype=torch.bool)
        assert (ADVANTAGES[name](scores, group, valid) == 0).all()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_invalid_rows_get_zero_and_change_nothing_for_the_others(name: str) -> None:
    scores, group = torch.tensor([1.0, 0.0, 0.5, 0.25]), torch.tensor([0, 0, 1, 1])
    valid = torch.ones(4, dtype=torch.bool)
    alone = ADVANTAGES[name](scores, group, valid)
    mixed = ADVANTAGES[name](
        torch.tensor([NAN, 1.0, 0.0, NAN, 0.5, 0.25]),
        torch.tensor([0, 0, 0, 2, 1, 1]),
        torch.tensor([False, True, True, False, True, True]),
    )
    torch.testing.assert_close(mixed, torch.cat([torch.zeros(1), alone[:2], torch.zeros(1), alone[2:]]))
    assert ADVANTAGES[name](scores, group, ~valid).tolist() == [0, 0, 0, 0]
    empty = torch.zeros(0)
    assert ADVANTAGES[name](empty, empty.long(), empty.bool()).shape == (0,)


@pytest.mark.parametrize("function", [leave_one_out, group_z_score])
def test_groups_of_one_completion_are_an_error(function: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="needs at least 2 completions per problem, got group_size=1"):
        function(torch.tensor([1.0, 0.0]), torch.tensor([0, 1]), torch.tensor([True, True]))


def test_zero_variance_counts_equal_comparable_and_undersized_groups() -> None:
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0, 5.0, NAN, 7.0, 7.0 + 5e-7, NAN, NAN])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 4, 4, 5, 5])
    counts = zero_variance_groups(scores, group, ~scores.isnan())
    assert counts == (2, 3, 2)
    assert counts.zero_variance_fraction == pytest.approx(2 / 3)
    assert zero_variance_groups(scores[:0], group[:0], scores[:0].bool()).zero_variance_fraction == 0


# --------------------------------------------------------------------------------------------------------- GAE


def naive_gae(scores: list[float], values: list[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """The defining double sum over the tokens of one row."""
    following = [*values[1:], 0.0]
    deltas = [s + gamma * n - v for s, n, v in zip(scores, following, values, strict=True)]
    advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.9, 0.95), (0.0, 0.5)])
def test_gae_is_the_defining_sum_over_the_masked_in_tokens(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    valid = torch.tensor([True, True, True, False])
    scores, values = (
        torch.where(mask & valid[:, None], torch.randn(4, 5, generator=generator, dtype=torch.float64), NAN)
        for _ in range(2)
    )
    advantages, returns = gae(scores, values, mask, gamma, lam, valid)
    for row in range(3):
        keep = mask[row]
        expected = naive_gae(scores[row, keep].tolist(), values[row, keep].tolist(), gamma, lam)
        for actual, reference in zip((advantages, returns), expected, strict=True):
            torch.testing.assert_close(actual[row, keep], torch.tensor(reference, dtype=torch.float64))
    assert (advantages[~(mask & valid[:, None])] == 0).all()
    assert (returns[~(mask & valid[:, None])] == 0).all()


def test_gae_without_discount_and_critic_is_the_score_still_to_come() -> None:
    scores = torch.tensor([[0.5, -1.0, 2.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(scores, torch.zeros(1, 3), mask, 1.0, 1.0)
    assert advantages.tolist() == returns.tolist() == [[1.5, 1.0, 2.0]]


def test_gae_with_lambda_1_returns_the_score_still_to_come_whatever_the_critic() -> None:
    scores, values = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[3.0, -1.0, 0.25]])
    advantages, returns = gae(scores, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    torch.testing.assert_close(returns, torch.tensor([[1.5, 1.0, 2.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[-1.5, 2.0, 1.75]]))
