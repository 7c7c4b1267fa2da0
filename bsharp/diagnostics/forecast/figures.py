"""Predictions of all problems → estimates with intervals over problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.algorithm import Objective
from bsharp.diagnostics.forecast.prediction import base_figures, predict
from bsharp.diagnostics.forecast.samples import BaseSamples
from bsharp.statistics import Estimate
from bsharp.statistics.intervals import POOLED_STRATA
from bsharp.statistics.samples import mean_where_defined

__all__ = [
    "LEAST_DRAWN",
    "LEAST_EFFECTIVE",
    "REPLICATES",
    "STREAM",
    "THE_BASE",
    "PredictionTable",
    "change",
    "change_estimate",
    "is_the_base",
    "mean_over_problems",
    "prediction_table",
    "reworded",
    "share",
    "table_estimates",
]

Array = NDArray[np.float64]

REPLICATES = 1000  # of the bootstrap over problems
STREAM = "forecast/problems"
"""The random stream of every interval: equal figures get equal intervals, and figures move together over problems."""

LEAST_EFFECTIVE = 5.0
"""Median effective samples per problem below which a smooth optimum that weighs by likelihood is flagged: above it the bias in
the simulations of docs/forecast.md is about a fifth of the predicted change at most."""
LEAST_DRAWN = 3.0
"""Median draws of the best response below which a point mass is flagged: a response drawn 3 times of n has a probability of about
3/n, and one as likely would be missed with probability e^-3, 5 %."""
LARGEST_BIAS = 0.01
LARGEST_BIAS_SHARE = 0.1
"""A prediction is flagged where its mean jackknife bias, or what unseen right responses could add, is beyond both of these,
absolute and as a share of the predicted change. The bias must be beyond twice its standard error, too, where the likelihood
enters: there it may go either way."""


@dataclass(frozen=True)
class PredictionTable:
    """All P problems under the optimum of one objective."""

    objective: Objective
    accuracy: Array  # (P,)
    delta: Array  # (P,), accuracy minus the base's
    length: Array  # (P,)
    kl: Array  # (P,)
    effective_samples: Array  # (P,)
    bias: Array  # (P,), of the accuracy, by the jackknife
    unseen: Array  # (P,), what right responses nobody drew could add to the change of accuracy

    @property
    def median_effective_samples(self) -> float:
        """Of the problems."""
        return float(np.median(self.effective_samples))

    @property
    def reliable(self) -> bool:
        """Enough effective samples and no visible bias."""
        return not self.why_not

    @property
    def why_not(self) -> str:
        """Why the prediction is flagged; empty where it is not."""
        return "; ".join(self._reasons()[0])

    @property
    def lower_bound(self) -> bool:
        """Whether it is flagged for no other reason than that right responses may be unseen: the accuracy is at least this."""
        reasons, unseen = self._reasons()
        return unseen and len(reasons) == 1

    def _reasons(self) -> tuple[list[str], bool]:
        """Why it is flagged, and whether unseen right responses are among the reasons."""
        reasons = []
        effective = self.median_effective_samples
        bias, least = float(self.bias.mean()), max(LARGEST_BIAS, LARGEST_BIAS_SHARE * abs(float(self.delta.mean())))
        # Where the likelihood does not enter, samples of equal reward are equally good and their number says nothing.
        if self.objective.base_loglikelihood or self.objective.own_loglikelihood:
            if self.objective.entropy_weight > 0 and effective < LEAST_EFFECTIVE:
                reasons.append(
                    f"{effective:.1f} effective samples per problem (median), fewer than {LEAST_EFFECTIVE:g}"
                )
            elif self.objective.entropy_weight <= 0 and effective < LEAST_DRAWN:
                reasons.append(
                    f"the best response was drawn {_times(effective)} (median), fewer than {LEAST_DRAWN:g} times: "
                    "a better one may be unseen"
                )
            least = max(least, 2 * float(self.bias.std()) / math.sqrt(len(self.bias)))
        unseen = float(self.unseen.mean())
        missed = unseen > max(LARGEST_BIAS, LARGEST_BIAS_SHARE * abs(float(self.delta.mean())))
        if missed:
            reasons.append(
                f"a lower bound: right responses too rare to be sampled could raise the accuracy by {100 * unseen:.1f} points"
            )
        elif abs(bias) > least:
            direction = "raise" if bias < 0 else "lower"
            reasons.append(
                f"more samples would {direction} the accuracy, by about {100 * abs(bias):.1f} points or more (jackknife)"
            )
        return reasons, missed


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:g} times"


def is_the_base(objective: Objective) -> bool:
    """Whether π* is π_ref by definition: w = 0 and s N(ℓ) + o ℓ = 0 for every response, with h = c − o > 0."""
    s, o = objective.base_loglikelihood, objective.own_loglikelihood
    same = s + o == 0 if objective.length_exponent == 0 else s == o == 0
    return objective.entropy_weight > 0 and objective.task == 0 and same


def prediction_table(samples: BaseSamples, objective: Objective) -> PredictionTable:
    """`predict` for every problem."""
    found = [predict(problem, objective) for problem in samples.problems]
    accuracy = np.array([prediction.accuracy for prediction in found])
    return PredictionTable(
        objective=objective,
        accuracy=accuracy,
        delta=change(samples, accuracy),
        length=np.array([prediction.length for prediction in found]),
        kl=np.round([prediction.kl for prediction in found], 12),
        effective_samples=np.array([prediction.effective_samples for prediction in found]),
        bias=np.array([prediction.bias for prediction in found]),
        unseen=np.array([prediction.unseen for prediction in found]),
    )


def change(samples: BaseSamples, accuracy: Array) -> Array:
    """(P,) accuracies minus the base's; an optimum that is the base shows no difference, not one of rounding."""
    base = np.array([base_figures(problem).accuracy for problem in samples.problems])
    return np.asarray(np.round(accuracy - base, 12))


