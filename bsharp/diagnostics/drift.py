"""How far each trained policy went from the base, and in what: overall and per family. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.statistics import Estimate, repetition_rate
from bsharp.statistics.columns import token_ids_of
from bsharp.statistics.samples import (
    NOT_FINITE,
    TOO_FEW_GRADED,
    Record,
    SampleTable,
    distinct_answers,
    linearised_ratio,
    mean_where_defined,
    means_without_grades,
    paired_tables,
    undefined,
)

__all__ = ["drift"]

Array = NDArray[np.float64]
SHARE = (0.0, 1.0)
FAMILY_REPLICATES = 1000


def drift(records_by_model: Mapping[str, Sequence[Iterable[Record]]], base: str = "base") -> dict[str, Any]:
    """{"schema", "models": {model: {"overall": slice, "families": {family: slice}}}} from evaluation records.

    `records_by_model` maps a model to its records, given per training seed and read once; the model named `base` has one seed and
    was not trained. A slice holds, as estimates over problems and seeds with 95 % intervals (problems are resampled within
    their family), over the n samples of each problem, greedy records left out:

    | key | figure |
    |---|---|
    | problems | P of the slice |
    | kl | KL(policy‖base), estimator k1: mean over samples of log π(y) - log π_ref(y), y drawn from the policy; nats/sequence |
    | entropy | Σ -log π(y) / Σ tokens, per seed, then averaged over seeds; nats/token |
    | length | response tokens, EOS included |
    | truncated | share of samples cut at the token limit |
    | repetition | mean share of 4-grams already seen in the same response (`repetition_rate`, arXiv 1908.04319) |
    | distinct_answers | different extracted answers among a problem's graded samples, unparseable ones not counted |

    k1 is unbiased but a single sample of it may be negative, so a small KL may be estimated below 0. Under a temperature
    other than 1 all log-probabilities are those of the distribution sampled from. The base's own KL is 0 by definition; it
    is null where a model was evaluated without a base. Raises ValueError for incomplete records, and for models that were
    not evaluated on the base's problems with as many samples.
    """
    tables = paired_tables(records_by_model, base, {"repetition": lambda r: repetition_rate(token_ids_of(r))})
    return {"schema": 1, "models": {name: _model(table, name == base) for name, table in tables.items()}}


def _model(table: SampleTable, is_base: bool) -> dict[str, Any]:
    values = _values(table)
    if is_base:
        values = {key: value[0] for key, value in values.items()}  # (P,): a quantity without seeds
    families = np.array(table.families)
    return {
        "overall": _slice(values, families, is_base, 2000, table.samples),
        "families": {
            str(family): _slice(
                {key: value[..., families == family] for key, value in values.items()},
                families[families == family],
                is_base,
                FAMILY_REPLICATES,
                table.samples,
            )
            for family in np.unique(families)
        },
    }


def _values(table: SampleTable) -> dict[str, Array]:
    """Means over the samples of a problem, (S, P) each; NaN where a problem has none."""
    return means_without_grades(table) | {
        "repetition": table.extra["repetition"].mean(-1),
        "distinct_answers": distinct_answers(table),
    }


def _slice(
    values: Mapping[str, Array], families: NDArray[Any], is_base: bool, replicates: int, samples: int
) -> dict[str, Any]:
    strata = [str(family) for family in families]

    def figure(
        key: str, of_problems: Array, unit: str, bounds: tuple[float, float] | None = None, reason: str = NOT_FINITE
    ) -> dict[str, Any]:
        found = mean_where_defined(of_problems, key, strata, unit, reason=reason, bounds=bounds, replicates=replicates)
        return found.as_json()

    kl = figure("kl_to_base", values["kl_to_base"], "nats/sequence")
    if is_base:
        kl = Estimate(0.0, 0.0, 0.0, len(strata), "nats/sequence", "the base against itself").as_json()
    elif np.isnan(values["kl_to_base"]).all():
        kl = undefined("nats/sequence", "no base given").as_json()
    entropy = linearised_ratio(values["negative_logprob"], values["length"])
    return {
        "problems": len(strata),
        "kl": kl,
        "entropy": figure("entropy", entropy, "nats/token"),
        "length": figure("length", values["length"], "tokens"),
        "truncated": figure("truncated", values["truncated"], "fraction", SHARE),
        "repetition": figure("repetition", values["repetition"], "fraction", SHARE),
        "distinct_answers": figure(
            "distinct_answers", values["distinct_answers"], "answers", (0.0, float(samples)), TOO_FEW_GRADED
        ),
    }
