"""The stability word of a regime: a rule on named statistics of its training runs, one run per seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import special

__all__ = ["SeedTrace", "Stability", "StabilityThresholds", "StabilityWord", "judge_stability"]


class StabilityWord(StrEnum):
    """From best to worst."""

    STABLE = "stable"
    NOISY = "noisy"
    DECLINING = "declining"
    COLLAPSED = "collapsed"


@dataclass(frozen=True, slots=True)
class SeedTrace:
    """What one seed of a regime left behind. Series that were not recorded stay empty and are not judged."""

    final_accuracy: float  # share, last checkpoint on the test problems
    validation_accuracy: Sequence[
        float
    ] = ()  # share, one per check in order of steps; include the check before training
    entropy: Sequence[float] = ()  # nats per token, one per training step, as are the following
    kl: Sequence[float] = ()  # KL(policy || base), nats per sequence
    grad_norm: Sequence[float] = ()  # Euclidean, before clipping
    mean_length: Sequence[float] = ()  # tokens
    truncation_rate: Sequence[float] = ()  # share of completions cut at the token limit
    stopped: str | None = None  # why the run ended before its last step; None if it did not


@dataclass(frozen=True, slots=True)
class StabilityThresholds:
    """The numbers of the rule, fixed before any run was looked at."""

    false_alarm: float = 0.01
    """Probability with which each of the four noise tests (drop of a seed, drop of the mean, dip, seed spread) may fire
    on a healthy regime, after correction for the number of checks and seeds: at most 4 % together."""
    min_drop: float = 0.03
    """Share. A drop or dip below 3 points is of no practical weight even where it is certain."""
    min_seed_sd: float = 0.03
    """Share. Seeds that differ by an sd of 3 points make a difference of two runs uncertain by more than 8 points."""
    collapse_entropy: float = 0.05
    """Nats per token. Below it about one token in a hundred is still a choice: nothing is left to explore with."""
    short_length_ratio: float = 0.25
    """Mean length below a quarter of its start: the reasoning is gone, an answer or an immediate EOS remains."""
    truncation_rise: float = 0.5
    """Share. Half of all completions newly run into the token limit: loops instead of answers."""
    lost_accuracy_ratio: float = 0.5
    """Final validation accuracy below half of its best is a collapse whatever its cause."""
    window: int = 5
    """Training steps averaged at the start and at the end of a series, so that one batch decides nothing."""


@dataclass(frozen=True, slots=True)
class Stability:
    """The word, the figures behind it in a phrase, and the same figures by name (NaN where not recorded)."""

    word: StabilityWord
    phrase: str
    figures: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.word} ({self.phrase})"


def judge_stability(
    traces: Sequence[SeedTrace],
    *,
    validation_samples: int,
    test_samples: int,
    thresholds: StabilityThresholds | None = None,
) -> Stability:
    """One word for the seeds of a regime; the worst that applies.

    `validation_samples` and `test_samples` are problems × completions behind one accuracy figure, so that an accuracy p has a
    sampling variance of at most p(1 - p)/N: all checks use the same problems. A difference of two checks is *beyond noise*
    when it exceeds z · √(2 p(1 - p)/N), p their mean, z the normal quantile of `false_alarm` divided by the number of
    comparisons, and `min_drop`. The thresholds are fields of `StabilityThresholds`, with units and reasons.

    collapsed  in any seed: the run was stopped early; or a recorded value is not finite; or the last check is below
               `lost_accuracy_ratio` of the best, beyond noise; or entropy at the end is below `collapse_entropy` and the
               last check is below the best beyond noise; or mean length falls below `short_length_ratio` of its start, or
               truncation rises by `truncation_rise`, while the last check is not above the first beyond noise.
    declining  in any seed, or in the mean over seeds, the last check is below the best beyond noise.
    noisy      in any seed the accuracy dips between two checks and recovers, both beyond noise; or the sd of final
               accuracies over seeds exceeds `min_seed_sd`, sampling variance removed, and χ² says it is not sampling.
    stable     none of these. One seed cannot show a spread; the phrase then has none.

    Low entropy alone is no collapse: it is what sharpening aims at. No traces, or sample counts below 1: ValueError.
    """
    limits = thresholds or StabilityThresholds()
    if not traces:
        raise ValueError("judge_stability needs the trace of at least one seed, got none")
    if min(validation_samples, test_samples) < 1:
        raise ValueError(f"judge_stability needs sample counts of at least 1, got {validation_samples}, {test_samples}")
    if len({len(trace.validation_accuracy) for trace in traces}) > 1:
        raise ValueError("judge_stability needs equally many validation checks in every seed; complete the runs first")
    figures = _figures(traces, limits)
    summary = _summary(figures, len(traces))
    for word, rule in (
        (StabilityWord.COLLAPSED, _collapse),
        (StabilityWord.DECLINING, _decline),
        (StabilityWord.NOISY, _noise),
    ):
        reason = rule(traces, validation_samples, test_samples, limits)
        if reason:
            return Stability(word, f"{reason}; {summary}", figures)
    return Stability(StabilityWord.STABLE, summary, figures)


def _collapse(traces: Sequence[SeedTrace], validation_samples: int, _: int, limits: StabilityThresholds) -> str:
    reasons = [_collapse_of_seed(trace, len(traces), validation_samples, limits) for trace in traces]
    found = [reason for reason in reasons if reason]
    return f"{_seeds(len(found), len(traces))}: {found[0]}" if found else ""


def _collapse_of_seed(trace: SeedTrace, seeds: int, samples: int, limits: StabilityThresholds) -> str:
    if trace.stopped is not None:
        return f"stopped: {trace.stopped}"
    for name in ("validation_accuracy", "entropy", "kl", "grad_norm", "mean_length", "truncation_rate"):
        if not np.isfinite(np.asarray(getattr(trace, name), dtype=np.float64)).all():
            return f"{name} is not finite"
    if not math.isfinite(trace.final_accuracy):
        return "final accuracy is not finite"
    checks = trace.validation_accuracy
    fell, rose = False, False
    if len(checks) > 1:
        best, last = max(checks), checks[-1]
        comparisons = seeds * (len(checks) - 1)
        fell = _beyond_noise(best, last, samples, comparisons, limits)
        rose = _beyond_noise(last, checks[0], samples, seeds, limits)
        if fell and last < limits.lost_accuracy_ratio * best:
            return f"validation accuracy {100 * best:.1f} % at best, {100 * last:.1f} % at the end"
    entropy = _end(trace.entropy, limits)
    if fell and entropy < limits.collapse_entropy:
        return f"entropy {entropy:.3f} nats/token with accuracy {100 * (max(checks) - checks[-1]):.1f} points below its best"
    start, end = _start(trace.mean_length, limits), _end(trace.mean_length, limits)
    if not rose and end < limits.short_length_ratio * start:
        return f"mean length {end:.1f} tokens, {start:.1f} at the start"
    start, end = _start(trace.truncation_rate, limits), _end(trace.truncation_rate, limits)
    if not rose and end - start >= limits.truncation_rise:
        return f"{100 * end:.0f} % truncated, {100 * start:.0f} % at the start"
    return ""


def _decline(traces: Sequence[SeedTrace], validation_samples: int, _: int, limits: StabilityThresholds) -> str:
    checks = _check_table(traces)
    seeds, count = checks.shape
    if count < 2:
        return ""
    drops = [
        float(row.max() - row[-1])
        for row in checks
        if _beyond_noise(float(row.max()), float(row[-1]), validation_samples, seeds * (count - 1), limits)
    ]
    if drops:
        return f"{_seeds(len(drops), seeds)}: last check {100 * max(drops):.1f} points below the best"
    mean = checks.mean(axis=0)
    if _beyond_noise(float(mean.max()), float(mean[-1]), validation_samples * seeds, count - 1, limits):
        return f"mean over seeds: last check {100 * float(mean.max() - mean[-1]):.1f} points below the best"
    return ""


def _noise(traces: Sequence[SeedTrace], validation_samples: int, test_samples: int, limits: StabilityThresholds) -> str:
    checks = _check_table(traces)
    seeds, count = checks.shape
    dips = []
    for row in checks:
        for index in range(1, count - 1):
            shoulder = float(min(row[:index].max(), row[index + 1 :].max()))
            if _beyond_noise(shoulder, float(row[index]), validation_samples, seeds * count * (count - 1) // 2, limits):
                dips.append(shoulder - float(row[index]))
    if dips:
        return f"validation accuracy dipped by {100 * max(dips):.1f} points and recovered"
    finals = np.array([trace.final_accuracy for trace in traces])
    if seeds < 2:
        return ""
    p = float(finals.mean())
    sampling = max(p * (1.0 - p), 1.0 / test_samples) / test_samples
    excess = float(finals.var(ddof=1)) - sampling
    significance = special.chdtrc(seeds - 1, (seeds - 1) * finals.var(ddof=1) / sampling)  # of chi-squared
    if excess > limits.min_seed_sd**2 and significance < limits.false_alarm:
        return f"seed sd {100 * math.sqrt(excess):.1f} points beyond sampling"
    return ""


def _beyond_noise(high: float, low: float, samples: int, comparisons: int, limits: StabilityThresholds) -> bool:
    p = (high + low) / 2.0
    # One success more or less is always possible: at p = 0 or 1 the binomial variance alone would claim certainty.
    variance = 2.0 * max(p * (1.0 - p), 1.0 / samples) / samples
    z = -float(special.ndtri(limits.false_alarm / max(comparisons, 1)))
    return high - low > max(z * math.sqrt(variance), limits.min_drop)


def _check_table(traces: Sequence[SeedTrace]) -> np.ndarray:
    return np.array([list(trace.validation_accuracy) for trace in traces], dtype=np.float64).reshape(len(traces), -1)


def _start(series: Sequence[float], limits: StabilityThresholds) -> float:
    return float(np.mean(series[: limits.window])) if len(series) else math.nan


def _end(series: Sequence[float], limits: StabilityThresholds) -> float:
    return float(np.mean(series[-limits.window :])) if len(series) else math.nan


def _figures(traces: Sequence[SeedTrace], limits: StabilityThresholds) -> dict[str, float]:
    checks = _check_table(traces)
    finals = np.array([trace.final_accuracy for trace in traces])
    drops = np.maximum.accumulate(checks, axis=1) - checks
    # Early steps of a warm-up have their own scale, so a spike is told against the run's median.
    spikes = [
        float(np.max(t.grad_norm) / max(float(np.median(t.grad_norm)), 1e-12)) for t in traces if len(t.grad_norm)
    ]
    ends = {
        name: [_end(getattr(trace, name), limits) for trace in traces if len(getattr(trace, name))]
        for name in ("entropy", "kl", "mean_length", "truncation_rate")
    }
    return {
        "seed_sd_points": 100.0 * float(finals.std(ddof=1)) if len(finals) > 1 else math.nan,
        "largest_drop_points": 100.0 * float(drops.max()) if drops.size else math.nan,
        "decline_points": 100.0 * float(drops[:, -1].max()) if drops.size else math.nan,
        "grad_norm_spike_ratio": max(spikes, default=math.nan),
        **{f"final_{name}": float(np.mean(values)) if values else math.nan for name, values in ends.items()},
    }


def _summary(figures: Mapping[str, float], seeds: int) -> str:
    parts = [f"seed sd {figures['seed_sd_points']:.1f} points"] if seeds > 1 else []
    if math.isfinite(figures["largest_drop_points"]):
        parts.append(f"largest drop {figures['largest_drop_points']:.1f} points")
    if math.isfinite(figures["final_entropy"]):
        parts.append(f"final entropy {figures['final_entropy']:.3f} nats/token")
    return ", ".join(parts) or "one seed"


def _seeds(count: int, seeds: int) -> str:
    return f"{count} of {seeds} seeds" if seeds > 1 else "the seed"
