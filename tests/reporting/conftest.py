"""A results object in which every number is different, so that a table can be checked against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bsharp.evaluation import validate_results


def figure(estimate: float | None, unit: str = "fraction", note: str = "") -> dict[str, Any]:
    width = 0.0123
    low, high = (None, None) if estimate is None else (estimate - width, estimate + width)
    return {"estimate": estimate, "low": low, "high": high, "n": 512, "unit": unit, "note": note}


def slice_of(numbers: Iterator[float], role: dict[str, str] | None = None) -> dict[str, Any]:
    by_k = {name: {"16": figure(next(numbers))} for name in ("pass_at_k", "pass_at_k_delta", "maj_at_k")}
    return {
        "problems": 32,
        "accuracy": figure(next(numbers)),
        "delta": figure(next(numbers) - 0.5),
        "greedy_accuracy": figure(next(numbers)),
        "length": figure(100 * next(numbers), "tokens"),
        "kl_to_base": figure(10 * next(numbers), "nats/sequence"),
        **by_k,
        **(role or {}),
    }


def summary_of(numbers: Iterator[float]) -> dict[str, Any]:
    others = ("exact_match", "reward", "reward_weighted_score", "truncated", "unparseable", "ungraded")
    summary = slice_of(numbers)
    summary["counts"] = {"seeds": 3, "problems": 512, "samples_per_problem": 16}
    summary["counts"] |= {"ungraded_samples": 0, "ungraded_greedy": 0}
    for key in (*others, "greedy_delta", "distinct_answers", "corr_reward_base_logprob"):
        summary[key] = figure(next(numbers))
    return summary | {"maj_at_k_delta": {"16": figure(next(numbers))}, "entropy": figure(next(numbers), "nats/token")}


def full_summary_of(numbers: Iterator[float]) -> dict[str, Any]:
    families = {"add": "standard", "word": "standard", "chain": "unsolved", "[red]sub": "transfer"}
    modes = {"add": "wrong", "word": "right", "chain": "none", "[red]sub": "right"}
    return summary_of(numbers) | {
        "tasks": {"math_mini": slice_of(numbers)},
        "families": {
            name: slice_of(numbers, {"role": role, "mode": modes[name], "task": "math_mini"})
            for name, role in families.items()
        },
        "roles": {role: slice_of(numbers) for role in dict.fromkeys(families.values())},
        "modes": {mode: slice_of(numbers) for mode in ("right", "wrong")},
    }


def regime_of(numbers: Iterator[float], word: str) -> dict[str, Any]:
    return full_summary_of(numbers) | {
        "objective": "tilted(alpha=1,beta_inv=100)",
        "label_free": False,
        "learning_rate": 1e-3,
        "seeds": [0, 1, 2],
        "last_steps": [40, 40, 40],
        "stopped": [None, None, None],
        "stability": {"word": word, "why": f"seed sd {next(numbers):.3f} points", "figures": {}},
        "best_by_validation": summary_of(numbers) | {"steps": [10, 40, 30]},
    }


@pytest.fixture
def results() -> dict[str, Any]:
    numbers = iter([round(0.05 + 0.9 * ((i * 0.6180339887) % 1), 4) for i in range(2000)])
    words = {"task_reward": "stable", "tilted": "noisy", "sharpening": "collapsed", "[bold]odd|name": "declining"}
    content = {
        "schema_version": 1,
        "base": full_summary_of(numbers),
        "regimes": {name: regime_of(numbers, word) for name, word in words.items()},
        "differences": {},
        "verdict": {
            "sentence": "gain beyond the best sharpening: +45.0 points [+42.0, +48.0]",
            "gain": figure(45.0, "points"),
            "chosen": "sharpening",
            "choice_shares": {"sharpening": 1.0},
            "level": 0.95,
        },
        "choices_using_labels": ["the rate of [green]every[/green] regime was tuned on validation"],
        "config": {"evaluation": {"split": "test", "temperature": 0.7, "fixed_length": False, "max_new_tokens": 48}},
        "manifest": {},
    }
    validate_results(content)
    return content
