from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bsharp.seeding import generator, stream_seed


def test_a_stream_is_its_key_and_nothing_else() -> None:
    assert stream_seed(3, "rollouts", 5, "a") == stream_seed(3, "rollouts", 5, "a")
    keys = [(1, "a"), (1, "a", 0), (1, "a", "0"), (11, "a"), (1, "b"), (1, "a", 0, 1), (1, "a", 1, 0)]
    assert len({stream_seed(*key) for key in keys}) == len(keys)


def test_seeds_are_never_added_up() -> None:
    # Run 0 at step 1 must not be run 1 at step 0, as it would be with seed + step.
    assert stream_seed(0, "rollouts", 1) != stream_seed(1, "rollouts", 0)


def test_seeds_are_the_same_on_every_platform_and_in_every_process() -> None:
    assert stream_seed(0, "problems") == 6495381177186041692


def test_neighbouring_streams_are_uncorrelated() -> None:
    # 200 correlations of 1,000 pairs; under independence their variance is 1/1000. False alarm 1e-3.
    draws = np.stack([generator(0, "stream", index).standard_normal(1000) for index in range(201)])
    correlations = [np.corrcoef(draws[i], draws[i + 1])[0, 1] for i in range(200)]
    statistic = 1000 * float(np.sum(np.square(correlations)))
    assert stats.chi2(200).sf(statistic) > 5e-4
    assert stats.chi2(200).cdf(statistic) > 5e-4


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_seeds_fit_torch_and_numpy(seed: int) -> None:
    assert 0 <= stream_seed(seed, "x") < 2**63
