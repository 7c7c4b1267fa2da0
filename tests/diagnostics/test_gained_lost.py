"""Problems gained and lost: hand-made tables, exact tests, and the chance counts against simulation."""

from __future__ import annotations

import json
import math
import random
from itertools import product
from math import comb

import numpy as np
import pytest
from hand_made_records import answered, simulated
from scipy import stats

from bsharp.diagnostics.gained_lost import (
    CHANCES,
    _by_chance,
    _chance_posterior,
    _number_of_problems,
    _poisson_binomial,
    gained_lost,
)

BASE = answered([["7", "7"], ["7", "8"], ["8", "8"], ["8", None], ["timeout", "timeout"], ["timeout", "7"]])
REGIME = [
    answered([["7", "8"], ["8", "8"], ["7", "7"], ["8", "7"], ["7", "7"], ["8", "7"]]),
    answered([["8", "7"], ["8", "7"], ["8", "7"], ["8", "8"], ["7", "7"], ["7", "7"]]),
]


def test_a_problem_is_solved_where_half_of_its_graded_samples_are_right_on_average_over_seeds() -> None:
    found = gained_lost({"base": [BASE], "regime": REGIME})
    regime = found["regimes"]["regime"]
    assert {key: regime[key] for key in ("kept", "gained", "lost", "never", "left_out")} == {
        "kept": ["task/0000", "task/0005"],
        "gained": ["task/0002"],
        "lost": ["task/0001"],
        "never": ["task/0003"],
        "left_out": 1,
    }
    problems = found["problems"]
    assert [p["base"] for p in problems.values()] == [1.0, 0.5, 0.0, 0.0, None, 1.0]
    assert [p["regimes"]["regime"] for p in problems.values()] == [0.5, 0.25, 0.75, 0.25, 1.0, 0.75]
    assert problems["task/0000"]["family"] == "add"


def test_a_higher_threshold_asks_for_more_right_samples() -> None:
    regime = gained_lost({"base": [BASE], "regime": REGIME}, threshold=1.0)["regimes"]["regime"]
    assert (regime["lost"], regime["gained"]) == (["task/0000", "task/0005"], [])


def test_the_p_value_is_that_of_tossing_a_coin_for_every_changed_problem() -> None:
    wrong, right = ["8", "8"], ["7", "7"]
    base = answered([wrong] * 7 + [right] * 2 + [wrong] * 3)
    regime = answered([right] * 7 + [wrong] * 2 + [wrong] * 3)
    found = gained_lost({"base": [base], "regime": [regime]})["regimes"]["regime"]
    expected = 2 * sum(comb(9, k) for k in (7, 8, 9)) / 2**9
    assert found["p_value"] == pytest.approx(expected)
    mirrored = gained_lost({"base": [regime], "regime": [base]})["regimes"]["regime"]
    assert (mirrored["gained"], mirrored["lost"]) == (found["lost"], found["gained"])
    assert mirrored["p_value"] == pytest.approx(expected)


def test_the_base_against_itself_gains_and_loses_nothing() -> None:
    records = simulated(0)
    found = gained_lost({"base": [records], "same": [records]})["regimes"]["same"]
    assert found["gained"] == found["lost"] == []
    assert found["p_value"] == 1.0
    assert len(found["kept"]) + len(found["never"]) == 24


def test_bins_of_the_base_are_closed_below_with_zero_alone_so_that_none_mixes_solved_and_unsolved() -> None:
    base = answered([["7"] * right + ["8"] * (8 - right) for right in range(9)])
    found = gained_lost({"base": [base], "regime": [base]})["regimes"]["regime"]
    sizes = {label: sum(row.values()) for label, row in found["by_base"].items()}
    assert sizes == {"0": 1, "0–25 %": 1, "25–50 %": 2, "50–75 %": 2, "75–100 %": 3}
    assert found["by_base"]["25–50 %"] == {"kept": 0, "gained": 0, "lost": 0, "never": 2}
    assert found["by_base"]["50–75 %"] == {"kept": 2, "gained": 0, "lost": 0, "never": 0}


