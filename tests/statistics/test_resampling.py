"""Draws in chunks against all draws at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bsharp.seeding import generator
from bsharp.statistics import resampling
from bsharp.statistics.resampling import resample_indices, resampled_rows, resampled_sums, strata_groups

STRATA = {
    "one stratum": ["a"] * 37,
    "unequal strata, mixed": [("a", "b", "b", "c")[place % 4] for place in range(37)],
}


def stream() -> np.random.Generator:
    return generator(0, "resampling")


class Counted:
    """A generator that notes how many numbers each call draws."""

    def __init__(self) -> None:
        self.rng, self.most, self.total = stream(), 0, 0

    def __deepcopy__(self, memo: Any) -> Counted:
        return self

    def integers(self, low: int, high: int, size: tuple[int, int], **options: Any) -> Any:
        self.most, self.total = max(self.most, int(np.prod(size))), self.total + int(np.prod(size))
        return self.rng.integers(low, high, size=size, **options)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 16])
@pytest.mark.parametrize("columns", [1, 3, 7])
@pytest.mark.parametrize("strata", STRATA.values(), ids=STRATA)
def test_sums_are_those_of_all_draws_at_once_on_the_same_stream(
    monkeypatch: pytest.MonkeyPatch, strata: list[str], columns: int, chunk: int
) -> None:
    monkeypatch.setattr(resampling, "CHUNK", chunk)
    groups, _ = strata_groups(strata, 37)
    values = np.random.default_rng(0).standard_normal((37, columns))
    ours, plain = stream(), stream()
    expected = values[resample_indices(groups, 23, plain)].sum(axis=1)
    np.testing.assert_allclose(resampled_sums(groups, values, 23, ours), expected, rtol=1e-12, atol=1e-13)
    assert ours.integers(1 << 40) == plain.integers(1 << 40)  # both streams end at the same place


@pytest.mark.parametrize("chunk", [1, 50, 1 << 16])
@pytest.mark.parametrize("strata", STRATA.values(), ids=STRATA)
def test_rows_are_those_of_all_draws_at_once_on_the_same_stream(
    monkeypatch: pytest.MonkeyPatch, strata: list[str], chunk: int
) -> None:
    monkeypatch.setattr(resampling, "CHUNK", chunk)
    groups, _ = strata_groups(strata, 37)
    ours, plain = stream(), stream()
    np.testing.assert_array_equal(list(resampled_rows(groups, 23, ours)), resample_indices(groups, 23, plain))
    assert ours.integers(1 << 40) == plain.integers(1 << 40)


@pytest.mark.parametrize("problems", [100, 1_000, 300_000])
def test_the_draws_held_at_once_do_not_grow_with_problems_and_replicates(problems: int) -> None:
    rng = Counted()
    groups, _ = strata_groups(np.arange(problems) % 2, problems)
    resampled_sums(groups, np.ones((problems, 1)), 5, rng)  # type: ignore[arg-type]
    assert rng.total == 5 * problems
    assert rng.most <= max(resampling.CHUNK, problems // 2)
    rng = Counted()
    for _ in resampled_rows(groups, 5, rng):  # type: ignore[arg-type]
        pass
    assert rng.total == 2 * 5 * problems  # once to find the places, once to use the draws
    assert rng.most <= max(resampling.CHUNK, problems // 2)


def test_strata_stand_in_order_of_appearance_whether_named_or_numbered() -> None:
    names = ["b", "a", "b", "c", "a", "c", "b"]
    expected = [[0, 2, 6], [1, 4], [3, 5]]
    for strata in (names, np.array([7, -2, 7, 0, -2, 0, 7])):
        groups, pooled = strata_groups(strata, 7)
        assert [group.tolist() for group in groups] == expected
        assert not pooled
    assert strata_groups(names[:4], 4)[1]  # a stratum of one problem
    assert strata_groups(None, 3)[0][0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="got 2 labels for 3 problems"):
        strata_groups(["a", "a"], 3)
