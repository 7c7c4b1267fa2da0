"""One record of the base's samples, read and checked. Everything that is refused is refused here in one line that names the line.

`samples` says which keys a record has. A record made by `NumberedRecord` knows its line in a file, blank lines counted;
any other is named by its place among the records.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NumberedRecord", "Record", "SampleRecord", "read_record"]

Record = Mapping[str, Any]

ROUNDING = 1e-4  # nats; a log-probability this far above 0 is a rounding error of float32
LONGEST = 2**31  # tokens; a longer response is a mistake in the records

_STATUS_REWARDS = {"correct": 1.0, "wrong": 0.0, "unparseable": 0.0, "timeout": None, "error": None}
_UNGRADED = ("timeout", "error")


class NumberedRecord(dict[str, Any]):
    """A record that knows its line in a file."""

    def __init__(self, line: int, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.line = line


@dataclass(frozen=True)
class SampleRecord:
    """A record after all checks."""

    where: str  # names it in messages
    problem_id: str
    logprob: float  # nats, at most 0
    length: int
    reward: float | None  # None where nothing was graded
    right: float  # 1.0 or 0.0; 0.0 where nothing was graded
    has_status: bool
    response: Hashable  # equal for equal responses; None where unknown
    answer: str | None
    has_answer: bool  # whether the record has the key
    sample: int | float | str | None
    greedy: bool
    family: str | None
    task: str | None
    split: str | None
    temperature: float | None  # None where the record does not say
    fixed_length: bool | None  # None where the record does not say
    base_logprob: float | None


def read_record(record: Record, place: int) -> SampleRecord:
    """The record, which is the `place`-th from 1, with every value in its type. Raises ValueError for any that is none."""
    line = f"line {record.line}" if isinstance(record, NumberedRecord) else f"record {place}"
    missing = [key for key in ("problem_id", "logprob", "length") if record.get(key) is None]
    if missing:
        raise ValueError(
            f"{line} has no {' and no '.join(missing)}; a forecast needs problem_id, logprob, length and reward"
        )
    problem_id = _text(record, "problem_id", line)
    where = f"{line} (problem {problem_id})"
    length, greedy = _length(record, where), bool(_flag(record, "greedy", where))
    reward = _reward(record, where, needed=not greedy)
    answer = record.get("answer")
    return SampleRecord(
        where=where,
        problem_id=str(problem_id),
        logprob=_logprob(record, where),
        length=length,
        reward=reward,
        right=_is_right(record, reward),
        has_status=record.get("status") is not None,
        response=_response(record, length, where),
        answer=None if answer is None else str(answer),
        has_answer="answer" in record,
        sample=_sample(record, where),
        greedy=greedy,
        family=_text(record, "family", where),
        task=_text(record, "task", where),
        split=_text(record, "split", where),
        temperature=_optional_number(record, "temperature", where),
        fixed_length=_flag(record, "fixed_length", where),
        base_logprob=_optional_number(record, "base_logprob", where),
    )


def _shown(value: object) -> str:
    """The value, cut where it would fill the screen, on one line and in printable characters."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "of more than 38 digits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _finite(value: object) -> float | None:
    """The value as a float; None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _optional_number(record: Record, key: str, where: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    number = _finite(value)
    if number is None:
        raise ValueError(f"{where}: {key} {_shown(value)} is not a finite number; write a number, or leave it out")
    return number


def _logprob(record: Record, where: str) -> float:
    value = record["logprob"]
    logprob = _finite(value)
    if logprob is None:
        raise ValueError(
            f"{where}: logprob {_shown(value)} is not a finite number; give nats per response, or leave the sample out"
        )
    if logprob > ROUNDING:
        raise ValueError(
            f"{where}: logprob {logprob:g} is positive; give the sum of log-probabilities over the response's tokens, in nats"
        )
    return min(logprob, 0.0)


def _length(record: Record, where: str) -> int:
    value = record["length"]
    length = _finite(value)
    if length is None or length < 1 or length != int(length) or length >= LONGEST:
        raise ValueError(
            f"{where}: length {_shown(value)} is not a number of tokens; count response tokens, EOS included"
        )
    return int(length)


def _flag(record: Record, key: str, where: str) -> bool | None:
    value = record.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise ValueError(f"{where}: {key} {_shown(value)} is neither true nor false; write one of them, or leave it out")


def _text(record: Record, key: str, where: str) -> str | None:
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"{where}: {key} {_shown(value)} is not a text; write a string")
    try:
        text = str(value)
        text.encode("utf-8")
    except ValueError:
        raise ValueError(f"{where}: {key} {ascii(value)[:60]} is not valid Unicode; write another name") from None
    return text


def _sample(record: Record, where: str) -> int | float | str | None:
    value = record.get("sample")
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{where}: sample {_shown(value)} is not a number; number the samples of a problem 0, 1, 2, …")


def _response(record: Record, length: int, where: str) -> Hashable:
    """Equal for equal responses: by token ids, else by text and length; None where the record has neither."""
    ids, text = record.get("token_ids"), record.get("text")
    if ids is not None:
        if not isinstance(ids, list | tuple) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise ValueError(f"{where}: token_ids {_shown(ids)} is not a list of numbers; write [5, 9, 2], say")
        return tuple(ids)
    return None if text is None else (str(text), length)


def _reward(record: Record, where: str, *, needed: bool) -> float | None:
    """The reward, or None where nothing was graded."""
    status = record.get("status")
    if status is not None and (not isinstance(status, str) or status not in _STATUS_REWARDS):
        raise ValueError(f"{where}: unknown status {_shown(status)}; known: {', '.join(_STATUS_REWARDS)}")
    if status in _UNGRADED:
        return None
    if "reward" not in record:
        if status is None and needed:
            raise ValueError(f"{where}: neither reward nor status; grade the responses first")
        return None if status is None else _STATUS_REWARDS[status]
    value = record["reward"]
    if value is None:
        return None
    # A grader that answers true and false means 1 and 0.
    reward = float(value) if isinstance(value, bool) else _finite(value)
    if reward is None or not 0.0 <= reward <= 1.0:
        raise ValueError(
            f"{where}: reward {_shown(value)} is not in [0, 1]; rescale it, or write null where there is no grade"
        )
    return reward


def _is_right(record: Record, reward: float | None) -> float:
    if reward is None:
        return 0.0
    status = record.get("status")
    return float(status == "correct") if status is not None else float(reward == 1.0)
