from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from bsharp.statistics import SeedTrace, Stability, StabilityWord, judge_stability

CHECKS = 5
VALIDATION_SAMPLES = 128 * 4
TEST_SAMPLES = 512 * 16


def trace(
    source: np.random.Generator, curve: list[float], final: float | None = None, **series: list[float]
) -> SeedTrace:
    """A run whose true validation accuracy follows `curve`, seen through binomial noise."""
    seen = source.binomial(VALIDATION_SAMPLES, curve) / VALIDATION_SAMPLES
    accuracy = source.binomial(TEST_SAMPLES, curve[-1] if final is None else final) / TEST_SAMPLES
    steps = {"entropy": [0.25] * 40, "kl": [1.0] * 40, "grad_norm": [0.5] * 40, "mean_length": [16.0] * 40}
    steps |= {"truncation_rate": [0.02] * 40} | series
    return SeedTrace(accuracy, seen.tolist(), **steps)


def judge(traces: list[SeedTrace]) -> Stability:
    return judge_stability(traces, validation_samples=VALIDATION_SAMPLES, test_samples=TEST_SAMPLES)


def runs(curve: list[float], seed: int = 0, seeds: int = 3, **series: list[float]) -> list[SeedTrace]:
    source = np.random.default_rng(seed)
    return [trace(source, curve, **series) for _ in range(seeds)]


RISING = [0.43, 0.75, 0.88, 0.91, 0.92]
FLAT = [0.45] * CHECKS


@pytest.mark.parametrize("curve", [RISING, FLAT, [0.02] * CHECKS, [1.0] * CHECKS])
@pytest.mark.parametrize("seeds", [1, 3])
def test_healthy_runs_raise_an_alarm_in_fewer_than_five_percent(curve: list[float], seeds: int) -> None:
    # Binomial noise is all that moves here. The rate is at most 1.6 % (1000 simulations of each kind), so that more than
    # 10 alarms in 200 have probability 3e-4 for other seeds.
    alarms = sum(judge(runs(curve, seed, seeds)).word is not StabilityWord.STABLE for seed in range(200))
    assert alarms <= 10


def test_seeds_that_differ_by_a_point_and_a_half_are_healthy() -> None:
    # The sample sd of three seeds doubles the true one with probability e^-4 = 2 %: more than 7 alarms in 100 have
    # probability 0.1 %.
    alarms = 0
    for seed in range(100):
        source = np.random.default_rng(seed)
        finals = 0.9 + 0.015 * source.standard_normal(3)
        alarms += judge([trace(source, RISING, final) for final in finals]).word is not StabilityWord.STABLE
    assert alarms <= 7


def test_low_entropy_without_a_loss_is_no_collapse() -> None:
    verdict = judge(runs([0.43, 0.46, 0.48, 0.48, 0.48], entropy=[0.25] * 10 + [0.01] * 30))
    assert verdict.word is StabilityWord.STABLE
    assert "final entropy 0.010 nats/token" in verdict.phrase


def test_seeds_that_end_far_apart_are_noisy() -> None:
    source = np.random.default_rng(0)
    verdict = judge([trace(source, RISING, final) for final in (0.80, 0.92, 0.91)])
    assert verdict.word is StabilityWord.NOISY
    assert "seed sd" in verdict.phrase


def test_the_spread_of_sampling_is_taken_out_of_the_spread_of_seeds() -> None:
    def spread(finals: tuple[float, ...], test_samples: int) -> Stability:
        return judge_stability([SeedTrace(a) for a in finals], validation_samples=1, test_samples=test_samples)

    # √(0.1² - 0.25/400) = 9.7 points.
    assert spread((0.4, 0.5, 0.6), 400).phrase.startswith("seed sd 9.7 points beyond sampling")
    # An sd of 8.4 points where sampling alone gives 6.3: large, but χ² on 2 degrees of freedom says p = 0.17.
    assert spread((0.4163, 0.5, 0.5837), 64).word is StabilityWord.STABLE


def test_an_accuracy_that_falls_and_recovers_is_noisy() -> None:
    verdict = judge([SeedTrace(0.92, [0.43, 0.75, 0.45, 0.80, 0.92])])
    assert verdict.word is StabilityWord.NOISY
    assert verdict.phrase.startswith("validation accuracy dipped by 30.0 points and recovered")