def test_the_counts_by_family_base_and_difficulty_add_up_to_the_lists() -> None:
    found = gained_lost({"base": [simulated(0, ungraded=0.2)], "regime": [simulated(s, skill=1.0) for s in (1, 2)]})
    regime = found["regimes"]["regime"]
    for kind in ("by_family", "by_base", "by_difficulty"):
        for outcome in ("kept", "gained", "lost", "never"):
            assert sum(row[outcome] for row in regime[kind].values()) == len(regime[outcome])
    in_family = [p for p in regime["gained"] if found["problems"][p]["family"] == "family1"]
    assert regime["by_family"]["family1"]["gained"] == len(in_family)
    assert list(regime["by_difficulty"]) == ["1", "2"]


def test_the_chance_counts_are_those_of_evaluating_the_base_again() -> None:
    # Bases of 300 problems, some hopeless, some sure, some even, and 8 samples, evaluated again with 24; the prior is fitted to
    # each base. The fit may be off by 5 % of the count; 4 standard errors beyond it: false alarm below 1 in 5,000.
    rng = np.random.default_rng(0)
    graded, again = np.full(300, 8), np.full((3, 300), 8)
    observed, expected, inside = [], [], []
    for _ in range(25):
        chances = np.concatenate([np.zeros(60), rng.beta(8, 8, size=140), rng.beta(3, 1, size=100)])
        first, second = rng.binomial(8, chances), rng.binomial(24, chances)
        found = _by_chance(first, graded, again, threshold=0.5)
        observed.append([np.sum((first < 4) & (second >= 12)), np.sum((first >= 4) & (second < 12))])
        expected.append([found[key]["estimate"] for key in ("gained", "lost")])
        inside.append([found[k]["low"] <= n <= found[k]["high"] for k, n in zip(found, observed[-1], strict=True)])
    difference, size = np.array(observed) - np.array(expected), np.mean(observed, axis=0)
    assert np.all(size > 15)
    assert np.all(np.abs(difference.mean(0)) < 0.05 * size + 4 * difference.std(0) / np.sqrt(len(difference)))
    assert np.mean(inside) > 0.85


def test_a_chance_known_from_many_samples_flips_like_a_coin_of_that_chance() -> None:
    right, graded = np.array([300, 480, 520, 900]), np.full(4, 1000)
    found = _by_chance(right, graded, np.full((3, 4), 8), threshold=0.5)
    solves = stats.binom.sf(11, 24, right / graded)  # at least half of 3 · 8 samples
    assert found["gained"]["estimate"] == pytest.approx(solves[0] + solves[1], rel=0.05)
    assert found["lost"]["estimate"] == pytest.approx(2 - solves[2] - solves[3], rel=0.05)
    assert (found["gained"]["n"], found["lost"]["n"]) == (2, 2)


def test_the_fitted_chances_have_the_mean_of_the_counts() -> None:
    # With equal numbers of samples every fixed point of the fit has it.
    problems = np.array([[70, 50, 30, 20, 10, 15, 5], [0, 0, 0, 100, 100, 0, 0]])
    posterior = _chance_posterior(np.arange(7), np.full(7, 6), problems)
    assert np.allclose(posterior.sum(-1), 1.0)
    shares = problems / problems.sum(1, keepdims=True)
    assert np.einsum("rdc,rd,c->r", posterior, shares, CHANCES) == pytest.approx(shares @ np.arange(7) / 6, abs=1e-3)


def test_the_number_of_problems_that_flip_is_the_enumerated_one() -> None:
    chances, problems = np.array([[0.1, 0.6], [0.3, 0.9]]), np.array([1, 2])
    distribution = np.zeros(4)
    for row in chances:
        for outcome in product((0, 1), repeat=3):
            each = zip(row[[0, 1, 1]], outcome, strict=True)
            distribution[sum(outcome)] += np.prod([p if hit else 1 - p for p, hit in each]) / 2
    found, cumulative = _number_of_problems(chances, problems), np.cumsum(distribution)
    assert found["estimate"] == pytest.approx(0.1 + 2 * 0.6)
    assert found["low"] == np.argmax(cumulative >= 0.025)
    assert found["high"] == np.argmax(cumulative >= 0.975)


