"""Confidence against accuracy, and how both moved from the base: hand-made votes and plain loops."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hand_made_records import GOLD, answered, simulated

from bsharp.diagnostics.calibration import _conditional_mean, calibration
from bsharp.statistics import vote_share

BASE = simulated(0, problems=60, base=True)
SEEDS = [simulated(seed, problems=60, skill=1.5) for seed in (1, 2, 3)]


def votes(records: list[dict[str, Any]]) -> dict[str, tuple[float, float, dict[str, float]]]:
    """Problem → (confidence, credit, share of every answer); only for records that are all graded."""
    answers: dict[str, list[str | None]] = {}
    for record in records:
        if not record["greedy"]:
            answers.setdefault(record["problem_id"], []).append(record["answer"])
    found = {}
    for problem_id, given in answers.items():
        shares = {str(a): given.count(a) / len(given) for a in set(given) - {None}}
        found[problem_id] = (*vote_share(given, [float(a == GOLD) for a in given]), shares)
    return found


def plain_ece(found: dict[str, tuple[float, float, dict[str, float]]]) -> float:
    gaps = [0.0] * 10
    for confidence, credit, _ in found.values():
        gaps[max(int(np.ceil(round(confidence * 10, 9))) - 1, 0)] += credit - confidence
    return sum(abs(gap) for gap in gaps) / len(found)


def plain_changes() -> dict[str, float]:
    """Every change by a loop over seeds and problems."""
    before = votes(BASE)
    sums: dict[str, float] = {}
    weight = {"right": 0.0, "wrong": 0.0}
    total = 0
    for records in SEEDS:
        for problem_id, (confidence, credit, shares) in votes(records).items():
            base_confidence, _, base_shares = before[problem_id]
            total += 1
            modal = [a for a, share in shares.items() if share == confidence]
            moved = np.mean([shares[a] - base_shares.get(a, 0.0) for a in modal])
            delta = confidence - base_confidence
            for side, part in (("right", credit), ("wrong", 1 - credit)):
                weight[side] += part
                for key, value in (
                    (f"modal_share_change_where_{side}", part * delta),
                    (f"answer_share_change_where_{side}", part * moved),
                    (f"{side}_and_more_certain", part * (delta > 0)),
                    (f"{side}_and_less_certain", part * (delta < 0)),
                ):
                    sums[key] = sums.get(key, 0.0) + float(value)
            base_modal = {a for a, share in base_shares.items() if share == base_confidence}
            same = np.mean([a != GOLD and a in base_modal for a in modal]) if delta > 0 else 0.0
            sums["same_wrong_answer_more_certain"] = sums.get("same_wrong_answer_more_certain", 0.0) + float(same)
    return {key: value / (weight[key[-5:]] if "_where_" in key else total) for key, value in sums.items()}


def test_every_change_is_the_plain_mean_over_seeds_and_problems() -> None:
    found = calibration({"base": [BASE], "regime": SEEDS})["changes"]["regime"]
    expected = plain_changes()
    assert set(found) == {*expected, "ece_change"}
    for key, value in expected.items():
        assert found[key]["estimate"] == pytest.approx(value, rel=1e-9), key
        assert found[key]["low"] < value < found[key]["high"]


def test_the_error_is_averaged_over_seeds_and_its_change_is_against_the_base() -> None:
    found = calibration({"base": [BASE], "regime": SEEDS})
    base, regime = plain_ece(votes(BASE)), float(np.mean([plain_ece(votes(records)) for records in SEEDS]))
    assert found["models"]["base"]["ece"]["estimate"] == pytest.approx(base)
    assert found["models"]["regime"]["ece"]["estimate"] == pytest.approx(regime)
    assert found["changes"]["regime"]["ece_change"]["estimate"] == pytest.approx(regime - base)


def test_the_bins_hold_every_problem_once_and_weigh_up_to_the_means() -> None:
    models = calibration({"base": [BASE], "regime": SEEDS})["models"]
    for name, records_by_seed in (("base", [BASE]), ("regime", SEEDS)):
        bins = models[name]["bins"]
        assert [(b["low"], b["high"]) for b in bins] == [(i / 10, (i + 1) / 10) for i in range(10)]
        assert sum(b["problems"] for b in bins) == pytest.approx(60)
        pairs = [pair for records in records_by_seed for pair in votes(records).values()]
        for place, key in ((0, "confidence"), (1, "accuracy")):
            values = [b[key] if key == "confidence" else b[key]["estimate"] for b in bins]
            weighed = (
                sum(b["problems"] * value for b, value in zip(bins, values, strict=True) if value is not None) / 60
            )
            assert weighed == pytest.approx(np.mean([pair[place] for pair in pairs]))
        for b in bins:
            if b["problems"]:
                assert b["low"] < b["confidence"] <= b["high"] + 1e-9


def test_the_interval_of_a_conditional_mean_is_as_wide_as_a_bootstrap_of_the_ratio_itself() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=300), rng.choice([0.25, 0.5, 1.0], size=300)
    figure = _conditional_mean(values, weights, None, "width")
    drawn = rng.integers(0, 300, size=(4000, 300))
    low, high = np.quantile((values * weights)[drawn].sum(1) / weights[drawn].sum(1), [0.025, 0.975])
    # Each width carries a bootstrap error of 2 to 4 %.
    assert figure.high - figure.low == pytest.approx(high - low, rel=0.15)


def test_empty_bins_are_null_and_bins_of_few_problems_have_no_interval() -> None:
    records = answered([["7", "7", "7", "8"]] * 9 + [["8"] * 4] * 30)
    bins = calibration({"base": [records]})["models"]["base"]["bins"]
    few, many, empty = bins[7], bins[9], bins[0]
    assert (few["problems"], few["accuracy"]["estimate"], few["accuracy"]["low"]) == (9, 1.0, None)
    assert few["accuracy"]["note"] == "fewer than 10 problems: no interval"
    assert (many["accuracy"]["estimate"], many["accuracy"]["low"]) == (0.0, 0.0)
    assert many["accuracy"]["high"] == pytest.approx(1 - 0.025 ** (1 / 30))
    assert (empty["problems"], empty["confidence"], empty["accuracy"]["estimate"]) == (0, None, None)


def test_a_wrong_modal_answer_that_hardens_is_counted_and_one_that_softens_is_not() -> None:
    base = answered([["8", "8", "9", "7"]] * 12 + [["8", "8", "8", "8"]] * 12 + [["7", "7", "8", "9"]] * 12)
    regime = answered([["8", "8", "8", "8"]] * 12 + [["8", "8", "9", "7"]] * 12 + [["9", "9", "9", "9"]] * 12)
    found = calibration({"base": [base], "regime": [regime]})["changes"]["regime"]
    estimates = {key: figure["estimate"] for key, figure in found.items()}
    assert estimates["wrong_and_more_certain"] == pytest.approx(2 / 3)
    assert estimates["wrong_and_less_certain"] == pytest.approx(1 / 3)
    assert estimates["same_wrong_answer_more_certain"] == pytest.approx(1 / 3)
    assert estimates["right_and_more_certain"] == estimates["right_and_less_certain"] == 0
    assert estimates["modal_share_change_where_wrong"] == pytest.approx((0.5 - 0.5 + 0.5) / 3)
    assert estimates["answer_share_change_where_wrong"] == pytest.approx((0.5 - 0.5 + 0.75) / 3)
    assert (estimates["modal_share_change_where_right"], found["modal_share_change_where_right"]["note"]) == (
        None,
        "no such problem",
    )


def test_tied_answers_share_right_and_wrong() -> None:
    base = answered([["7", "8", "9", None]] * 12)
    regime = answered([["7", "7", "8", "8"]] * 12)
    found = calibration({"base": [base], "regime": [regime]})["changes"]["regime"]
    assert found["right_and_more_certain"]["estimate"] == found["wrong_and_more_certain"]["estimate"] == 0.5
    assert found["same_wrong_answer_more_certain"]["estimate"] == 0.5
    assert found["answer_share_change_where_right"]["estimate"] == pytest.approx(0.25)


def test_the_base_against_itself_did_not_move() -> None:
    found = calibration({"base": [BASE], "same": [BASE, BASE]})
    for figure in found["changes"]["same"].values():
        assert figure["estimate"] == 0
        assert figure["low"] <= 0 <= figure["high"]
    same, base = found["models"]["same"], found["models"]["base"]
    assert same["ece"]["estimate"] == pytest.approx(base["ece"]["estimate"])


def test_ungraded_samples_do_not_vote_and_problems_without_a_grade_are_counted() -> None:
    graded = [["7", "7", "8"]] * 12
    base = answered([*([*row, "timeout"] for row in graded), ["timeout"] * 4])
    found = calibration({"base": [base], "regime": [base]})
    bins = found["models"]["base"]["bins"]
    assert (bins[6]["problems"], bins[6]["confidence"]) == (12, pytest.approx(2 / 3))
    ece = found["models"]["base"]["ece"]
    assert (ece["estimate"], ece["n"]) == (pytest.approx(1 / 3), 12)
    assert ece["note"].startswith("1 of 13 problems left out: no graded sample")
    assert found["changes"]["regime"]["ece_change"]["note"].startswith("1 of 13 problems left out")
    nothing = answered([["timeout"] * 4] * 3)
    for figure in calibration({"base": [nothing], "regime": [nothing]})["changes"]["regime"].values():
        assert figure["estimate"] is None


def test_nobody_who_votes_has_confidence_zero_and_is_wrong() -> None:
    silent = answered([[None] * 4] * 12)
    found = calibration({"base": [silent], "regime": [answered([["8"] * 4] * 12)]})
    assert found["models"]["base"]["bins"][0]["confidence"] == 0.0
    assert found["changes"]["regime"]["wrong_and_more_certain"]["estimate"] == 1.0


def test_calibration_does_not_depend_on_the_order_of_the_records_and_is_json_without_nan() -> None:
    shuffled = [random.Random(1).sample(records, len(records)) for records in SEEDS]
    text = json.dumps(calibration({"base": [BASE], "regime": SEEDS}), allow_nan=False)
    assert json.dumps(calibration({"base": [BASE[::-1]], "regime": shuffled})) == text


def test_a_missing_base_or_one_of_several_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="calibration needs records of 'base', got regime"):
        calibration({"regime": SEEDS})
    with pytest.raises(ValueError, match="base has records of 3 seeds; the base is evaluated once"):
        calibration({"base": SEEDS})


def test_where_no_completion_holds_an_answer_nothing_is_called_calibrated() -> None:
    silent = answered([[None] * 4] * 12)
    found = calibration({"base": [silent], "regime": [silent, silent]})
    assert found["models"]["regime"]["ece"]["estimate"] is None
    assert "no completion holds an answer" in found["models"]["regime"]["ece"]["note"]
    assert all(figure["estimate"] is None for figure in found["changes"]["regime"].values())


@pytest.mark.parametrize("answer", [GOLD, "8"])
def test_votes_that_are_alike_on_every_problem_give_no_error_without_width(answer: str) -> None:
    alike = answered([[answer] * 4] * 12)
    found = calibration({"base": [alike], "regime": [alike, alike]})
    unseen = 1 - 0.025 ** (1 / 12)
    wrong = float(answer != GOLD)
    for model in ("base", "regime"):
        ece = found["models"][model]["ece"]
        assert (ece["estimate"], ece["low"], ece["high"]) == pytest.approx(
            (wrong, max(0.0, wrong - unseen), min(1.0, wrong + unseen))
        )
    change = found["changes"]["regime"]["ece_change"]
    assert (change["estimate"], change["low"], change["high"]) == pytest.approx((0.0, -unseen, unseen))
