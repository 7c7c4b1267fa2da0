"""What a policy does at given points of the space of weights: reward, E[ℓ_ref], KL and entropy from fresh samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from bsharp.config import Backend
from bsharp.generation import GenerationRequest, LogitsError, SamplingParams, generator_for
from bsharp.models.loading import LanguageModel, clone_model
from bsharp.models.weights import flat_weights, set_flat_weights
from bsharp.rewards import RewardFunction
from bsharp.rollouts import completion_logprobs, grade_completions
from bsharp.seeding import stream_seed
from bsharp.tasks import Task
from bsharp.types import Completion, Grade, Problem

__all__ = ["QUANTITIES", "Point", "PointValues", "SurfaceSampling", "evaluate_points"]

Point = tuple[tuple[str, float], ...]
"""Coefficients c of named directions d: the weights base + Σ c·d. The base itself is ()."""

PointValues = dict[str, dict[str, float | None]]
"""Quantity → {"mean", "standard_error"}; null where undefined."""

QUANTITIES: Mapping[str, Mapping[str, str]] = {
    "reward": {"unit": "share", "title": "Expected reward"},
    "base_logprob": {"unit": "nats/sequence", "title": "Log-probability under the base, E[ℓ_ref]"},
    "kl": {"unit": "nats/sequence", "title": "KL(policy‖base)"},
    "entropy": {"unit": "nats/token", "title": "Entropy per token"},
}


@dataclass(frozen=True, slots=True)
class SurfaceSampling:
    """How completions are drawn, the same at every point."""

    samples: int = 4  # completions per problem
    seed: int = 0  # names the random streams, as in an evaluation with this seed
    max_new_tokens: int = 48
    temperature: float = 1.0
    fixed_length: bool = False
    max_rows: int = 512  # completions decoded at once; memory and speed only
    backend: Backend = "auto"  # who decodes
    microbatch_rows: int = 64  # completions scored at once by the base; memory and speed only


def evaluate_points(
    base: LanguageModel,
    directions: Mapping[str, Float[Tensor, " N"]],
    points: Sequence[Point],
    problems: Sequence[Problem],
    tasks: Mapping[str, Task],
    rewards: Mapping[str, RewardFunction],
    sampling: SurfaceSampling,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[PointValues]:
    """Estimates at the weights θ = base + Σ c·direction of each point, from fresh samples y ~ π_θ; (point) order kept.

        reward        mean over problems of the mean reward of the graded completions
        base_logprob  mean over problems of ℓ_ref(y) = log π_base(y), nats per sequence
        kl            mean over problems of log π_θ(y) − log π_base(y): k1, unbiased for KL(π_θ‖π_base), nats per sequence
        entropy       Σ −log π_θ(y) / Σ tokens of y, nats per token

    Ungraded completions leave the reward and count elsewhere; a problem without a graded one leaves the reward. Standard
    errors take the problems as independent: sd/√P for means, the delta method for the ratio; null with one problem.

    Common random numbers: a problem's stream is named by sampling.seed and its id alone, at every point and in an
    evaluation with that seed, so the base's point repeats the base's evaluation and equal weights give equal values. Errors
    of neighbouring points are therefore correlated: their differences are more certain than the standard errors say.

    Sums of weights are taken in float64 and rounded to the model's type. Weights that give no distribution (NaN, overflow)
    have null values. Points are independent of each other, so they can be dealt to processes in any way; `base` is not
    changed. `on_progress(done, total)` counts points. Raises ValueError for no problem, fewer than 1 sample, an
    unknown direction or one that is not of the model's size.
    """
    if not problems:
        raise ValueError("no problem to evaluate the surface on; give at least one")
    origin = flat_weights(base.model).double()
    for name in {name for point in points for name, _ in point}:
        if name not in directions or directions[name].shape != origin.shape:
            found = tuple(directions[name].shape) if name in directions else "missing"
            raise ValueError(f"direction {name!r} is {found}; give a vector of the model's {len(origin)} weights")
    policy = clone_model(base)
    decoder = generator_for(policy, sampling.max_rows, sampling.backend)
    prompts = [tuple(base.encode(tasks[problem.task].prompt(problem))) for problem in problems]
    requests = [
        GenerationRequest(prompt, sampling.samples, stream_seed(sampling.seed, "evaluation", problem.problem_id))
        for prompt, problem in zip(prompts, problems, strict=True)
    ]
    params = SamplingParams(sampling.max_new_tokens, sampling.temperature, fixed_length=sampling.fixed_length)
    values = []
    for done, point in enumerate(points, start=1):
        set_flat_weights(policy.model, _weights_at(origin, directions, point))
        try:
            completions = decoder.generate(requests, params)
        except LogitsError:
            values.append({quantity: _entry(math.nan, math.nan) for quantity in QUANTITIES})
        else:
            grades = grade_completions(rewards, problems, completions)
            # The base has scored its own samples by drawing them.
            base_logprobs = (
                completion_logprobs(
                    base,
                    prompts,
                    completions,
                    sampling.temperature,
                    sampling.fixed_length,
                    sampling.microbatch_rows,
                )
                if point
                else [[math.fsum(completion.logprobs) for completion in group] for group in completions]
            )
            values.append(_point_values(completions, grades, base_logprobs))
        if on_progress is not None:
            on_progress(done, len(points))
    return values


def _weights_at(origin: Tensor, directions: Mapping[str, Tensor], point: Point) -> Tensor:
    weights = origin.clone()
    for name, coefficient in point:
        weights.add_(directions[name].cpu().double(), alpha=coefficient)
    return weights


def _point_values(
    completions: Sequence[Sequence[Completion]],
    grades: Sequence[Sequence[Grade]],
    base_logprobs: Sequence[Sequence[float]],
) -> PointValues:
    logprobs = np.array([[math.fsum(completion.logprobs) for completion in group] for group in completions])  # (P, G)
    lengths = np.array([[len(completion.token_ids) for completion in group] for group in completions])
    of_base = np.array(base_logprobs)
    graded = [[grade.reward for grade in group if grade.reward is not None] for group in grades]
    return {
        "reward": _mean([math.fsum(group) / len(group) for group in graded if group]),
        "base_logprob": _mean(of_base.mean(1)),
        "kl": _mean((logprobs - of_base).mean(1)),
        "entropy": _entry(*_ratio(-logprobs.sum(1), lengths.sum(1))),
    }


def _mean(values: ArrayLike) -> dict[str, float | None]:
    return _entry(*_ratio(values, np.ones(np.shape(values))))


def _ratio(numerators: ArrayLike, denominators: ArrayLike) -> tuple[float, float]:
    """R = Σa/Σb over independent problems, and its standard error √(P/(P−1) Σ(a − R b)²) / Σb. (P,) each."""
    a, b = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not len(a):
        return math.nan, math.nan
    ratio = float(a.sum() / b.sum())
    if len(a) == 1:
        return ratio, math.nan
    residual = a - ratio * b
    return ratio, float(np.sqrt(len(a) / (len(a) - 1) * (residual @ residual)) / b.sum())


def _entry(mean: float, standard_error: float) -> dict[str, float | None]:
    return {
        "mean": mean if math.isfinite(mean) else None,
        "standard_error": standard_error if math.isfinite(standard_error) else None,
    }
