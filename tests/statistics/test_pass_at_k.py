from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from bsharp.statistics import pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(n: int) -> None:
    for c in range(n + 1):
        outcomes = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(outcomes, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-14)


def test_pass_at_k_is_unbiased_for_independent_samples() -> None:
    # Σ_c Binomial(c; n, p) · pass@k(n, c) = 1 - (1 - p)^k, exactly.
    from scipy import stats

    n, k, p = 16, 4, 0.07
    c = np.arange(n + 1)
    expectation = stats.binom.pmf(c, n, p) @ pass_at_k(n, c, k)
    assert expectation == pytest.approx(1 - (1 - p) ** k, abs=1e-13)


def test_pass_at_k_takes_a_different_n_for_every_problem() -> None:
    figures = pass_at_k([16, 8, 4], [2, 2, 4], 2)
    assert figures.tolist() == [pytest.approx(float(pass_at_k(n, c, 2))) for n, c in ((16, 2), (8, 2), (4, 4))]


def test_pass_at_k_does_not_overflow_for_thousands_of_samples() -> None:
    figure = float(pass_at_k(10_000, 1, 5_000))
    assert figure == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        ([16, 3], [1, 1], 4, "n=3"),  # a short problem is never dropped in silence
        ([4], [1], 0, "k=0"),
        ([4], [5], 2, "correct <= samples"),
        ([4], [-1], 2, "correct <= samples"),
        ([4], [0.5], 2, "whole numbers"),
    ],
)
def test_pass_at_k_refuses_what_it_cannot_answer(n: list[int], c: list[float], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)
