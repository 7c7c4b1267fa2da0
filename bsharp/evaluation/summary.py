"""Per-problem figures → estimates with intervals. NumPy only.

Every figure is a mean over problems and seeds with the interval of `problem_and_seed_interval`, problems resampled within
their family. Problems that have no value for a figure (too few graded samples) are left out of it in every seed and of
both sides of a difference; the figure's note counts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.evaluation.problem_figures import ProblemFigures, problem_figures, vote_sizes
from bsharp.seeding import generator
from bsharp.statistics import Estimate, within_problem_correlation
from bsharp.statistics.samples import (
    BOOTSTRAP_SEED,
    NOT_FINITE,
    TOO_FEW_GRADED,
    Record,
    left_out,
    linearised_ratio,
    mean_where_defined,
    noted,
    undefined,
)
from bsharp.statistics.verdict import LEAST_SOLVED

__all__ = ["accuracy_difference", "summarize", "summarize_figures"]

Array = NDArray[np.float64]
Bounds = tuple[float, float]

SHARE: Bounds = (0.0, 1.0)
REPLICATES = 2000  # of the bootstrap over problems
SLICE_REPLICATES = 1000
NO_BASE = "no base given"
NO_BASE_RECORDS = "no records of the base given"
THE_BASE = "the base against itself"
_WITHOUT_GRADES = ("length", "kl_to_base", "entropy", "truncated", "unparseable", "ungraded")

_OVERALL: tuple[tuple[str, str, Bounds | None], ...] = (
    ("exact_match", "fraction", SHARE),
    ("reward", "reward", SHARE),
    ("reward_weighted_score", "reward", SHARE),
    ("truncated", "fraction", SHARE),
    ("unparseable", "fraction", SHARE),
    ("ungraded", "fraction", SHARE),
)


def summarize(
    records_by_seed: Sequence[Iterable[Record]],
    base_records: Iterable[Record] | None = None,
    name: str = "model",
    *,
    is_base: bool = False,
) -> dict[str, Any]:
    """All figures of a model from its records, given per training seed and read once (keys: `results-schema`).

    `base_records` are the base's on the same problems. Without them there are records of one seed only, of a model that was
    not trained in seeds: intervals cover problems only and differences to the base are null, or 0 where `is_base` says that
    it is the base. The KL and the correlation with the base's log-probability need records that a base scored and are null
    otherwise; a null says why. Raises ValueError where records are incomplete or not paired.
    """
    ours = problem_figures(records_by_seed, name)
    base = None if base_records is None else problem_figures([base_records], "base")
    return summarize_figures(ours, base, is_base=is_base)


def summarize_figures(
    ours: ProblemFigures, base: ProblemFigures | None, slices: bool = True, is_base: bool = False
) -> dict[str, Any]:
    """`summarize` for figures already computed per problem; on request without those of tasks, families, roles and modes."""
    if is_base and base is not None:
        raise ValueError(f"{ours.name} is said to be the base, but another base is given; give one of the two")
    if is_base:
        base = ours  # from here on: the base itself; None is no base
    if base is not None and base is not ours:
        ours.require_paired(base)
    elif ours.seeds > 1:
        raise ValueError(f"{ours.name} has {ours.seeds} seeds and no base to compare with; give base_records")
    everything = np.arange(len(ours.problem_ids))
    ks = vote_sizes(ours.samples)
    paired_greedy = base is not None and "greedy_accuracy" in base.values and "greedy_accuracy" in ours.values
    summary = {
        "counts": {
            "seeds": ours.seeds,
            "problems": len(ours.problem_ids),
            "samples_per_problem": ours.samples,
            "ungraded_samples": ours.ungraded_samples,
            "ungraded_greedy": ours.ungraded_greedy,
        },
        **_slice(ours, base, everything, ks),
        "greedy_delta": _delta(ours, base, "greedy_accuracy", everything) if paired_greedy else None,
        "maj_at_k_delta": {str(k): _delta(ours, base, f"maj@{k}", everything) for k in ks},
        "entropy": _entropy(ours, base).as_json(),
        "corr_reward_base_logprob": _correlation(ours, base).as_json(),
        "distinct_answers": _figure(ours, base, "distinct_answers", everything, "answers", (0.0, ours.samples)),
    }
    for key, unit, bounds in _OVERALL:
        summary[key] = _figure(ours, base, key, everything, unit, bounds)
    return summary | _all_slices(ours, base) if slices else summary


def accuracy_difference(ours: ProblemFigures, theirs: ProblemFigures) -> dict[str, Any]:
    """Accuracy of one regime minus another's, paired by problem and, where the seeds are as many, by seed."""
    ours.require_paired(theirs)
    everything = np.arange(len(ours.problem_ids))
    return _interval(
        ours,
        ours.values["accuracy"] - theirs.values["accuracy"],
        everything,
        f"difference/{ours.name}/{theirs.name}",
        share_difference=True,
    ).as_json()


def _all_slices(ours: ProblemFigures, base: ProblemFigures | None) -> dict[str, Any]:
    tasks, roles, modes = (ours.labels(key) for key in ("task", "role", "mode"))
    of_family = {
        family: {"role": role, "mode": mode, "task": task}
        for family, role, mode, task in zip(ours.families, roles, modes, tasks, strict=True)
    }
    known: dict[bytes, dict[str, Any]] = {}
    slices = partial(_slices, ours, base, known)
    families = slices(ours.families)
    standard = [mode if role == "standard" else None for role, mode in zip(roles, modes, strict=True)]
    return {
        "tasks": slices(tasks),
        "families": {family: {**of_family[family], **figures} for family, figures in families.items()},
        "roles": slices(roles),
        "modes": slices(standard),
    }


