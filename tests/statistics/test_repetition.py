"""The repetition rate of a token sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsharp.statistics import repetition_rate


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_it_is_the_share_of_n_grams_that_occurred_before(tokens: list[int], n: int) -> None:
    seen: set[tuple[int, ...]] = set()
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    repeated = 0
    for gram in grams:
        repeated += gram in seen
        seen.add(gram)
    assert repetition_rate(tokens, n) == pytest.approx(repeated / len(grams) if grams else 0.0, abs=1e-15)


@pytest.mark.parametrize(("period", "length"), [(1, 10), (3, 40), (7, 8), (20, 20)])
def test_a_loop_of_period_p_has_p_distinct_n_grams(period: int, length: int) -> None:
    grams = length - 3
    loop = [i % period for i in range(length)]
    assert repetition_rate(loop) == pytest.approx(1 - min(period, grams) / grams)


def test_fewer_tokens_than_two_n_grams_cannot_repeat_one() -> None:
    assert [repetition_rate([5] * length) for length in range(6)] == [0, 0, 0, 0, 0, 0.5]


def test_an_n_gram_needs_a_token() -> None:
    with pytest.raises(ValueError, match="n-grams of at least 1 token, got n=0"):
        repetition_rate([1, 2], 0)
