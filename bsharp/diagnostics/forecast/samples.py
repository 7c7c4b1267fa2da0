"""Records of the base's own samples, checked, as one table of samples per problem. NumPy only.

What a forecast needs of a record, whoever drew it:

| key | value |
|---|---|
| problem_id | which problem |
| logprob | log-probability of the whole response, EOS included, under the base at temperature 1, nats |
| length | response tokens, EOS included |
| reward | in [0, 1], or null where nothing could be graded. Without it `status`: correct is 1, wrong and unparseable are 0 |
| status | optional: `correct` is right, `timeout` and `error` are ungraded. Without it a reward of 1 is right |
| answer | optional: the final answer in canonical form, null where there is none |
| token_ids or text | optional: tells which samples are the same response; then seen responses count by their known probability |
| sample, greedy, family, task, split, temperature, fixed_length, base_logprob | optional, as an evaluation writes them |

The reward enters objectives; every figure called accuracy is the share of right responses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bsharp.diagnostics.forecast.records import Record, SampleRecord, read_record

__all__ = ["LEAST_GRADED", "BaseSamples", "ProblemSamples", "Record", "Responses", "read_samples"]

Array = NDArray[np.float64]

LEAST_GRADED = 2
"""A problem with fewer graded samples is left out: nothing within it can be compared."""

OTHER_MODEL = (
    0.01  # nats per token; a mean difference of logprob and base_logprob beyond it is another policy, not rounding
)

MOST_PROBABILITY = 1.02
"""Probabilities of different responses to one problem cannot add up to more than 1, rounding aside."""

SAME_RESPONSE = 1e-3
"""Nats per token up to which log-probabilities of equal length and grade may be two passes over one response."""


@dataclass(frozen=True)
class Responses:
    """The D different responses among a problem's n samples; every sample is its own one where records do not tell."""

    counts: Array  # (D,), samples of each; they add up to n
    logprobs: Array  # (D,), nats
    lengths: NDArray[np.int64]  # (D,)
    rewards: Array  # (D,), mean over its samples
    correct: Array  # (D,), mean over its samples
    merged: bool  # whether records told which samples are the same response


@dataclass(frozen=True)
class ProblemSamples:
    """The n >= 2 graded samples of one problem."""

    problem_id: str
    family: str  # "" where records name none
    rewards: Array  # (n,), in [0, 1]
    correct: Array  # (n,), 1.0 for a right response, 0.0 for any other
    logprobs: Array  # (n,), nats per sequence under the base, EOS included
    lengths: NDArray[np.int64]  # (n,), tokens, EOS included
    answers: tuple[str | None, ...] | None = None  # canonical; None as a whole where records hold no answers
    response_index: NDArray[np.intp] | None = None  # (n,) in 0 … D-1, equal for equal responses; None where unknown
    greedy_correct: float | None = None  # of the greedy completion, where there is a graded one

    @property
    def size(self) -> int:
        """Number of graded samples n."""
        return len(self.rewards)

    @property
    def accuracy(self) -> float:
        """Share of right samples."""
        return float(self.correct.mean())

    @cached_property
    def responses(self) -> Responses:
        """The different responses; log-probabilities that differ between samples of one by rounding are averaged."""
        index = np.arange(self.size) if self.response_index is None else self.response_index
        counts = np.bincount(index).astype(np.float64)
        first = np.unique(index, return_index=True)[1]

        def mean(values: Array) -> Array:
            return np.asarray(np.bincount(index, weights=values) / counts)

        # A response drawn once keeps its values to the last bit.
        return Responses(
            counts=counts,
            logprobs=np.where(counts == 1, self.logprobs[first], mean(self.logprobs)),
            lengths=self.lengths[first],
            rewards=mean(self.rewards),
            correct=mean(self.correct),
            merged=self.response_index is not None,
        )