def mean_over_problems(
    values: Array,
    families: Sequence[str],
    unit: str,
    *,
    reason: str = "",
    bounds: tuple[float, float] | None = None,
    share_difference: bool = False,
) -> Estimate:
    """Mean of (P,) values with a 95 % interval over problems, resampled within families; NaN problems are left out."""
    return reworded(
        mean_where_defined(
            values,
            STREAM,
            families,
            unit,
            reason=reason,
            bounds=bounds,
            share_difference=share_difference,
            replicates=REPLICATES,
        )
    )


THE_BASE = "the base itself"
_UNSEEN = "the other end of the interval covers problems not drawn"
_WORDS = {
    POOLED_STRATA: "a family has one problem: problems were resampled without regard to families",
    "every value is at the bound: the other end covers problems not seen": f"all problems have the same value; {_UNSEEN}",
    "near the bound: the other end covers problems not seen": f"nearly all problems have the same value; {_UNSEEN}",
    "no problem changed; the ends cover problems not seen": "no problem changed; the interval covers problems not drawn",
}


def reworded(estimate: Estimate) -> Estimate:
    """The estimate with its notes in the words of a forecast: families, problems not drawn."""
    note = estimate.note
    for statistical, plain in _WORDS.items():
        note = note.replace(statistical, plain)
    return replace(estimate, note=note)


def share(values: Array, families: Sequence[str], *, reason: str = "") -> Estimate:
    """Mean of (P,) values in [0, 1]."""
    return mean_over_problems(values, families, "share", reason=reason, bounds=(0.0, 1.0))


def change_estimate(delta: Array, families: Sequence[str], *, reason: str = "") -> Estimate:
    """Mean of (P,) differences of two shares."""
    return mean_over_problems(delta, families, "share", reason=reason, bounds=(-1.0, 1.0), share_difference=True)


def table_estimates(table: PredictionTable, families: Sequence[str]) -> dict[str, Any]:
    """{"accuracy", "delta", "length", "kl"} as JSON estimates; an optimum that is the base changes nothing on any problem."""
    delta = change_estimate(table.delta, families)
    kl = mean_over_problems(table.kl, families, "nats/sequence")
    if is_the_base(table.objective):
        delta, kl = (replace(figure, estimate=0.0, low=0.0, high=0.0, note=THE_BASE) for figure in (delta, kl))
    return {
        "accuracy": share(table.accuracy, families).as_json(),
        "delta": delta.as_json(),
        "length": mean_over_problems(table.length, families, "tokens").as_json(),
        # A normal interval around a mean that is never negative may be.
        "kl": replace(kl, low=max(kl.low, 0.0) if math.isfinite(kl.low) else kl.low).as_json(),
    }
