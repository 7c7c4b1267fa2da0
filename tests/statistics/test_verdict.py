from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from bsharp.statistics import gain_beyond_best, paired_difference
from bsharp.statistics.verdict import LEAST_SOLVED, Answers, nothing_to_compare


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def evaluation(source: np.random.Generator, mean: float, problems: int, seed_effects: np.ndarray) -> np.ndarray:
    """(S, P) accuracies of 16 samples; problems uniform around the mean."""
    rates = mean + source.uniform(-0.2, 0.2, problems) + seed_effects[:, None]
    return source.binomial(16, np.clip(rates, 0, 1)) / 16


def comparison(means: dict[str, float], seed: int = 0, seed_sd: float = 0.01, seeds: int = 3) -> dict[str, object]:
    """Arguments of gain_beyond_best for task reward `task` and the other regimes as rivals."""
    source = rng(seed)
    effects = {name: seed_sd * source.standard_normal(seeds) for name in means}
    tests = {name: evaluation(source, mean, 200, effects[name]) for name, mean in means.items()}
    checks = {name: evaluation(source, mean, 100, effects[name]) for name, mean in means.items() if name != "task"}
    return {"task_test": tests.pop("task"), "rivals_test": tests, "rivals_validation": checks}


def test_a_clear_gain_is_claimed_over_the_rival_best_on_validation() -> None:
    inputs = comparison({"task": 0.8, "sharpening": 0.45, "tempered": 0.55})
    verdict = gain_beyond_best(**inputs, rng=rng())
    assert verdict.chosen == "tempered"
    expected = 100 * (inputs["task_test"].mean() - inputs["rivals_test"]["tempered"].mean())
    assert verdict.gain.estimate == pytest.approx(expected)
    assert 0 < verdict.gain.low < verdict.gain.estimate < verdict.gain.high
    assert verdict.sentence() == (
        f"gain beyond the best sharpening: {verdict.gain.estimate:+.1f} points "
        f"[{verdict.gain.low:+.1f}, {verdict.gain.high:+.1f}] (best of sharpening, tempered on validation: tempered)"
    )


def test_equal_regimes_are_not_distinguishable() -> None:
    verdict = gain_beyond_best(**comparison({"task": 0.5, "a": 0.5, "b": 0.5}, seed=1), rng=rng())
    assert verdict.gain.low < 0 < verdict.gain.high
    assert verdict.sentence().startswith("not distinguishable: task reward minus the best sharpening")


def test_a_better_rival_is_said_to_be_ahead() -> None:
    verdict = gain_beyond_best(**comparison({"task": 0.4, "sharpening": 0.7}), rng=rng())
    assert verdict.gain.high < 0
    assert verdict.sentence().startswith(f"sharpening ahead by {-verdict.gain.estimate:.1f} points")


def test_the_choice_looks_at_validation_and_never_at_test() -> None:
    inputs = comparison({"task": 0.8, "a": 0.5, "b": 0.6})
    swapped = {"a": inputs["rivals_validation"]["b"], "b": inputs["rivals_validation"]["a"]}
    assert gain_beyond_best(**inputs, rng=rng()).chosen == "b"
    assert gain_beyond_best(**(inputs | {"rivals_validation": swapped}), rng=rng()).chosen == "a"


def test_the_replicates_choose_on_validation_too() -> None:
    inputs = comparison({"task": 0.8, "a": 0.5, "b": 0.6})
    swapped = {"a": inputs["rivals_validation"]["b"], "b": inputs["rivals_validation"]["a"]}
    assert gain_beyond_best(**(inputs | {"rivals_validation": swapped}), rng=rng()).choice_shares["a"] > 0.95


def test_seeds_that_disagree_on_validation_make_the_choice_uncertain() -> None:
    # Problems all alike, so that only the seeds can change the choice: a leads by 1 point, b's seeds differ by 12.
    flat = np.ones((3, 20))
    validation = {"a": 0.51 * flat, "b": 0.5 * flat + np.array([[-0.06], [0.0], [0.06]])}
    verdict = gain_beyond_best(0.8 * flat, {"a": 0.5 * flat, "b": 0.5 * flat}, validation, rng=rng())
    assert verdict.chosen == "a"
    # The share of b is P(t_2 > 1 / (6 / √3)).
    assert verdict.choice_shares["b"] == pytest.approx(stats.t.sf(1 / (6 / np.sqrt(3)), 2), abs=0.02)


