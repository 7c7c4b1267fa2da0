from __future__ import annotations

import numpy as np
import pytest

from bsharp.statistics import expected_calibration_error


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
