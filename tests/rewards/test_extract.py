"""Where the answer stands, rule by rule."""

from __future__ import annotations

import pytest

from bsharp.rewards.extract import ExtractionRule, extract_answer, extract_gold

CASES: list[tuple[ExtractionRule, str, str | None, str]] = [
    ("first_box", r"\boxed{1} then \boxed{2}", "1", "what follows the first box is ignored"),
    ("first_box", r"\boxed{1 then \boxed{2}", "2", "a box that never closes is no box"),
    ("first_box", "#### 5", None, "hashes are no box"),
    ("last_box", r"\boxed{1} no, \boxed{2}", "2", "a later box corrects an earlier one"),
    ("last_box", r"\boxed{1} no, \boxed{2", "1", "unless it is not complete"),
    ("last_box", r"\boxed{}", "", "an empty box is an empty answer"),
    ("last_box", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "braces within"),
    ("last_box", "5", None, "a bare number is no answer"),
    ("final_number", "so 2 + 3 = <<2+3=5>>5\n#### 5", "5", "GSM8K's own form"),
    ("final_number", "#### 5\n\nQuestion: What is next? 6", "5", "what follows on other lines is ignored"),
    ("final_number", "#### 4\nwait\n#### 5", "5", "the last hashes count"),
    ("final_number", r"\boxed{5}, that is #### 4", "5", "a box goes before hashes"),
    ("final_number", r"#### \boxed{5}", "5", "a box after hashes"),
    ("final_number", "#### <<2+3=5>>5", "5", "calculator marks after the hashes"),
    ("final_number", "#### **5**", "5", "emphasis"),
    ("final_number", "#### $1,234.50", "$1,234.50", "currency and separators are the grader's business"),
    ("final_number", "####", None, "nothing after the hashes"),
    ("final_number", "####\n5", "5", "the answer on the next line"),
    ("final_number", "#### \n\n5\n6", "5", "the first line that is not empty"),
    ("final_number", r"#### \(5\)", "5", "math delimiters after the hashes"),
    ("final_number", "#### `5`", "5", "code marks"),
    ("final_number", "#### Answer: 5", "5", "a label with a colon"),
    ("final_number", "#### **Answer:** 5", "5", "an emphasised label"),
    ("final_number", "#### The answer is 5", "5", "a label with a verb"),
    ("final_number", "#### The answer is not 5", "not 5", "a word that changes the value stays behind the label"),
    ("final_number", "#### Half of the answer is 5", "Half of the answer is 5", "and in it: then it is no label"),
    ("final_number", "#### The answer is 5 or 6", "5 or 6", "two values stay two"),
    ("final_number", "#### 17 + 1 = 18", "17 + 1 = 18", "a computation is the grader's business"),
    ("last_box", r"so \boxed 5.", "5", "a box without braces"),
    ("last_box", r"\boxed {5} or \fbox{6}", "6", "a frame is a box"),
    ("last_box", r"\boxed{5} and \boxed x", "5", "without braces only a number is boxed"),
    ("first_box", r"\boxed 5 \fbox{6} \boxed{7}", "7", "the embedded tasks know one form only"),
    ("final_number", "the answer is 5", None, "a bare number is no answer"),
    ("tagged", "<answer>5</answer>", "5", "tags"),
    ("tagged", "<answer>4</answer> no <ANSWER> 5\n</ANSWER>", "5", "the last tags, over lines, in any case"),
    ("tagged", r"<answer>4</answer> \boxed{5}", "5", "a box goes before tags"),
    ("tagged", " 5 ", "5", "else everything"),
    ("tagged", "<answer>5", "<answer>5", "tags that do not close are text"),
]


@pytest.mark.parametrize(("rule", "text", "answer", "reason"), CASES, ids=[case[-1] for case in CASES])
def test_extraction_table(rule: ExtractionRule, text: str, answer: str | None, reason: str) -> None:
    assert extract_answer(text, rule) == answer, reason


def test_a_gold_field_may_hold_the_whole_solution() -> None:
    assert extract_gold("5 + 13 = <<5+13=18>>18\n#### 18", "final_number") == "18"
    assert extract_gold(r"Thus $\boxed{\frac{1}{2}}$.", "last_box") == r"\frac{1}{2}"
    assert extract_gold(" 18 ", "final_number") == "18"
    assert extract_gold("18", "tagged") == "18"


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown extraction rule 'best'; use one of first_box, last_box"):
        extract_answer("5", "best")  # type: ignore[arg-type]
