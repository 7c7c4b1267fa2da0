from __future__ import annotations

import math

import numpy as np
import pytest

from bsharp.statistics import bootstrap_interval, within_problem_correlation


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


def test_one_seed_is_noted_and_seeds_that_differ_widen_the_interval_as_t_of_their_means() -> None:
    rng = np.random.default_rng(3)
    parts = [samples(rng, problems=400, size=4, slope=slope) for slope in (0.2, 0.7, 1.2)]
    rewards, logs = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    ids, seeds = parts[0][2] * 3, np.repeat([0, 1, 2], len(parts[0][2])).tolist()
    alone = within_problem_correlation(
        parts[0][0], parts[0][1], parts[0][2], seeds=[0] * 1600, rng=np.random.default_rng(0), replicates=200
    )
    assert alone.note == "one seed: the interval covers problems only"
    figure = within_problem_correlation(rewards, logs, ids, seeds=seeds, rng=np.random.default_rng(0), replicates=200)
    own = [within_problem_correlation(*part, rng=np.random.default_rng(0), replicates=50).estimate for part in parts]
    reach = 4.303 * np.std(own, ddof=1) / math.sqrt(3)  # t with 2 degrees of freedom; problems add little
    # The linearisation is of first order: the three correlations span 0.5.
    assert (figure.high - figure.low) / 2 == pytest.approx(reach, rel=0.35)
    assert figure.note == ""


def test_a_seed_without_variation_counts_and_does_not_undo_the_others() -> None:
    rewards, logs, ids = samples(np.random.default_rng(4), problems=20, size=4, slope=1.0)
    both = np.concatenate([rewards, np.zeros(80)]), np.concatenate([logs, np.full(80, -1.0)])
    figure = within_problem_correlation(*both, ids * 2, seeds=[0] * 80 + [1] * 80, rng=np.random.default_rng(0))
    alone = within_problem_correlation(rewards, logs, ids, rng=np.random.default_rng(0))
    assert figure.estimate == pytest.approx(alone.estimate)


def test_strata_hold_the_mix_of_families() -> None:
    # One family of correlation 1 and one of -1, each with no spread of its own: only their mix could vary.
    rewards, logs, ids = [0.0, 1.0] * 20, [0.0, 1.0] * 10 + [1.0, 0.0] * 10, np.repeat(np.arange(20), 2).tolist()
    free = within_problem_correlation(rewards, logs, ids, rng=np.random.default_rng(0), replicates=200)
    kept = within_problem_correlation(
        rewards, logs, ids, strata={p: p // 10 for p in range(20)}, rng=np.random.default_rng(0), replicates=200
    )
    assert free.high - free.low > 0.4
    assert (kept.estimate, kept.low, kept.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_missing_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        within_problem_correlation([math.nan, 1.0], [0.0, 1.0], [0, 0], rng=np.random.default_rng(0))


@pytest.mark.parametrize("complete", [True, False])
def test_estimate_and_interval_are_those_of_plain_sums_over_resampled_problems(complete: bool) -> None:
    rng = np.random.default_rng(3)
    problems, seeds = np.repeat(np.arange(3, 15), 18), np.tile(np.repeat([0, 1, 2], 6), 12)
    kept = np.ones(len(problems), dtype=bool) if complete else rng.random(len(problems)) < 0.5
    problems, seeds = problems[kept], seeds[kept]
    rewards, logs = rng.integers(0, 2, len(problems)).astype(float), -rng.exponential(9.0, len(problems))
    strata = {problem: problem % 2 for problem in range(3, 15)}
    moments = []
    for problem in dict.fromkeys(problems.tolist()):
        groups = [(problems == problem) & (seeds == seed) for seed in (0, 1, 2)]
        found = [np.cov(rewards[g], logs[g]) if g.sum() > 1 else np.full((2, 2), np.nan) for g in groups]
        moments.append(np.where(np.isnan(found), np.nanmean(found, axis=0), found))
    table = np.array(moments)  # (problems, seeds, 2, 2)

    def by_seed(indices: np.ndarray) -> np.ndarray:
        sums = table[indices].sum(axis=0)
        covariance, r, ell = (sums[:, a, b].mean() for a, b in ((0, 1), (0, 0), (1, 1)))
        moved = sums[:, 0, 0] / r + sums[:, 1, 1] / ell
        return covariance / math.sqrt(r * ell) * (1 - moved / 2) + sums[:, 0, 1] / math.sqrt(r * ell)

    labels = [strata[problem] for problem in dict.fromkeys(problems.tolist())]
    plain = bootstrap_interval(
        by_seed, 12, rng=np.random.default_rng(0), strata=labels, bounds=(-1.0, 1.0), replicates=300
    )
    for ids, of in ((problems, seeds), (problems.tolist(), [str(seed) for seed in seeds.tolist()])):
        figure = within_problem_correlation(
            rewards, logs, ids, seeds=of, strata=strata, rng=np.random.default_rng(0), replicates=300
        )
        found = (figure.estimate, figure.low, figure.high)
        assert found == pytest.approx((plain.estimate, plain.low, plain.high), rel=1e-9)
        assert (figure.n, figure.note) == (plain.n, plain.note)
