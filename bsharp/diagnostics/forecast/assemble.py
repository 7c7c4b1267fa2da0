"""The content of forecast.json from records of the base's samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from bsharp.algorithm import Objective, parse_objective, sharpening, tempered, tilted
from bsharp.diagnostics.forecast.figures import (
    THE_BASE,
    PredictionTable,
    change,
    change_estimate,
    is_the_base,
    mean_over_problems,
    prediction_table,
    share,
    table_estimates,
)
from bsharp.diagnostics.forecast.likelihood import (
    LENGTH_EXPONENTS,
    family_correlation,
    likelihood_figures,
    problem_covariance,
)
from bsharp.diagnostics.forecast.prediction import base_figures, best_of_k
from bsharp.diagnostics.forecast.recommendation import recommend
from bsharp.diagnostics.forecast.samples import BaseSamples, ProblemSamples, Record, read_samples
from bsharp.seeding import generator
from bsharp.statistics import maj_at_k, pass_at_k
from bsharp.statistics.samples import BOOTSTRAP_SEED, noted

__all__ = ["ALPHAS", "BETA_INVS", "FORECAST_SCHEMA", "forecast", "forecast_samples"]

Array = NDArray[np.float64]

FORECAST_SCHEMA = 1
ALPHAS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
BETA_INVS = (0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 10000.0)
LEVEL = 0.95
SETTLED = 0.02  # a majority that moves less from half of the samples to all of them has settled


def forecast(
    records: Sequence[Record],
    regimes: Sequence[str],
    *,
    alphas: Sequence[float] = ALPHAS,
    beta_invs: Sequence[float] = BETA_INVS,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """forecast.json: what the optimum of each regime would make of the base, predicted from the base's samples alone.

    `records` as in `read_samples`, `regimes` as in `parse_objective`; `alphas` >= 1 and `beta_invs` > 0 are the grids of the
    tempered and the tilted curves. `source` may name the model, the records' path, tasks and split. Every object with
    "estimate", "low" and "high" has a 95 % interval over problems (bootstrap within families). Raises ValueError as
    `read_samples` and `parse_objective` do, for a regime given twice and for grids out of range.
    """
    return forecast_samples(read_samples(records), regimes, alphas=alphas, beta_invs=beta_invs, source=source)


def forecast_samples(
    samples: BaseSamples,
    regimes: Sequence[str],
    *,
    alphas: Sequence[float] = ALPHAS,
    beta_invs: Sequence[float] = BETA_INVS,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`forecast` of samples already read."""
    if not alphas or not all(math.isfinite(alpha) and alpha >= 1 for alpha in alphas):
        raise ValueError(f"alphas of a forecast must be finite and >= 1, got {list(alphas)}; give 1, 1.5, 2, 4, say")
    if not beta_invs or not all(math.isfinite(beta_inv) and beta_inv > 0 for beta_inv in beta_invs):
        raise ValueError(f"beta_invs of a forecast must be finite and > 0, got {list(beta_invs)}; give 1, 10, 100, say")
    objectives = _objectives(regimes)
    ks = _powers(samples.typical)
    votes = [_votes(problem, ks) for problem in samples.problems]
    named = {name: prediction_table(samples, objective) for name, objective in _NAMED.items()}
    content: dict[str, Any] = {
        "schema": FORECAST_SCHEMA,
        "source": _source(samples, source or {}),
        "base": _base(samples),
        "likelihood": likelihood_figures(samples),
        "tempered": {name: _tempered(samples, name, sorted(set(alphas))) for name in LENGTH_EXPONENTS},
        "tilt": _tilt(samples, sorted(set(beta_invs))),
        "limit": _limits(samples, ks, votes),
        "regimes": {regime: _regime(samples, regime, objective) for regime, objective in objectives.items()},
        "families": _families(samples, named),
        "per_problem": [
            _problem(problem, place, named, votes[place][0]) for place, problem in enumerate(samples.problems)
        ],
    }
    return content | {"recommendation": recommend(content)}


def _objectives(regimes: Sequence[str]) -> dict[str, Objective]:
    objectives: dict[str, Objective] = {}
    for regime in regimes:
        if regime in objectives:
            raise ValueError(f"regime {regime!r} is given twice; keep one")
        objectives[regime] = parse_objective(regime)[1]
    return objectives


def _source(samples: BaseSamples, source: Mapping[str, Any]) -> dict[str, Any]:
    merged = all(problem.response_index is not None for problem in samples.problems)
    return {
        "model": source.get("model"),
        "records": source.get("records"),
        "tasks": list(source.get("tasks", samples.tasks)),
        "split": source.get("split", samples.split),
        "problems": len(samples.problems),
        "left_out": samples.left_out,
        "samples": samples.smallest,
        "samples_median": samples.typical,
        "samples_max": samples.largest,
        "temperature": 1.0,
        "temperature_known": samples.temperature_known,
        "fixed_length": samples.fixed_length,
        "fixed_length_known": samples.fixed_length_known,
        "ungraded": samples.ungraded,
        "partial_rewards": samples.partial_rewards,
        "note": "" if merged else "some records hold neither token_ids nor text: repeats count as different responses",
    }


