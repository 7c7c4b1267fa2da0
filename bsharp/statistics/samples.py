"""Evaluation records as a table of seeds × problems × samples, and means over those problems that have a value.

Samples whose reward is null (grader timeout or error) are UNGRADED: they leave the denominator of their problem in every
figure that needs a grade, and count in those that do not (length, KL, entropy, truncation). A problem left with too few
graded samples for a figure holds NaN there; the note of the figure's mean counts such problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.seeding import generator
from bsharp.statistics.intervals import Estimate, problem_and_seed_interval

__all__ = [
    "BOOTSTRAP_SEED",
    "NOT_FINITE",
    "TOO_FEW_GRADED",
    "Record",
    "SampleTable",
    "correctness",
    "distinct_answers",
    "is_graded",
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
Record = Mapping[str, Any]

UNGRADED_STATUSES = ("timeout", "error")
BOOTSTRAP_SEED = 0  # the figures of equal records are equal to the last digit
TOO_FEW_GRADED = "too few graded samples"
NOT_FINITE = "values that are not finite"


@dataclass(frozen=True)
class SampleTable:
    """The samples of one model or regime: S seeds, P problems in the order of their ids, n samples each."""

    name: str
    problem_ids: tuple[str, ...]
    families: tuple[str, ...]
    records: tuple[tuple[tuple[Record, ...], ...], ...]  # (S, P, n), without the greedy ones
    greedy: tuple[tuple[Record, ...], ...]  # (S, P); empty where no greedy completion was drawn

    @property
    def seeds(self) -> int:
        return len(self.records)

    @property
    def samples(self) -> int:
        return len(self.records[0][0])

    def labels(self, key: str) -> tuple[Any, ...]:
        """(P,) of a field that belongs to the problem, such as its task, role or mode."""
        return tuple(row[0][key] for row in self.records[0])

    def array(self, field: Callable[[Record], float]) -> Array:
        """(S, P, n) of any number a record holds."""
        return np.array(
            [[[field(record) for record in row] for row in seed] for seed in self.records], dtype=np.float64
        )

    def by_problem(self, figure: Callable[[Sequence[Record]], float]) -> Array:
        """(S, P) of any number of a problem's n samples."""
        return np.array([[figure(row) for row in seed] for seed in self.records], dtype=np.float64)

    def base_logprobs(self) -> Array:
        """(S, P, n), nats of the whole response; NaN where no base scored the sample."""
        return self.array(lambda r: np.nan if r["base_logprob"] is None else r["base_logprob"])

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


def is_graded(record: Record) -> bool:
    """Whether the grader could say anything: a timeout or an error says nothing."""
    return record["reward"] is not None and record["status"] not in UNGRADED_STATUSES


def correctness(record: Record) -> float:
    """1 for a right answer, 0 for any other, NaN where the grader could not say."""
    return float(record["status"] == "correct") if is_graded(record) else np.nan


def distinct_answers(samples: Sequence[Record]) -> float:
    """Number of different answers among a problem's graded samples, unparseable ones not counted; NaN where none is graded."""
    graded = [record["answer"] for record in samples if is_graded(record)]
    return float(len(set(graded) - {None})) if graded else np.nan


