"""Equal samples of every row at once, against a dictionary per row."""

from __future__ import annotations

import numpy as np
import pytest

from bsharp.statistics import distinct
from bsharp.statistics.distinct import answer_classes, first_of_equals

RNG = np.random.default_rng(0)
KEYS = RNG.integers(-2, 3, size=(200, 9)) * (1 << 60)  # hashes use all 64 bits
COUNTED = RNG.random((200, 9)) < RNG.random((200, 1))
RIGHT = RNG.random((200, 9)) < 0.5


@pytest.mark.parametrize("at_once", [1, 100, 1 << 18])
def test_the_first_of_equals_is_the_one_a_dictionary_would_keep(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(distinct, "ROWS_AT_ONCE", at_once)
    expected = []
    for keys, counted in zip(KEYS.tolist(), COUNTED.tolist(), strict=True):
        known: dict[int, int] = {}
        expected.append(
            [known.setdefault(key, at) if c else -1 for at, (key, c) in enumerate(zip(keys, counted, strict=True))]
        )
    assert first_of_equals(KEYS, COUNTED).tolist() == expected


def test_classes_are_counted_in_order_of_appearance() -> None:
    classes = answer_classes(KEYS, COUNTED, RIGHT)
    for row in range(len(KEYS)):
        expected: dict[int, list[int]] = {}
        for key, counted, right in zip(KEYS[row].tolist(), COUNTED[row], RIGHT[row], strict=True):
            if counted:
                size, rights = expected.get(key, [0, 0])
                expected[key] = [size + 1, rights + int(right)]
        number = int(classes.number[row])
        found = {
            key: [size, right]
            for key, size, right in zip(
                *(table[row, :number].tolist() for table in (classes.keys, classes.sizes, classes.right)), strict=True
            )
        }
        assert list(found.items()) == list(expected.items())
        assert not classes.sizes[row, number:].any()


def test_rows_without_a_vote_have_no_class() -> None:
    classes = answer_classes(KEYS[:3], np.zeros((3, 9), dtype=np.bool_), RIGHT[:3])
    assert classes.sizes.tolist() == [[0], [0], [0]]
    assert classes.number.tolist() == [0, 0, 0]