@dataclass(frozen=True)
class BaseSamples:
    """All problems that have enough graded samples, sorted by id, and what was left out."""

    problems: tuple[ProblemSamples, ...]
    tasks: tuple[str, ...]
    split: str | None
    fixed_length: bool
    ungraded: int  # samples without a grade
    left_out: int  # problems with fewer than LEAST_GRADED graded samples
    fixed_length_known: bool = False  # whether records say so
    temperature_known: bool = False  # whether every sample's record says that it is 1
    partial_rewards: int = 0  # graded samples without a status whose reward lies between 0 and 1: none counts as right

    @property
    def families(self) -> list[str]:
        """(P,), the strata of every interval over problems."""
        return [problem.family for problem in self.problems]

    @property
    def smallest(self) -> int:
        """Graded samples of the problem that has the fewest."""
        return min(problem.size for problem in self.problems)

    @property
    def typical(self) -> int:
        """Graded samples that at least half of the problems have: the median, the lower one of two."""
        sizes = sorted(problem.size for problem in self.problems)
        return sizes[(len(sizes) - 1) // 2]

    @property
    def largest(self) -> int:
        """Graded samples of the problem that has the most."""
        return max(problem.size for problem in self.problems)


def read_samples(records: Sequence[Record]) -> BaseSamples:
    """The records as samples by problem; see the module for the keys. The order of the records is free.

    Ungraded samples are counted and left out, problems with fewer than 2 graded samples too. Numbers of samples may differ
    between problems. Raises ValueError for no record, a record that lacks a key or holds a value of another type, a
    log-probability that is missing, not finite or positive, a reward outside [0, 1], only partial rewards, a sample that occurs
    twice, a temperature other than 1, log-probabilities of another policy than the base or of less than the whole response,
    free and fixed lengths together, and where no problem is left.
    """
    if not records:
        raise ValueError("no records to forecast from; give at least two graded samples per problem")
    rows = [read_record(record, place) for place, record in enumerate(records, start=1)]
    drawn: dict[str, list[SampleRecord]] = {}
    greedy: dict[str, SampleRecord] = {}
    seen: set[tuple[str, Hashable]] = set()
    for row in rows:
        if row.greedy:
            if row.problem_id in greedy:
                raise ValueError(_twice("the greedy record", row.problem_id))
            greedy[row.problem_id] = row
            continue
        if row.sample is not None:
            if (row.problem_id, row.sample) in seen:
                raise ValueError(_twice(f"sample {row.sample}", row.problem_id))
            seen.add((row.problem_id, row.sample))
        _require_drawn_at_one(row)
        drawn.setdefault(row.problem_id, []).append(row)
    _require_base(rows)
    if not drawn:
        raise ValueError("all records are greedy completions; a forecast needs samples at temperature 1")
    samples = [row for row in rows if not row.greedy]
    with_answers = any(row.has_answer for row in samples)
    tables, ungraded = [], 0
    for problem_id in sorted(drawn):
        graded = [row for row in drawn[problem_id] if row.reward is not None]
        ungraded += len(drawn[problem_id]) - len(graded)
        if len(graded) >= LEAST_GRADED:
            tables.append(_problem(problem_id, graded, greedy.get(problem_id), with_answers))
    if not tables:
        raise ValueError(
            f"none of {len(drawn)} problems has {LEAST_GRADED} graded samples; draw more samples, or check their grades"
        )
    splits = {row.split for row in rows} - {None}
    return BaseSamples(
        problems=tuple(tables),
        tasks=tuple(sorted({row.task for row in rows if row.task is not None})),
        split=splits.pop() if len(splits) == 1 else None,
        fixed_length=bool(samples[0].fixed_length),
        ungraded=ungraded,
        left_out=len(drawn) - len(tables),
        fixed_length_known=any(row.fixed_length is not None for row in samples),
        temperature_known=all(row.temperature is not None for row in samples),
        partial_rewards=_partial_rewards(samples),
    )


def _partial_rewards(samples: Sequence[SampleRecord]) -> int:
    partial = sum(row.reward is not None and 0 < row.reward < 1 and not row.has_status for row in samples)
    if partial and not any(row.has_status or row.reward == 1 for row in samples):
        raise ValueError(
            f"{partial} of {len(samples)} rewards lie between 0 and 1, none is 1 and no record has a status: nothing tells which "
            "responses are right; add status (correct or wrong), or give right responses the reward 1"
        )
    return partial


def _problem(
    problem_id: str, graded: Sequence[SampleRecord], greedy: SampleRecord | None, with_answers: bool
) -> ProblemSamples:
    # A fixed order makes sums, and with them every figure, independent of the order of the records to the last bit.
    rows = sorted(graded, key=lambda row: (row.logprob, row.length, row.reward or 0.0, str(row.answer)))
    families = {row.family for row in rows if row.family is not None}
    if len(families) > 1:
        raise ValueError(f"problem {problem_id} has records of the families {', '.join(sorted(families))}; give it one")
    samples = ProblemSamples(
        problem_id=problem_id,
        family=families.pop() if families else "",
        rewards=np.array([row.reward for row in rows], dtype=np.float64),
        correct=np.array([row.right for row in rows]),
        logprobs=np.array([row.logprob for row in rows]),
        lengths=np.array([row.length for row in rows], dtype=np.int64),
        answers=tuple(row.answer for row in rows) if with_answers else None,
        response_index=_response_index(rows),
        greedy_correct=None if greedy is None or greedy.reward is None else greedy.right,
    )
    total = _total_probability(samples)
    if total > MOST_PROBABILITY:
        raise ValueError(
            f"problem {problem_id}: the probabilities of its different responses add up to {total:.3g}, more than 1; "
            "logprob must be the sum over all response tokens, EOS included, at temperature 1 without truncation"
        )
    return samples


def _total_probability(samples: ProblemSamples) -> float:
    """Of the different responses. Where records do not tell, samples of other length, grade or log-probability are others."""
    if samples.response_index is not None:
        return float(np.exp(samples.responses.logprobs).sum())
    kinds: dict[tuple[int, float, float], list[float]] = {}
    found = (samples.lengths.tolist(), samples.rewards.tolist(), samples.correct.tolist(), samples.logprobs.tolist())
    for length, reward, right, logprob in zip(*found, strict=True):
        kinds.setdefault((length, reward, right), []).append(logprob)
    # Two passes over one response differ by rounding: what lies that near may be the same.
    different = [
        logprob
        for (length, _, _), logprobs in kinds.items()
        for place, logprob in enumerate(logprobs)
        if place == 0 or logprob - logprobs[place - 1] > SAME_RESPONSE * length
    ]
    return math.fsum(map(math.exp, different))


def _response_index(rows: Sequence[SampleRecord]) -> NDArray[np.intp] | None:
    """(n,) number of each sample's response; None where a record does not tell."""
    if any(row.response is None for row in rows):
        return None
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(row.response, len(known)) for row in rows], dtype=np.intp)


def _twice(what: str, problem_id: str) -> str:
    return f"{what} of problem {problem_id} occurs twice; were two evaluations joined? Renumber the samples or drop one"


def _require_drawn_at_one(row: SampleRecord) -> None:
    if row.temperature is not None and row.temperature != 1:
        raise ValueError(
            f"{row.where} was drawn at temperature {row.temperature:g}: neither samples nor log-probabilities are the base's; "
            "sample again at temperature 1"
        )


def _require_base(rows: Sequence[SampleRecord]) -> None:
    lengths = Counter(bool(row.fixed_length) for row in rows)
    if len(lengths) > 1:
        raise ValueError(
            f"{lengths[True]} of {len(rows)} records have a fixed length, the others not; forecast them separately"
        )
    differences = [abs(row.logprob - row.base_logprob) / row.length for row in rows if row.base_logprob is not None]
    average = math.fsum(differences) / max(len(differences), 1)
    if not average <= OTHER_MODEL:
        raise ValueError(
            f"logprob and base_logprob differ by {average:.3g} nats per token: these samples are of a trained policy; "
            "give records of the base itself"
        )
