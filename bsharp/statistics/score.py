"""The reward-weighted score: what the policy believes among what it says."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["reward_weighted_score", "reward_weighted_scores"]


def reward_weighted_score(logprobs: Sequence[float], rewards: Sequence[float], keys: Sequence[Hashable]) -> float:
    """Σ_{y ∈ S} π(y) r(y) / Σ_{y ∈ S} π(y) over the set S of DISTINCT samples of one problem.

    `logprobs` (n,) are sequence log-probabilities under the policy, nats; `rewards` (n,) in [0, 1]; samples with equal
    `keys` (their token ids) are one response and count once: the sampling already counted them in proportion to π, and
    weighting raw samples would square it. The first of a set of duplicates stands for it. Computed relative to the
    largest log-probability, so long responses do not underflow. One distinct sample gives its reward.
    Empty input, unequal lengths or non-finite values raise ValueError.
    """
    if not len(logprobs) == len(rewards) == len(keys) or not len(keys):
        raise ValueError(
            f"reward_weighted_score needs equally many logprobs, rewards and keys, at least one; got {len(logprobs)}, "
            f"{len(rewards)}, {len(keys)}"
        )
    first: dict[Hashable, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    distinct = list(first.values())
    logs = np.asarray(logprobs, dtype=np.float64)[distinct]
    values = np.asarray(rewards, dtype=np.float64)[distinct]
    return float(_scores(logs[None], values[None])[0])


def reward_weighted_scores(
    logprobs: NDArray[np.float64], rewards: NDArray[np.float64], distinct: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(R,): `reward_weighted_score` of R problems, all (R, n); `distinct` marks the samples that stand for their equals.

    NaN where a problem has none. Non-finite values among them raise ValueError.
    """
    found = np.full(len(logprobs), np.nan)
    numbers = distinct.sum(axis=1)
    for number in np.unique(numbers[numbers > 0]).tolist():
        rows = np.flatnonzero(numbers == number)
        marked = distinct[rows]
        found[rows] = _scores(logprobs[rows][marked].reshape(-1, number), rewards[rows][marked].reshape(-1, number))
    return found


def _scores(logs: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) of distinct samples, (R, m) each."""
    if not (np.isfinite(logs).all() and np.isfinite(values).all()):
        raise ValueError("reward_weighted_score needs finite logprobs and rewards; leave out samples that have none")
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray((weights[:, None] @ values[..., None])[:, 0, 0] / weights.sum(axis=1))
