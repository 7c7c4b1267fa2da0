"""The verdict: how much one regime gains beyond the best of its rivals, the choice of the best included in the interval.

Before it stands the question whether there is anything to compare: `nothing_to_compare`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsharp.statistics.intervals import ONE_SEED, Estimate
from bsharp.statistics.resampling import Strata, resample_indices, strata_groups

__all__ = ["LEAST_SOLVED", "Answers", "Verdict", "gain_beyond_best", "nothing_to_compare"]

Array = NDArray[np.float64]
LEAST_SOLVED = 6
"""Problems. A difference that rests on fewer has no direction: if one of two models had all five right answers and the other
none, the exact sign test (two-sided, problems as its units) would give p = 2 · 2⁻⁵ = 0.06; with six it gives 0.03."""
MOSTLY = 0.5
"""Share of completions from which a cause is named for a lack of right answers."""
SEED_DRAWS = 8
"""Seed effects drawn per bootstrap replicate of the problems: t with few degrees of freedom has tails that need draws."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Task reward minus the rival that was best on validation, in percentage points, and how sure that choice is."""

    chosen: str
    gain: Estimate
    choice_shares: Mapping[str, float]  # share of the replicates in which each rival was best on validation
    level: float = 0.95

    def sentence(self) -> str:
        """One sentence; the direction is claimed only where the interval excludes 0. What `gain.note` says is not in it."""
        interval = f"[{self.gain.low:+.1f}, {self.gain.high:+.1f}]"
        source = f"(best of {', '.join(self.choice_shares)} on validation: {self.chosen})"
        if len(self.choice_shares) == 1:
            source = f"({self.chosen}, the only one)"
        if self.gain.low > 0:
            return f"gain beyond the best sharpening: {self.gain.estimate:+.1f} points {interval} {source}"
        if self.gain.high < 0:
            return f"sharpening ahead by {-self.gain.estimate:.1f} points: task reward minus the best sharpening " + (
                f"{self.gain.estimate:+.1f} {interval} {source}"
            )
        return f"not distinguishable: task reward minus the best sharpening {self.gain.estimate:+.1f} points " + (
            f"{interval} {source}"
        )

    def as_json(self) -> dict[str, Any]:
        """The sentence and its figures as plain JSON values."""
        return {
            "sentence": self.sentence(),
            "chosen": self.chosen,
            "gain": self.gain.as_json(),
            "choice_shares": dict(self.choice_shares),
            "level": self.level,
        }


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of the sampled completions of all models of a comparison, base and every seed included."""

    models: int  # the base and the regimes
    problems: int
    solved: int  # problems for which any completion of any model is right
    completions: int
    correct: int
    unparseable: int  # graded, but no answer could be read
    ungraded: int  # grader timeout or error
    truncated: int  # cut at the token limit

    def as_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def nothing_to_compare(answers: Answers, max_new_tokens: int | None = None, fixed_length: bool = False) -> str:
    """Why no conclusion can be drawn from these answers, with their figures and what to do; empty where one can.

    The rule: right answers on fewer than `LEAST_SOLVED` problems, all models together. Every difference between two models
    rests on problems that one of them solves, so no test at 5 % could give any of them a direction. `max_new_tokens` is the
    limit at which completions were cut; under `fixed_length` all of them end there by design.
    """
    if answers.solved >= LEAST_SOLVED:
        return ""
    whose = f"{answers.completions} completions of {answers.models} models"
    if answers.ungraded == answers.completions:
        return (
            f"none of {whose} could be graded: the grader timed out or failed on each; the records say why under detail"
        )
    told = [
        f"{answers.correct} of {whose} are right, on {answers.solved} of {answers.problems} problems; a difference needs right "
        f"answers on at least {LEAST_SOLVED}",
        *_causes(answers, max_new_tokens, fixed_length),
    ]
    if len(told) == 1:
        enough = answers.problems <= 2 * answers.solved
        told.append("Evaluate more problems" if enough else "Take a stronger base or easier problems")
    if answers.ungraded:
        told.append(f"{answers.ungraded} completions could not be graded (timeout or error)")
    return ". ".join(told)


def _causes(answers: Answers, max_new_tokens: int | None, fixed_length: bool) -> Iterator[str]:
    """What explains most of the missing right answers, each with its share of the completions and what to do."""
    cut = answers.truncated / answers.completions
    unread = answers.unparseable / (answers.completions - answers.ungraded)
    if cut >= MOSTLY and not fixed_length:
        limit = "the token limit" if max_new_tokens is None else f"max_new_tokens = {max_new_tokens}"
        yield f"{'All' if cut == 1 else f'{_percent(cut)} of'} completions were cut at {limit}: raise it"
    if unread >= MOSTLY:
        graded = "graded " if answers.ungraded else ""
        whose = (
            f"No {graded}completion holds an" if unread == 1 else f"{_percent(unread)} of {graded}completions hold no"
        )
        yield f"{whose} answer that can be read: check how the problems are asked, and that the base knows the format"


def _percent(share: float) -> str:
    """A share that is not all of it."""
    return f"{min(100 * share, 99.9):.1f} %"


def gain_beyond_best(
    task_test: ArrayLike,
    rivals_test: Mapping[str, ArrayLike],
    rivals_validation: Mapping[str, ArrayLike],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    test_strata: Strata | None = None,
    validation_strata: Strata | None = None,
    replicates: int = 4000,
) -> Verdict:
    """Mean test accuracy of task reward minus that of the rival with the highest mean validation accuracy.

    `task_test` and each of `rivals_test` are (S, P_test), each of `rivals_validation` (S, P_validation): accuracy per
    seed and problem, shares; the same problems everywhere and row s the same run seed in every array.

    Each replicate draws test problems and validation problems independently, with replacement and in common for all
    regimes; draws seed effects δ_r = Σ_s z_s (m_rs - m_r) / √(S(S-1)) / √(χ²_{S-1}/(S-1)), z standard normal and in common for
    all regimes and both splits, so each seed mean moves as t_{S-1} with the standard error the S seeds show; chooses the
    best rival by its validation mean; and takes the test difference to it. Problem deviations are multiplied by √(P/(P-1)).
    What is estimated is the gain over the rival that is best for new problems and seeds. Choosing errs both ways: among
    near-equal rivals lucky seeds look good on both splits (gain too low), and a worse rival may be chosen (gain too high).
    Percentiles of the replicates repeat such a bias and pivotal bounds (2 · estimate - percentile) remove it, but either
    alone undercovers somewhere, so the interval is the hull of the two: symmetric, as wide as the farther percentile asks.
    The noise of single samples is in both the problem and the seed part. Coverage: benchmarks/interval_coverage.py.

    `test_strata` and `validation_strata` label the families of the problems, as in `problem_and_seed_interval`: resampling
    stays within them, and is over all problems where a family has one problem only.

    Ties on validation go to the first rival. One seed: problems only, with a note. Fewer than 2 problems, no rival,
    unequal names, seeds or problems, or non-finite values raise ValueError.
    """
    names = list(rivals_test)
    if not names or set(names) != set(rivals_validation):
        raise ValueError(
            f"the verdict needs the same rivals on test and validation, at least one; got {names} and {list(rivals_validation)}"
        )
    test = _stacked({"task reward": task_test, **{f"rival {name}": rivals_test[name] for name in names}}, "test")
    validation = _stacked({name: rivals_validation[name] for name in names}, "validation")
    if test.shape[1] != validation.shape[1]:
        raise ValueError(f"the verdict needs equal seeds on both splits, got {test.shape[1]} and {validation.shape[1]}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"the verdict needs a level strictly between 0 and 1, got {level}")
    gains, choice = _replicates(test, validation, test_strata, validation_strata, replicates, rng)
    chosen = int(validation.mean(axis=(1, 2)).argmax())
    tail = (1.0 - level) / 2.0
    means = test.mean(axis=(1, 2))
    estimate = float(100.0 * (means[0] - means[1 + chosen]))
    low, high = (float(bound) for bound in np.quantile(100.0 * gains, [tail, 1.0 - tail]))
    reach = max(estimate - low, high - estimate)
    if not (test[0] - test[1 + chosen]).any():
        # Equal on every problem: what remains are problems not seen, of which a share of up to 1 - tail^(1/P) may differ.
        reach = max(reach, 100.0 * (1.0 - tail ** (1.0 / test.shape[2])))
    gain = Estimate(
        estimate=estimate,
        low=estimate - reach,
        high=estimate + reach,
        n=test.shape[2],
        unit="points",
        note=ONE_SEED if test.shape[1] == 1 else "",
    )
    shares = np.bincount(choice.ravel(), minlength=len(names)) / choice.size
    return Verdict(names[chosen], gain, dict(zip(names, shares.tolist(), strict=True)), level)


def _replicates(
    test: Array,
    validation: Array,
    test_strata: Strata | None,
    validation_strata: Strata | None,
    replicates: int,
    rng: np.random.Generator,
) -> tuple[Array, NDArray[np.intp]]:
    """The gain (share) and the index of the chosen rival in every replicate: (replicates, seed draws) each."""
    test_draws = _problem_draws(test, test_strata, replicates, rng)
    validation_draws = _problem_draws(validation, validation_strata, replicates, rng)
    test_shift, validation_shift = _seed_draws(test, validation, replicates, rng)
    test_draws, validation_draws = test_draws[:, None] + test_shift, validation_draws[:, None] + validation_shift
    choice = validation_draws.argmax(axis=-1)
    gains = test_draws[..., 0] - np.take_along_axis(test_draws[..., 1:], choice[..., None], axis=-1)[..., 0]
    return gains, choice


def _stacked(arrays: Mapping[str, ArrayLike], split: str) -> Array:
    """(R, S, P)."""
    tables = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) > 1 or any(table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2 for table in tables.values()):
        found = ", ".join(f"{name} {table.shape}" for name, table in tables.items())
        raise ValueError(f"the verdict needs equal (seeds, problems) with at least 2 problems on {split}, got {found}")
    for name, table in tables.items():
        if not np.isfinite(table).all():
            raise ValueError(
                f"the verdict needs finite accuracies, {name} on {split} has others; leave those problems out"
            )
    return np.stack(list(tables.values()))


def _problem_draws(values: Array, strata: Strata | None, replicates: int, rng: np.random.Generator) -> Array:
    """(replicates, R): means over problems resampled within strata, the same problems for every regime."""
    seed_means = values.mean(axis=1)  # (R, P)
    problems = seed_means.shape[1]
    groups, _ = strata_groups(strata, problems)
    deviations = np.empty_like(seed_means)
    for group in groups:
        inflation = math.sqrt(len(group) / (len(group) - 1))
        deviations[:, group] = (seed_means[:, group] - seed_means[:, group].mean(axis=1, keepdims=True)) * inflation
    draws = np.empty((replicates, len(seed_means)))
    chunk = max(1, 1_000_000 // problems)
    for start in range(0, replicates, chunk):
        rows = min(chunk, replicates - start)
        drawn = resample_indices(groups, rows, rng) + np.arange(rows)[:, None] * problems
        counts = np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems)
        draws[start : start + rows] = counts @ deviations.T / problems
    return np.asarray(seed_means.mean(axis=1) + draws)


def _seed_draws(test: Array, validation: Array, replicates: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Seed effects (replicates, SEED_DRAWS, R) of the test and the validation means, from the same draws."""
    seeds = test.shape[1]
    if seeds == 1:
        return np.zeros((replicates, 1, len(test))), np.zeros((replicates, 1, len(validation)))
    normal = rng.standard_normal((replicates, SEED_DRAWS, seeds))
    scale = np.sqrt(rng.chisquare(seeds - 1, size=(replicates, SEED_DRAWS, 1)) / (seeds - 1))
    weights = normal / scale / math.sqrt(seeds * (seeds - 1))
    effects = []
    for values in (test, validation):
        seed_means = values.mean(axis=2)  # (R, S)
        effects.append(weights @ (seed_means - seed_means.mean(axis=1, keepdims=True)).T)
    return effects[0], effects[1]
