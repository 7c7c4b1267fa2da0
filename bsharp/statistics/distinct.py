"""Equal samples of a problem, for all problems at once: R rows (problems and seeds) of n samples. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Classes", "answer_classes", "first_of_equals"]

ROWS_AT_ONCE = 1 << 18
"""Samples sorted at once; at least one row."""


@dataclass(frozen=True)
class Classes:
    """The classes of equal answers of each row, (R, C) each, in order of appearance; rows with fewer than C have size 0 there."""

    keys: NDArray[np.int64]
    sizes: NDArray[np.int64]
    right: NDArray[np.int64]  # how many of the class are right

    @property
    def number(self) -> NDArray[np.int64]:
        """(R,): classes of each row."""
        return np.asarray((self.sizes > 0).sum(axis=1))


def first_of_equals(keys: NDArray[np.int64], counted: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(R, n): the place in its row of the first counted sample with an equal key, the sample's own where it is the first; -1
    where the sample is not counted.
    """
    rows, samples = keys.shape
    found = np.full((rows, samples), -1, dtype=np.intp)
    step = max(1, ROWS_AT_ONCE // samples)
    for start in range(0, rows, step):
        part, inside = keys[start : start + step], counted[start : start + step]
        order = np.lexsort((part, ~inside), axis=-1)  # counted ones first; equal keys stay in order
        part, inside = np.take_along_axis(part, order, axis=1), np.take_along_axis(inside, order, axis=1)
        begins = np.ones_like(inside)
        begins[:, 1:] = part[:, 1:] != part[:, :-1]
        head = np.maximum.accumulate(np.where(begins, np.arange(samples), 0), axis=1)
        first = np.where(inside, np.take_along_axis(order, head, axis=1), -1)
        np.put_along_axis(found[start : start + step], order, first, axis=1)
    return found


def answer_classes(answers: NDArray[np.int64], votes: NDArray[np.bool_], right: NDArray[np.bool_]) -> Classes:
    """The classes of equal `answers` (R, n) among the samples that vote; `right` says which samples are correct."""
    rows, samples = answers.shape
    first = first_of_equals(answers, votes)
    leads = first == np.arange(samples)
    label = np.cumsum(leads, axis=1) - 1  # of the samples that lead a class
    width = max(1, int(leads.sum(axis=1).max(initial=0)))
    row, place = np.nonzero(votes)
    cell = row * width + label[row, first[row, place]]
    sizes = np.bincount(cell, minlength=rows * width).reshape(rows, width)
    rights = np.bincount(cell[right[row, place]], minlength=rows * width).reshape(rows, width)
    keys = np.zeros((rows, width), dtype=np.int64)
    row, place = np.nonzero(leads)
    keys[row, label[row, place]] = answers[row, place]
    return Classes(keys, sizes, rights)
