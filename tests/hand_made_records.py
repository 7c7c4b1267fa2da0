"""Evaluation records without a model: one by hand, or many at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Records = list[dict[str, Any]]
GOLD = "7"


def hand_made(problem: int, sample: int, answer: str | None, family: str = "add", **changed: Any) -> dict[str, Any]:
    """One sampled record: `answer` GOLD is correct, None unparseable, "timeout" ungraded."""
    ungraded, correct = answer == "timeout", answer == GOLD
    record = {
        "problem_id": f"task/{problem:04d}",
        "task": "task",
        "family": family,
        "role": "standard",
        "mode": "right",
        "difficulty": 1,
        "gold": GOLD,
        "sample": sample,
        "greedy": False,
        "token_ids": [1, 2, 3],
        "finish_reason": "eos",
        "length": 3,
        "logprob": -1.0,
        "base_logprob": -1.0,
        "status": "timeout" if ungraded else "correct" if correct else "unparseable" if answer is None else "wrong",
        "answer": None if ungraded else answer,
        "reward": None if ungraded else float(correct),
        "exact_match": correct,
    }
    return record | changed


def answered(answers: Sequence[Sequence[str | None]], **changed: Any) -> Records:
    """Records of problems 0 … P - 1 from their samples' answers."""
    return [hand_made(p, i, answer, **changed) for p, row in enumerate(answers) for i, answer in enumerate(row)]


def simulated(
    seed: int, problems: int = 24, samples: int = 8, skill: float = 0.0, ungraded: float = 0.0, base: bool = False
) -> Records:
    """Problems of three families; the chance of a right answer differs between problems and rises with `skill`."""
    rng = np.random.default_rng(seed)
    records = []
    for place in range(problems):
        chance = 1.0 / (1.0 + np.exp(-(4.0 * place / problems - 2.0 + skill)))
        for sample in range(samples + 1):
            answer = GOLD if rng.random() < chance else [None, "8", "8", "9"][rng.integers(4)]
            answer = "timeout" if rng.random() < ungraded else answer
            tokens = rng.integers(0, 2, size=rng.integers(2, 20)).tolist()
            logprob = -float(rng.exponential(3.0)) - 0.1
            drawn: dict[str, Any] = {
                "sample": 0 if sample == samples else sample,
                "greedy": sample == samples,
                "token_ids": tokens,
                "length": len(tokens),
                "finish_reason": "length" if rng.random() < 0.2 else "eos",
                "logprob": logprob,
                "base_logprob": logprob if base else logprob - float(rng.normal(1.0, 0.5)),
                "difficulty": 1 + place % 2,
            }
            records.append(hand_made(place, sample, answer, family=f"family{place % 3}") | drawn)
    return records
