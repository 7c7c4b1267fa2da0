from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from bsharp.statistics import Estimate, bootstrap_interval, format_share, paired_difference, problem_and_seed_interval


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def half_width(figure: Estimate) -> float:
    return (figure.high - figure.low) / 2


def test_the_estimate_is_the_grand_mean() -> None:
    values = rng().random((3, 20))
    figure = problem_and_seed_interval(values, rng=rng())
    assert figure.estimate == pytest.approx(values.mean(), abs=1e-14)
    assert figure.low < figure.estimate < figure.high
    assert (figure.n, figure.unit, figure.note) == (20, "share", "")


def test_with_problems_alone_the_interval_is_the_t_interval_of_their_mean() -> None:
    values = rng(1).standard_normal(400)
    figure = problem_and_seed_interval(values, rng=rng(), replicates=40_000)
    expected = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (figure.low, figure.high) == pytest.approx(expected, abs=0.05 * half_width(figure))


def test_with_equal_problems_the_interval_is_the_t_interval_over_seeds() -> None:
    seed_means = np.array([0.40, 0.46, 0.45])
    figure = problem_and_seed_interval(np.repeat(seed_means[:, None], 50, axis=1), rng=rng())
    expected = stats.t.interval(0.95, 2, seed_means.mean(), stats.sem(seed_means))
    assert (figure.low, figure.high) == pytest.approx(expected, abs=1e-8)


def test_both_sources_combine_to_the_behrens_fisher_quantile() -> None:
    # Additive effects, no residual: deviation = problem part + standard error · t_2, here by Monte Carlo.
    problem_effects, seed_effects = rng(2).standard_normal(300), np.array([-0.1, 0.02, 0.08])
    figure = problem_and_seed_interval(problem_effects + seed_effects[:, None], rng=rng(), replicates=20_000)
    draws = stats.sem(problem_effects) * rng(3).standard_t(299, 400_000)
    draws += stats.sem(seed_effects) * rng(4).standard_t(2, 400_000)
    assert half_width(figure) == pytest.approx(np.quantile(draws, 0.975), rel=0.04)


def test_the_residual_counts_once() -> None:
    # Pure seed-by-problem noise belongs to the seed part alone; counting it in both would widen the interval.
    values = rng(5).standard_normal((5, 2000))
    figure = problem_and_seed_interval(values, rng=rng())
    seeds_only = stats.t.ppf(0.975, 4) * stats.sem(values.mean(axis=1))
    problems_too = np.hypot(seeds_only, 1.96 * stats.sem(values.mean(axis=0)))
    assert seeds_only * 0.999 <= half_width(figure) < seeds_only * 1.05 < problems_too


def test_one_seed_covers_problems_only_and_says_so() -> None:
    values = rng().random(60)
    alone, lone_seed = problem_and_seed_interval(values, rng=rng()), problem_and_seed_interval(values[None], rng=rng())
    assert (alone.low, alone.high) == (lone_seed.low, lone_seed.high)
    assert alone.note == ""
    assert "one seed" in lone_seed.note


def test_one_problem_leaves_the_seeds_or_nothing() -> None:
    figure = problem_and_seed_interval([[0.1], [0.3], [0.2]], rng=rng())
    expected = stats.t.interval(0.95, 2, 0.2, stats.sem([0.1, 0.3, 0.2]))
    assert (figure.low, figure.high) == pytest.approx(expected, abs=1e-8)
    assert "seeds only" in figure.note
    nothing = problem_and_seed_interval([0.4], rng=rng())
    assert math.isnan(nothing.low)
    assert nothing.as_json() == {
        "estimate": 0.4,
        "low": None,
        "high": None,
        "n": 1,
        "unit": "share",
        "note": "one problem: no interval",
    }


def test_no_variation_is_noted() -> None:
    figure = problem_and_seed_interval(np.full((3, 5), 0.1), rng=rng())
    assert figure.low == pytest.approx(0.1)
    assert figure.high == pytest.approx(0.1)
    assert "no variation" in figure.note


def test_at_the_bound_the_other_end_covers_problems_not_seen() -> None:
    # Were 1 - high of the problems all zero and the rest not, 40 zeros would have probability 2.5 %.
    zero = problem_and_seed_interval(np.zeros((3, 40)), rng=rng(), bounds=(0, 1))
    assert zero.low == 0
    assert (1 - zero.high) ** 40 == pytest.approx(0.025)
    one = problem_and_seed_interval(np.ones(40), rng=rng(), bounds=(0, 1))
    assert (one.low, one.high) == (pytest.approx(1 - zero.high), 1)
    assert "bound" in one.note


