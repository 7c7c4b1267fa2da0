"""Evaluation records as a table of seeds × problems × samples, and means over those problems that have a value.

Samples whose reward is null (grader timeout or error) are UNGRADED: they leave the denominator of their problem in every
figure that needs a grade, and count in those that do not (length, KL, entropy, truncation). A problem left with too few
graded samples for a figure holds NaN there; the note of the figure's mean counts such problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.seeding import generator
from bsharp.statistics.columns import PER_SAMPLE, Columns, Record, read_columns
from bsharp.statistics.distinct import Classes, answer_classes
from bsharp.statistics.intervals import Estimate, problem_and_seed_interval

__all__ = [
    "BOOTSTRAP_SEED",
    "NOT_FINITE",
    "TOO_FEW_GRADED",
    "Record",
    "SampleTable",
    "distinct_answers",
    "left_out",
    "linearised_ratio",
    "mean_where_defined",
    "means_without_grades",
    "noted",
    "paired_tables",
    "sample_table",
    "undefined",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]

BOOTSTRAP_SEED = 0  # the figures of equal records are equal to the last digit
TOO_FEW_GRADED = "too few graded samples"
NOT_FINITE = "values that are not finite"


@dataclass(frozen=True)
class SampleTable:
    """The samples of one model or regime: S seeds, P problems in the order of their ids, n samples each.

    Arrays are (S, P, n), without the greedy completions, unless a comment says otherwise.
    """

    name: str
    problem_ids: tuple[str, ...]
    families: tuple[str, ...]
    graded: Mask  # whether the grader could say anything: a timeout or an error says nothing
    correct: Mask  # graded and right
    unparseable: Mask
    truncated: Mask
    rewards: Array  # NaN where ungraded
    exact_matches: Array  # NaN where ungraded
    logprobs: Array  # nats of the whole response
    base_logprobs: Array  # the same under the base; NaN where no base scored the sample
    scored: Mask  # whether a base scored the sample
    lengths: Array  # tokens
    answers: Codes  # equal where answers are, within a problem; of models compared with each other too
    answered: Mask  # whether the grade holds an answer
    responses: Codes  # equal where token ids are
    extra: Mapping[str, Array]
    greedy_graded: Mask  # (S, P); (S, 0) where no greedy completion was drawn
    greedy_correct: Mask
    first: Columns  # of the first seed, for what belongs to a problem

    @property
    def seeds(self) -> int:
        return len(self.graded)

    @property
    def samples(self) -> int:
        return int(self.graded.shape[2])

    @cached_property
    def family_codes(self) -> NDArray[np.intp]:
        """(P,): a number for each problem's family, for resampling within them."""
        known: dict[str, int] = {}
        return np.array([known.setdefault(family, len(known)) for family in self.families], dtype=np.intp)

    def labels(self, key: str) -> tuple[Any, ...]:
        """(P,) of a field that belongs to the problem, such as its task, role or mode; KeyError where a record has none."""
        return self.first.fact(key, [self.first.places[known] for known in self.problem_ids])

    @cached_property
    def classes(self) -> Classes:
        """The equal answers of each seed and problem, S · P rows: among its graded samples, unparseable ones left out."""
        rows = (-1, self.samples)
        return answer_classes(
            self.answers.reshape(rows), (self.graded & self.answered).reshape(rows), self.correct.reshape(rows)
        )

    def require_paired(self, other: SampleTable) -> None:
        """Raise ValueError unless both models met the same problems with the same number of samples."""
        _require_equal_problems(self.problem_ids, other.problem_ids, self.name, other.name)
        if self.samples != other.samples:
            raise ValueError(
                f"{self.name} has {self.samples} samples per problem, {other.name} has {other.samples}; evaluate both alike"
            )
        for problem_id, ours, theirs in zip(self.problem_ids, self.labels("gold"), other.labels("gold"), strict=True):
            if ours != theirs:
                raise ValueError(
                    f"problem {problem_id} has gold {ours!r} in {self.name} and {theirs!r} in {other.name}; "
                    "evaluate both on the same problem set"
                )


def distinct_answers(table: SampleTable) -> Array:
    """(S, P): number of different answers among the graded samples, unparseable ones not counted; NaN where none is graded."""
    found = table.classes.number.reshape(table.graded.shape[:2])
    return np.where(table.graded.any(-1), found, np.nan)


