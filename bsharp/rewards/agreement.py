"""Two graders on the same completions: where they agree, and examples of where they do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bsharp.rewards.base import RewardFunction, check_paired
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["Agreement", "Disagreement", "agreement_of", "disagreements"]


@dataclass(frozen=True)
class Disagreement:
    """One completion that two graders judge differently."""

    problem_id: str
    gold: str
    first: Grade
    second: Grade
    text: str  # the end of the completion

    def as_json(self) -> dict[str, Any]:
        """The verdicts and what they are about, as a JSON object."""
        verdicts = {
            which: {"status": str(grade.status), "answer": grade.answer, "detail": grade.detail}
            for which, grade in (("first", self.first), ("second", self.second))
        }
        return {"problem_id": self.problem_id, "gold": self.gold, **verdicts, "text": self.text}


@dataclass(frozen=True)
class Agreement:
    """How two graders judged the same N completions.

    `counts` maps (status of the first, status of the second) to a number of completions; they sum to N. `examples` holds the
    first few completions of every pair of statuses that differ.
    """

    first: str
    second: str
    counts: Mapping[tuple[GradeStatus, GradeStatus], int]
    examples: Sequence[Disagreement] = field(default=())

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def differing(self) -> int:
        """Completions with two different statuses."""
        return sum(number for (one, other), number in self.counts.items() if one is not other)

    @property
    def contradicting(self) -> int:
        """Completions that one grader calls correct and the other does not: those that change an accuracy."""
        correct = GradeStatus.CORRECT
        return sum(number for (one, other), number in self.counts.items() if (one is correct) is not (other is correct))

    def joined(self, other: Agreement, examples: int = 5) -> Agreement:
        """The agreement on both sets of completions; at most `examples` of each pair of statuses are kept."""
        counts = Counter(self.counts) + Counter(other.counts)
        return Agreement(self.first, self.second, counts, _few([*self.examples, *other.examples], examples))

    def markdown(self) -> str:
        """A sentence, the table of statuses (rows: the first grader; columns: the second), and the examples."""
        statuses = list(GradeStatus)
        lines = [
            f"{self.contradicting} of {self.total} completions are correct for one grader only; {self.differing} have "
            f"different statuses. Rows: {self.first}; columns: {self.second}.",
            "",
            "| | " + " | ".join(statuses) + " |",
            "|---" * (len(statuses) + 1) + "|",
        ]
        for one in statuses:
            numbers = (str(self.counts.get((one, other), 0)) for other in statuses)
            lines.append(f"| {one} | " + " | ".join(numbers) + " |")
        if self.examples:
            lines += ["", f"| problem | gold | {self.first} | {self.second} |", "|---|---|---|---|"]
        for example in self.examples:
            cells = (example.problem_id, example.gold, *map(_said, (example.first, example.second)))
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """{"first", "second", "total", "differing", "contradicting", "counts": {first: {second: number}}, "examples"}."""
        table = {one: {other: self.counts.get((one, other), 0) for other in GradeStatus} for one in GradeStatus}
        return {
            "first": self.first,
            "second": self.second,
            "total": self.total,
            "differing": self.differing,
            "contradicting": self.contradicting,
            "counts": {str(one): {str(other): number for other, number in row.items()} for one, row in table.items()},
            "examples": [example.as_json() for example in self.examples],
        }


def disagreements(
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    graders: Mapping[str, RewardFunction],
    examples: int = 5,
) -> Agreement:
    """Grade the same completions with two graders, given by name, and compare the grades.

    Raises ValueError for another number of graders than two.
    """
    if len(graders) != 2:
        raise ValueError(f"{len(graders)} graders given; two are compared, by name")
    check_paired(problems, completions)
    (first, one), (second, other) = graders.items()
    grades = one(problems, completions), other(problems, completions)
    return agreement_of(first, second, problems, [completion.text for completion in completions], *grades, examples)


def agreement_of(
    first: str,
    second: str,
    problems: Sequence[Problem],
    texts: Sequence[str],
    first_grades: Sequence[Grade],
    second_grades: Sequence[Grade],
    examples: int = 5,
) -> Agreement:
    """The agreement of two lists of grades of the same completions; all sequences have one entry per completion."""
    rows = list(zip(problems, texts, first_grades, second_grades, strict=True))
    counts = Counter((one.status, other.status) for _, _, one, other in rows)
    differing = [
        Disagreement(problem.problem_id, problem.answer, one, other, text[-500:])
        for problem, text, one, other in rows
        if one.status is not other.status
    ]
    return Agreement(first, second, counts, _few(differing, examples))


def _few(found: Sequence[Disagreement], most: int) -> list[Disagreement]:
    """At most `most` of each pair of statuses, in order."""
    seen: Counter[tuple[GradeStatus, GradeStatus]] = Counter()
    kept = []
    for example in found:
        pair = example.first.status, example.second.status
        seen[pair] += 1
        if seen[pair] <= most:
            kept.append(example)
    return kept


def _said(grade: Grade) -> str:
    return f"{grade.status}: {grade.answer if grade.answer is not None else grade.detail}"


def _cell(text: str) -> str:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
    return "`" + shown.replace("`", "'").replace("|", "\\|") + "`"
