"""Exact small worlds: every response listed, in float64, with the training mathematics used unchanged."""

from __future__ import annotations

from bsharp.theory.policy_gradient import exact_gradient, exact_objective
from bsharp.theory.targets import Moments, Target, expectation, moments, optimum
from bsharp.theory.world import FiniteWorld, from_arrays, random_world, tabular_token_logprobs

__all__ = [
    "FiniteWorld",
    "Moments",
    "Target",
    "exact_gradient",
    "exact_objective",
    "expectation",
    "from_arrays",
    "moments",
    "optimum",
    "random_world",
    "tabular_token_logprobs",
]