def sample_table(
    records_by_seed: Sequence[Iterable[Record]],
    name: str,
    extra: Mapping[str, Callable[[Record], float]] | None = None,
) -> SampleTable:
    """The records of every seed in order; `name` is what error messages call the model. Each record is read once and let go.

    The order of the records is free. `extra` are further numbers of a record, by name. Raises ValueError for no seed or no
    sample, a repeated or missing record, problems that differ between seeds, unequal numbers of samples, and greedy completions
    of only some problems.
    """
    if not records_by_seed or any(isinstance(records, Sized) and not len(records) for records in records_by_seed):
        raise ValueError(f"{name}: no records for at least one seed; evaluate every seed first")
    seeds = [read_columns(records, f"{name}, seed {index}", extra) for index, records in enumerate(records_by_seed)]
    ids = sorted(seeds[0].places)
    for index, columns in enumerate(seeds[1:], start=1):
        _require_equal_problems(ids, sorted(columns.places), f"{name}, seed 0", f"{name}, seed {index}")
    sizes = [int(size) for columns in seeds for size in (columns.sizes.min(), columns.sizes.max())]
    if min(sizes) < max(sizes):
        raise ValueError(
            f"{name}: problems have between {min(sizes)} and {max(sizes)} samples; every problem needs the same number"
        )
    drawn = sum(len(columns.greedy_places) for columns in seeds)
    if drawn not in (0, len(seeds) * len(ids)):
        raise ValueError(f"{name}: {drawn} greedy records for {len(seeds) * len(ids)} problems; evaluate all or none")
    orders = [np.array([columns.places[known] for known in ids], dtype=np.intp) for columns in seeds]

    def stacked(key: str) -> NDArray[Any]:
        shape = (len(ids), sizes[0])
        # Taken out, so that no column is there twice.
        return np.stack([c.samples.pop(key).reshape(shape)[order] for c, order in zip(seeds, orders, strict=True)])

    def greedy(key: str) -> Mask:
        found = np.zeros((len(seeds), len(ids) if drawn else 0), dtype=np.bool_)
        for row, columns, order in zip(found, seeds, orders, strict=True):
            by_place = np.empty_like(row)
            by_place[columns.greedy_places] = getattr(columns, key)
            row[:] = by_place[order] if drawn else ()
        return found

    return SampleTable(
        name=name,
        problem_ids=tuple(ids),
        families=seeds[0].fact("family", orders[0].tolist()),
        extra={key: stacked(key) for key in extra or {}},
        greedy_graded=greedy("greedy_graded"),
        greedy_correct=greedy("greedy_correct"),
        first=replace(seeds[0], samples={}),
        **{key: stacked(key) for key in PER_SAMPLE},
    )


def paired_tables(
    records_by_model: Mapping[str, Sequence[Iterable[Record]]],
    base: str,
    extra: Mapping[str, Callable[[Record], float]] | None = None,
) -> dict[str, SampleTable]:
    """A table per model, each checked against the one named `base` where there is one; `extra` as in `sample_table`.

    Raises ValueError as `sample_table` and `SampleTable.require_paired` do, and for a base of more than one seed.
    """
    tables = {name: sample_table(records, name, extra) for name, records in records_by_model.items()}
    if base in tables:
        if tables[base].seeds > 1:
            raise ValueError(f"{base} has records of {tables[base].seeds} seeds; the base is evaluated once")
        for table in tables.values():
            table.require_paired(tables[base])
    return tables


def means_without_grades(table: SampleTable) -> dict[str, Array]:
    """Means over the samples of a problem, (S, P) each, ungraded samples included.

    | key | figure |
    |---|---|
    | kl_to_base | KL(policy‖base), estimator k1: log π(y) - log π_ref(y), y drawn from π; nats/sequence, NaN without a base |
    | negative_logprob | -log π(y), nats/sequence |
    | length | response tokens, EOS included |
    | truncated | share of samples cut at the token limit |
    """
    return {
        "kl_to_base": (table.logprobs - table.base_logprobs).mean(-1),
        "negative_logprob": -table.logprobs.mean(-1),
        "length": table.lengths.mean(-1),
        "truncated": table.truncated.mean(-1),
    }


def linearised_ratio(numerators: Array, denominators: Array) -> Array:
    """Values (S, P) or (P,) whose mean over problems is each seed's ratio R = Σ N / Σ D, and whose spread is R's.

    A ratio of means is, to first order, the mean over problems of R + (N_p - R · D_p) / D, D the mean of D_p; the mean of
    these is R exactly.
    """
    mean = denominators.mean(-1, keepdims=True)
    ratio = numerators.mean(-1, keepdims=True) / mean
    return np.asarray(ratio + (numerators - ratio * denominators) / mean)


def mean_where_defined(
    values: Array,
    key: str,
    families: Sequence[str] | NDArray[np.intp],
    unit: str,
    *,
    reason: str = TOO_FEW_GRADED,
    bounds: tuple[float, float] | None = None,
    share_difference: bool = False,
    replicates: int = 2000,
) -> Estimate:
    """`problem_and_seed_interval` of `values` (S, P) or (P,) without the problems that have a NaN in any seed.

    The note counts the problems left out and gives `reason`. Problems are resampled within `families` (P,), names or
    codes, on a random stream named by `key`. No problem has a value: NaN with the note.
    """
    defined = np.isfinite(values if values.ndim == 1 else values.sum(0))
    note = left_out(int((~defined).sum()), len(defined), reason)
    if not defined.any():
        return undefined(unit, note)
    codes = families if isinstance(families, np.ndarray) else np.array(families, dtype=object)
    estimate = problem_and_seed_interval(
        values[..., defined],
        rng=generator(BOOTSTRAP_SEED, "interval", key),
        unit=unit,
        strata=codes[defined],
        bounds=bounds,
        share_difference=share_difference,
        replicates=replicates,
    )
    return noted(estimate, note)


def undefined(unit: str, note: str) -> Estimate:
    """A figure that rests on nothing."""
    return Estimate(np.nan, np.nan, np.nan, 0, unit, note)


def noted(estimate: Estimate, note: str) -> Estimate:
    """The estimate with `note` before its own; the same one where `note` is empty."""
    if not note:
        return estimate
    return replace(estimate, note=f"{note}; {estimate.note}" if estimate.note else note)


def left_out(missing: int, problems: int, reason: str) -> str:
    """The note on a figure that lacks `missing` of its problems; empty where none is missing."""
    return f"{missing} of {problems} problems left out: {reason}" if missing else ""


def _require_equal_problems(ours: Sequence[str], theirs: Sequence[str], our_name: str, their_name: str) -> None:
    for missing, lacking, having in (
        (sorted(set(theirs) - set(ours)), our_name, their_name),
        (sorted(set(ours) - set(theirs)), their_name, our_name),
    ):
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(
                f"{lacking} lacks problem {missing[0]}{more} that {having} has; paired figures need the same problems: "
                "evaluate both with the same evaluation settings"
            )
