"""Estimates with intervals: a bootstrap over problems combined with a t distribution over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from bsharp.statistics.resampling import Strata, resampled_rows, resampled_sums, strata_groups

__all__ = [
    "ONE_SEED",
    "Estimate",
    "bootstrap_interval",
    "bootstrap_interval_of_sums",
    "format_share",
    "paired_difference",
    "problem_and_seed_interval",
]

Array = NDArray[np.float64]
POOLED_STRATA = "a stratum has one problem: resampled without strata"
ONE_SEED = "one seed: the interval covers problems only"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval. NaN in `low` and `high` (or in `estimate`) means undefined; `note` then says why.

    >>> Estimate(0.43, 0.41, 0.45, n=512, unit="share").scaled(100, "points").format()
    '43.0 [41.0, 45.0]'
    """

    estimate: float
    low: float
    high: float
    n: int  # problems the figure rests on
    unit: str
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """{"estimate", "low", "high", "n", "unit"} and, where there is one, "note"; undefined values are null."""
        figures: dict[str, Any] = {
            name: value if math.isfinite(value) else None
            for name, value in (("estimate", self.estimate), ("low", self.low), ("high", self.high))
        }
        figures |= {"n": self.n, "unit": self.unit}
        return figures | {"note": self.note} if self.note else figures

    def scaled(self, factor: float, unit: str) -> Estimate:
        """The same figure in another unit; `factor` must be positive."""
        if not factor > 0:
            raise ValueError(
                f"Estimate.scaled needs a positive factor, got {factor}; a negative one would swap the bounds"
            )
        return replace(self, estimate=self.estimate * factor, low=self.low * factor, high=self.high * factor, unit=unit)

    def excludes_zero(self) -> bool:
        """True where the interval is defined and lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def format(self, digits: int = 1, signed: bool = False) -> str:
        """`43.0 [41.0, 45.0]`, with signs on request; `–` where undefined."""
        values = (self.estimate, self.low, self.high)
        text = [f"{value:{'+' if signed else ''}.{digits}f}" if math.isfinite(value) else "–" for value in values]
        # -0.0 would claim a direction the figure does not have.
        zero = f"{-0.0:.{digits}f}"
        text = [t if t != zero else zero[1:] for t in text]
        return f"{text[0]} [{text[1]}, {text[2]}]"


def problem_and_seed_interval(
    values: ArrayLike,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    unit: str = "share",
    strata: Strata | None = None,
    bounds: tuple[float, float] | None = None,
    share_difference: bool = False,
    replicates: int = 2000,
) -> Estimate:
    """The mean over problems and seeds with an interval for new problems AND new seeds.

    `values` (S, P): one figure per seed and problem, the same problems in every seed; (P,) is a quantity without seeds
    (an untrained base); (1, P) a single seed, whose interval covers problems only and says so.

    Model: v_sp = μ + a_s + b_p + e_sp. The error of the grand mean is the sum of a seed part, a_s and e, whose standard
    error is sd(seed means) / √S with S - 1 degrees of freedom, and a problem part b_p. The problem part is bootstrapped from the
    seed-averaged figures; their deviations are multiplied by √(1 - MS_residual / MS_problem), because the residual e is
    already in the seed part, and by √(P/(P-1)) · t/z against the narrowness of the percentile bootstrap (Hesterberg 2015,
    The American Statistician 69:371). The interval holds the quantiles of (bootstrap deviation + standard error · t_{S-1}), the
    Behrens–Fisher distribution, computed without drawing t; its coverage is at or above the level for any share of the two parts
    with normal effects (benchmarks/interval_coverage.py).

    `strata` (P,) labels families or tasks whose numbers of problems are fixed by design: resampling stays within them. A
    stratum of one problem cannot show its variance; all problems are then resampled together and the note says so.
    `bounds` are the range of a bounded figure: the interval is cut to it, and its upper end is never nearer to the lower
    bound (its lower end to the upper bound) than 1 - ((1 - level)/2)^(1/P) of the range. That is the share of problems off
    a bound of which P problems would show none with probability (1 - level)/2: the end where every value sits on the
    bound. `share_difference` says that the values are differences of two shares: where all are 0, the ends are plus
    and minus that share. One problem: seeds only, or undefined, with a note.
    NaN or infinite values raise ValueError: leave such problems out and say so.
    """
    _check_level(level)
    table, seeds = _seed_table(values)
    problems = table.shape[1]
    means = table.mean(axis=0)
    estimate = float(means.mean())
    notes = [ONE_SEED] if seeds == 1 else []
    unseen = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / problems)
    if share_difference and not table.any():
        notes.append("no problem changed; the ends cover problems not seen")
        return Estimate(0.0, -unseen, unseen, problems, unit, "; ".join(notes))
    if bounds is not None and (np.all(table == bounds[0]) or np.all(table == bounds[1])):
        return _at_the_bound(estimate, problems, unseen, unit, bounds, notes)
    seed_error = _seed_standard_error(table.mean(axis=1)) if seeds > 1 else 0.0
    if problems == 1:
        if seeds < 2:
            return Estimate(estimate, math.nan, math.nan, 1, unit, "one problem: no interval")
        deviations = np.zeros(1)
        notes.append("one problem: the interval covers seeds only")
    else:
        deviations, pooled = _problem_deviations(table, strata, level, replicates, rng)
        notes += [POOLED_STRATA] if pooled else []
        if not np.ptp(means) and not seed_error:
            notes.append("no variation between problems or seeds")
    low, high = _convolved_quantiles(deviations, seed_error, max(seeds - 1, 1), level)
    low, high = estimate + low, estimate + high
    if bounds is not None:
        reach = unseen * (bounds[1] - bounds[0])
        if high < bounds[0] + reach or low > bounds[1] - reach:
            notes.append("near the bound: the other end covers problems not seen")
        low, high = min(low, bounds[1] - reach), max(high, bounds[0] + reach)
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(estimate, low, high, problems, unit, "; ".join(notes))


def paired_difference(
    treated: ArrayLike,
    control: ArrayLike,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    unit: str = "share",
    strata: Strata | None = None,
    share_difference: bool = False,
    replicates: int = 2000,
) -> Estimate:
    """Mean of treated - control on the same problems, with the interval of `problem_and_seed_interval`.

    Each is (S, P), matched by seed and problem, or (P,), which is held against every seed (an untrained base).
    """
    first, second = np.asarray(treated, dtype=np.float64), np.asarray(control, dtype=np.float64)
    if first.shape[-1:] != second.shape[-1:] or (first.ndim == second.ndim == 2 and len(first) != len(second)):
        raise ValueError(
            f"paired_difference needs the same problems and seeds on both sides, got shapes {first.shape} and {second.shape}"
        )
    return problem_and_seed_interval(
        first - second,
        rng=rng,
        level=level,
        unit=unit,
        strata=strata,
        share_difference=share_difference,
        replicates=replicates,
    )


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float | ArrayLike],
    problems: int,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    unit: str = "",
    strata: Strata | None = None,
    bounds: tuple[float, float] | None = None,
    replicates: int = 2000,
) -> Estimate:
    """Interval of any statistic of resampled problems, ratios and correlations included.

    `statistic(indices)` gets problem indices in 0 … P-1 and returns a number, or (S,) numbers, one per seed; the estimate is
    their mean on all problems. Bootstrap deviations, widened by √(P/(P-1)) · t/z, are combined with a t interval over the
    seeds as in `problem_and_seed_interval`; the sampling noise that both parts hold is not taken out, so the interval is a
    little wide. Replicates in which the statistic is undefined (NaN) are left out; the note says how many. Undefined on
    the data themselves, or fewer than 2 problems: NaN with a note.
    """
    groups, pooled = _bootstrap_groups(strata, problems, level)
    return _from_replicates(
        statistic(np.arange(problems)),
        lambda: np.array([_seed_mean(statistic(row)) for row in resampled_rows(groups, replicates, rng)]),
        groups,
        pooled,
        level,
        unit,
        bounds,
    )


def bootstrap_interval_of_sums(
    statistic: Callable[[Array], Array],
    values: Array,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    unit: str = "",
    strata: Strata | None = None,
    bounds: tuple[float, float] | None = None,
    replicates: int = 2000,
) -> Estimate:
    """`bootstrap_interval` of a statistic that needs nothing but the sums over problems of K numbers, all replicates at once.

    `statistic(sums)` gets (R, K), the sums of the columns of `values` (P, K) over the problems of R replicates, and returns
    (R, S), one number per replicate and seed.
    """
    problems = len(values)
    groups, pooled = _bootstrap_groups(strata, problems, level)
    return _from_replicates(
        statistic(values.sum(axis=0, keepdims=True))[0] if problems else (),
        lambda: statistic(resampled_sums(groups, values, replicates, rng)).mean(axis=1),
        groups,
        pooled,
        level,
        unit,
        bounds,
    )


def _bootstrap_groups(strata: Strata | None, problems: int, level: float) -> tuple[list[NDArray[np.intp]], bool]:
    _check_level(level)
    if problems < 1:
        raise ValueError("bootstrap_interval needs at least one problem, got none")
    return ([np.arange(1)], False) if problems < 2 else strata_groups(strata, problems)


def _seed_mean(statistic: float | ArrayLike) -> float:
    return float(np.asarray(statistic, dtype=np.float64).mean())


def _from_replicates(
    observed: float | ArrayLike,
    resample: Callable[[], Array],
    groups: Sequence[NDArray[np.intp]],
    pooled: bool,
    level: float,
    unit: str,
    bounds: tuple[float, float] | None,
) -> Estimate:
    """The interval around the statistic `observed` on all problems from its means over seeds in the replicates."""
    per_seed = np.atleast_1d(np.asarray(observed, dtype=np.float64))
    problems = sum(map(len, groups))
    estimate = float(per_seed.mean())
    if not math.isfinite(estimate):
        return Estimate(math.nan, math.nan, math.nan, problems, unit, "undefined on these data")
    if problems < 2:
        return Estimate(estimate, math.nan, math.nan, problems, unit, "one problem: no interval")
    notes = [POOLED_STRATA] if pooled else []
    resampled = resample()
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < len(resampled):
        notes.append(f"undefined in {len(resampled) - len(defined)} of {len(resampled)} bootstrap replicates")
    if len(defined) < len(resampled) / 2:
        return Estimate(estimate, math.nan, math.nan, problems, unit, "; ".join(notes))
    freedom = problems - len(groups)
    deviations = (defined - estimate) * math.sqrt(problems / freedom) * _t_over_z(level, freedom)
    seed_error = _seed_standard_error(per_seed) if len(per_seed) > 1 else 0.0
    low, high = _convolved_quantiles(deviations, seed_error, max(len(per_seed) - 1, 1), level)
    low, high = estimate + low, estimate + high
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(estimate, low, high, problems, unit, "; ".join(notes))


def format_share(estimate: Estimate, digits: int = 1, signed: bool = False) -> str:
    """A share in percent or points: `43.0 [41.0, 45.0]`."""
    return estimate.scaled(100, "points").format(digits, signed)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"an interval needs a level strictly between 0 and 1, got {level}")


def _seed_table(values: ArrayLike) -> tuple[Array, int]:
    """Values as (max(S, 1), P) and S, where S = 0 for a quantity without seeds."""
    table = np.asarray(values, dtype=np.float64)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"an interval needs values of shape (P,) or (S, P), not empty, got {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(
            f"an interval needs finite values, got {int((~np.isfinite(table)).sum())} that are not; leave those problems out"
        )
    return np.atleast_2d(table), len(table) if table.ndim == 2 else 0


def _problem_deviations(
    table: Array, strata: Strata | None, level: float, replicates: int, rng: np.random.Generator
) -> tuple[Array, bool]:
    """Deviations of the mean over resampled problems, (replicates,), and whether strata had to be pooled."""
    means = table.mean(axis=0)
    groups, pooled = strata_groups(strata, len(means))
    centred = np.empty(len(means))
    for group in groups:
        centred[group] = (means[group] - means[group].mean()) * math.sqrt(len(group) / (len(group) - 1))
    centred *= _problem_share(table, groups) * _t_over_z(level, len(means) - len(groups))
    return resampled_sums(groups, centred[:, None], replicates, rng)[:, 0] / len(means), pooled


def _problem_share(table: Array, groups: Sequence[NDArray[np.intp]]) -> float:
    """√(1 - MS_residual / MS_problem), the share of the seed-averaged spread that is the problems' own; 1 with one seed."""
    seeds = len(table)
    if seeds < 2:
        return 1.0
    means = table.mean(axis=0)
    between = residual = 0.0
    for group in groups:
        block, centre = table[:, group], means[group].mean()
        between += seeds * float(((means[group] - centre) ** 2).sum())
        left = block - means[group] - block.mean(axis=1, keepdims=True) + centre
        residual += float((left**2).sum()) / (seeds - 1)
    return math.sqrt(max(0.0, 1.0 - residual / between)) if between > 0 else 0.0


