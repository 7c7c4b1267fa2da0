"""Which problems each regime gained and which it lost against the base. NumPy and SciPy only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bsharp.seeding import generator
from bsharp.statistics.samples import Record, SampleTable, paired_tables

__all__ = ["gained_lost"]

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
FACTS = ("task", "family", "role", "mode", "difficulty")
OUTCOMES = ("kept", "gained", "lost", "never")
BASE_BINS = ("0", "0–25 %", "25–50 %", "50–75 %", "75–100 %")
CHANCES = np.linspace(0.0, 1.0, 101)
EM_STEPS = 200
LEVEL_TAIL = 0.025
REPLICATES = 100


def gained_lost(
    records_by_model: Mapping[str, Sequence[Iterable[Record]]], threshold: float = 0.5, base: str = "base"
) -> dict[str, Any]:
    """Problems kept (both solve it), gained (only the regime), lost (only the base) and never solved, per regime.

    `records_by_model` maps a model to its records, given per training seed and read once; the model named `base` has one. A
    model's share on a problem is the share of its graded samples that are right, averaged over seeds; it SOLVES the problem
    where that is at least `threshold`. Greedy records are left out. Problems without a graded sample, of the base or in any seed
    of the regime, are in none of the four lists; `left_out` counts them, and a share without samples is null.

    Per regime: the ids, their counts by family, by the base's share (`0` alone, then quarters closed below: half is in `50–75 %`)
    and by difficulty, and

    * `p_value`: the exact McNemar test (McNemar 1947, Psychometrika 12:153), two-sided: under "gained and lost are
      equally likely" gained is Binomial(gained + lost, 1/2). Problems count as independent; that other training seeds would
      gain other problems is not in it. 1 where no problem changed.
    * `expected_by_chance`: the gained and lost counts if the regime were the base evaluated again with the regime's number of
      samples: a problem near the threshold flips by chance. Each problem's chance of a right sample has the posterior that
      follows from its k of n right and a prior fitted to the base's counts of all problems without assuming a shape
      (nonparametric empirical Bayes, Laird 1978); the count of a second evaluation is binomial given the chance. Figures are
      the sum over problems and the central 95 % of its distribution, averaged over priors fitted to resampled problems; where
      the base is right in no sample or in all, the upper end is that of the largest chance which all samples together leave
      possible (1 − 0.025^(1/n), n all of them). The p-value does not know of flips that happen both ways: compare the
      observed counts with these as well.

    Raises ValueError for a threshold outside (0, 1], a missing base, incomplete records, and models that were not evaluated
    on the base's problems with as many samples.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"gained_lost needs a threshold in (0, 1], got {threshold}; 0.5 means half of the samples")
    if base not in records_by_model:
        raise ValueError(f"gained_lost needs records of {base!r}, got {', '.join(records_by_model) or 'none'}")
    tables = paired_tables(records_by_model, base)
    ours = tables.pop(base)
    counts = {name: _right_and_graded(table) for name, table in tables.items()}
    right, graded = (column[0] for column in _right_and_graded(ours))
    base_share = _share(right[None], graded[None])
    shares = {name: _share(*columns) for name, columns in counts.items()}
    return {
        "schema": 1,
        "threshold": threshold,
        "definition": f"solved: at least {100 * threshold:g} % of the graded samples are right, averaged over seeds",
        "problems": _problems(ours, base_share, shares),
        "regimes": {
            name: _regime(ours, base_share, share, threshold)
            | {"expected_by_chance": _by_chance(right, graded, counts[name][1], threshold)}
            for name, share in shares.items()
        },
    }


def _right_and_graded(table: SampleTable) -> tuple[Counts, Counts]:
    """Right and graded samples per seed and problem, (S, P) each."""
    return table.correct.sum(-1, dtype=np.int64), table.graded.sum(-1, dtype=np.int64)


