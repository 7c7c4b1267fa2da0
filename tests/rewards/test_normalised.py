"""The grader without algebra as a labelled table; for numbers it is equality of values and nothing else."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsharp.rewards import NormalisedReward, canonical_answer
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

CORRECT, WRONG, UNPARSEABLE, ERROR = GradeStatus.CORRECT, GradeStatus.WRONG, GradeStatus.UNPARSEABLE, GradeStatus.ERROR


def grade(gold: str, answer: str) -> Grade:
    completion = Completion((0,), (0.0,), FinishReason.EOS, f"It is \\boxed{{{answer}}}.")
    (found,) = NormalisedReward()([Problem("id", "task", "family", "question", gold)], [completion])
    return found


CASES = [
    # gold, content of the box, status, reason
    (r"\frac{1}{2}", r"\dfrac12", CORRECT, "ways to write a fraction"),
    (r"\frac{1}{2}", "0.50", CORRECT, "an exact decimal"),
    (r"\frac{1}{2}", "1/2", CORRECT, "a slash"),
    (r"\frac{1}{2}", "2/4", CORRECT, "lowest terms"),
    (r"\frac{1}{2}", r"\frac{2}{1}", WRONG, "upside down"),
    (r"\frac{1}{2}", r"-\frac{1}{2}", WRONG, "sign"),
    (r"\frac{1}{3}", "0.333333", WRONG, "a rounded decimal is another number"),
    ("0.5", "0.4999999", WRONG, "nearly is not equal"),
    ("0.5", ".5", CORRECT, "no leading zero"),
    ("5", "5.", CORRECT, "a full stop"),
    ("27", "27.0", CORRECT, "a whole number in decimals"),
    ("025", "25", CORRECT, "leading zeros"),
    ("1\\frac{4}{5}", r"\frac{9}{5}", CORRECT, "a mixed number"),
    ("1\\frac{4}{5}", "1 4/5", CORRECT, "a mixed number with a slash"),
    ("137 \\frac{1}{2}", "137.5", CORRECT, "a mixed number with a blank"),
    ("18", "1 8", WRONG, "two numbers are not one"),
    ("10,\\!080", "10080", CORRECT, "thousands in LaTeX"),
    ("10080", "10{,}080", CORRECT, "thousands in braces"),
    ("\\$32,\\!348", "32,348", CORRECT, "a price"),
    ("1000000", "1 000 000", CORRECT, "blanks as thousands separators"),
    ("\\$18.90", "18.9", CORRECT, "dollars"),
    ("70000", "$70,000", CORRECT, "a price without a backslash"),
    ("4.5e33", "4.5 \\times 10^{33}", CORRECT, "powers of ten"),
    ("4.5e33", "4.5 \\cdot 10^{32}", WRONG, "another power of ten"),
    ("1e-5", "0.00001", CORRECT, "a small number"),
    ("90^\\circ", "90", CORRECT, "degrees"),
    ("864 \\mbox{ inches}^2", "864", CORRECT, "a unit in LaTeX"),
    ("18", "18 dollars", CORRECT, "a unit in words"),
    ("5", "5 \\text{ cm}", CORRECT, "a unit in the answer"),
    ("20\\%", "20", CORRECT, "a percent sign is a unit"),
    ("20\\%", "0.2", WRONG, "and not a factor"),
    ("x=5", "5", CORRECT, "a leading name"),
    ("5", "x = 5", CORRECT, "a leading name in the answer"),
    ("2x+3", "2x-3", WRONG, "another formula"),
    ("y = 2x + 3", "2x+3", CORRECT, "a function"),
    ("\\text{Evelyn}", "evelyn", CORRECT, "words in any case"),
    ("Evelyn", "yvlEen", WRONG, "an anagram"),
    ("\\text{(C)}", "(C)", CORRECT, "a choice"),
    ("\\text{(C)}", "(D)", WRONG, "another choice"),
    ("m", "M", WRONG, "capital letters are other symbols"),
    ("(1,2)", "\\left( 1, 2 \\right)", CORRECT, "sizes and blanks"),
    ("(1,2)", "(2,1)", WRONG, "tuples have an order"),
    ("(1,2)", "[1,2]", WRONG, "brackets say which ends belong"),
    ("(100,200)", "(100200)", WRONG, "no thousands within brackets"),
    ("100, 200", "100200", WRONG, "a blank after a comma parts values"),
    ("[0,1)", "[0,1]", WRONG, "an endpoint"),
    ("\\left(\\frac{3}{5},\\frac{8}{3}\\right]", "(0.6, 8/3]", CORRECT, "an interval"),
    ("\\{1,2\\}", "\\{2, 1\\}", CORRECT, "sets have no order"),
    ("\\{1,2\\}", "\\{1,2,3\\}", WRONG, "a subset is another set"),
    ("1331 and 1728", "1728", WRONG, "one of two values"),
    ("1331 and 1728", "1728, 1331", CORRECT, "both, in any order"),
    ("3, 5, 7", "3,5", WRONG, "a value is missing"),
    ("1 \\pm \\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}", CORRECT, "both signs"),
    ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}", WRONG, "one of both signs"),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(3,\\infty)\\cup(-\\infty,2)", CORRECT, "a union has no order"),
    (
        "\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}",
        "\\begin{bmatrix}0.2\\\\-3.6\\end{bmatrix}",
        CORRECT,
        "a vector",
    ),
    ("\\begin{pmatrix} 1 & 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", WRONG, "rows and columns"),
    ("2\\sqrt{3}", "\\sqrt{12}", WRONG, "no algebra: a known limit"),
    (r"0.\overline{3}", r"\frac{1}{3}", CORRECT, "a repeating decimal is an exact fraction"),
    (r"0.\overline{3}", "0", WRONG, "and no product with 0"),
    (r"0.\overline{3}", r"0.\overline{6}", WRONG, "another repeating decimal"),
    (r"2.\bar{3}", r"\frac73", CORRECT, "a bar over one digit"),
    (r"-0.3\overline{6}", r"-\frac{11}{30}", CORRECT, "digits before the bar"),
    (r"(1,0.\overline{3})", r"(1,\frac13)", CORRECT, "a repeating decimal behind a comma"),
    ("5", r"5 \text{ million}", WRONG, "a factor is no unit"),
    ("3", "3 fourths", WRONG, "a denominator is no unit"),
    ("4", "4 squared", WRONG, "a power is no unit"),
    ("5", r"5 \text{ factorial}", WRONG, "a factorial is no unit"),
    ("5", r"5 \text{ (base 8)}", WRONG, "a base is no unit"),
    (r"5 \text{ million}", "5 million", CORRECT, "the same factor in words"),
    (r"7 \text{ a.m.}", r"7 \text{ p.m.}", WRONG, "morning and evening"),
    (r"7 \text{ a.m.}", "7 AM", CORRECT, "ways to write the morning"),
    (r"5 \text{ cm}", r"5 \text{ cm}^2", WRONG, "a length and an area"),
    (r"5 \text{ cm}^2", r"5 \text{ cm}^3", WRONG, "an area and a volume"),
    (r"5 \text{ cm}^2", r"5 \text{ square centimeters}", CORRECT, "ways to write an area"),
    (r"5 \text{ square feet}", "5 feet", WRONG, "an area and a length in words"),
    (r"60 \text{ mph}", r"60 \text{ km/h}", WRONG, "two speeds"),
    (r"60 \text{ mph}", "60 miles per hour", CORRECT, "ways to write a speed"),
    (r"9 \text{ meters per second squared}", r"9 \text{ m/s}^2", CORRECT, "ways to write an acceleration"),
    (r"\$5", r"5 \text{ cents}", WRONG, "dollars and cents"),
    (r"\$5", "5 dollars", CORRECT, "ways to write dollars"),
    ("5", "5 dollars/day", CORRECT, "a unit left out"),
    (r"5 \text{ students}", r"5 \text{ people}", CORRECT, "words that the table of units has not are no difference"),
    ("18", r"\(18\)", CORRECT, "math delimiters in the box"),
    ("18", r"18\ \text{dollars}", CORRECT, "a blank in LaTeX before the unit"),
    ("18", r"18 \, \text{dollars}", CORRECT, "a thin blank before the unit"),
    ("18", r"18~\mathrm{dollars}", CORRECT, "a tie before the unit"),
    ("18", r"\text{18 dollars}", CORRECT, "number and unit as text"),
    ("18", r"\text{Total} = 18", CORRECT, "a label as text"),
    ("18", "17 + 1 = 18", CORRECT, "the last side of a computation"),
    ("18", "18 + 1 = 19", WRONG, "and no other side"),
    ("18", "18 or 19", WRONG, "two values"),
    ("18", "€18", CORRECT, "another currency"),
    ("x=2,y=3", "y=3, x=2", CORRECT, "named values in any order"),
    ("x=2,y=3", "x=3,y=2", WRONG, "names keep their values"),
    (r"\frac{1}{2}", r"\frac 1 2", CORRECT, "blanks between the digits of a fraction"),
    ("(2,3)", "x=3,y=2", WRONG, "named values are no pair"),
    ("12", "1 2", WRONG, "digits apart"),
    ("12", r"1\ 2", WRONG, "a blank in LaTeX"),
    ("12", r"1\quad 2", WRONG, "a wide blank"),
    ("12", r"1\text{ }2", WRONG, "a blank as text"),
    ("18", "18 19", WRONG, "two numbers side by side"),
    ("3.5", "3. 5", WRONG, "a blank behind the point"),
    ("5", "???", UNPARSEABLE, "nothing to compare"),
    ("5", "", UNPARSEABLE, "empty"),
    ("5", "1" * 3000, UNPARSEABLE, "too long to look at"),
    ("???", "???", ERROR, "a gold answer that holds nothing rewards nobody"),
    ("", "5", ERROR, "no gold answer"),
]


@pytest.mark.parametrize(("gold", "answer", "status", "reason"), CASES, ids=[case[-1] for case in CASES])
def test_grader_table(gold: str, answer: str, status: GradeStatus, reason: str) -> None:
    found = grade(gold, answer)
    assert found.status is status, reason
    assert found.reward == {CORRECT: 1.0, WRONG: 0.0, UNPARSEABLE: 0.0, ERROR: None}[status]
    assert (found.answer is None) == (status not in (CORRECT, WRONG))


FINAL_NUMBERS = [
    # gold, completion, status, reason
    ("18", "####\n18", CORRECT, "on the next line"),
    ("18", r"#### \(18\)", CORRECT, "math delimiters"),
    ("18", "#### €18", CORRECT, "currency"),
    ("18", "#### Answer: 18", CORRECT, "a label"),
    ("18", "#### The answer is 18", CORRECT, "a sentence"),
    ("18", "#### `18`", CORRECT, "code marks"),
    ("18", "#### 17 + 1 = 18", CORRECT, "a computation"),
    ("18", "#### 9 * 2 = $18", CORRECT, "a computation of money"),
    ("18", "#### 18 dollars/day", CORRECT, "a unit with a slash"),
    ("18", r"\boxed 18", CORRECT, "a box without braces"),
    ("18", "#### 18 or 19", WRONG, "two values"),
    ("18", "#### 18 19", WRONG, "two numbers"),
    ("18", "#### The answer is not 18", WRONG, "a negation"),
    ("18", "#### 18 million", WRONG, "a factor"),
    ("18", "#### The answer is 18 or 19", WRONG, "two values in a sentence"),
    ("no solution", "#### 18", ERROR, "a gold answer without a number rewards nobody"),
    ("no solution", "#### no solution", ERROR, "not even itself"),
]


@pytest.mark.parametrize(("gold", "text", "status", "reason"), FINAL_NUMBERS, ids=[case[-1] for case in FINAL_NUMBERS])
def test_final_number_table(gold: str, text: str, status: GradeStatus, reason: str) -> None:
    completion = Completion((0,), (0.0,), FinishReason.EOS, text)
    (found,) = NormalisedReward("final_number")([Problem("id", "task", "family", "question", gold)], [completion])
    assert found.status is status, reason
    assert (found.reward is None) == (status is ERROR)


def decimals(value: Fraction) -> str:
    """An exact decimal; the denominator divides 1000."""
    thousandths = abs(int(value * 1000))
    return f"{'-' if value < 0 else ''}{thousandths // 1000}.{thousandths % 1000:03d}"


WAYS = (
    decimals,
    lambda v: f"{v.numerator}/{v.denominator}",
    lambda v: f"\\frac{{{v.numerator}}}{{{v.denominator}}}",
    lambda v: f"{v.numerator * 1000 // v.denominator:,}e-3",
    lambda v: f"{v.numerator * 1000 // v.denominator} \\times 10^{{-3}}",
    lambda v: f"x = \\${decimals(v)}",
)
THOUSANDTHS = st.integers(-3_000_000, 3_000_000).map(lambda n: Fraction(n, 1000))


@given(THOUSANDTHS, THOUSANDTHS, st.sampled_from(WAYS), st.sampled_from(WAYS))
def test_for_numbers_it_is_equality_of_values_however_they_are_written(gold, answer, write, rewrite) -> None:  # type: ignore[no-untyped-def]
    assert (grade(write(gold), rewrite(answer)).status is CORRECT) == (gold == answer)
    assert grade(write(gold), rewrite(gold)).status is CORRECT
    assert canonical_answer(write(gold)) == str(gold)


@given(st.text(max_size=60))
def test_no_text_breaks_it_and_a_readable_one_equals_itself(text: str) -> None:
    found = canonical_answer(text)
    assert (found is not None) or not text.strip() or grade(text, text).status in (ERROR, UNPARSEABLE)


HOSTILE = [
    "(" * 990 + "1" + ")" * 990,
    "1" + " " * 1990,
    "1 " * 990,
    "a" * 1990,
    "1a" * 990,
    r"\text{a" * 280,
    "1," * 990,
    r"\pm" * 600 + "1",
    "{" * 1900 + "1",
    r"\frac" * 390 + "1",
    "^" * 1900 + "1",
    "-" * 1900 + "1",
    "1e9999999",
    "1/0",
]


@pytest.mark.parametrize("text", HOSTILE, ids=[f"{text[:8]}…{len(text)}" for text in HOSTILE])
def test_hostile_answers_are_graded_and_never_correct(text: str) -> None:
    assert grade("17", text).status in (WRONG, UNPARSEABLE)
