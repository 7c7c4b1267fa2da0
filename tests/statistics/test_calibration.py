from __future__ import annotations

import numpy as np
import pytest

from bsharp.statistics import bootstrap_interval, expected_calibration_error
from bsharp.statistics.calibration import calibration_bins, calibration_error_change


def test_ece_is_the_weighted_gap_of_the_bins() -> None:
    confidences, credits = [0.95, 0.95, 0.55, 0.55], [1.0, 0.0, 1.0, 0.0]
    figure = expected_calibration_error(confidences, credits, rng=np.random.default_rng(0))
    assert figure.estimate == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.5 * abs(0.5 - 0.55))


def test_a_confidence_on_a_bin_edge_falls_into_the_bin_it_closes() -> None:
    # 3/10 belongs with 0.25, not with 0.35: gaps +0.7 - 0.25 and -0.35 are separate.
    figure = expected_calibration_error([0.3, 0.25, 0.35], [1.0, 0.0, 0.0], rng=np.random.default_rng(0))
    assert figure.estimate == pytest.approx((abs(0.7 - 0.25) + 0.35) / 3)


def test_the_highest_bins_are_separate() -> None:
    figure = expected_calibration_error([0.85, 0.95], [1.0, 0.0], rng=np.random.default_rng(0))
    assert figure.estimate == pytest.approx((0.15 + 0.95) / 2)


def test_perfect_confidence_has_no_error_and_confident_mistakes_have_all() -> None:
    rng = np.random.default_rng(0)
    assert expected_calibration_error([1.0] * 5, [1.0] * 5, rng=rng).estimate == 0.0
    assert expected_calibration_error([1.0] * 5, [0.0] * 5, rng=rng).estimate == 1.0


def test_the_interval_holds_the_error_of_a_source_that_is_overconfident_by_a_fifth() -> None:
    # ECE 0.2 in truth (every bin is off by 0.2). 95 % interval: false alarm 5 % for another seed.
    rng = np.random.default_rng(5)
    confidence = 0.2 + 0.8 * rng.random(400)
    figure = expected_calibration_error(confidence, (rng.random(400) < confidence - 0.2).astype(float), rng=rng)
    assert figure.low < 0.2 < figure.high
    assert 0 <= figure.low <= figure.high <= 1


def test_the_interval_moves_against_the_upward_bias() -> None:
    # A calibrated source: the estimate is above the true 0 by chance alone, the interval lies mostly below the estimate.
    rng = np.random.default_rng(5)
    confidence = rng.random(400)
    figure = expected_calibration_error(confidence, (rng.random(400) < confidence).astype(float), rng=rng)
    assert figure.estimate > 0.01
    assert (figure.low + figure.high) / 2 < figure.estimate


@pytest.mark.parametrize(("confidences", "credits"), [([1.2], [1.0]), ([0.5], [-1.0]), ([0.5, 0.5], [1.0]), ([], [])])
def test_shares_outside_the_unit_interval_are_refused(confidences: list[float], credits: list[float]) -> None:
    with pytest.raises(ValueError, match="calibration needs"):
        expected_calibration_error(confidences, credits, rng=np.random.default_rng(0))


def test_seeds_are_judged_one_by_one_and_averaged() -> None:
    rng = np.random.default_rng(3)
    confidences, credits = rng.random((3, 40)), (rng.random((3, 40)) < 0.5).astype(float)
    alone = [
        expected_calibration_error(c, r, rng=np.random.default_rng(0)).estimate
        for c, r in zip(confidences, credits, strict=True)
    ]
    together = expected_calibration_error(confidences, credits, rng=np.random.default_rng(0))
    assert together.estimate == pytest.approx(np.mean(alone))
    # Equal seeds add nothing to the uncertainty.
    same = expected_calibration_error(confidences[[0, 0]], credits[[0, 0]], rng=np.random.default_rng(0))
    one = expected_calibration_error(confidences[0], credits[0], rng=np.random.default_rng(0))
    assert (same.low, same.high) == pytest.approx((one.low, one.high))


def test_the_change_is_the_difference_of_the_errors_and_changes_its_sign_with_the_sides() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = (rng.random(60), (rng.random(60) < 0.9).astype(float)), (rng.random(60), np.zeros(60))
    forward = calibration_error_change(*ours, *theirs, rng=np.random.default_rng(0))
    errors = [expected_calibration_error(*side, rng=np.random.default_rng(0)).estimate for side in (ours, theirs)]
    assert forward.estimate == pytest.approx(errors[0] - errors[1])
    backward = calibration_error_change(*theirs, *ours, rng=np.random.default_rng(0))
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low))
    same = calibration_error_change(*ours, *ours, rng=np.random.default_rng(0))
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_the_interval_of_the_change_holds_the_change_of_a_source_that_became_overconfident() -> None:
    # True ECE 0 before and 0.3 after. 95 % interval: false alarm about 5 % for another seed.
    rng = np.random.default_rng(5)
    chance = 0.7 * rng.random(400)
    before, after = ((rng.random(400) < chance).astype(float) for _ in range(2))
    figure = calibration_error_change(chance + 0.3, after, chance, before, rng=rng)
    assert figure.low < 0.3 < figure.high
    assert figure.low > 0.15


def test_a_change_needs_a_base_on_the_same_problems() -> None:
    with pytest.raises(ValueError, match="base on the same problems, got 2 problems"):
        calibration_error_change([0.5, 0.5], [1.0, 1.0], [0.5], [1.0], rng=np.random.default_rng(0))


def plain_errors(confidences: np.ndarray, credits: np.ndarray) -> np.ndarray:
    """ECE of each row, bin by bin."""
    index = calibration_bins(confidences)
    gaps = [np.where(index == b, credits - confidences, 0.0).sum(axis=1) for b in range(10)]
    return np.abs(gaps).sum(axis=0) / confidences.shape[1]


def test_the_intervals_are_those_of_errors_computed_anew_on_every_resampled_set() -> None:
    rng = np.random.default_rng(4)
    ours, base = rng.random((2, 2, 60)), rng.random((2, 1, 60))
    strata = ["ab"[place % 2] for place in range(60)]

    def change(indices: np.ndarray) -> np.ndarray:
        return plain_errors(*ours[..., indices]) - plain_errors(*base[..., indices])

    for figure, statistic, least in (
        (
            expected_calibration_error(*ours, rng=np.random.default_rng(0), strata=strata, replicates=200),
            lambda indices: plain_errors(*ours[..., indices]),
            0.0,
        ),
        (
            calibration_error_change(*ours, *base[:, 0], rng=np.random.default_rng(0), strata=strata, replicates=200),
            change,
            -1.0,
        ),
    ):
        plain = bootstrap_interval(statistic, 60, rng=np.random.default_rng(0), strata=strata, replicates=200)
        pivotal = np.clip([2 * plain.estimate - plain.high, 2 * plain.estimate - plain.low], least, 1.0)
        assert (figure.estimate, figure.low, figure.high) == pytest.approx((plain.estimate, *pivotal), abs=1e-12)
