"""Estimates with honest intervals: pass@k, maj@k, problem-and-seed intervals, the verdict, calibration, stability."""

from bsharp.statistics.calibration import expected_calibration_error
from bsharp.statistics.correlation import within_problem_correlation
from bsharp.statistics.intervals import (
    ONE_SEED,
    Estimate,
    bootstrap_interval,
    format_share,
    paired_difference,
    problem_and_seed_interval,
)
from bsharp.statistics.maj_at_k import maj_at_k, maj_at_k_monte_carlo, vote_share
from bsharp.statistics.pass_at_k import pass_at_k
from bsharp.statistics.repetition import repetition_rate
from bsharp.statistics.score import reward_weighted_score
from bsharp.statistics.stability import SeedTrace, Stability, StabilityThresholds, StabilityWord, judge_stability
from bsharp.statistics.verdict import Verdict, gain_beyond_best

__all__ = [
    "ONE_SEED",
    "Estimate",
    "SeedTrace",
    "Stability",
    "StabilityThresholds",
    "StabilityWord",
    "Verdict",
    "bootstrap_interval",
    "expected_calibration_error",
    "format_share",
    "gain_beyond_best",
    "judge_stability",
    "maj_at_k",
    "maj_at_k_monte_carlo",
    "paired_difference",
    "pass_at_k",
    "problem_and_seed_interval",
    "repetition_rate",
    "reward_weighted_score",
    "vote_share",
    "within_problem_correlation",
]