def sample_table(records_by_seed: Sequence[Sequence[Record]], name: str) -> SampleTable:
    """The records of every seed in order; `name` is what error messages call the model.

    The order of the records is free. Raises ValueError for no seed or no sample, a repeated or missing record, problems that
    differ between seeds, unequal numbers of samples, and greedy completions of only some problems.
    """
    if not records_by_seed or not all(records_by_seed):
        raise ValueError(f"{name}: no records for at least one seed; evaluate every seed first")
    tables = [_by_problem(records, f"{name}, seed {index}") for index, records in enumerate(records_by_seed)]
    ids = sorted(tables[0])
    for index, table in enumerate(tables[1:], start=1):
        _require_equal_problems(ids, sorted(table), f"{name}, seed 0", f"{name}, seed {index}")
    sizes = {len(samples) for table in tables for samples, _ in table.values()}
    if len(sizes) > 1:
        raise ValueError(
            f"{name}: problems have between {min(sizes)} and {max(sizes)} samples; every problem needs the same number"
        )
    greedy = tuple(
        tuple(found for problem_id in ids if (found := table[problem_id][1]) is not None) for table in tables
    )
    if (drawn := sum(map(len, greedy))) not in (0, len(tables) * len(ids)):
        raise ValueError(f"{name}: {drawn} greedy records for {len(tables) * len(ids)} problems; evaluate all or none")
    records = tuple(tuple(table[problem_id][0] for problem_id in ids) for table in tables)
    return SampleTable(
        name=name,
        problem_ids=tuple(ids),
        families=tuple(row[0]["family"] for row in records[0]),
        records=records,
        greedy=greedy if drawn else (),
    )


def paired_tables(records_by_model: Mapping[str, Sequence[Sequence[Record]]], base: str) -> dict[str, SampleTable]:
    """A table per model, each checked against the one named `base` where there is one.

    Raises ValueError as `sample_table` and `SampleTable.require_paired` do, and for a base of more than one seed.
    """
    tables = {name: sample_table(records, name) for name, records in records_by_model.items()}
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
    logprobs = table.array(lambda r: r["logprob"])
    return {
        "kl_to_base": (logprobs - table.base_logprobs()).mean(-1),
        "negative_logprob": -logprobs.mean(-1),
        "length": table.array(lambda r: r["length"]).mean(-1),
        "truncated": table.array(lambda r: r["finish_reason"] == "length").mean(-1),
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
    families: Sequence[str],
    unit: str,
    *,
    reason: str = TOO_FEW_GRADED,
    bounds: tuple[float, float] | None = None,
    share_difference: bool = False,
    replicates: int = 2000,
) -> Estimate:
    """`problem_and_seed_interval` of `values` (S, P) or (P,) without the problems that have a NaN in any seed.

    The note counts the problems left out and gives `reason`. Problems are resampled within `families` (P,) on a random
    stream named by `key`. No problem has a value: NaN with the note.
    """
    defined = np.isfinite(values if values.ndim == 1 else values.sum(0))
    note = left_out(int((~defined).sum()), len(defined), reason)
    if not defined.any():
        return undefined(unit, note)
    estimate = problem_and_seed_interval(
        values[..., defined],
        rng=generator(BOOTSTRAP_SEED, "interval", key),
        unit=unit,
        strata=[families[place] for place in np.flatnonzero(defined).tolist()],
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


def _by_problem(records: Sequence[Record], name: str) -> dict[str, tuple[tuple[Record, ...], Record | None]]:
    """Problem id → (its samples in order, its greedy record or None)."""
    known: dict[str, dict[int, Record]] = {}
    greedy: dict[str, Record] = {}
    for record in records:
        problem_id, sample = record["problem_id"], record["sample"]
        samples = known.setdefault(problem_id, {})
        if (problem_id in greedy) if record["greedy"] else (sample in samples):
            kind = "greedy record" if record["greedy"] else f"sample {sample}"
            raise ValueError(f"{name}: {kind} of problem {problem_id} occurs twice; were two evaluations joined?")
        if record["greedy"]:
            greedy[problem_id] = record
        else:
            samples[sample] = record
    if not any(known.values()):
        raise ValueError(f"{name}: no sampled records; evaluate with at least one sample per problem")
    for problem_id, samples in known.items():
        if missing := set(range(len(samples))) - set(samples):
            raise ValueError(f"{name}: problem {problem_id} lacks sample {min(missing)}; records are incomplete")
    return {
        problem_id: (tuple(samples[i] for i in range(len(samples))), greedy.get(problem_id))
        for problem_id, samples in known.items()
    }


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
