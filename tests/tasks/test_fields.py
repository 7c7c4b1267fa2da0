"""Laws of reading answers: the last complete box, numbers in one form, names that are like others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsharp.tasks.fields import UnusableRow, did_you_mean, last_box, number_text


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{5}", "5"),
        ("\\boxed{1} and \\boxed{2}", "2"),
        ("\\boxed{1} and \\boxed{2", "1"),  # the last complete one
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),  # escaped braces are text
        ("\\boxed{x \\} y}", "x \\} y"),
        ("\\boxed{ 7 \n}", "7"),
        ("\\fbox{3}", "3"),
        ("\\framebox{4}", "4"),
        ("$\\boxed 9$", "9"),
        ("no box, boxed{5}", None),
        ("\\boxed{5", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_complete_box(text: str, content: str | None) -> None:
    assert last_box(text) == content


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1,080", "1080"),
        (27.0, "27"),
        ("27.0", "27"),
        ("025", "25"),
        ("000", "0"),
        ("-0", "0"),
        ("-3.50", "-3.5"),
        (" $5", "5"),
    ],
)
def test_a_number_has_one_form(value: object, text: str) -> None:
    assert number_text(value) == text


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(-(10**9), 10**9))
def test_a_whole_number_is_read_from_every_way_of_writing_it(number: int) -> None:
    assert {number_text(form) for form in (number, float(number), f"{number:,}", f"{number}.00")} == {str(number)}


@pytest.mark.parametrize("value", ["five", "", "1e3", "1/2", None, True, float("inf"), [1], "1 2"])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(UnusableRow):
        number_text(value)


def test_a_like_name_is_proposed_and_an_unlike_one_is_not() -> None:
    assert did_you_mean("promt", ["answer", "prompt"]) == " (did you mean prompt?)"
    assert did_you_mean("zzz", ["answer", "prompt"]) == ""