def test_beside_the_bound_an_end_is_never_nearer_than_on_it() -> None:
    on_it = problem_and_seed_interval(np.zeros(40), rng=rng(), bounds=(0, 1))
    beside = np.zeros(40)
    beside[0] = 0.05
    figure = problem_and_seed_interval(beside, rng=rng(), bounds=(0, 1))
    assert (figure.low, figure.high) == (0.0, on_it.high)
    assert "problems not seen" in figure.note
    mirrored = problem_and_seed_interval(1 - beside, rng=rng(), bounds=(0, 1))
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - on_it.high), 1.0)
    far = np.tile([0.2, 0.8], 20)
    assert problem_and_seed_interval(far, rng=rng(), bounds=(0, 1)) == problem_and_seed_interval(far, rng=rng())


def test_a_difference_of_nothing_but_zeros_is_as_uncertain_as_the_problems_not_seen() -> None:
    none = paired_difference(np.ones((3, 40)), np.ones(40), rng=rng(), share_difference=True)
    assert (none.estimate, none.low) == (0.0, -none.high)
    assert (1 - none.high) ** 40 == pytest.approx(0.025)
    assert none.note == "no problem changed; the ends cover problems not seen"
    one = problem_and_seed_interval(np.zeros((1, 40)), rng=rng(), share_difference=True)
    assert one.note.startswith("one seed")
    values = np.zeros((3, 40))
    values[0, 0] = 0.5
    assert problem_and_seed_interval(values, rng=rng(), share_difference=True) == problem_and_seed_interval(
        values, rng=rng()
    )


def test_the_interval_is_cut_to_the_bounds() -> None:
    figure = problem_and_seed_interval([[0.9, 1.0, 1.0], [0.5, 0.9, 1.0]], rng=rng(), bounds=(0, 1))
    assert figure.high == 1.0


def test_strata_take_out_the_differences_between_families() -> None:
    families = ["easy"] * 30 + ["hard"] * 30
    values = np.where(np.array(families) == "easy", 0.9, 0.1) + 0.02 * rng(1).standard_normal((3, 60))
    plain = problem_and_seed_interval(values, rng=rng())
    stratified = problem_and_seed_interval(values, rng=rng(), strata=families)
    assert stratified.estimate == plain.estimate
    assert half_width(stratified) < half_width(plain) / 5
    # Within strata nothing is left but noise of known size: 0.02 / √180 and t over 2 degrees of freedom at the most.
    assert half_width(stratified) < 10 * 0.02 / math.sqrt(180)


def test_a_stratum_of_one_problem_is_not_taken_for_a_certainty() -> None:
    figure = problem_and_seed_interval([0.1, 0.4, 0.9], rng=rng(), strata=["a", "a", "b"])
    assert "without strata" in figure.note
    assert half_width(figure) > 0.2


def test_a_paired_difference_takes_out_what_the_problems_share() -> None:
    base = rng(1).random(200)
    tuned = base + 0.1 + 0.01 * rng(2).standard_normal((3, 200))
    figure = paired_difference(tuned, base, rng=rng())
    assert figure.estimate == pytest.approx(0.1, abs=0.005)
    assert half_width(figure) < 0.01 < half_width(problem_and_seed_interval(tuned, rng=rng()))
    reverse = paired_difference(base, tuned, rng=rng())
    assert reverse.estimate == pytest.approx(-figure.estimate)
    assert figure.excludes_zero()
    assert reverse.high < 0


