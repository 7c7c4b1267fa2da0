from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bsharp.training.gradients import SubbatchGradients, gradient_noise


def test_noise_of_a_sum_is_unbiased_for_known_mean_and_covariance() -> None:
    # ĝ = Σ_s g_s with g_s ~ N(p_s m, p_s C): tr Cov(ĝ) = tr C, ‖E ĝ‖² = ‖m‖². 20,000 draws; 4 standard errors: false
    # alarm 1e-4. The shares differ, as they do where problems do not divide evenly or rows are invalid.
    rng = np.random.default_rng(0)
    mean, spread, draws = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.3, 2.0]), 20_000
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    pieces = rng.normal(shares[:, None] * mean, np.sqrt(shares)[:, None] * spread, (draws, 4, 3))
    found = [gradient_noise((g**2).sum(-1).tolist(), shares.tolist(), float((g.sum(0) ** 2).sum())) for g in pieces]
    for values, expected in (
        ([item.variance for item in found], float((spread**2).sum())),
        ([item.signal_squared for item in found], float((mean**2).sum())),
    ):
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(draws)


def test_equal_contributions_have_no_noise() -> None:
    noise = gradient_noise([1.0, 1.0, 1.0, 1.0], [0.25] * 4, 16.0)
    assert noise.variance == pytest.approx(0.0)
    assert noise.signal_squared == pytest.approx(16.0)


def test_contributions_are_read_off_the_accumulating_gradient() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    watcher = SubbatchGradients([parameter])
    for piece in ([1.0, 0.0], [0.0, 2.0], [3.0, 0.0]):
        (parameter * torch.tensor(piece)).sum().backward()
        watcher.record(5)
    watcher.record(0)  # a sub-batch without a valid row says nothing
    noise = watcher.noise()
    assert noise is not None
    assert noise.norm_squared == pytest.approx(16 + 4)
    assert noise.variance == pytest.approx(3 / 2 * ((1 + 4 + 9) - 20 / 3))


def test_one_sub_batch_says_nothing_about_noise() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    watcher = SubbatchGradients([parameter])
    parameter.sum().backward()
    watcher.record(3)
    assert watcher.noise() is None
    with pytest.raises(ValueError, match="at least 2 sub-batches, got 1"):
        gradient_noise([1.0], [1.0], 1.0)
