"""pass@k: the probability that at least one of k draws without replacement is correct."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["pass_at_k"]


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k per problem: 1 - C(n - c, k) / C(n, k)  (arXiv 2107.03374).

    `samples` is n and `correct` is c, integers that broadcast, usually (P,) each; the result has their shape, a
    probability in [0, 1]. Computed as a product of k ratios, so nothing overflows. n may differ between problems, but a
    problem with n < k raises ValueError: dropping it would average other k over other problems. k = 1 is c / n.
    """
    n, c = np.broadcast_arrays(_counts("samples", samples), _counts("correct", correct))
    if k < 1:
        raise ValueError(f"pass@k needs k of at least 1, got k={k}")
    if n.size and n.min() < k:
        raise ValueError(
            f"pass@{k} needs at least {k} samples of every problem, got n={n.min()}; draw more samples or choose a smaller k"
        )
    if np.any(c < 0) or np.any(c > n):
        raise ValueError("pass@k needs 0 <= correct <= samples for every problem; check the counts")
    missing = np.ones(n.shape)
    for draw in range(k):
        missing = missing * np.maximum(n - c - draw, 0) / (n - draw)
    return 1.0 - missing


def _counts(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and not np.all(array == np.floor(array)):
        raise ValueError(
            f"pass@k needs whole numbers in `{name}`, got {array.ravel()[:3].tolist()}…; count 0/1 outcomes"
        )
    return array.astype(np.int64)
