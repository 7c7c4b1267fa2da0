"""The exact grader as a labelled table, and its laws."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsharp.rewards import BoxedAnswerReward, boxed_answers, canonical_number, reward_for
from bsharp.types import Completion, FinishReason, GradeStatus, Problem

CORRECT, WRONG, UNPARSEABLE = GradeStatus.CORRECT, GradeStatus.WRONG, GradeStatus.UNPARSEABLE


def problem(gold: str) -> Problem:
    return Problem("id", "task", "family", "question", gold)


def completion(text: str, finish_reason: FinishReason = FinishReason.EOS) -> Completion:
    return Completion((0,), (0.0,), finish_reason, text)


CASES = [
    # gold, text, status, canonical answer, exact match, reason
    ("472", r" 7+5=12; \boxed{472}", CORRECT, "472", True, "the plain case"),
    ("472", r"\boxed{473}", WRONG, "473", False, "another number"),
    ("472", r"\boxed{472} done. \boxed{473}", CORRECT, "472", True, "the first complete box counts"),
    ("472", r"\boxed{473} no \boxed{472}", WRONG, "473", False, "a second try does not count"),
    ("472", r"\boxed{472}}}{{ 9\boxed{", CORRECT, "472", True, "what follows the answer is ignored"),
    ("472", r"\boxed{47", UNPARSEABLE, None, False, "cut before the brace closes"),
    ("472", "472", UNPARSEABLE, None, False, "no box"),
    ("472", "", UNPARSEABLE, None, False, "empty text"),
    ("472", r"\boxed{}", UNPARSEABLE, None, False, "empty box"),
    ("472", r"\boxed{} \boxed{472}", UNPARSEABLE, None, False, "an empty first box is the answer given"),
    ("472", r"\boxed{abc}", UNPARSEABLE, None, False, "no number"),
    ("472", r"\boxed{4 72}", UNPARSEABLE, None, False, "a blank inside is not a number"),
    ("472", r"\boxed{{472}}", UNPARSEABLE, None, False, "braces are no part of a number"),
    ("472", r"\boxed{\boxed{472}", CORRECT, "472", True, "the outer box never closes, the inner one does"),
    ("472", r"\boxed{ 472 }", CORRECT, "472", False, "blanks around do not matter, but the string differs"),
    ("-7", r"\boxed{-07}", CORRECT, "-7", False, "leading zeros"),
    ("7", r"\boxed{+7}", CORRECT, "7", False, "a plus sign"),
    ("7", r"\boxed{-7}", WRONG, "-7", False, "the sign counts"),
    ("0", r"\boxed{-0}", CORRECT, "0", False, "minus zero is zero"),
    ("1/2", r"\boxed{2/4}", CORRECT, "1/2", False, "lowest terms"),
    ("1/2", r"\boxed{0.50}", CORRECT, "1/2", False, "a decimal is an exact fraction"),
    ("1/2", r"\boxed{0.4999999}", WRONG, "4999999/10000000", False, "no rounding"),
    ("2", r"\boxed{4/2}", CORRECT, "2", False, "a fraction that is whole"),
    ("1", r"\boxed{1/0}", UNPARSEABLE, None, False, "division by zero is no number"),
    ("1", r"\boxed{1e0}", UNPARSEABLE, None, False, "no exponents"),
    ("1", r"\boxed{nan}", UNPARSEABLE, None, False, "what Python's float would read"),
    ("3", "\\boxed{٣}", UNPARSEABLE, None, False, "digits of other scripts"),
    ("1", r"\boxed{1_0}", UNPARSEABLE, None, False, "what Python's int would read"),
    ("1", "\\boxed{" + "1" * 5000 + "}", UNPARSEABLE, None, False, "too long for Python to read as an integer"),
    ("5", r"\boxed{\}5}", UNPARSEABLE, None, False, "an escaped brace closes nothing"),
]


@pytest.mark.parametrize(
    ("gold", "text", "status", "answer", "exact", "reason"), CASES, ids=[case[-1] for case in CASES]
)
def test_grader_table(gold: str, text: str, status: GradeStatus, answer: str | None, exact: bool, reason: str) -> None:
    (grade,) = BoxedAnswerReward()([problem(gold)], [completion(text)])
    assert (grade.status, grade.answer, grade.exact_match) == (status, answer, exact), reason
    assert grade.reward == (1.0 if status is CORRECT else 0.0)


def test_a_response_that_cannot_be_parsed_shifts_nothing() -> None:
    golds = ["1", "2", "3", "4", "5"]
    texts = [r"\boxed{1}", "rubbish {{{", r"\boxed{3}", "\\boxed{", r"\boxed{5}"]
    grades = BoxedAnswerReward()([problem(gold) for gold in golds], [completion(text) for text in texts])
    assert [grade.status for grade in grades] == [CORRECT, UNPARSEABLE, CORRECT, UNPARSEABLE, CORRECT]
    assert [grade.answer for grade in grades] == ["1", None, "3", None, "5"]


def test_a_truncated_response_is_graded_by_the_same_rule() -> None:
    """A response of fixed length goes on after its answer; the grade is that of the answer."""
    reward = BoxedAnswerReward()
    long = completion(r" \boxed{472} ok. 1+1=2; \boxed{3", FinishReason.LENGTH)
    short = completion(r" \boxed{472}")
    assert reward([problem("472")], [long]) == reward([problem("472")], [short])


def test_a_gold_answer_that_is_no_number_is_an_error_and_never_a_reward() -> None:
    (grade,) = BoxedAnswerReward()([problem("x+1")], [completion(r"\boxed{x+1}")])
    assert (grade.status, grade.reward, grade.answer) == (GradeStatus.ERROR, None, None)
    assert "'x+1' is not a number" in grade.detail


def test_counts_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="2 completions but 1 problems"):
        BoxedAnswerReward()([problem("1")], [completion(""), completion("")])


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(alphabet="\\boxed{}0123456789 -/.", max_size=60), st.integers(-50, 50))
def test_any_text_gets_a_grade_and_equality_is_equality_of_fractions(text: str, gold: int) -> None:
    (grade,) = BoxedAnswerReward()([problem(str(gold))], [completion(text)])
    assert (grade.status is CORRECT) == (grade.answer is not None and Fraction(grade.answer) == gold)
    assert (grade.status is UNPARSEABLE) == (grade.answer is None)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.fractions())
def test_canonical_form_is_idempotent_and_ignores_how_the_fraction_is_written(value: Fraction) -> None:
    scaled = f"{value.numerator * 6}/{value.denominator * 6}"
    assert canonical_number(scaled) == canonical_number(str(value)) == str(value)


def test_boxes_are_found_left_to_right_with_balanced_braces() -> None:
    assert list(boxed_answers(r"a \boxed{\frac{1}{2}} b \boxed{\{1,2\}} c \boxed{x")) == [r"\frac{1}{2}", r"\{1,2\}"]
    assert list(boxed_answers(r"\boxed{1 \boxed{2}}")) == [r"1 \boxed{2}"]


def test_reward_for_chooses_by_kind() -> None:
    class Task:
        reward_kind = "boxed"

    assert isinstance(reward_for(Task()), BoxedAnswerReward)
    assert isinstance(reward_for("boxed"), BoxedAnswerReward)
    assert type(reward_for("math")).__name__ == "MathVerifyReward"
    with pytest.raises(ValueError, match='use "boxed" or "math"'):
        reward_for("judge")
