r"""Exact grading of a whole number or fraction in the first `\boxed{...}`: the reward of the embedded tasks."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fractions import Fraction

from bsharp.rewards.base import check_paired
from bsharp.rewards.extract import ExtractionRule, extract_answer
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["BoxedAnswerReward", "canonical_number"]

# Bounded, because Python refuses to read integers of thousands of digits.
_NUMBER = re.compile(r"[+-]?[0-9]{1,100}(?:/[0-9]{1,100}|\.[0-9]{1,100})?")


def canonical_number(text: str) -> str | None:
    """A number in lowest terms: "-07" -> "-7", "6/4" -> "3/2", "0.50" -> "1/2"; None where the text is not a number.

    Blanks around it and a leading + are allowed, blanks within it are not.
    """
    stripped = text.strip(" \t\n")
    return _lowest_terms(stripped) if _NUMBER.fullmatch(stripped) else None


@functools.lru_cache(maxsize=4096)  # a gold answer is read once per completion, and answers repeat
def _lowest_terms(number: str) -> str | None:
    try:
        return str(Fraction(number))
    except ZeroDivisionError:
        return None


class BoxedAnswerReward:
    r"""1 where the first complete `\boxed{...}` holds the gold number, else 0.

    The text is graded up to where the answer ends, which is the closing brace: whatever follows is ignored. A response of
    fixed length, whose end-of-sequence token is masked out, is therefore graded by the same rule as one that ends.
    Answers are compared as fractions. No complete box, an empty one, or one without a number is UNPARSEABLE: reward 0, and
    no answer that could vote. A gold answer that is not a number is an ERROR without a reward. `extraction` moves the place of
    the answer for tasks that have another one.
    """

    def __init__(self, extraction: ExtractionRule = "first_box") -> None:
        self.extraction: ExtractionRule = extraction

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        check_paired(problems, completions)
        return [
            self._grade(problem.answer, completion.text)
            for problem, completion in zip(problems, completions, strict=True)
        ]

    def _grade(self, gold: str, text: str) -> Grade:
        canonical_gold = canonical_number(gold)
        if canonical_gold is None:
            return Grade(GradeStatus.ERROR, None, detail=f"the gold answer {gold[:100]!r} is not a number")
        extracted = extract_answer(text, self.extraction)
        if extracted is None:
            return Grade(
                GradeStatus.UNPARSEABLE,
                0.0,
                detail="no complete box" if self.extraction.endswith("box") else "no answer found",
            )
        answer = canonical_number(extracted)
        if answer is None:
            return Grade(GradeStatus.UNPARSEABLE, 0.0, detail=f"the answer is {extracted[:100]!r}, not a number")
        correct = answer == canonical_gold
        status = GradeStatus.CORRECT if correct else GradeStatus.WRONG
        return Grade(status, float(correct), answer, exact_match=extracted == gold)
