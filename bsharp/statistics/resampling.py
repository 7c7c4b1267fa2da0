"""Problems drawn with replacement within strata: the draws of every bootstrap, in memory that does not grow with the problems.

The draws come stratum by stratum, all replicates of one before those of the next, on one random stream. They are made
`CHUNK` at a time; a generator continues its stream from call to call, so the chunks change no draw.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "Strata", "resample_indices", "resampled_rows", "resampled_sums", "strata_groups"]

CHUNK = 1 << 16
"""Draws held at once; at least one replicate of a stratum. A chunk and its values stay in a processor's cache."""
_FEW_COLUMNS = 3
"""Up to this many sums per replicate, looking up the drawn values is faster than counting the draws."""

Array = NDArray[np.float64]
Groups = Sequence[NDArray[np.intp]]
Strata = Sequence[Hashable] | NDArray[np.intp]


def strata_groups(strata: Strata | None, problems: int) -> tuple[list[NDArray[np.intp]], bool]:
    """Indices of each stratum in order of appearance, and whether strata were asked for but had to be pooled.

    `strata` (P,) are labels, or an integer array of codes. A stratum of one problem pools them all: it shows no variance.
    """
    if strata is None:
        return [np.arange(problems)], False
    if len(strata) != problems:
        raise ValueError(f"strata need one label per problem, got {len(strata)} labels for {problems} problems")
    known: dict[Hashable, int] = {}
    codes = (
        strata
        if isinstance(strata, np.ndarray) and strata.dtype.kind == "i"
        else np.fromiter((known.setdefault(label, len(known)) for label in strata), np.intp, problems)
    )
    _, first, inverse, sizes = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        return [np.arange(problems)], True
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    return [members[place] for place in np.argsort(first)], False


def resample_indices(groups: Groups, replicates: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """(replicates, P) problem indices drawn with replacement within each group; groups partition 0 … P-1."""
    drawn = [group[rng.integers(0, len(group), size=(replicates, len(group)))] for group in groups]
    return np.concatenate(drawn, axis=1)


def resampled_sums(groups: Groups, values: Array, replicates: int, rng: np.random.Generator) -> Array:
    """(replicates, K): the sums of the K columns of `values` (P, K) over the rows of `resample_indices`.

    The same draws as there, from the same stream; sums differ by the order of addition only. Holds CHUNK draws at once (one
    replicate of the largest group where that is more).
    """
    sums = np.zeros((replicates, values.shape[1]))
    for group in groups:
        inside = values[group]
        for start, drawn in _chunks(len(group), replicates, rng):
            sums[start : start + len(drawn)] += _sums_of(drawn, inside)
    return sums


def resampled_rows(groups: Groups, replicates: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """The rows of `resample_indices` (P,), one at a time.

    A row needs the draws of every group, which lie far apart on the stream: each group is drawn from a copy of the generator
    that was brought to the group's place by drawing what lies before. At the end `rng` is where `resample_indices` leaves it.
    """
    copies = []
    for group in groups:
        copies.append(copy.deepcopy(rng))
        if len(groups) > 1:
            for _ in _chunks(len(group), replicates, rng):
                pass
    if len(groups) == 1:
        copies = [rng]
    rows = max(1, CHUNK // max(1, sum(map(len, groups))))
    for start in range(0, replicates, rows):
        yield from np.concatenate(
            [
                group[own.integers(0, len(group), size=(min(rows, replicates - start), len(group)))]
                for group, own in zip(groups, copies, strict=True)
            ],
            axis=1,
        )


def _chunks(size: int, replicates: int, rng: np.random.Generator) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The replicate that a chunk begins with, and its draws from 0 … size-1, (rows, size)."""
    rows = max(1, CHUNK // size)
    for start in range(0, replicates, rows):
        # 32 bits are drawn from the same numbers of the stream as 64, in half the memory.
        drawn = rng.integers(0, size, size=(min(rows, replicates - start), size), dtype=np.uint32)
        yield start, drawn.astype(np.intp)


def _sums_of(drawn: NDArray[np.intp], inside: Array) -> Array:
    """(rows, K) of draws (rows, size) and values (size, K)."""
    rows, size = drawn.shape
    if inside.shape[1] <= _FEW_COLUMNS:
        # Without `mode` every index is checked again, through a buffer.
        return np.stack([np.take(column, drawn, mode="clip").sum(axis=1) for column in inside.T], axis=1)
    counts = np.bincount((drawn + size * np.arange(rows)[:, None]).ravel(), minlength=rows * size)
    return np.asarray(counts.reshape(rows, size).astype(np.float64) @ inside)