@pytest.mark.parametrize("other_on_test", [0.4, 0.6])
def test_the_interval_reaches_as_far_to_both_sides_because_the_choice_errs_both_ways(other_on_test: float) -> None:
    # Nothing varies on test; the uncertain choice alone moves the gain, from 30 to 40 or to 20 points.
    flat = np.ones((3, 20))
    validation = {"a": 0.51 * flat, "b": 0.5 * flat + np.array([[-0.06], [0.0], [0.06]])}
    gain = gain_beyond_best(0.8 * flat, {"a": 0.5 * flat, "b": other_on_test * flat}, validation, rng=rng()).gain
    assert (gain.low, gain.estimate, gain.high) == pytest.approx((20, 30, 40))


def test_a_close_choice_is_repeated_inside_the_bootstrap() -> None:
    verdict = gain_beyond_best(**comparison({"task": 0.8, "a": 0.5, "b": 0.5, "c": 0.2}, seed=3), rng=rng())
    assert sum(verdict.choice_shares.values()) == pytest.approx(1)
    assert min(verdict.choice_shares["a"], verdict.choice_shares["b"]) > 0.05
    assert verdict.choice_shares["c"] < 0.01


def test_a_lone_rival_gives_the_paired_difference() -> None:
    inputs = comparison({"task": 0.7, "sharpening": 0.5}, seed_sd=0.02)
    gain = gain_beyond_best(**inputs, rng=rng()).gain
    paired = paired_difference(inputs["task_test"], inputs["rivals_test"]["sharpening"], rng=rng()).scaled(
        100, "points"
    )
    assert gain.estimate == pytest.approx(paired.estimate)
    # The verdict counts the noise of single samples twice: never narrower, and wider by little.
    assert 0.95 < (gain.high - gain.low) / (paired.high - paired.low) < 1.2


def test_three_seeds_that_disagree_make_the_interval_wide() -> None:
    inputs = comparison({"task": 0.7, "a": 0.5}, seed_sd=0.0)
    calm = gain_beyond_best(**inputs, rng=rng()).gain
    apart = inputs["task_test"] + np.array([[-0.06], [0.0], [0.06]])
    noisy = gain_beyond_best(**(inputs | {"task_test": apart}), rng=rng()).gain
    per_seed = 100 * (apart - inputs["rivals_test"]["a"]).mean(axis=1)
    seeds_only = stats.t.ppf(0.975, 2) * stats.sem(per_seed)
    # Drawn, not integrated: the 97.5 % quantile of t_2 from 32,000 draws in 4,000 groups is good to a few per cent.
    assert 0.95 * seeds_only < (noisy.high - noisy.low) / 2 < 1.25 * seeds_only
    assert noisy.high - noisy.low > 2 * (calm.high - calm.low)


def test_seed_effects_common_to_task_and_rival_cancel() -> None:
    inputs = comparison({"task": 0.7, "a": 0.5}, seed_sd=0.0)
    shift = np.array([[-0.06], [0.0], [0.06]])
    shifted = {"task_test": inputs["task_test"] + shift, "rivals_test": {"a": inputs["rivals_test"]["a"] + shift}}
    calm, common = gain_beyond_best(**inputs, rng=rng()).gain, gain_beyond_best(**(inputs | shifted), rng=rng()).gain
    assert (common.low, common.high) == pytest.approx((calm.low, calm.high))


def test_strata_take_out_the_differences_between_families() -> None:
    families = ["right"] * 50 + ["wrong"] * 50
    mode = np.array([0.9] * 50 + [0.1] * 50)
    noise = [0.02 * rng(i).standard_normal((3, 100)) for i in range(3)]
    inputs = {
        "task_test": 0.9 + noise[0],
        "rivals_test": {"a": mode + noise[1]},
        "rivals_validation": {"a": mode + noise[2]},
    }
    plain = gain_beyond_best(**inputs, rng=rng()).gain
    stratified = gain_beyond_best(**inputs, rng=rng(), test_strata=families, validation_strata=families).gain
    assert stratified.estimate == plain.estimate
    assert stratified.high - stratified.low < (plain.high - plain.low) / 3


def test_one_seed_is_noted() -> None:
    verdict = gain_beyond_best(**comparison({"task": 0.8, "a": 0.5}, seeds=1), rng=rng())
    assert "one seed" in verdict.gain.note
    assert verdict.sentence().endswith("] (a, the only one)")


def test_the_verdict_is_plain_json() -> None:
    verdict = gain_beyond_best(**comparison({"task": 0.8, "a": 0.5}), rng=rng())
    plain = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert plain["sentence"] == verdict.sentence()
    assert plain["gain"]["unit"] == "points"


