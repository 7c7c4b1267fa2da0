"""maj@k: the expected credit of the answer that wins a plurality vote among k draws without replacement."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT_SAMPLES", "maj_at_k", "maj_at_k_monte_carlo", "maj_at_k_of_classes", "vote_share"]

EXACT_SAMPLES = 128
"""Up to this many samples of a problem maj@k is exact; the cost of the enumeration grows about like n cubed."""


def maj_at_k(
    answers: Sequence[str | None],
    credits: Sequence[float],
    ks: Sequence[int],
    *,
    rng: np.random.Generator | None = None,
    draws: int = 4096,
) -> NDArray[np.float64]:
    """maj@k of one problem for every k in `ks`: k of its n samples vote, the most frequent answer wins.

    `answers` (n,) are canonical answers, compared whole; None (unparseable) is drawn like any other sample but never
    votes. `credits` (n,) in [0, 1] is each sample's reward; an answer is worth the mean credit of its samples (0 or 1 with
    an exact grader), and what None holds is ignored. Tied answers share the credit equally (the expectation of a uniform
    tie-break); if nobody votes the credit is 0.

    Exact for n <= EXACT_SAMPLES: with class sizes c_i, the ways in which class j wins with m votes are the coefficient of
    x^(k-m) in C(c_j, m) · ∫ (1 + x)^u Π_{i≠j} (Σ_{a<m} C(c_i, a) x^a + z C(c_i, m) x^m) dz over z in [0, 1], u the
    number of None, divided by C(n, k). Beyond that `maj_at_k_monte_carlo` with `rng` and `draws`, whose standard error per
    problem is at most 0.5 / sqrt(draws). Returns (len(ks),). k > n, or a missing `rng` where one is needed: ValueError.
    """
    sizes, worth, silent = _tally(answers, credits, ks)
    if len(answers) > EXACT_SAMPLES:
        if rng is None:
            raise ValueError(
                f"maj@k is exact up to {EXACT_SAMPLES} samples, got {len(answers)}; pass rng= for the Monte Carlo estimate"
            )
        return maj_at_k_monte_carlo(answers, credits, ks, rng=rng, draws=draws)[0]
    wins = _win_probabilities(tuple(sorted(sizes)), silent, max(ks, default=0))
    chosen = list(ks)
    total = np.zeros(len(chosen))
    for size, credit in zip(sizes, worth, strict=True):
        total += credit * wins[size][chosen]
    return total


def maj_at_k_monte_carlo(
    answers: Sequence[str | None],
    credits: Sequence[float],
    ks: Sequence[int],
    *,
    rng: np.random.Generator,
    draws: int = 4096,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """maj@k as in `maj_at_k` from `draws` random subsets: (estimates, standard errors), (len(ks),) each.

    One random order of the samples serves every k (its first k vote), so the figures of different k move together.
    """
    sizes, worth, silent = _tally(answers, credits, ks)
    if draws < 2:
        raise ValueError(f"maj@k by Monte Carlo needs at least 2 draws, got {draws}")
    return _by_drawing(sizes, worth, silent, ks, rng, draws)


def maj_at_k_of_classes(
    sizes: NDArray[np.int64],
    worth: NDArray[np.float64],
    silent: NDArray[np.int64],
    ks: Sequence[int],
    *,
    rng: Callable[[int], np.random.Generator],
    draws: int = 4096,
) -> NDArray[np.float64]:
    """maj@k of R problems from their classes of equal answers: (R, len(ks)), NaN where k exceeds a problem's samples.

    `sizes` and `worth` (R, C) are the samples of each class and their mean credit, in any order, 0 beyond a problem's last
    class; `silent` (R,) samples without an answer. Each row equals `maj_at_k`; `rng(row)` is called where that would need one.
    Problems with the same sizes have the same probabilities, so time grows with the different multisets of sizes.
    """
    total = np.full((len(sizes), len(ks)), np.nan)
    samples = sizes.sum(axis=1) + silent
    for shape, rows in _alike(sizes, silent, np.flatnonzero((samples > 0) & (samples <= EXACT_SAMPLES))):
        *known, unread = shape
        usable = [k for k in ks if k <= sum(shape)]
        wins = _win_probabilities(tuple(size for size in known if size), unread, max(usable, default=0))
        table = np.zeros((max(known) + 1, len(usable)))
        for size, probabilities in wins.items():
            table[size] = probabilities[usable]
        credit = np.zeros((len(rows), len(usable)))
        for place in range(sizes.shape[1]):
            credit += worth[rows, place, None] * table[sizes[rows, place]]
        for place, k in enumerate(usable):
            total[rows, ks.index(k)] = credit[:, place]
    for row in np.flatnonzero(samples > EXACT_SAMPLES).tolist():
        some = sizes[row] > 0
        usable = [k for k in ks if k <= samples[row]]
        classes = sizes[row, some].tolist(), worth[row, some].tolist(), int(silent[row])
        total[row, [ks.index(k) for k in usable]] = _by_drawing(*classes, usable, rng(row), draws)[0]
    return total


def _alike(
    sizes: NDArray[np.int64], silent: NDArray[np.int64], rows: NDArray[np.intp]
) -> Iterator[tuple[list[int], NDArray[np.intp]]]:
    """The rows by the multiset of their sizes: (sizes in order and the number of None, the rows that have them)."""
    if not len(rows):
        return
    shapes = np.column_stack([np.sort(sizes[rows], axis=1), silent[rows]]).astype(np.uint8)  # up to EXACT_SAMPLES
    kinds, kind, number = np.unique(shapes, axis=0, return_inverse=True, return_counts=True)
    members = np.split(rows[np.argsort(kind.ravel(), kind="stable")], np.cumsum(number)[:-1])
    yield from zip(kinds.tolist(), members, strict=True)


def _by_drawing(
    sizes: Sequence[int],
    worth: Sequence[float],
    silent: int,
    ks: Sequence[int],
    rng: np.random.Generator,
    draws: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimates and standard errors, (len(ks),) each."""
    classes = len(sizes)
    labels = np.repeat(np.arange(classes + 1), [*sizes, silent])  # the last class is None
    orders = rng.permuted(np.tile(labels, (draws, 1)), axis=1)
    rows = np.arange(draws)[:, None] * (classes + 1)
    estimates, errors = np.zeros(len(ks)), np.zeros(len(ks))
    for index, k in enumerate(ks):
        votes = np.bincount((rows + orders[:, :k]).ravel(), minlength=draws * (classes + 1))
        votes = votes.reshape(draws, classes + 1)[:, :classes]
        if not classes:
            continue
        best = votes.max(axis=1, keepdims=True)
        winners = (votes == best) & (best > 0)
        credit = (winners @ np.asarray(worth)) / np.maximum(winners.sum(axis=1), 1)
        estimates[index] = credit.mean()
        # A rare outcome that no draw met has standard deviation 0: the error is never stated below one draw.
        errors[index] = max(float(credit.std(ddof=1)) / math.sqrt(draws), 1.0 / draws)
    return estimates, errors