def _share(right: Counts, graded: Counts) -> Array:
    """(P,): share right averaged over seeds; NaN where a seed has no graded sample."""
    with np.errstate(invalid="ignore"):  # 0/0 where nothing is graded: NaN is what is meant
        # Rounded, because a mean of thirds that is a half must reach a threshold of a half.
        return np.asarray(np.round((right / graded).mean(0), 12))


def _problems(ours: SampleTable, base_share: Array, shares: Mapping[str, Array]) -> dict[str, Any]:
    """Each problem's facts, and its share under every model, by problem id."""
    facts = zip(*(ours.labels(key) for key in FACTS), strict=True)
    by_regime = zip(*(_numbers(share) for share in shares.values()), strict=True) if shares else itertools.repeat(())
    return {
        problem_id: {
            **dict(zip(FACTS, values, strict=True)),
            "base": base,
            "regimes": dict(zip(shares, row, strict=True)),
        }
        for problem_id, values, base, row in zip(ours.problem_ids, facts, _numbers(base_share), by_regime, strict=False)
    }


def _numbers(values: Array) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _regime(ours: SampleTable, base_share: Array, share: Array, threshold: float) -> dict[str, Any]:
    defined = np.isfinite(base_share) & np.isfinite(share)
    before, after = base_share >= threshold, share >= threshold
    outcome = {
        place: OUTCOMES[0 if before[place] and after[place] else 1 if after[place] else 2 if before[place] else 3]
        for place in np.flatnonzero(defined).tolist()
    }
    lists = {name: [ours.problem_ids[place] for place, found in outcome.items() if found == name] for name in OUTCOMES}
    gained, changed = len(lists["gained"]), len(lists["gained"]) + len(lists["lost"])
    difficulty = ours.labels("difficulty")
    difficulties = sorted({difficulty[place] for place in outcome})
    return {
        **lists,
        "left_out": int((~defined).sum()),
        "p_value": float(stats.binomtest(gained, changed).pvalue) if changed else 1.0,
        "by_family": _counts(
            outcome, {p: ours.families[p] for p in outcome}, sorted({ours.families[p] for p in outcome})
        ),
        "by_base": _counts(outcome, {p: _base_bin(base_share[p]) for p in outcome}, BASE_BINS),
        "by_difficulty": _counts(
            outcome, {p: str(difficulty[p]) for p in outcome}, [str(value) for value in difficulties]
        ),
    }


def _counts(outcome: Mapping[int, str], labels: Mapping[int, str], order: Sequence[str]) -> dict[str, dict[str, int]]:
    table = {label: dict.fromkeys(OUTCOMES, 0) for label in order}
    for place, found in outcome.items():
        table[labels[place]][found] += 1
    return table


def _base_bin(share: float) -> str:
    # Rounded, because a share of 3/4 computed over seeds must fall into the bin that it opens.
    return BASE_BINS[0 if share == 0 else 1 + min(3, int(np.floor(np.round(4 * share, 9))))]


def _by_chance(right: Counts, graded: Counts, regime_graded: Counts, threshold: float) -> dict[str, Any]:
    used = (graded > 0) & (regime_graded > 0).all(0)
    if not used.any():
        return {key: _number_of_problems(np.zeros((1, 0)), np.zeros(0, dtype=np.int64)) for key in ("gained", "lost")}
    # Problems of equal counts have equal chances: D kinds of problems instead of P problems.
    table = np.stack([right, graded, regime_graded.sum(0)])[:, used]
    (k, n, m), problems = np.unique(table, axis=1, return_counts=True)
    rng = generator(0, "gained_lost", "chance")
    resampled = rng.multinomial(int(problems.sum()), problems / problems.sum(), size=REPLICATES)
    posterior = _chance_posterior(k, n, np.concatenate([problems[None], resampled]))
    # The least count that solves; rounded first, because 0.1 · 30 must be 3.
    least = np.ceil(np.round(threshold * m, 9))
    solves = (posterior * stats.binom.sf(least[:, None] - 1, m[:, None], CHANCES)).sum(-1)
    solved = np.asarray(np.round(k / n, 12) >= threshold)
    found = {
        "gained": _number_of_problems(solves[:, ~solved], problems[~solved]),
        "lost": _number_of_problems(1.0 - solves[:, solved], problems[solved]),
    }
    if not k.any() or (k == n).all():
        # The fitted prior is then certain of 0 or 1; the chance may be as far from it as all samples together allow.
        beyond = 1.0 - LEVEL_TAIL ** (1.0 / float(n @ problems))
        chance = beyond if not k.any() else 1.0 - beyond
        flips = np.asarray(stats.binom.sf(least - 1, m, chance))
        key, flips = ("gained", flips) if not k.any() else ("lost", 1.0 - flips)
        found[key] |= {"high": max(found[key]["high"], _number_of_problems(flips[None], problems)["high"])}
    return found