def test_coverage_holds_also_where_rivals_tie() -> None:
    # 120 comparisons, three tied rivals, seed sd 2 points, truth 20 points. Were coverage 95 %, fewer than 107 hits would
    # have probability 0.5 %; the hull of percentile and pivotal bounds covers more.
    hits = 0
    for index in range(120):
        inputs = comparison({"task": 0.7, "a": 0.5, "b": 0.5, "c": 0.5}, seed=500 + index, seed_sd=0.02)
        gain = gain_beyond_best(**inputs, rng=rng(index), replicates=200).gain
        hits += gain.low <= 20 <= gain.high
    assert hits >= 107


def test_unlike_inputs_are_refused() -> None:
    inputs = comparison({"task": 0.8, "a": 0.5})
    table = inputs["task_test"]
    for change, message in (
        ({"rivals_test": {}, "rivals_validation": {}}, "same rivals"),
        ({"rivals_validation": {"b": table}}, "same rivals"),
        ({"task_test": table[:, :7]}, "on test"),
        ({"rivals_validation": {"a": table[:2]}}, "equal seeds"),
        ({"task_test": table * np.nan}, "finite"),
        ({"level": 0.0}, "level"),
    ):
        with pytest.raises(ValueError, match=message):
            gain_beyond_best(**(inputs | change), rng=rng())


def test_regimes_equal_on_every_problem_are_not_known_to_be_equal_on_problems_not_seen() -> None:
    same = np.zeros((1, 21))
    verdict = gain_beyond_best(same, {"a": same}, {"a": same}, rng=np.random.default_rng(0))
    assert verdict.gain.estimate == 0.0
    assert verdict.gain.high == pytest.approx(100 * (1 - 0.025 ** (1 / 21)))
    assert verdict.gain.low == -verdict.gain.high


# ------------------------------------------------------------------------------------------- nothing to compare

COUNTS = {"models": 3, "problems": 100, "solved": 0, "completions": 1200, "correct": 0}
COUNTS |= {"unparseable": 0, "ungraded": 0, "truncated": 0}


def answers(**changed: int) -> Answers:
    return Answers(**(COUNTS | changed))


def test_the_least_number_of_solved_problems_is_the_first_at_which_a_sign_test_could_reject_equality() -> None:
    assert stats.binomtest(LEAST_SOLVED, LEAST_SOLVED).pvalue < 0.05 <= stats.binomtest(5, 5).pvalue
    assert LEAST_SOLVED == 6


@pytest.mark.parametrize("solved", range(12))
def test_there_is_something_to_compare_exactly_from_that_many_solved_problems_on(solved: int) -> None:
    found = nothing_to_compare(answers(solved=solved, correct=3 * solved, truncated=1200, unparseable=900))
    assert bool(found) == (solved < LEAST_SOLVED)


@pytest.mark.parametrize(
    ("changed", "told", "not_told"),
    [
        ({}, ["0 of 1200 completions of 3 models are right, on 0 of 100 problems", "stronger base"], ["raise", "read"]),
        ({"solved": 5, "correct": 9}, ["9 of 1200", "on 5 of 100 problems", "at least 6"], ["more problems"]),
        ({"truncated": 1200}, ["All completions were cut at max_new_tokens = 8: raise it"], ["stronger base", "read"]),
        ({"truncated": 1199}, ["99.9 % of completions were cut at max_new_tokens = 8"], ["All completions"]),
        ({"truncated": 599}, ["stronger base"], ["cut"]),
        ({"unparseable": 1200}, ["No completion holds an answer that can be read"], ["stronger base", "cut"]),
        (
            {"unparseable": 600, "ungraded": 200},
            ["60.0 % of graded completions hold no", "200 completions could not"],
            [],
        ),
        (
            {"ungraded": 1200},
            ["none of 1200 completions of 3 models could be graded", "timed out or failed"],
            ["right"],
        ),
        ({"problems": 4, "solved": 4, "correct": 900}, ["on 4 of 4 problems", "Evaluate more problems"], ["stronger"]),
    ],
)
def test_the_reason_has_the_figures_and_names_what_explains_most(changed: dict, told: list, not_told: list) -> None:
    reason = nothing_to_compare(answers(**changed), max_new_tokens=8)
    assert "\n" not in reason
    assert all(part in reason for part in told), reason
    assert not any(part in reason for part in not_told), reason


def test_completions_of_a_fixed_length_are_not_called_cut() -> None:
    assert "cut" not in nothing_to_compare(answers(truncated=1200), max_new_tokens=8, fixed_length=True)
