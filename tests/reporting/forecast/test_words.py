"""Sentences follow the figures: signs, intervals, bounds."""

from __future__ import annotations

from typing import Any

import pytest
from sample_forecast import estimated, hand_made_forecast

from bsharp.reporting.forecast.words import (
    base_sentence,
    cut_sentence,
    likelihood_sentences,
    limit_sentences,
    no_correct_sentence,
    rests_on,
    tilt_sentence,
    warnings,
)


@pytest.mark.parametrize(
    ("value", "width", "said"),
    [
        (0.2, 0.1, "are more often right (correlation +0.20 [+0.10, +0.30])"),
        (-0.2, 0.1, "are more often wrong (correlation -0.20 [-0.30, -0.10])"),
        (
            0.05,
            0.1,
            "are neither more often right nor wrong: the interval includes 0 (correlation +0.05 [-0.05, +0.15])",
        ),
    ],
)
def test_likelihood_is_said_to_predict_by_the_side_of_its_interval(
    forecast: dict[str, Any], value: float, width: float, said: str
) -> None:
    forecast["likelihood"]["sum"]["within"]["correlation"] = estimated(value, width, "correlation")
    assert said in next(iter(likelihood_sentences(forecast)))


def test_an_undefined_correlation_gives_its_reason(forecast: dict[str, Any]) -> None:
    undefined = estimated(None, unit="correlation", note="all samples are right")
    forecast["likelihood"]["mean"]["within"]["correlation"] = undefined
    first, second = likelihood_sentences(forecast)
    assert second == "By the mean log-probability per token, nothing can be said: all samples are right."
    assert "nothing" not in first


def test_a_correlation_without_interval_says_so(forecast: dict[str, Any]) -> None:
    forecast["likelihood"]["sum"]["within"]["correlation"] |= {"low": None, "high": None}
    assert "are more often right, without an interval (correlation +0.21)" in next(iter(likelihood_sentences(forecast)))


def test_the_covariance_is_the_slope_in_points_per_unit_of_alpha(forecast: dict[str, Any]) -> None:
    assert "by +3.4 [+2.3, +4.5] points per unit of α" in next(iter(likelihood_sentences(forecast)))


def test_problems_without_a_right_sample_come_with_the_bound_of_their_success(forecast: dict[str, Any]) -> None:
    # 1 - 0.05^(1/16) = 0.1707
    said = no_correct_sentence(forecast)
    assert said.startswith("On 15 problems (15.5 [11.9, 19.1] %) no sample is right")
    assert said.endswith("in up to 17.1 % of samples (95 % bound).")
    forecast["base"]["no_correct_ids"] = ["one"]
    assert no_correct_sentence(forecast).startswith("On 1 problem (")
    forecast["base"]["no_correct_ids"] = []
    assert no_correct_sentence(forecast) == "Every problem has at least one right sample."


def test_the_curve_is_reliable_up_to_the_last_value_before_the_first_that_is_not(forecast: dict[str, Any]) -> None:
    assert cut_sentence(forecast, "sum").startswith("Reliable up to α = 2; from α = 2.5 on not reliable: 3.9 effective")
    assert cut_sentence(forecast, "mean") == "Reliable up to α = 4, the end of the curve."
    flags = forecast["tempered"]["sum"]["reliable"]
    flags[1] = False
    assert cut_sentence(forecast, "sum").startswith("Reliable up to α = 1;")
    flags[0] = False
    assert cut_sentence(forecast, "sum").startswith("Reliable nowhere;")


def test_a_limit_that_still_moves_is_said_to_move(forecast: dict[str, Any]) -> None:
    by_k = forecast["limit"]["sum"]["by_k"]
    by_k["accuracy"][-2:] = [0.40, 0.45]
    by_k["k"][-2:] = [8, 16]
    sentences = list(limit_sentences(forecast))
    assert sentences[0].endswith("(+2.6 [-1.1, +6.3] points); still moving: +5.0 points from k = 8 to 16.")
    assert "settled" in sentences[1]
    assert len(sentences) == 3


