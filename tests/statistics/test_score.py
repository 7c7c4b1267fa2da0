from __future__ import annotations

import math

import numpy as np
import pytest

from bsharp.statistics import reward_weighted_score
from bsharp.statistics.score import reward_weighted_scores


def test_the_score_weights_distinct_samples_by_probability() -> None:
    logs = [math.log(0.2), math.log(0.1), math.log(0.1)]
    assert reward_weighted_score(logs, [1.0, 0.0, 0.5], ["a", "b", "c"]) == pytest.approx((0.2 + 0.05) / 0.4)


def test_duplicates_count_once() -> None:
    logs, rewards, keys = [math.log(0.6)] * 3 + [math.log(0.3)], [1.0] * 3 + [0.0], [(1, 2)] * 3 + [(1, 3)]
    assert reward_weighted_score(logs, rewards, keys) == pytest.approx(2 / 3)


def test_the_score_does_not_underflow_for_long_responses() -> None:
    assert reward_weighted_score([-5000.0, -5000.0 + math.log(3)], [0.0, 1.0], [1, 2]) == pytest.approx(0.75)


def test_the_score_is_the_accuracy_of_the_policy_when_all_responses_are_seen() -> None:
    probabilities, rewards = [0.5, 0.3, 0.2], [0.0, 1.0, 1.0]
    assert reward_weighted_score([math.log(p) for p in probabilities], rewards, [0, 1, 2]) == pytest.approx(0.5)


@pytest.mark.parametrize(("logs", "rewards"), [([], []), ([0.0], []), ([math.nan], [1.0]), ([-1.0], [math.inf])])
def test_the_score_refuses_missing_values(logs: list[float], rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="reward_weighted_score needs"):
        reward_weighted_score(logs, rewards, list(range(len(logs))))


def test_many_problems_at_once_have_the_score_of_each_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    logs, rewards = -rng.exponential(30.0, (300, 19)), rng.random((300, 19))
    distinct = rng.random((300, 19)) < rng.random((300, 1))
    distinct[7] = False
    expected = [
        reward_weighted_score(logs[row, kept], rewards[row, kept], np.flatnonzero(kept).tolist())
        if kept.any()
        else math.nan
        for row, kept in enumerate(distinct)
    ]
    np.testing.assert_array_equal(reward_weighted_scores(logs, rewards, distinct), expected)
    logs[3, np.flatnonzero(distinct[3])[0]] = math.inf
    with pytest.raises(ValueError, match="needs finite logprobs"):
        reward_weighted_scores(logs, rewards, distinct)