def vote_share(answers: Sequence[str | None], credits: Sequence[float]) -> tuple[float, float]:
    """(confidence, credit) of a problem's vote over all its samples: the winner's share of the n samples, and its credit.

    None never votes but counts in n, so a problem that is mostly unparseable is not confident. Ties share the credit;
    with no vote at all both are 0.
    """
    sizes, worth, _ = _tally(answers, credits, ())
    if not sizes:
        return 0.0, 0.0
    best = max(sizes)
    tied = [credit for size, credit in zip(sizes, worth, strict=True) if size == best]
    return best / len(answers), sum(tied) / len(tied)


def _tally(
    answers: Sequence[str | None], credits: Sequence[float], ks: Sequence[int]
) -> tuple[list[int], list[float], int]:
    """Class sizes, the credit of each class, and the number of None."""
    if len(answers) != len(credits) or not answers:
        raise ValueError(f"maj@k needs one credit per answer and at least one, got {len(answers)} and {len(credits)}")
    for k in ks:
        if not 1 <= k <= len(answers):
            raise ValueError(f"maj@k needs 1 <= k <= n, got k={k} with n={len(answers)}; draw more samples or lower k")
    by_answer: dict[str, list[float]] = {}
    for answer, credit in zip(answers, credits, strict=True):
        if answer is None:
            continue
        if not 0.0 <= credit <= 1.0:
            raise ValueError(f"maj@k needs credits in [0, 1], got {credit} for answer {answer!r}")
        by_answer.setdefault(answer, []).append(float(credit))
    sizes = [len(values) for values in by_answer.values()]
    worth = [sum(values) / len(values) for values in by_answer.values()]
    return sizes, worth, len(answers) - sum(sizes)


@lru_cache(maxsize=4096)
def _win_probabilities(sizes: tuple[int, ...], silent: int, largest_k: int) -> dict[int, NDArray[np.float64]]:
    """By class size: the probability that one class of that size wins, (largest_k + 1,) over k; ties count 1/(ties + 1).

    Classes of equal size win equally often, so the sorted sizes are all that matters, and they repeat across problems.
    """
    n = sum(sizes) + silent
    subsets = np.array([math.comb(n, k) for k in range(largest_k + 1)], dtype=np.float64)
    wins: dict[int, NDArray[np.float64]] = {}
    for size in set(sizes):
        others = list(sizes)
        others.remove(size)
        ways = np.zeros(largest_k + 1)
        for votes in range(1, min(size, largest_k) + 1):
            ways[votes:] += math.comb(size, votes) * _ways_not_beaten(others, silent, votes, largest_k - votes)
        wins[size] = ways / subsets
    return wins


def _ways_not_beaten(others: Sequence[int], silent: int, votes: int, drawn: int) -> NDArray[np.float64]:
    """Ways to draw 0 … `drawn` samples so that no other class exceeds `votes`, each way weighted by 1 / (ties + 1)."""
    # Classes too small to tie are free, like None: one binomial row instead of one factor each.
    free = silent + sum(size for size in others if size < votes)
    rivals = [size for size in others if size >= votes]
    most_ties = min(len(rivals), drawn // votes)
    table = np.zeros((most_ties + 1, drawn + 1))
    table[0] = [math.comb(free, a) for a in range(drawn + 1)]
    for size in rivals:
        below = np.zeros_like(table)
        for a in range(min(votes, drawn + 1)):
            below[:, a:] += math.comb(size, a) * table[:, : drawn + 1 - a]
        below[1:, votes:] += math.comb(size, votes) * table[:-1, : max(drawn + 1 - votes, 0)]
        table = below
    return np.asarray((1.0 / np.arange(1, most_ties + 2)) @ table)