def test_the_same_generator_gives_the_same_interval() -> None:
    values = rng().random((3, 40))
    assert problem_and_seed_interval(values, rng=rng(7)) == problem_and_seed_interval(values, rng=rng(7))


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "not empty"), ([[[1.0]]], "shape"), ([0.1, math.nan], "finite values")],
)
def test_values_that_have_no_mean_are_refused(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problem_and_seed_interval(values, rng=rng())


def test_differences_of_unlike_tables_are_refused() -> None:
    for treated, control in (((3, 5), (3, 4)), ((3, 5), (2, 5)), ((5,), (4,))):
        with pytest.raises(ValueError, match="same problems and seeds"):
            paired_difference(np.zeros(treated), np.zeros(control), rng=rng())


def test_a_level_outside_the_unit_interval_and_short_strata_are_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        problem_and_seed_interval([0.1, 0.2], rng=rng(), level=1.0)
    with pytest.raises(ValueError, match="one label per problem"):
        problem_and_seed_interval([0.1, 0.2], rng=rng(), strata=["a"])


def test_coverage_is_near_the_level_where_a_bootstrap_over_seeds_fails() -> None:
    # 200 evaluations of 3 seeds × 64 problems with 16 binomial samples each; the truth is 0.5. The interval covers about
    # 97 % here; were it 95 %, fewer than 180 hits would have probability 0.2 %. A percentile bootstrap over 3 seeds
    # that knows no problems covers less than 60 %; fewer than 140 hits are then certain to 1e-3.
    hits = naive = 0
    for index in range(200):
        source = rng(1000 + index)
        rates = np.clip(source.uniform(0.2, 0.8, 64) + 0.015 * source.standard_normal((3, 1)), 0, 1)
        values = source.binomial(16, rates) / 16
        figure = problem_and_seed_interval(values, rng=source, replicates=300)
        hits += figure.low <= 0.5 <= figure.high
        means = values.mean(axis=1)
        low, high = np.quantile(means[source.integers(0, 3, (500, 3))].mean(axis=1), [0.025, 0.975])
        naive += low <= 0.5 <= high
    assert hits >= 180
    assert naive < 140


def test_bootstrap_of_a_mean_agrees_with_the_interval_of_a_mean() -> None:
    values = rng(1).random(150)
    general = bootstrap_interval(lambda rows: values[rows].mean(), 150, rng=rng(), replicates=4000)
    special = problem_and_seed_interval(values, rng=rng(), replicates=4000)
    assert (general.estimate, general.low, general.high) == pytest.approx(
        (special.estimate, special.low, special.high), abs=1e-9
    )


def test_bootstrap_of_a_ratio_per_seed_adds_the_seed_part() -> None:
    top, bottom = rng(1).random((3, 80)) + np.array([[0.0], [0.3], [0.6]]), rng(2).random(80) + 1
    per_seed = bootstrap_interval(lambda r: top[:, r].sum(axis=1) / bottom[r].sum(), 80, rng=rng(), replicates=500)
    pooled = bootstrap_interval(lambda r: top[:, r].sum() / bottom[r].sum() / 3, 80, rng=rng(), replicates=500)
    ratios = top.sum(axis=1) / bottom.sum()
    assert per_seed.estimate == pytest.approx(ratios.mean())
    assert pooled.estimate == pytest.approx(ratios.mean())
    seeds_only = stats.t.ppf(0.975, 2) * stats.sem(ratios)
    assert half_width(pooled) < seeds_only < half_width(per_seed)


def test_bootstrap_counts_replicates_that_are_undefined() -> None:
    values = np.array([0.0] * 6 + [1.0])

    def statistic(rows: np.ndarray) -> float:
        return 1.0 / values[rows].sum() if values[rows].any() else math.nan

    figure = bootstrap_interval(statistic, 7, rng=rng(), replicates=400)
    assert "of 400 bootstrap replicates" in figure.note
    assert math.isnan(bootstrap_interval(lambda rows: math.nan, 7, rng=rng()).estimate)
    assert math.isnan(bootstrap_interval(lambda rows: 1.0, 1, rng=rng()).low)


def test_an_estimate_is_valid_json_also_where_undefined() -> None:
    figure = Estimate(math.nan, math.nan, math.nan, n=0, unit="nats", note="no data")
    assert json.loads(json.dumps(figure.as_json(), allow_nan=False))["estimate"] is None
    assert Estimate(0.5, 0.4, 0.6, 10, "share").as_json().keys() == {"estimate", "low", "high", "n", "unit"}


def test_figures_print_with_sign_and_without_minus_zero() -> None:
    assert Estimate(2.0, -0.04, 4.04, 9, "points").format(signed=True) == "+2.0 [0.0, +4.0]"
    assert Estimate(0.43, math.nan, math.nan, 1, "share").format(digits=2) == "0.43 [–, –]"
    assert format_share(Estimate(0.4281, 0.4, 0.45, 9, "share")) == "42.8 [40.0, 45.0]"
    with pytest.raises(ValueError, match="positive factor"):
        Estimate(1, 0, 2, 1, "share").scaled(-100, "points")