def _base(samples: BaseSamples) -> dict[str, Any]:
    problems, families, n = samples.problems, samples.families, samples.typical
    figures = [base_figures(problem) for problem in problems]
    correct = np.array([int(problem.correct.sum()) for problem in problems])
    sizes = np.array([problem.size for problem in problems])
    greedy = np.array([math.nan if p.greedy_correct is None else p.greedy_correct for p in problems])
    pass_at_n = np.array([pass_at_k(p.size, int(p.correct.sum()), min(n, p.size)) for p in problems])
    lengths = {int(length) for problem in problems for length in problem.lengths}
    greedy_estimate = share(greedy, families, reason="no graded greedy completion")
    return {
        "accuracy": share(np.array([f.accuracy for f in figures]), families).as_json(),
        "sampled_accuracy": share(correct / sizes, families).as_json(),
        "greedy_accuracy": greedy_estimate.as_json() if np.isfinite(greedy).any() else None,
        "pass_at_n": noted(share(pass_at_n, families), _fewer_than(samples, n)).as_json(),
        "length": mean_over_problems(np.array([f.length for f in figures]), families, "tokens").as_json(),
        "one_length": lengths.pop() if len(lengths) == 1 else None,
        "entropy": mean_over_problems(np.array([f.entropy for f in figures]), families, "nats/sequence").as_json(),
        "no_correct_share": share((correct == 0).astype(np.float64), families).as_json(),
        "no_correct_upper_bound": _upper_bound(0, int(sizes[correct == 0].min()) if (correct == 0).any() else n),
        "no_correct_ids": [problem.problem_id for problem in problems if not problem.correct.any()],
        "all_correct_share": share((correct == sizes).astype(np.float64), families).as_json(),
    }


def _fewer_than(samples: BaseSamples, k: int) -> str:
    """What is done with problems of fewer than k samples, where there are any."""
    fewer = sum(problem.size < k for problem in samples.problems)
    return (
        f"{fewer} of {len(samples.problems)} problems have fewer than {k} samples and count with all theirs"
        if fewer
        else ""
    )


def _upper_bound(correct: int, samples: int) -> float:
    """One-sided 95 % upper Clopper–Pearson bound on a success rate; 1 - 0.05^(1/n) where none of n is right."""
    return 1.0 if correct == samples else float(betaincinv(correct + 1, samples - correct, LEVEL))


def _tempered(samples: BaseSamples, name: str, alphas: Sequence[float]) -> dict[str, Any]:
    tables = [prediction_table(samples, tempered(alpha, name)) for alpha in alphas]
    reliable, cut = _reliable_up_to(tables)
    return {
        "alpha": list(alphas),
        **_curve(tables, samples.families),
        "reliable": reliable,
        "cut_alpha": None if cut is None else alphas[cut],
        "note": "" if cut is None else f"not reliable from α = {alphas[cut]:g} on: {tables[cut].why_not}",
    }


def _tilt(samples: BaseSamples, beta_invs: Sequence[float]) -> dict[str, Any]:
    tables = [prediction_table(samples, tilted(1.0, value)) for value in beta_invs]
    reliable, cut = _reliable_up_to(tables)
    none = sum(not problem.correct.any() for problem in samples.problems)
    notes = []
    if none:
        verb = "has" if none == 1 else "have"
        notes.append(f"{none} of {len(samples.problems)} problems {verb} no right sample: no tilt moves them here")
    if cut is not None:
        why = tables[cut].why_not
        flagged = "" if tables[cut].lower_bound else "not reliable "  # the reason names a lower bound itself
        notes.append(f"{flagged}from β⁻¹ = {beta_invs[cut]:g} on: {why}")
    curve = _curve(tables, samples.families)
    return {
        "beta_inv": list(beta_invs),
        **curve,
        "reliable": reliable,
        # Up to the first point that is flagged for another reason.
        "lower_bound": [
            not good and all(table.reliable or table.lower_bound for table in tables[: place + 1])
            for place, good in enumerate(reliable)
        ],
        "note": "; ".join(notes),
    }


def _reliable_up_to(tables: Sequence[PredictionTable]) -> tuple[list[bool], int | None]:
    """Which points of a curve can be trusted, and the first that cannot: beyond it none is, though it may look steady again."""
    cut = next((place for place, table in enumerate(tables) if not table.reliable), None)
    return [cut is None or place < cut for place in range(len(tables))], cut


def _curve(tables: Sequence[PredictionTable], families: Sequence[str]) -> dict[str, Any]:
    estimates = [table_estimates(table, families) for table in tables]
    columns = {key: [estimate[key] for estimate in estimates] for key in ("accuracy", "delta", "length", "kl")}
    return {**columns, "ess": [table.median_effective_samples for table in tables]}


