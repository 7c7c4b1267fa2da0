"""What the completions browser says of one problem: counts that grow with the models, and texts that may be let go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["GRADES", "ProblemTally"]

GRADES = ("correct", "wrong", "unparseable", "timeout", "error", "truncated")
_GRADE_BITS = {name: 1 << bit for bit, name in enumerate(GRADES)}
_QUESTION_SHOWN = 160  # characters of a question in the index; the whole one lies in its chunk

Record = Mapping[str, Any]
Row = tuple[Any, ...]


@dataclass(slots=True)
class _Samples:
    """Counts over some samples of one model and seed: those drawn, or the greedy ones."""

    number: int = 0
    rewarded: int = 0
    right: int = 0
    grades: int = 0  # bits of GRADES
    answer: str | None = None  # of the first
    one_answer: bool = True
    none_right: bool = True  # all wrong or unparseable

    def add(self, record: Record) -> None:
        status, answer = record.get("status"), record.get("answer")
        answer = None if answer is None else str(answer)
        if not self.number:
            self.answer = answer
        self.one_answer = self.one_answer and answer == self.answer
        self.none_right = self.none_right and status in ("wrong", "unparseable")
        self.number += 1
        if record.get("reward") is not None:
            self.rewarded += 1
            self.right += status == "correct"
        if isinstance(status, str):
            self.grades |= _GRADE_BITS.get(status, 0)
        if record.get("finish_reason") == "length":
            self.grades |= _GRADE_BITS["truncated"]

    @property
    def collapsed(self) -> bool:
        return self.number > 1 and self.one_answer and self.none_right


class ProblemTally:
    """What the records say about one problem: counts by model and seed, and each different sample once with its count."""

    def __init__(self, problem_id: str, record: Record) -> None:
        self.problem_id = problem_id
        self.facts = {key: record.get(key) for key in ("task", "family", "role", "mode", "difficulty")}
        self.question = str(record.get("question") or "")
        self.gold = str(record.get("gold") if record.get("gold") is not None else "")
        self.chunk: tuple[int, int] | None = None
        self.characters = 0  # of the texts held
        self._drawn: dict[tuple[int, int], _Samples] = {}
        self._greedy: dict[tuple[int, int], _Samples] = {}
        self._texts: dict[tuple[int, int], dict[Row, int]] | None = {}

    def add(self, model: int, seed: int, record: Record) -> None:
        """Count a sample; its text is held where texts are."""
        group = self._greedy if record.get("greedy") else self._drawn
        group.setdefault((model, seed), _Samples()).add(record)
        if self._texts is not None:
            rows = self._texts.setdefault((model, seed), {})
            row = _row(record)
            if row not in rows:
                self.characters += len(row[1])
            rows[row] = rows.get(row, 0) + 1

    def forget_texts(self) -> None:
        """Hold no text from now on."""
        self._texts, self.characters = None, 0

    def index_row(self, models: int) -> dict[str, Any]:
        """The problem in the index of the browser."""
        by_model = [[group for at, group in self._groups() if at == model] for model in range(models)]
        return {
            "id": self.problem_id,
            **self.facts,
            "question": self.question[:_QUESTION_SHOWN],
            "chunk": self.chunk,
            "right": [self._share_right(model) for model in range(models)],
            "grades": [_joined(groups) for groups in by_model],
            "collapsed": sorted({key[0] for key in {**self._drawn, **self._greedy} if self._of(key).collapsed}),
        }

    def texts(self, models: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Any]:
        """The problem in its chunk: question, gold, and by model and seed the samples, most frequent first after the greedy one.

        A sample is [count, greedy, text, base_logprob, logprob, reward, status, answer, length, truncated].
        """
        known = self._texts or {}
        return {
            "question": self.question,
            "gold": self.gold,
            "samples": [[_ordered(known.get((at, seed), {})) for seed in seeds] for at, seeds in models],
        }

    def _groups(self) -> list[tuple[int, _Samples]]:
        return [(key[0], group) for part in (self._drawn, self._greedy) for key, group in part.items()]

    def _of(self, key: tuple[int, int]) -> _Samples:
        """The samples that were drawn, or the greedy ones where there are no others."""
        return self._drawn[key] if key in self._drawn else self._greedy[key]

    def _share_right(self, model: int) -> float | None:
        """Share of the samples that are correct, of those the grader could judge; None where there is none."""
        for part in (self._drawn, self._greedy):
            groups = [group for key, group in part.items() if key[0] == model]
            if groups:
                rewarded = sum(group.rewarded for group in groups)
                return round(sum(group.right for group in groups) / rewarded, 4) if rewarded else None
        return None


def _joined(groups: Sequence[_Samples]) -> int:
    bits = 0
    for group in groups:
        bits |= group.grades
    return bits


def _row(sample: Record) -> Row:
    text, answer = sample.get("text"), sample.get("answer")
    return (
        bool(sample.get("greedy")),
        "" if text is None else str(text),
        _rounded(sample.get("base_logprob")),
        _rounded(sample.get("logprob")),
        _rounded(sample.get("reward")),
        str(sample.get("status")),
        None if answer is None else str(answer),
        _rounded(sample.get("length")),
        sample.get("finish_reason") == "length",
    )


def _ordered(rows: Mapping[Row, int]) -> list[list[Any]]:
    return [[count, *row] for row, count in sorted(rows.items(), key=lambda item: (not item[0][0], -item[1]))]


def _rounded(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, 3)
