"""The content of a forecast.json, made up, by its schema: every number is plain to check and no two figures are equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["ALPHAS", "BETA_INVS", "estimated", "hand_made_forecast"]

ALPHAS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0)
BETA_INVS = (0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 10000.0)
FAMILIES = ("add", "mean", "order", "percent", "years", "speed", "ratio", "queue")
SAMPLES = 16

Json = dict[str, Any]


def estimated(value: float | None, width: float = 0.02, unit: str = "share", n: int = 96, note: str = "") -> Json:
    """An estimate as JSON."""
    low, high = (None, None) if value is None else (value - width, value + width)
    found: Json = {"estimate": value, "low": low, "high": high, "n": n, "unit": unit}
    return found | ({"note": note} if note else {})


def hand_made_forecast(
    problems: int = 96, word: str = "task reward", model: str | None = "embedded:tiny", reliable_to: float = 2.0
) -> Json:
    """A base that is right in 46 % of samples, whose likelihood helps at first and whose mode is often wrong.

    `reliable_to` is the last value of α whose weights carry; the curve of the mean is reliable everywhere.
    """
    return {
        "schema": 1,
        "source": {
            "model": model,
            "records": "runs/base/records.jsonl",
            "tasks": ["math_mini"],
            "split": "train",
            "problems": problems,
            "left_out": 0,
            "samples": SAMPLES,
            "samples_max": SAMPLES,
            "temperature": 1.0,
            "fixed_length": False,
            "ungraded": 3,
        },
        "base": {
            "accuracy": estimated(0.462, 0.031),
            "sampled_accuracy": estimated(0.459, 0.033),
            "greedy_accuracy": estimated(0.521, 0.05),
            "pass_at_n": estimated(0.845, 0.036),
            "length": estimated(31.4, 1.2, "tokens"),
            "entropy": estimated(9.73, 0.4, "nats/sequence"),
            "no_correct_share": estimated(0.155, 0.036),
            "no_correct_upper_bound": 1 - 0.05 ** (1 / SAMPLES),
            "no_correct_ids": [f"years/{at}" for at in range(15)],
            "all_correct_share": estimated(0.083, 0.028),
        },
        "likelihood": {"sum": _likelihood(0.034, 0.214, 0.331, 0.68), "mean": _likelihood(0.0021, 0.118, -0.07, 0.57)},
        "tempered": {
            "sum": _tempered(lambda a: 0.462 + 0.034 * (a - 1) - 0.009 * (a - 1) ** 2, 1.1, reliable_to, -2.6),
            "mean": _tempered(lambda a: 0.462 + 0.0021 * (a - 1), 0.02, ALPHAS[-1], 0.05),
        },
        "tilt": _tilt(),
        "limit": {
            "sum": _limit(0.488, 0.026, 28.1, 0.462),
            "mean": _limit(0.437, -0.025, 39.2, 0.462),
            "majority": _limit(0.561, 0.099, None, 0.462),
        },
        "regimes": _regimes(),
        "families": {
            name: {
                "problems": problems // len(FAMILIES),
                "accuracy": estimated(0.9 - 0.11 * at, 0.06, n=problems // len(FAMILIES)),
                "within_correlation": estimated(0.5 - 0.13 * at, 0.12, "correlation", problems // len(FAMILIES)),
                "no_correct_share": 0.0 if at < 4 else 0.1 * (at - 3),
                "limit_sum": estimated(0.97 - 0.13 * at, 0.08, n=problems // len(FAMILIES)),
                "tempered_2": estimated(0.93 - 0.115 * at, 0.07, n=problems // len(FAMILIES)),
                "tilt_100": estimated(1.0 - 0.06 * at, 0.05, n=problems // len(FAMILIES)),
            }
            for at, name in enumerate(FAMILIES)
        },
        "per_problem": [_problem(at) for at in range(problems)],
        "recommendation": _recommendation(word),
    }


def _likelihood(covariance: float, within: float, between: float, positive: float) -> Json:
    return {
        "within": {
            "covariance": estimated(covariance, abs(covariance) / 3, "nats"),
            "correlation": estimated(within, 0.061, "correlation"),
        },
        "between": {"correlation": estimated(between, 0.12, "correlation")},
        "positive_share": estimated(
            positive, 0.08, n=73, note="23 of 96 problems left out: all samples right or all wrong"
        ),
    }


def _tempered(accuracy: Callable[[float], float], kl: float, reliable_to: float, longer: float) -> Json:
    cut = next((a for a in ALPHAS if a > reliable_to), None)
    why = "3.9 effective samples per problem (median), below 4"
    return {
        "alpha": list(ALPHAS),
        "accuracy": [estimated(accuracy(a), 0.031 + 0.012 * (a - 1)) for a in ALPHAS],
        "delta": [estimated(accuracy(a) - 0.462, 0.012 * (a - 1)) for a in ALPHAS],
        "length": [estimated(31.4 + longer * (a - 1), 1.2, "tokens") for a in ALPHAS],
        "kl": [estimated(kl * (a - 1) ** 2, 0.1 * kl * (a - 1), "nats/sequence") for a in ALPHAS],
        "ess": [round(1 + (SAMPLES - 1) * math.exp(-kl * (a - 1)), 2) for a in ALPHAS],
        "reliable": [a <= reliable_to for a in ALPHAS],
        "cut_alpha": cut,
        "note": "" if cut is None else f"from α = {cut:g} on not reliable: {why}",
    }


def _tilt() -> Json:
    p0, solvable = 0.462, 0.845
    accuracy = [
        solvable * (x := p0 / solvable) * math.exp(b) / (x * math.exp(b) + 1 - x) for b in map(_capped, BETA_INVS)
    ]
    return {
        "beta_inv": list(BETA_INVS),
        "accuracy": [estimated(value, 0.033) for value in accuracy],
        "delta": [estimated(value - p0, 0.024) for value in accuracy],
        "length": [estimated(31.0 - 0.1 * at, 1.1, "tokens") for at in range(len(BETA_INVS))],
        "kl": [estimated(0.62 * (1 - math.exp(-b / 3)), 0.05, "nats/sequence") for b in BETA_INVS],
        "ess": [round(SAMPLES * (0.45 + 0.55 * math.exp(-b / 3)), 2) for b in BETA_INVS],
        "reliable": [True] * len(BETA_INVS),
        "note": "15 of 96 problems have no right sample: no tilt moves them here",
    }


def _capped(value: float) -> float:
    return min(value, 50.0)


def _limit(accuracy: float, delta: float, length: float | None, base: float) -> Json:
    ks = [1, 2, 4, 8, 16]
    found: Json = {
        "accuracy": estimated(accuracy, 0.047),
        "delta": estimated(delta, 0.037),
        "by_k": {"k": ks, "accuracy": [base + (accuracy - base) * (1 - 2.0**-at) * 16 / 15 for at in range(len(ks))]},
    }
    if length is None:
        return found
    return found | {"length": estimated(length, 1.4, "tokens"), "reliable": True, "note": ""}


def _regimes() -> Json:
    def regime(label_free: bool, objective: str, accuracy: float, delta: float, length: float, kl: float,
               ess: float, reliable: bool = True, note: str = "") -> Json:  # fmt: skip
        return {
            "label_free": label_free,
            "objective": objective,
            "accuracy": estimated(accuracy, 0.041),
            "delta": estimated(delta, 0.033),
            "length": estimated(length, 1.3, "tokens"),
            "kl": estimated(kl, 0.05, "nats/sequence"),
            "ess": ess,
            "reliable": reliable,
            "note": note,
        }

    few = "1.6 effective samples per problem (median), below 4"
    return {
        "task_reward": regime(False, "E[r]", 0.845, 0.383, 30.6, 0.74, 7.4),
        "tilted(alpha=1,beta_inv=100)": regime(False, "E[r] − 0.01·KL(π‖π_ref)", 0.844, 0.382, 30.7, 0.62, 7.2),
        "tilted(alpha=1.25,beta_inv=100)": regime(False, "E[r + 0.0025·ℓ_ref] − 0.01·KL(π‖π_ref)", 0.843, 0.381, 30.2, 0.81, 6.1),
        "sharpening": regime(True, "E[ℓ_ref]", 0.488, 0.026, 28.1, 9.4, 1.0),
        "sharpening(normalisation=mean)": regime(True, "E[ℓ_ref/T]", 0.437, -0.025, 39.2, 11.3, 1.0),
        "tempered(alpha=2)": regime(True, "E[ℓ_ref] − KL(π‖π_ref)", 0.487, 0.025, 28.8, 1.1, 6.0),
        "tempered(alpha=4)": regime(True, "E[3·ℓ_ref] − KL(π‖π_ref)", 0.483, 0.021, 23.6, 4.4, 1.55, False, few),
    }  # fmt: skip


def _problem(at: int) -> Json:
    accuracy = (at * 7 % 17) / SAMPLES
    mixed = 0 < accuracy < 1
    family = at % len(FAMILIES)
    correlation = max(-0.95, min(0.95, 0.55 - 0.14 * family + 0.35 * math.sin(at * 1.7))) if mixed else None
    note = "" if mixed else "all samples have the same reward"
    return {
        "problem_id": f"{FAMILIES[family]}/{at}",
        "family": FAMILIES[family],
        "samples": SAMPLES,
        "correct": round(accuracy * SAMPLES),
        "accuracy": accuracy,
        "covariance": estimated(None if correlation is None else correlation * 1.3, 0.4, "nats", SAMPLES, note),
        "correlation": estimated(correlation, 0.3, "correlation", SAMPLES, note),
        "ess_alpha_2": 6.0 + (at % 5),
        "tempered_2": min(accuracy * 1.1, 1.0),
        "limit_sum": float(at % 2),
        "limit_mean": float(at % 3 == 0),
        "majority": float(at % 4 != 0),
        "p0_upper": 1 - 0.05 ** (1 / SAMPLES) if accuracy == 0 else min(1.0, accuracy + 0.2),
    }


def _recommendation(word: str) -> Json:
    def rule(text: str, source: str, figures: str, holds: bool | None) -> Json:
        return {"rule": text, "source": source, "figures": figures, "holds": holds}

    rules: Sequence[Json] = (
        rule("The base finds a correct answer on most problems, so a reward has something to reinforce.",
             "identity (A): E[r] under the tilt rises to 1 wherever p0 > 0", "pass@16 84.5 % [80.9, 88.1]", True),
        rule("Likelihood gains nearly as much as the reward could.", "arXiv 2604.16259: sharpening yields limited gains",
             "sharpening +2.6 [−1.1, +6.3], tilt +38.2 [+34.9, +41.5] points", False),
        rule("Likelier samples are right more often within a problem.", "identity (B); arXiv 2606.27359",
             "correlation +0.214 [+0.153, +0.275]", True),
        rule("Many problems have no correct sample at all.", "arXiv 2504.13837: the reward selects among what the base can do",
             "15.5 % [11.9, 19.1] of problems", False),
    )  # fmt: skip
    return {
        "word": word,
        "sentence": "Train with the task reward: correct answers are there to be reinforced in 84.5 % of problems, and "
        "raising likelihood is forecast to gain +2.6 points where the reward can gain +38.2.",
        "rules": list(rules),
        "cannot_know": [
            "Whether training on these problems helps on others: the forecast holds problem by problem.",
            "How near a network, an optimiser and a finite number of steps come to the optimum.",
            "Responses that 16 samples did not show.",
        ],
    }
