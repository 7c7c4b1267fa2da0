from __future__ import annotations

import math

import numpy as np
import pytest

from bsharp.statistics import within_problem_correlation


def samples(
    rng: np.random.Generator, problems: int, size: int, slope: float
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Rewards, log-probabilities and problem ids; problems differ a lot in both means."""
    ids = np.repeat(np.arange(problems), size)
    logs = rng.standard_normal(ids.size) - 20 * rng.random(problems)[ids]
    within = logs - np.array([logs[ids == p].mean() for p in range(problems)])[ids]
    rewards = slope * within + rng.standard_normal(ids.size) + 5 * rng.random(problems)[ids]
    return rewards, logs, ids.tolist()


def test_the_correlation_pools_covariances_and_variances_before_dividing() -> None:
    rng = np.random.default_rng(0)
    rewards, logs, ids = samples(rng, problems=6, size=5, slope=1.0)
    rewards[:5] *= 30  # one problem with a large variance: the mean of correlations would not notice
    groups = [np.flatnonzero(np.array(ids) == p) for p in range(6)]
    covariances = [np.cov(rewards[g], logs[g]) for g in groups]
    total = np.sum(covariances, axis=0)
    expected = total[0, 1] / math.sqrt(total[0, 0] * total[1, 1])
    figure = within_problem_correlation(rewards, logs, ids, rng=rng, replicates=200)
    assert figure.estimate == pytest.approx(expected, rel=1e-12)
    assert abs(np.mean([c[0, 1] / math.sqrt(c[0, 0] * c[1, 1]) for c in covariances]) - expected) > 0.01
    assert figure.low <= figure.estimate <= figure.high
    assert figure.n == 6


def test_differences_between_problems_leave_no_trace() -> None:
    # Easy problems with likely answers correlate across problems; within each there is nothing.
    rewards = np.repeat([0.0, 1.0], 4) + np.tile([0.1, -0.1, 0.1, -0.1], 2)
    logs = np.repeat([-30.0, -3.0], 4) + np.tile([1.0, 1.0, -1.0, -1.0], 2)
    figure = within_problem_correlation(rewards, logs, [0] * 4 + [1] * 4, rng=np.random.default_rng(0), replicates=50)
    assert figure.estimate == pytest.approx(0.0, abs=1e-12)


def test_seeds_are_pooled_within_and_not_across() -> None:
    # Two seeds of one problem with shifted means and opposite slopes cancel; mixed together they would correlate.
    rewards, logs = [0, 1, 10, 11] * 2, [0, 1, 11, 10] * 2
    figure = within_problem_correlation(
        rewards, logs, [0] * 4 + [1] * 4, seeds=[0, 0, 1, 1] * 2, rng=np.random.default_rng(0), replicates=50
    )
    assert figure.estimate == pytest.approx(0.0, abs=1e-12)


def test_reversing_the_reward_reverses_the_sign() -> None:
    rewards, logs, ids = samples(np.random.default_rng(1), problems=30, size=4, slope=0.7)
    forward = within_problem_correlation(rewards, logs, ids, rng=np.random.default_rng(2), replicates=200)
    backward = within_problem_correlation(-rewards, logs, ids, rng=np.random.default_rng(2), replicates=200)
    assert forward.low > 0
    assert (backward.estimate, backward.low, backward.high) == pytest.approx(
        (-forward.estimate, -forward.high, -forward.low), abs=1e-12
    )


@pytest.mark.parametrize(("rewards", "ids"), [([0.1] * 3 + [1.0] * 3, [0, 0, 0, 1, 1, 1]), ([0.0, 1.0], [0, 1])])
def test_without_variation_within_problems_it_is_undefined_and_says_so(rewards: list[float], ids: list[int]) -> None:
    logs = -np.arange(len(ids), dtype=float)
    figure = within_problem_correlation(rewards, logs, ids, rng=np.random.default_rng(0), replicates=50)
    assert math.isnan(figure.estimate)
    assert figure.note


def test_missing_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        within_problem_correlation([math.nan, 1.0], [0.0, 1.0], [0, 0], rng=np.random.default_rng(0))