def test_neither_the_order_of_records_nor_an_extreme_base_matters() -> None:
    base, seeds = simulated(0), [simulated(1), simulated(2)]
    text = json.dumps(gained_lost({"base": [base], "regime": seeds}), allow_nan=False)
    shuffled = [random.Random(1).sample(records, len(records)) for records in seeds]
    assert json.dumps(gained_lost({"base": [base[::-1]], "regime": shuffled})) == text
    for answer in ("7", "8", "timeout"):
        extreme = answered([[answer] * 4] * 6)
        chance = gained_lost({"base": [extreme], "regime": [extreme]})["regimes"]["regime"]["expected_by_chance"]
        assert chance["gained"]["estimate"] + chance["lost"]["estimate"] < 0.1


def test_a_missing_base_and_a_threshold_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="needs records of 'base', got regime"):
        gained_lost({"regime": [BASE]})
    with pytest.raises(ValueError, match="2 seeds; the base is evaluated once"):
        gained_lost({"base": REGIME})
    with pytest.raises(ValueError, match=r"threshold in \(0, 1\], got 0"):
        gained_lost({"base": [BASE]}, threshold=0.0)


@pytest.mark.parametrize(("answer", "key"), [("8", "gained"), ("7", "lost")])
def test_a_base_that_is_never_or_always_right_may_by_chance_flip_as_many_as_its_samples_allow(
    answer: str, key: str
) -> None:
    problems, samples = 400, 2
    base = answered([[answer] * samples] * problems)
    found = gained_lost({"base": [base], "regime": [base]})["regimes"]["regime"]["expected_by_chance"]
    # At half of 2 samples one right sample solves; the largest chance that 800 samples of one kind leave possible:
    chance = 1 - 0.025 ** (1 / (problems * samples))
    flips = 1 - (1 - chance) ** samples if key == "gained" else chance**samples
    assert found[key]["high"] == stats.binom.ppf(0.975, problems, flips)
    assert found[key]["low"] == 0
    assert found[key]["estimate"] < 0.5
    if key == "gained":
        assert found[key]["high"] > 0


def test_problems_without_a_family_role_or_mode_are_counted_like_others() -> None:
    plain = {"task": "math500", "family": "algebra", "role": "none", "mode": "none", "difficulty": 5}
    found = gained_lost({"base": [answered([["8"] * 4] * 3, **plain)], "r": [answered([["7"] * 4] * 3, **plain)]})
    assert found["regimes"]["r"]["by_family"] == {"algebra": {"kept": 0, "gained": 3, "lost": 0, "never": 0}}
    assert list(found["regimes"]["r"]["by_difficulty"]) == ["5"]


@pytest.mark.parametrize("kind", ["any", "never", "always", "even"])
@pytest.mark.parametrize(("kinds", "most"), [(0, 1), (1, 1), (1, 9), (6, 40), (17, 300)])
def test_the_distribution_of_a_count_is_the_convolution_of_its_binomials(kinds: int, most: int, kind: str) -> None:
    rng = np.random.default_rng(kinds + most)
    chances = {"any": rng.random((3, kinds)), "never": np.zeros((3, kinds)), "always": np.ones((3, kinds))}
    chances["even"] = np.full((3, kinds), 0.5)
    problems = rng.integers(1, most + 1, kinds)
    expected = np.zeros(problems.sum() + 1)
    for row in chances[kind]:
        of_row = np.ones(1)
        for chance, count in zip(row, problems, strict=True):
            of_row = np.convolve(of_row, stats.binom.pmf(np.arange(count + 1), count, chance))
        expected += of_row / 3
    first, found = _poisson_binomial(chances[kind], problems)
    padded = np.zeros_like(expected)
    padded[first : first + len(found)] = found
    np.testing.assert_allclose(padded, expected, atol=1e-12)


def test_the_distribution_is_computed_where_it_is_and_not_at_every_count() -> None:
    chances = 0.3 + 0.01 * np.random.default_rng(0).random((5, 20))
    for each in (100, 10_000):
        problems = np.full(20, each)
        spread = math.sqrt(0.25 * problems.sum())
        assert len(_poisson_binomial(chances, problems)[1]) < 26 * spread + 0.02 * problems.sum() + 100
