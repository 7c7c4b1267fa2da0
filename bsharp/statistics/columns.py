"""The records of one evaluation read once, in any order, into columns: about a hundredth of the memory of the records.

Answers and responses only ever have to be told apart within a problem, so their hashes are kept, of 64 bits: two different ones
of a problem are taken for one with a chance of 5e-20.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PER_SAMPLE", "Columns", "Record", "read_columns", "token_ids_of"]

Record = Mapping[str, Any]

UNGRADED_STATUSES = ("timeout", "error")
FACTS = ("task", "family", "role", "mode", "difficulty", "gold")
"""What belongs to the problem; taken from its sample 0."""
PER_SAMPLE = (
    "graded",
    "correct",
    "unparseable",
    "truncated",
    "rewards",
    "exact_matches",
    "logprobs",
    "base_logprobs",
    "scored",
    "lengths",
    "answers",
    "answered",
    "responses",
)
_KEYS = (
    "problem_id",
    "sample",
    "greedy",
    "reward",
    "status",
    "exact_match",
    "logprob",
    "base_logprob",
    "length",
    "answer",
    "token_ids",
    "finish_reason",
)
_AT_ONCE = 512
_ABSENT = object()


@dataclass(frozen=True)
class Columns:
    """The records of one evaluation by problem and sample, greedy ones apart; P problems in order of first appearance.

    `samples` maps each name of PER_SAMPLE, and of the extra figures, to an array over all samples, sorted by problem and
    sample; a problem's first stands at its place in `starts` and it has as many as `sizes` says. `facts` (P,) holds the
    values of FACTS, None of a problem that has no sample.
    """

    places: Mapping[str, int]  # problem id → place
    facts: Sequence[tuple[Any, ...] | None]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]
    samples: dict[str, NDArray[Any]]
    greedy_places: NDArray[np.intp]  # of each greedy record its problem
    greedy_graded: NDArray[np.bool_]
    greedy_correct: NDArray[np.bool_]

    def fact(self, key: str, places: Sequence[int]) -> tuple[Any, ...]:
        """A field that belongs to the problem, of the problems at `places`; KeyError where a record lacks it."""
        at = FACTS.index(key)
        found = tuple(row[at] for place in places if (row := self.facts[place]) is not None)
        if any(value is _ABSENT for value in found):
            raise KeyError(key)
        return found


def token_ids_of(record: Record) -> Sequence[Any]:
    """The token ids of a record, as numbers or as the texts of numbers: fit to be compared with each other."""
    ids = record["token_ids"]
    return ids.split(", ") if isinstance(ids, str) else ids


def read_columns(
    records: Iterable[Record], name: str, extra: Mapping[str, Callable[[Record], float]] | None = None
) -> Columns:
    """The columns of `records`; `name` is what error messages call them, `extra` are further numbers of a record, by name.

    `token_ids` may be a list or the text of one (`RunDirectory.samples`). Raises ValueError for no record, no sample, a repeated
    record and one that is missing.
    """
    extra = extra or {}
    places: dict[str, int] = {}
    facts: dict[int, tuple[Any, ...]] = {}
    same: dict[Any, Any] = {}
    pieces: dict[str, list[NDArray[Any]]] = {}
    for chunk in _batches(records):
        piece, zeros = _piece(chunk, places, extra)
        for place, record in zip(piece["place"][zeros].tolist(), (chunk[at] for at in zeros.tolist()), strict=True):
            # One copy of each task's and family's name is enough.
            values = (record.get(key, _ABSENT) for key in FACTS)
            facts.setdefault(place, tuple(same.setdefault((type(value), value), value) for value in values))
        for key, column in piece.items():
            pieces.setdefault(key, []).append(column)
    if not pieces:
        raise ValueError(f"{name}: no records for at least one seed; evaluate every seed first")
    columns = {key: np.concatenate(pieces.pop(key)) for key in list(pieces)}
    place, sample, greedy = columns.pop("place"), columns.pop("sample"), columns.pop("greedy")
    order = np.lexsort((np.where(greedy, 0, sample), greedy, place))
    ids = list(places)
    _refuse_repeated(order, place, sample, greedy, ids, name)
    if greedy.all():
        raise ValueError(f"{name}: no sampled records; evaluate with at least one sample per problem")
    drawn = order[~greedy[order]]
    sizes = np.bincount(place[drawn], minlength=len(ids))
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(drawn)) - starts[place[drawn]]
    if (sample[drawn] != rank).any():
        first = int(place[drawn][sample[drawn] != rank].min())
        lacking = set(range(sizes[first])) - set(sample[drawn[place[drawn] == first]].tolist())
        raise ValueError(f"{name}: problem {ids[first]} lacks sample {min(lacking)}; records are incomplete")
    alone = np.flatnonzero(greedy)
    return Columns(
        places=places,
        facts=[facts.get(at) for at in range(len(ids))],
        starts=starts,
        sizes=sizes,
        greedy_places=place[alone],
        greedy_graded=columns["graded"][alone],
        greedy_correct=columns["correct"][alone],
        samples={key: columns.pop(key)[drawn] for key in list(columns)},
    )


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    found = iter(records)
    while batch := list(itertools.islice(found, _AT_ONCE)):
        yield batch


def _piece(
    chunk: Sequence[Record], places: dict[str, int], extra: Mapping[str, Callable[[Record], float]]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.intp]]:
    """The columns of some records, and which of them are a problem's sample 0. Problems met first get the next place."""
    by_key = dict(zip(_KEYS, zip(*map(itemgetter(*_KEYS), chunk), strict=True), strict=True))
    status = by_key["status"]
    rewarded = np.array([reward is not None for reward in by_key["reward"]])
    graded = rewarded & np.array([word not in UNGRADED_STATUSES for word in status])
    piece = {
        "place": np.array([places.setdefault(known, len(places)) for known in by_key["problem_id"]], dtype=np.intp),
        "sample": np.array(by_key["sample"], dtype=np.int64),
        "greedy": np.array(by_key["greedy"], dtype=np.bool_),
        "graded": graded,
        "correct": graded & np.array([word == "correct" for word in status]),
        "unparseable": np.array([word == "unparseable" for word in status]),
        "truncated": np.array([reason == "length" for reason in by_key["finish_reason"]]),
        "rewards": np.where(graded, _numbers(by_key["reward"]), np.nan),
        "exact_matches": np.where(graded, _numbers(by_key["exact_match"]), np.nan),
        "logprobs": _numbers(by_key["logprob"]),
        "base_logprobs": _numbers(by_key["base_logprob"]),
        "scored": np.array([value is not None for value in by_key["base_logprob"]]),
        "lengths": _numbers(by_key["length"]),
        "answers": np.array(list(map(hash, by_key["answer"])), dtype=np.int64),
        "answered": np.array([answer is not None for answer in by_key["answer"]]),
        "responses": np.array([hash(_response(ids)) for ids in by_key["token_ids"]], dtype=np.int64),
    }
    piece |= {key: np.array(list(map(figure, chunk)), dtype=np.float64) for key, figure in extra.items()}
    return piece, np.flatnonzero((piece["sample"] == 0) & ~piece["greedy"])


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)  # None is NaN


def _response(ids: Any) -> Any:
    return ids if isinstance(ids, str) else tuple(ids)


def _refuse_repeated(
    order: NDArray[np.intp],
    place: NDArray[np.intp],
    sample: NDArray[np.int64],
    greedy: NDArray[np.bool_],
    ids: Sequence[str],
    name: str,
) -> None:
    """ValueError for the first record of the same problem and sample as one before it; `order` sorts equal ones together."""
    p, s, g = place[order], sample[order], greedy[order]
    again = (p[1:] == p[:-1]) & (g[1:] == g[:-1]) & (g[1:] | (s[1:] == s[:-1]))
    if again.any():
        first = order[1:][again].min()
        kind = "greedy record" if greedy[first] else f"sample {sample[first]}"
        raise ValueError(f"{name}: {kind} of problem {ids[place[first]]} occurs twice; were two evaluations joined?")
