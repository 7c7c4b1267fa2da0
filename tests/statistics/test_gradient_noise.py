from __future__ import annotations

import numpy as np
import pytest

from bsharp.statistics.gradient_noise import gradient_noise


def test_noise_of_a_sum_is_unbiased_whatever_the_shares_and_the_covariances() -> None:
    # g_p ~ N(s_p m, C_p): tr Cov(ĝ) = Σ tr C_p, ‖E ĝ‖² = ‖m‖². 20,000 draws; 4 standard errors: false alarm 1e-4. The
    # shares differ, as they do where rows are invalid, and the spread does not follow them.
    rng = np.random.default_rng(0)
    mean, draws = np.array([1.0, -2.0, 0.5]), 20_000
    shares = np.array([4.0, 3.0, 2.0, 1.0])
    spreads = np.array([[0.1, 0.2, 0.1], [1.0, 0.3, 2.0], [0.5, 0.0, 0.5], [1.5, 1.0, 0.2]])
    pieces = rng.normal((shares / 10)[:, None] * mean, spreads, (draws, 4, 3))
    found = [gradient_noise((g**2).sum(-1).tolist(), shares.tolist(), float((g.sum(0) ** 2).sum())) for g in pieces]
    for values, expected in (
        ([item.variance for item in found], float((spreads**2).sum())),
        ([item.signal_squared for item in found], float((mean**2).sum())),
    ):
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(draws)


def test_with_equal_shares_the_variance_is_the_sample_covariance_of_the_mean() -> None:
    pieces = np.random.default_rng(1).normal(size=(6, 5))
    noise = gradient_noise((pieces**2).sum(-1).tolist(), [8] * 6, float((pieces.sum(0) ** 2).sum()))
    # ĝ is the sum of 6 contributions, that is 6 times their mean.
    assert noise.variance == pytest.approx(6 * np.cov(pieces.T).trace())
    assert noise.signal_squared == pytest.approx(noise.norm_squared - noise.variance)
    assert noise.signal_to_noise == pytest.approx(noise.signal_squared / noise.variance)


def test_equal_contributions_have_no_noise_and_no_ratio() -> None:
    noise = gradient_noise([1.0, 1.0, 1.0, 1.0], [0.25] * 4, 16.0)
    assert noise.variance == 0.0
    assert noise.signal_squared == pytest.approx(16.0)
    assert np.isnan(noise.signal_to_noise)


def test_noise_cannot_be_known_from_one_contribution_or_from_shares_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least 2 contributions, got 1"):
        gradient_noise([1.0], [1.0], 1.0)
    with pytest.raises(ValueError, match="one positive share"):
        gradient_noise([1.0, 1.0], [1.0, 0.0], 1.0)
