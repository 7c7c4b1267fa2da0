"""The recommendation on hand-made bases: each word where it must come, its rules, and caution where nothing can be said."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bsharp.diagnostics.forecast import forecast
from bsharp.diagnostics.forecast.recommendation import CANNOT_KNOW, WORDS, Thresholds, recommend

Row = tuple[str, float, bool]  # response, its probability, whether it is right


def base_of(rows: Callable[[int], Sequence[Row]], problems: int = 40, samples: int = 20) -> dict[str, Any]:
    """The forecast of a base whose samples are spread over the listed responses exactly as their probabilities say."""
    records = []
    for index in range(problems):
        for text, probability, right in rows(index):
            for _ in range(round(probability * samples)):
                records.append(
                    {
                        "problem_id": f"p{index:03d}",
                        "text": text,
                        "logprob": math.log(probability),
                        "length": 5,
                        "reward": float(right),
                        "answer": text,
                    }
                )
    return forecast(records, [], alphas=[1, 2, 4], beta_invs=[1, 100])


def ordered(_: int) -> list[Row]:
    return [("a", 0.6, True), ("b", 0.25, False), ("c", 0.15, False)]


def anti_ordered(_: int) -> list[Row]:
    return [("a", 0.6, False), ("b", 0.25, True), ("c", 0.15, False)]


def unordered(index: int) -> list[Row]:
    return ordered(index) if index % 2 else anti_ordered(index)


def mostly_silent(index: int) -> list[Row]:
    """Solved, unsolved or mixed in turn; where mixed, the likely answer is right five times of seven."""
    if index % 10 < 3:
        return [("a", 1.0, index % 10 == 0)]
    right = index % 10 < 8
    return [("a", 0.9, right), ("b", 0.1, not right)]


def test_a_base_whose_likely_answers_are_right_should_be_sharpened() -> None:
    found = base_of(ordered)["recommendation"]
    assert found["word"] == "sharpen"
    assert "+40.4 [+40.4, +40.4] points" in found["sentence"]


def test_a_base_whose_likely_answers_are_wrong_needs_labels() -> None:
    found = base_of(anti_ordered)["recommendation"]
    assert found["word"] == "task reward"
    assert "-6.7 [-6.7, -6.7] points" in found["sentence"]


def test_where_likelihood_says_nothing_labels_decide() -> None:
    assert base_of(unordered)["recommendation"]["word"] == "task reward"


def test_where_likelihood_helps_and_the_reward_is_mostly_silent_both_are_used() -> None:
    content = base_of(mostly_silent, problems=60)
    assert content["recommendation"]["word"] == "hybrid"


def test_a_base_that_is_never_right_has_nothing_to_reinforce() -> None:
    found = base_of(lambda _: [("a", 0.6, False), ("b", 0.4, False)])["recommendation"]
    assert found["word"] == "better base or easier curriculum first"
    assert "100 %" in found["sentence"]


def test_a_base_that_is_hardly_ever_right_should_be_improved_first() -> None:
    found = base_of(lambda i: [("a", 0.6, False), ("b", 0.4, i % 10 == 0)])["recommendation"]
    assert found["word"] == "better base or easier curriculum first"


def test_a_base_that_is_always_right_has_nothing_left_to_gain() -> None:
    found = base_of(lambda _: [("a", 0.6, True), ("b", 0.4, True)])["recommendation"]
    assert found["word"] == "task reward"
    assert "less than 2 points are left to gain" in found["sentence"]


def test_problems_solved_always_or_never_give_nothing_to_learn_from() -> None:
    found = base_of(lambda i: [("a", 0.6, i % 2 == 0), ("b", 0.4, i % 2 == 0)])["recommendation"]
    assert found["word"] == "better base or easier curriculum first"
    assert "all of its samples or in none" in found["sentence"]
    assert "Draw more samples" in found["sentence"]


@pytest.mark.parametrize(("problems", "samples"), [(5, 20), (40, 4)])
def test_with_too_few_problems_or_samples_it_says_that_it_cannot_say(problems: int, samples: int) -> None:
    rows = [("a", 0.5, True), ("b", 0.25, False), ("c", 0.25, False)]
    found = base_of(lambda _: rows, problems, samples)["recommendation"]
    assert found["word"] == "task reward"
    assert found["sentence"].startswith("Cannot say")
    never = base_of(lambda _: [(text, p, False) for text, p, _ in rows], problems, samples)["recommendation"]
    assert never["word"] == "better base or easier curriculum first"


def test_an_interval_that_reaches_zero_is_no_gain() -> None:
    content = base_of(ordered)
    for curve in content["tempered"].values():
        for delta in curve["delta"]:
            delta["low"] = -0.01
    for name in ("sum", "mean"):
        content["limit"][name]["delta"]["low"] = -0.01
    assert recommend(content)["word"] == "task reward"


def test_an_unreliable_target_is_not_counted() -> None:
    content = base_of(ordered)
    for name in ("sum", "mean"):
        content["tempered"][name]["reliable"] = [False] * len(content["tempered"][name]["alpha"])
        content["limit"][name]["reliable"] = False
    found = recommend(content)
    assert found["word"] == "task reward"
    assert "too few for any sharpened target" in found["sentence"]


def test_a_larger_change_that_is_not_reliable_is_named_and_not_counted() -> None:
    content = base_of(anti_ordered)
    content["limit"]["mean"] |= {"reliable": False, "note": "drawn once"}
    content["limit"]["mean"]["delta"] |= {"estimate": 0.317, "low": 0.3, "high": 0.33}
    found = recommend(content)
    assert found["word"] == "task reward"
    shown = "(the limit of sharpening by the mean log-probability shows +31.7 [+30.0, +33.0] points, not counted: drawn once)"
    assert shown in found["sentence"]
    content["limit"]["mean"]["delta"] |= {"estimate": -0.9, "low": -0.91, "high": -0.89}
    assert "not counted" not in recommend(content)["sentence"]


def test_one_problem_of_few_samples_does_not_silence_the_rest() -> None:
    content = base_of(ordered)
    content["per_problem"][0] |= {"samples": 7, "correct": 4}
    content["source"]["samples"] = 7
    found = recommend(content)
    assert found["word"] == "sharpen"
    assert found["rules"][0]["figures"] == "39 of 40 problems"
    for problem in content["per_problem"][:11]:
        problem |= {"samples": 7, "correct": 4}
    found = recommend(content)
    assert found["sentence"].startswith("Cannot say: 29 problems with at least 8 graded samples, and it takes 30")
    content["per_problem"][0]["samples"] = 8
    assert recommend(content)["word"] == "sharpen"


def test_the_likelihood_rule_asks_the_normalisation_of_the_target() -> None:
    content = base_of(ordered)
    content["likelihood"]["sum"]["within"]["correlation"] |= {"estimate": -0.5, "low": -0.6, "high": -0.4}
    for name in ("sum", "mean"):
        other = {"sum": "mean", "mean": "sum"}[name]
        changed = copy.deepcopy(content)
        for part in (changed["tempered"][other], changed["limit"][other]):
            part["reliable"] = [False] * 3 if isinstance(part["reliable"], list) else False
        assert recommend(changed)["rules"][3]["holds"] == (name == "mean")


def test_without_unsolved_problems_no_rate_is_bounded() -> None:
    assert base_of(ordered)["recommendation"]["rules"][1]["figures"] == "0 % have none"
    some = base_of(lambda i: ordered(i) if i else [("a", 1.0, False)])["recommendation"]["rules"][1]["figures"]
    assert some == "2 % have none; the success rate of such a problem is below 14 % (95 %)"


def test_sharpening_that_loses_reaches_none_of_what_labels_gain() -> None:
    assert base_of(anti_ordered)["recommendation"]["rules"][5]["figures"] == "none of it"


def test_thresholds_are_declared_and_can_be_moved() -> None:
    content = base_of(ordered)
    assert recommend(content, Thresholds(least_gain=0.5))["word"] != "sharpen"
    assert recommend(content, Thresholds(nearly_all=1.1))["word"] == "task reward"
    assert recommend(content, Thresholds(nearly_all=1.1, mostly_silent=0.0))["word"] == "hybrid"
    assert recommend(content, Thresholds(least_problems=1000))["sentence"].startswith("Cannot say")


@pytest.mark.parametrize("rows", [ordered, anti_ordered, unordered, mostly_silent])
def test_every_rule_has_words_a_source_figures_and_an_answer(rows: Callable[[int], Sequence[Row]]) -> None:
    content = base_of(rows)
    before = copy.deepcopy(content)
    found = recommend(content)
    assert content == before
    assert found["word"] in WORDS
    assert found["cannot_know"] == list(CANNOT_KNOW)
    assert len(found["rules"]) == 7
    for rule in found["rules"]:
        assert set(rule) == {"rule", "source", "figures", "holds"}
        assert all(rule[key] for key in ("rule", "source", "figures"))
        assert isinstance(rule["holds"], bool)
        assert "nan" not in rule["figures"]


def test_the_reward_is_silent_in_groups_of_equal_rewards() -> None:
    """6 of 10 right, groups of 8: at least two are wrong in none and none is all right, 0; 9 of 10: C(9,8)/C(10,8) = 1/5."""
    content = base_of(lambda i: [("a", 0.6, True), ("b", 0.4, i % 2 == 1)], problems=40, samples=10)
    silent = recommend(content)["rules"][-1]
    assert silent["figures"] == "50 % of groups"
    content = base_of(lambda i: [("a", 0.9, True), ("b", 0.1, False)], problems=40, samples=10)
    assert recommend(content)["rules"][-1]["figures"] == "20 % of groups"


@pytest.mark.parametrize(("lengths", "cut"), [((48, 48), True), ((48, 47), False)])
def test_a_base_that_is_never_right_and_always_as_long_is_told_that_it_was_cut(lengths: tuple, cut: bool) -> None:
    records = [
        {
            "problem_id": f"p{index:03d}",
            "text": f"{index} {sample}",
            "logprob": -60.0 - sample,
            "length": lengths[sample % 2],
            "reward": 0.0,
        }
        for index in range(40)
        for sample in range(8)
    ]
    found = forecast(records, [], alphas=[1, 2], beta_invs=[100])["recommendation"]
    assert found["word"] == "better base or easier curriculum first"
    assert ("as if cut at a limit: raise max_new_tokens" in found["sentence"]) == cut
    assert ("Every sample has 48 tokens" in found["sentence"]) == cut
    fixed = forecast([record | {"fixed_length": True} for record in records], [], alphas=[1, 2], beta_invs=[100])
    assert "as if cut" not in fixed["recommendation"]["sentence"]
