"""Simulated evaluation records: whatever a model might have answered, without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Records = list[dict[str, Any]]
Simulate = Callable[..., Records]

ROLES = ("standard", "rare", "transfer")
MODES = ("right", "none", "wrong")


def simulated_records(
    seed: int,
    problems: int = 12,
    samples: int = 4,
    accuracy: float = 0.5,
    ungraded: float = 0.0,
    greedy: bool = True,
    base: bool = False,
) -> Records:
    """Problems of three families and two tasks; answers collide, some are unreadable, some responses repeat."""
    rng = np.random.default_rng(seed)
    records = []
    for place in range(problems):
        chance = (accuracy + place / problems) / 2
        for sample in range(samples + greedy):
            correct, timeout = rng.random() < chance, rng.random() < ungraded
            answer = "7" if correct else [None, "8", "9"][rng.integers(3)]
            status = "timeout" if timeout else "correct" if correct else "unparseable" if answer is None else "wrong"
            logprob = -float(rng.exponential(3.0)) - 0.1
            records.append(
                {
                    "schema": 1,
                    "problem_id": f"task/{place}",
                    "task": f"task{place % 2}",
                    "family": f"family{place % 3}",
                    "role": ROLES[place % 3],
                    "mode": MODES[place % 3],
                    "checkpoint": "last",
                    "difficulty": 1,
                    "question": "?",
                    "gold": "7",
                    "grader": "Simulated",
                    "sample": 0 if sample == samples else sample,
                    "greedy": sample == samples,
                    "policy_version": 0,
                    "temperature": None if sample == samples else 1.0,
                    "fixed_length": False,
                    "token_ids": rng.integers(0, 2, size=2).tolist(),
                    "text": "",
                    "finish_reason": "length" if rng.random() < 0.2 else "eos",
                    "length": int(rng.integers(2, 20)),
                    "logprob": logprob,
                    "base_logprob": logprob if base else logprob - float(rng.normal(1.0, 0.5)),
                    "status": status,
                    "detail": "",
                    "answer": None if timeout else answer,
                    "reward": None if timeout else float(correct),
                    "exact_match": bool(correct and not timeout and rng.random() < 0.8),
                }
            )
    return records


@pytest.fixture
def simulate() -> Simulate:
    return simulated_records