def test_an_accuracy_that_ends_below_its_best_is_declining() -> None:
    verdict = judge(runs([0.43, 0.75, 0.80, 0.70, 0.60]))
    assert verdict.word is StabilityWord.DECLINING
    assert verdict.figures["decline_points"] > 12
    assert judge([*runs(RISING, seeds=2), *runs([0.43, 0.9, 0.9, 0.8, 0.6], seeds=1)]).phrase.startswith("1 of 3 seeds")


def test_a_small_common_decline_shows_in_the_mean_over_seeds() -> None:
    # 8 points in each of 8 seeds: within the noise of one, far beyond that of the mean.
    traces = [SeedTrace(0.5, [0.45, 0.58, 0.50]) for _ in range(8)]
    assert "mean over seeds" in judge(traces).phrase


@pytest.mark.parametrize(
    ("curve", "series", "phrase"),
    [
        ([0.43, 0.60, 0.60, 0.50, 0.42], {"entropy": [0.25] * 20 + [0.01] * 20}, "entropy 0.010"),
        ([0.43, 0.60, 0.40, 0.20, 0.10], {}, "validation accuracy"),
        (FLAT, {"mean_length": [16.0] * 20 + [1.5] * 20}, "mean length 1.5 tokens, 16.0 at the start"),
        (FLAT, {"truncation_rate": [0.02] * 20 + [0.9] * 20}, "90 % truncated"),
        (FLAT, {"grad_norm": [0.5] * 39 + [math.nan]}, "grad_norm is not finite"),
        (FLAT, {"kl": [0.5] * 39 + [math.inf]}, "kl is not finite"),
    ],
)
def test_collapse_has_many_faces(curve: list[float], series: dict[str, list[float]], phrase: str) -> None:
    verdict = judge(runs(curve, **series))
    assert verdict.word is StabilityWord.COLLAPSED
    assert phrase in verdict.phrase


def test_one_collapsed_seed_of_three_is_counted() -> None:
    traces = [*runs(RISING, seeds=2), *runs([0.43, 0.6, 0.3, 0.1, 0.0], seeds=1)]
    assert judge(traces).phrase.startswith("1 of 3 seeds: validation accuracy")


def test_a_shorter_way_to_a_better_accuracy_is_no_collapse() -> None:
    assert judge(runs(RISING, mean_length=[40.0] * 20 + [5.0] * 20)).word is StabilityWord.STABLE


def test_a_fixed_length_run_is_not_truncated_by_collapse() -> None:
    assert judge(runs(FLAT, truncation_rate=[1.0] * 40)).word is StabilityWord.STABLE


def test_a_run_that_was_stopped_is_a_collapse_with_its_reason_whatever_its_curve() -> None:
    healthy = runs(RISING)
    assert judge(healthy).word is StabilityWord.STABLE
    verdict = judge([*healthy[:2], dataclasses.replace(healthy[2], stopped="the gradient was not finite at step 7")])
    assert verdict.word is StabilityWord.COLLAPSED
    assert verdict.phrase.startswith("1 of 3 seeds: stopped: the gradient was not finite at step 7; ")


def test_what_was_not_recorded_is_not_judged() -> None:
    verdict = judge([SeedTrace(0.5)])
    assert verdict.word is StabilityWord.STABLE
    assert verdict.phrase == "one seed"
    assert math.isnan(verdict.figures["final_entropy"])


def test_the_phrase_carries_the_figures() -> None:
    traces = [SeedTrace(a, [0.4, 0.5, 0.49], entropy=[0.05] * 9) for a in (0.49, 0.50, 0.51)]
    assert str(judge(traces)) == (
        "stable (seed sd 1.0 points, largest drop 1.0 points, final entropy 0.050 nats/token)"
    )


def test_nothing_to_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        judge([])
    with pytest.raises(ValueError, match="sample counts"):
        judge_stability([SeedTrace(0.5)], validation_samples=0, test_samples=1)
    with pytest.raises(ValueError, match="equally many"):
        judge([SeedTrace(0.5, [0.1]), SeedTrace(0.5, [0.1, 0.2])])


def test_one_seed_has_no_spread_to_speak_of() -> None:
    assert judge([SeedTrace(0.5, [0.4, 0.5])]).phrase == "largest drop 0.0 points"