_Votes = Sequence[tuple[float, Array | None]]  # of each problem: maj@n and maj@k


def _limits(samples: BaseSamples, ks: Sequence[int], votes: _Votes) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for name, exponent in LENGTH_EXPONENTS.items():
        table = prediction_table(samples, sharpening(name))
        estimates = table_estimates(table, samples.families)
        by_k = [
            best_of_k(p.logprobs / p.lengths**exponent, p.correct, [min(k, p.size) for k in ks])
            for p in samples.problems
        ]
        limits[name] = {key: estimates[key] for key in ("accuracy", "delta", "length")} | {
            "by_k": {
                "k": list(ks),
                "accuracy": np.mean(by_k, axis=0).tolist(),
                "note": _fewer_than(samples, samples.typical),
            },
            "reliable": table.reliable,
            "note": table.why_not,
        }
    limits["majority"] = _majority(samples, ks, votes)
    return limits


def _majority(samples: BaseSamples, ks: Sequence[int], votes: _Votes) -> dict[str, Any]:
    families = samples.families
    accuracy = np.array([vote[0] for vote in votes])
    reason = "records hold no answers"
    by_k = [vote[1] for vote in votes if vote[1] is not None]
    curve = np.mean(by_k, axis=0).tolist() if by_k else []
    moved = abs(curve[-1] - curve[-2]) if len(curve) > 1 else math.nan
    if not by_k:
        note = reason
    elif moved < SETTLED:
        note = ""
    else:
        note = f"the vote has not settled: {100 * moved:.1f} points from {ks[-2]} to {ks[-1]} samples"
    return {
        "accuracy": share(accuracy, families, reason=reason).as_json(),
        "delta": change_estimate(change(samples, accuracy), families, reason=reason).as_json(),
        "by_k": {
            "k": list(ks) if by_k else [],
            "accuracy": curve,
            "note": _fewer_than(samples, samples.typical) if by_k else "",
        },
        "reliable": moved < SETTLED,
        "note": note,
    }


def _votes(problem: ProblemSamples, ks: Sequence[int]) -> tuple[float, Array | None]:
    """maj@n of the problem's own n samples, and maj@k."""
    if problem.answers is None:
        return math.nan, None
    rng = generator(BOOTSTRAP_SEED, "forecast/majority", problem.problem_id)
    credits = problem.correct.tolist()
    votes = maj_at_k(problem.answers, credits, [*(min(k, problem.size) for k in ks), problem.size], rng=rng)
    return float(votes[-1]), votes[:-1]


def _powers(largest: int) -> list[int]:
    """1, 2, 4, … and `largest` itself."""
    return sorted({2**power for power in range(largest.bit_length()) if 2**power <= largest} | {largest})


def _regime(samples: BaseSamples, regime: str, objective: Objective) -> dict[str, Any]:
    table = prediction_table(samples, objective)
    return {
        "label_free": objective.label_free,
        "objective": objective.describe(),
        **table_estimates(table, samples.families),
        "ess": table.median_effective_samples,
        "reliable": table.reliable,
        "lower_bound": table.lower_bound,
        "note": THE_BASE if is_the_base(objective) else table.why_not,
    }


_NAMED = {
    "limit_sum": sharpening("sum"),
    "limit_mean": sharpening("mean"),
    "tempered_2": tempered(2.0),
    "tilt_100": tilted(1.0, 100.0),
}


def _families(samples: BaseSamples, named: Mapping[str, PredictionTable]) -> dict[str, Any]:
    found = {}
    for family in sorted(set(samples.families) - {""}):
        places = [place for place, own in enumerate(samples.families) if own == family]
        problems = [samples.problems[place] for place in places]
        strata = [family] * len(places)
        accuracy = np.array([base_figures(problem).accuracy for problem in problems])
        found[family] = {
            "problems": len(problems),
            "accuracy": share(accuracy, strata).as_json(),
            "within_correlation": family_correlation(problems).as_json(),
            "no_correct_share": float(np.mean([not problem.correct.any() for problem in problems])),
        } | {
            name: share(named[name].accuracy[places], strata).as_json()
            for name in ("limit_sum", "tempered_2", "tilt_100")
        }
    return found


def _problem(
    problem: ProblemSamples, place: int, named: Mapping[str, PredictionTable], majority: float
) -> dict[str, Any]:
    covariance, correlation = problem_covariance(problem)
    return {
        "problem_id": problem.problem_id,
        "family": problem.family or None,
        "samples": problem.size,
        "correct": int(problem.correct.sum()),
        "accuracy": base_figures(problem).accuracy,
        "covariance": covariance.as_json(),
        "correlation": correlation.as_json(),
        "ess_alpha_2": float(named["tempered_2"].effective_samples[place]),
        **{name: float(named[name].accuracy[place]) for name in ("tempered_2", "limit_sum", "limit_mean")},
        "majority": majority if math.isfinite(majority) else None,
        "p0_upper": _upper_bound(int(problem.correct.sum()), problem.size),
    }