def _slices(
    ours: ProblemFigures,
    base: ProblemFigures | None,
    known: dict[bytes, dict[str, Any]],
    labels: Sequence[str | None],
) -> dict[str, Any]:
    """Figures of each label's problems; None is in no slice. `known` keeps those of the same problems under another label."""
    array = np.array(labels)
    found = {}
    for label in sorted({label for label in labels if label is not None}):
        places = np.flatnonzero(array == label)
        if (key := places.tobytes()) not in known:
            known[key] = _slice(ours, base, places, [ours.samples], SLICE_REPLICATES)
        found[label] = known[key]
    return found


def _slice(
    ours: ProblemFigures,
    base: ProblemFigures | None,
    places: NDArray[np.intp],
    ks: Sequence[int],
    replicates: int | None = None,
) -> dict[str, Any]:
    def share(key: str) -> dict[str, Any]:
        return _figure(ours, base, key, places, "fraction", SHARE, replicates)

    return {
        "problems": len(places),
        "accuracy": share("accuracy"),
        "delta": _delta(ours, base, "accuracy", places, replicates),
        "greedy_accuracy": share("greedy_accuracy") if "greedy_accuracy" in ours.values else None,
        "pass_at_k": {str(k): share(f"pass@{k}") for k in ks},
        "pass_at_k_delta": {str(k): _delta(ours, base, f"pass@{k}", places, replicates) for k in ks},
        "maj_at_k": {str(k): share(f"maj@{k}") for k in ks},
        "length": _figure(ours, base, "length", places, "tokens", None, replicates),
        "kl_to_base": _kl(ours, base, places, replicates),
    }


def _figure(
    ours: ProblemFigures,
    base: ProblemFigures | None,
    key: str,
    places: NDArray[np.intp],
    unit: str,
    bounds: Bounds | None = None,
    replicates: int | None = None,
) -> dict[str, Any]:
    values = ours.values[key] if _in_seeds(ours, base) else ours.values[key].mean(0)
    return _interval(ours, values, places, key, unit, bounds, replicates).as_json()


def _in_seeds(ours: ProblemFigures, base: ProblemFigures | None) -> bool:
    """Whether the model was trained in seeds: not the base, nor a model that has none."""
    return base is not None and base is not ours


def _kl(
    ours: ProblemFigures, base: ProblemFigures | None, places: NDArray[np.intp], replicates: int | None
) -> dict[str, Any]:
    unit = "nats/sequence"
    if base is ours:
        return Estimate(0.0, 0.0, 0.0, len(places), unit, THE_BASE).as_json()
    if not ours.base_scored:
        return undefined(unit, NO_BASE).as_json()
    return _figure(ours, base, "kl_to_base", places, unit, None, replicates)


def _delta(
    ours: ProblemFigures, base: ProblemFigures | None, key: str, places: NDArray[np.intp], replicates: int | None = None
) -> dict[str, Any]:
    if base is None:
        return undefined("fraction", NO_BASE_RECORDS if ours.base_scored else NO_BASE).as_json()
    if base is ours:
        return Estimate(0.0, 0.0, 0.0, len(places), "fraction", THE_BASE).as_json()
    values = ours.values[key] - base.values[key].mean(0)
    return _interval(ours, values, places, f"{key}_delta", replicates=replicates, share_difference=True).as_json()


def _entropy(ours: ProblemFigures, base: ProblemFigures | None) -> Estimate:
    """Nats per token: Σ −log π / Σ tokens, per seed."""
    values = linearised_ratio(ours.values["negative_logprob"], ours.values["length"])
    everything = np.arange(len(ours.problem_ids))
    return _interval(ours, values if _in_seeds(ours, base) else values[0], everything, "entropy", "nats/token")


def _interval(
    ours: ProblemFigures,
    values: Array,
    places: NDArray[np.intp],
    key: str,
    unit: str = "fraction",
    bounds: Bounds | None = None,
    replicates: int | None = None,
    share_difference: bool = False,
) -> Estimate:
    """Mean and interval of `values` (S, P) or (P,) at `places`, without the problems that have no value.

    A difference of shares that rests on fewer than `LEAST_SOLVED` problems has no direction: its interval then holds 0.
    """
    found = mean_where_defined(
        values[..., places],
        key,
        ours.family_codes[places],
        unit,
        reason=NOT_FINITE if key in _WITHOUT_GRADES else TOO_FEW_GRADED,
        bounds=bounds,
        share_difference=share_difference,
        replicates=replicates or REPLICATES,
    )
    changed = np.atleast_2d(np.nan_to_num(values[..., places])).any(axis=0).sum()
    if not share_difference or changed >= LEAST_SOLVED or not found.excludes_zero():
        return found
    held = dataclasses.replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
    return noted(held, f"fewer than {LEAST_SOLVED} problems changed: too few to tell a direction")


def _correlation(ours: ProblemFigures, base: ProblemFigures | None) -> Estimate:
    if not ours.base_scored:
        return undefined("correlation", NO_BASE)
    usable = ours.graded & np.isfinite(ours.base_logprobs)
    seeds, problems, _ = np.nonzero(usable)
    figure = within_problem_correlation(
        ours.rewards[usable],
        ours.base_logprobs[usable],
        problems,
        seeds=seeds if _in_seeds(ours, base) else None,
        strata=dict(enumerate(ours.families)),
        rng=generator(BOOTSTRAP_SEED, "interval", "corr_reward_base_logprob"),
    )
    if not figure.n:
        return figure
    met = len(ours.problem_ids)
    return noted(figure, left_out(met - figure.n, met, TOO_FEW_GRADED))