def _chance_posterior(right: Counts, graded: Counts, problems: Counts) -> Array:
    """(R, D, len(CHANCES)): posterior of the chance of a right sample of D kinds of problems, k = `right` of n = `graded`.

    A row of `problems` (R, D) says how many problems of each kind the prior of that row is fitted to. The prior is any
    distribution on CHANCES; EM_STEPS of expectation-maximisation from the flat one raise its likelihood (Laird 1978,
    JASA 73:805) and stop before its weights break up into single points.
    """
    likelihood = np.asarray(stats.binom.pmf(right[:, None], graded[:, None], CHANCES))
    shares = problems / problems.sum(1, keepdims=True)
    prior = np.full((len(problems), len(CHANCES)), 1.0 / len(CHANCES))
    for _ in range(EM_STEPS):
        prior = prior * ((shares / (prior @ likelihood.T)) @ likelihood)
    joint = likelihood * prior[:, None]
    return np.asarray(joint / joint.sum(-1, keepdims=True))


def _number_of_problems(chances: Array, problems: Counts) -> dict[str, Any]:
    """Mean and central 95 % of the number of problems that flip: `problems` (D,) of each kind, each by its chance.

    `chances` (R, D): the fitted ones, then those of the bootstrap, over whose rows the distribution is averaged.
    """
    means = chances @ problems
    first, distribution = _poisson_binomial(np.clip(chances, 0.0, 1.0), problems)
    low, high = (
        first + int(place) for place in np.searchsorted(np.cumsum(distribution), (LEVEL_TAIL, 1.0 - LEVEL_TAIL))
    )
    return {"estimate": float(means[0]), "low": low, "high": high, "n": int(problems.sum()), "unit": "problems"}


def _poisson_binomial(chances: Array, problems: Counts) -> tuple[int, Array]:
    """(first, probabilities of first, first + 1, …) of a sum of D binomials of `problems` (D,), averaged over rows of `chances`.

    Inverse Fourier transform of the characteristic function Π_d (1 − p_d + p_d e^{it})^{n_d} at as many points as the sum can
    reach: 12 standard deviations and 40 about every row's mean, which it leaves with a chance below e^−50 (Bernstein).
    """
    means, spreads = chances @ problems, np.sqrt((chances * (1.0 - chances)) @ problems)
    first = max(0, int(np.floor((means - 12.0 * spreads).min())) - 40)
    last = min(int(problems.sum()), int(np.ceil((means + 12.0 * spreads).max())) + 40)
    points = last - first + 1
    angles = 2.0 * np.pi * np.arange(points // 2 + 1) / points
    total = np.zeros(len(angles), dtype=np.complex128)
    for row in chances:
        p, q = row[:, None], 1.0 - row[:, None]
        real, imaginary = q + p * np.cos(angles), p * np.sin(angles)
        # Modulus and phase apart, because a factor may be 0: p = 1/2 at t = π.
        modulus = problems @ np.log(np.maximum(real**2 + imaginary**2, 1e-300)) / 2.0
        total += np.exp(modulus + 1j * (problems @ np.arctan2(imaginary, real)))
    # The transform of e^{itX} wraps X at `points`; rolling puts `first` first.
    wrapped = np.fft.irfft(np.conj(total) / len(chances), points)
    return first, np.roll(wrapped, -(first % points))
