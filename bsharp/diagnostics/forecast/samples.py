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
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_GRADED", "BaseSamples", "ProblemSamples", "Record", "Responses", "read_samples"]

Array = NDArray[np.float64]
Record = Mapping[str, Any]

LEAST_GRADED = 2
"""A problem with fewer graded samples is left out: nothing within it can be compared."""

ROUNDING = 1e-4  # nats; a log-probability this far above 0 is a rounding error of float32
OTHER_MODEL = (
    0.01  # nats per token; a mean difference of logprob and base_logprob beyond it is another policy, not rounding
)

MOST_PROBABILITY = 1.02
"""Probabilities of different responses to one problem cannot add up to more than 1, rounding aside."""

_STATUS_REWARDS = {"correct": 1.0, "wrong": 0.0, "unparseable": 0.0, "timeout": None, "error": None}
_UNGRADED = ("timeout", "error")


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

    @property
    def families(self) -> list[str]:
        """(P,), the strata of every interval over problems."""
        return [problem.family for problem in self.problems]

    @property
    def smallest(self) -> int:
        """Graded samples of the problem that has the fewest."""
        return min(problem.size for problem in self.problems)

    @property
    def largest(self) -> int:
        """Graded samples of the problem that has the most."""
        return max(problem.size for problem in self.problems)


def read_samples(records: Sequence[Record]) -> BaseSamples:
    """The records as samples by problem; see the module for the keys. The order of the records is free.

    Ungraded samples are counted and left out, problems with fewer than 2 graded samples too. Numbers of samples may differ
    between problems. Raises ValueError for no record, a record that lacks a key, a log-probability that is missing, not
    finite or positive, a reward outside [0, 1], a sample that occurs twice, a temperature other than 1, log-probabilities
    of another policy than the base, free and fixed lengths together, and where no problem is left.
    """
    if not records:
        raise ValueError("no records to forecast from; give at least two graded samples per problem")
    drawn: dict[str, list[Record]] = {}
    greedy: dict[str, Record] = {}
    seen: set[tuple[str, Any]] = set()
    for line, record in enumerate(records, start=1):
        problem_id = _problem_id(record, line)
        if record.get("greedy"):
            if problem_id in greedy:
                raise ValueError(_twice("the greedy record", problem_id))
            greedy[problem_id] = record
            continue
        if record.get("sample") is not None:
            if (problem_id, record["sample"]) in seen:
                raise ValueError(_twice(f"sample {record['sample']}", problem_id))
            seen.add((problem_id, record["sample"]))
        _require_drawn_at_one(record, line)
        drawn.setdefault(problem_id, []).append(record)
    _require_base(records)
    if not drawn:
        raise ValueError("all records are greedy completions; a forecast needs samples at temperature 1")
    with_answers = any("answer" in record for rows in drawn.values() for record in rows)
    tables, ungraded = [], 0
    for problem_id in sorted(drawn):
        graded = [(record, reward) for record in drawn[problem_id] if (reward := _reward(record)) is not None]
        ungraded += len(drawn[problem_id]) - len(graded)
        if len(graded) >= LEAST_GRADED:
            tables.append(_problem(problem_id, graded, greedy.get(problem_id), with_answers))
    if not tables:
        raise ValueError(
            f"none of {len(drawn)} problems has {LEAST_GRADED} graded samples; draw more samples, or check their grades"
        )
    splits = {record.get("split") for record in records} - {None}
    return BaseSamples(
        problems=tuple(tables),
        tasks=tuple(sorted({str(record["task"]) for record in records if record.get("task") is not None})),
        split=str(splits.pop()) if len(splits) == 1 else None,
        fixed_length=bool(next(iter(drawn.values()))[0].get("fixed_length", False)),
        ungraded=ungraded,
        left_out=len(drawn) - len(tables),
    )