def test_the_strongest_tilt_is_told_with_what_it_costs(forecast: dict[str, Any]) -> None:
    assert tilt_sentence(forecast).startswith(
        "With β⁻¹ = 10,000 the tilt is forecast at 84.5 [81.2, 87.8] % (+38.3 [+35.9, +40.7] points) for 0.62 [0.57, 0.67] nats"
    )


def test_few_problems_and_samples_are_warned_of() -> None:
    content = hand_made_forecast()
    assert [serious for serious, _ in warnings(content)] == [False]
    content["source"] |= {"problems": 12, "samples": 4, "samples_max": 8, "ungraded": 0, "left_out": 2}
    found = list(warnings(content))
    assert [serious for serious, _ in found] == [True, True, False]
    assert "12 problems" in found[0][1]
    assert "4 samples" in found[1][1]
    assert rests_on(content).startswith(
        "12 problems × 4 to 8 samples of embedded:tiny (math_mini, train) at temperature 1"
    )


def test_the_base_is_told_without_a_greedy_accuracy_where_there_is_none(forecast: dict[str, Any]) -> None:
    assert "(52.1 [47.1, 57.1] % greedily)" in base_sentence(forecast)
    forecast["base"]["greedy_accuracy"] = None
    assert "greedily" not in base_sentence(forecast)


def test_a_lower_bound_of_the_tilt_is_told_as_at_least(forecast: dict[str, Any]) -> None:
    assert "at least" not in tilt_sentence(forecast)
    forecast["tilt"]["lower_bound"] = [False] * 6 + [True]
    assert tilt_sentence(forecast).startswith("With β⁻¹ = 10,000 the tilt is forecast to reach at least 84.5 [")


def test_more_samples_are_advised_where_no_regime_is_reliable(forecast: dict[str, Any]) -> None:
    for regime in forecast["regimes"].values():
        regime["reliable"] = False
    assert (True, "No regime's forecast is reliable: draw more samples, e.g. --samples 64.") in warnings(forecast)
    forecast["source"]["samples"] = 50
    assert any("--samples 100." in text for _, text in warnings(forecast))
    forecast["regimes"]["task_reward"]["lower_bound"] = True
    assert not any("--samples" in text for _, text in warnings(forecast))


def test_what_the_records_do_not_say_is_warned_of(forecast: dict[str, Any]) -> None:
    forecast["source"]["ungraded"] = 1
    assert list(warnings(forecast)) == [
        (False, "1 sample could not be graded (timeout or error); it counts in no figure.")
    ]
    forecast["source"] |= {
        "ungraded": 0,
        "temperature_known": False,
        "partial_rewards": 2,
        "left_out": 1,
        "note": "some repeats count as different responses",
    }
    assert list(warnings(forecast)) == [
        (True, "2 samples have a partial reward, between 0 and 1: none of them counts as right."),
        (False, "Not every record says its temperature: 1 is assumed; at another, every weight is wrong."),
        (False, "1 problem has too few graded samples and was left out."),
        (False, "Some repeats count as different responses."),
    ]
    forecast["source"] |= {"temperature_known": True, "partial_rewards": 0, "left_out": 0, "note": ""}
    assert not list(warnings(forecast))


def test_one_problem_and_one_sample_are_singular(forecast: dict[str, Any]) -> None:
    forecast["source"] |= {"problems": 1, "samples": 1, "samples_max": 1}
    assert rests_on(forecast).startswith("1 problem × 1 sample of")


def test_pass_at_n_is_told_with_the_samples_of_the_median_problem(forecast: dict[str, Any]) -> None:
    forecast["source"] |= {"samples": 3, "samples_median": 15}
    assert "at least once in 15 on" in base_sentence(forecast)
    assert not any("Only" in text for _, text in warnings(forecast))


def test_problems_without_a_right_sample_are_told_once(forecast: dict[str, Any]) -> None:
    assert "no sample is right" not in tilt_sentence(forecast)