def _seed_standard_error(per_seed: Array) -> float:
    # A spread at rounding level is no spread: equal seeds must not leave an error of 1e-17.
    if np.ptp(per_seed) <= 1e-12 * max(1.0, float(np.abs(per_seed).max())):
        return 0.0
    return float(per_seed.std(ddof=1)) / math.sqrt(len(per_seed))


def _t_over_z(level: float, freedom: int) -> float:
    upper = (1.0 + level) / 2.0
    return float(special.stdtrit(max(freedom, 1), upper) / special.ndtri(upper))


def _convolved_quantiles(deviations: Array, error: float, freedom: int, level: float) -> tuple[float, float]:
    """The two quantiles of deviation + error · t_freedom, the deviation drawn evenly from `deviations`."""
    tail = (1.0 - level) / 2.0
    if error == 0.0:
        low, high = np.quantile(deviations, [tail, 1.0 - tail])
        return float(low), float(high)

    from scipy import optimize  # a tenth of a second that only intervals over seeds need

    def quantile(share: float) -> float:
        reach = error * float(special.stdtrit(freedom, min(share, 1.0 - share) / 2.0))  # negative
        left, right = float(deviations.min()) + 2.0 * reach, float(deviations.max()) - 2.0 * reach
        excess = lambda point: float(special.stdtr(freedom, (point - deviations) / error).mean()) - share  # noqa: E731
        return float(optimize.brentq(excess, left, right, xtol=1e-10 * max(1.0, right - left)))

    return quantile(tail), quantile(1.0 - tail)


def _at_the_bound(
    estimate: float, problems: int, unseen: float, unit: str, bounds: tuple[float, float], notes: list[str]
) -> Estimate:
    # If a share q of all problems were off the bound, P problems would all sit on it with probability (1 - q)^P.
    reach = (bounds[1] - bounds[0]) * unseen
    low, high = (bounds[0], bounds[0] + reach) if estimate == bounds[0] else (bounds[1] - reach, bounds[1])
    notes = [*notes, "every value is at the bound: the other end covers problems not seen"]
    return Estimate(estimate, low, high, problems, unit, "; ".join(notes))