def _problem(
    problem_id: str, graded: Sequence[tuple[Record, float]], greedy: Record | None, with_answers: bool
) -> ProblemSamples:
    # A fixed order makes sums, and with them every figure, independent of the order of the records to the last bit.
    rows = sorted(
        graded, key=lambda pair: (float(pair[0]["logprob"]), pair[0]["length"], pair[1], str(pair[0].get("answer")))
    )
    families = {str(record["family"]) for record, _ in rows if record.get("family") is not None}
    if len(families) > 1:
        raise ValueError(f"problem {problem_id} has records of the families {', '.join(sorted(families))}; give it one")
    greedy_reward = None if greedy is None else _reward(greedy)
    samples = ProblemSamples(
        problem_id=problem_id,
        family=families.pop() if families else "",
        rewards=np.array([reward for _, reward in rows]),
        correct=np.array([_is_right(record, reward) for record, reward in rows]),
        logprobs=np.array([min(float(record["logprob"]), 0.0) for record, _ in rows]),
        lengths=np.array([int(record["length"]) for record, _ in rows], dtype=np.int64),
        answers=tuple(_answer(record) for record, _ in rows) if with_answers else None,
        response_index=_response_index([record for record, _ in rows]),
        greedy_correct=None if greedy is None or greedy_reward is None else _is_right(greedy, greedy_reward),
    )
    if samples.response_index is not None:
        total = float(np.exp(samples.responses.logprobs).sum())
        if total > MOST_PROBABILITY:
            raise ValueError(
                f"problem {problem_id}: the probabilities of its different responses add up to {total:.3g}, more than 1; "
                "logprob must be the sum over all response tokens, EOS included, at temperature 1 without truncation"
            )
    return samples


def _response_index(rows: Sequence[Record]) -> NDArray[np.intp] | None:
    """(n,) number of each sample's response, by token ids, else by text and length; None where a record has neither."""
    keys: list[Hashable] = []
    for record in rows:
        if record.get("token_ids") is not None:
            keys.append(tuple(record["token_ids"]))
        elif record.get("text") is not None:
            keys.append((str(record["text"]), int(record["length"])))
        else:
            return None
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.intp)


def _answer(record: Record) -> str | None:
    answer = record.get("answer")
    return None if answer is None else str(answer)


def _reward(record: Record) -> float | None:
    """The reward, or None where nothing was graded."""
    status, where = record.get("status"), f"problem {record['problem_id']}"
    if status is not None and status not in _STATUS_REWARDS:
        raise ValueError(f"{where}: unknown status {status!r}; known: {', '.join(_STATUS_REWARDS)}")
    if status in _UNGRADED:
        return None
    if "reward" not in record:
        if status is None:
            raise ValueError(f"{where}: a record has neither reward nor status; grade the responses first")
        return _STATUS_REWARDS[str(status)]
    reward = record["reward"]
    if reward is None:
        return None
    if not isinstance(reward, int | float) or not 0.0 <= reward <= 1.0:
        raise ValueError(
            f"{where}: reward {reward!r} is not in [0, 1]; rescale it, or write null where there is no grade"
        )
    return float(reward)


def _is_right(record: Record, reward: float) -> float:
    status = record.get("status")
    return float(status == "correct") if status is not None else float(reward == 1.0)


def _problem_id(record: Record, line: int) -> str:
    missing = [key for key in ("problem_id", "logprob", "length") if record.get(key) is None]
    if missing:
        raise ValueError(
            f"record {line} has no {' and no '.join(missing)}; a forecast needs problem_id, logprob, length and reward"
        )
    logprob, length, where = record["logprob"], record["length"], f"record {line} (problem {record['problem_id']})"
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not math.isfinite(logprob):
        raise ValueError(
            f"{where}: logprob {logprob!r} is not a finite number; give nats per response, or leave it out"
        )
    if logprob > ROUNDING:
        raise ValueError(
            f"{where}: logprob {logprob:g} is positive; give the sum of log-probabilities over the response's tokens, in nats"
        )
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1 or length != int(length):
        raise ValueError(f"{where}: length {length!r} is not a number of tokens; count response tokens, EOS included")
    return str(record["problem_id"])


def _twice(what: str, problem_id: str) -> str:
    return f"{what} of problem {problem_id} occurs twice; were two evaluations joined? Renumber the samples or drop one"


def _require_drawn_at_one(record: Record, line: int) -> None:
    temperature = record.get("temperature", 1.0)
    if temperature != 1:
        raise ValueError(
            f"record {line} was drawn at temperature {temperature}: neither samples nor log-probabilities are the base's; "
            "sample again at temperature 1"
        )


def _require_base(records: Sequence[Record]) -> None:
    lengths = Counter(bool(record.get("fixed_length", False)) for record in records)
    if len(lengths) > 1:
        raise ValueError(
            f"{lengths[True]} of {len(records)} records have a fixed length, the others not; forecast them separately"
        )
    both = [record for record in records if record.get("base_logprob") is not None]
    if not both:
        return
    differences = [abs(float(r["logprob"]) - float(r["base_logprob"])) / float(r["length"]) for r in both]
    average = math.fsum(differences) / len(differences)
    if not average <= OTHER_MODEL:
        raise ValueError(
            f"logprob and base_logprob differ by {average:.3g} nats per token: these samples are of a trained policy; "
            "give records of the base itself"
        )
