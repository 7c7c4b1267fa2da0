"""The math-verify grader as a labelled table; it is as strict as it says, from any thread, and cannot be made to hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from bsharp.rewards import MathVerifyReward
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

CORRECT, WRONG, UNPARSEABLE = GradeStatus.CORRECT, GradeStatus.WRONG, GradeStatus.UNPARSEABLE
ERROR, TIMEOUT = GradeStatus.ERROR, GradeStatus.TIMEOUT
ENDLESS = r"\boxed{\sum_{k=1}^{1000000000}\frac{1}{k}}"


def problem(gold: str) -> Problem:
    return Problem("id", "task", "family", "question", gold)


def completion(text: str) -> Completion:
    return Completion((0,), (0.0,), FinishReason.EOS, text)


@pytest.fixture(scope="module")
def reward() -> Iterator[MathVerifyReward]:
    with MathVerifyReward(time_limit=60) as reward:
        yield reward


def grade(reward: MathVerifyReward, gold: str, text: str) -> Grade:
    (result,) = reward([problem(gold)], [completion(text)])
    return result


CASES = [
    # gold, content of the box, status, reason
    (r"\frac{1}{2}", r"\frac12", CORRECT, "two ways to write a fraction"),
    (r"\frac{1}{2}", "0.5", CORRECT, "a decimal that is exact"),
    ("0.5", "0.4999999", WRONG, "math-verify rounds to six places"),
    ("0.5", "0.49999999999999999999", WRONG, "more digits than a float has"),
    (r"\frac{1}{3}", "0.333333", WRONG, "a rounded decimal is another number"),
    (r"\{0.5\}", r"\{0.4999999\}", WRONG, "no rounding inside a set either"),
    ("1331 and 1728", "1728", WRONG, "one of two values"),
    ("1331 and 1728", "1728, 1331", CORRECT, "both, in any order"),
    ("$1331$ and $1728$", "1728", WRONG, "one of two values, each in dollars"),
    ("$1331$ and $1728$", "$1728$, $1331$", CORRECT, "both, each in dollars"),
    ("1728", "1331 and 1728", WRONG, "a value too many"),
    (r"\{1,2\}", r"\{2,1\}", CORRECT, "sets have no order"),
    ("(1,2)", "(2,1)", WRONG, "tuples have one"),
    ("[0,1)", "[0,1]", WRONG, "an endpoint"),
    (r"2\sqrt{3}", r"\sqrt{12}", CORRECT, "equal radicals"),
    (r"\sqrt{2}", "1.41421356", WRONG, "an approximation"),
    ("x^2+2x+1", "(x+1)^2", CORRECT, "equal polynomials"),
    ("3", "x=3", CORRECT, "an assignment"),
    ("Evelyn", r"\text{Evelyn}", CORRECT, "a word"),
    ("Evelyn", "yvlEen", WRONG, "an anagram, equal as a product of letters"),
    ("1,000", "1000", CORRECT, "thousands separator"),
    ("5", "???", UNPARSEABLE, "no mathematics"),
    ("5", "", UNPARSEABLE, "empty box"),
    ("5", "1" * 3000, UNPARSEABLE, "too long to look at"),
    ("???", "???", ERROR, "a gold answer that cannot be read gives no reward to anyone"),
    ("", "5", ERROR, "no gold answer"),
]


@pytest.mark.parametrize(("gold", "answer", "status", "reason"), CASES, ids=[case[-1] for case in CASES])
def test_grader_table(reward: MathVerifyReward, gold: str, answer: str, status: GradeStatus, reason: str) -> None:
    result = grade(reward, gold, f"So the answer is \\boxed{{{answer}}}.")
    assert result.status is status, reason
    assert result.reward == {CORRECT: 1.0, WRONG: 0.0, UNPARSEABLE: 0.0, ERROR: None}[status]
    assert (result.answer is None) == (status not in (CORRECT, WRONG))
    assert result.exact_match == (gold == answer)


def test_last_complete_box_counts(reward: MathVerifyReward) -> None:
    assert grade(reward, "5", r"\boxed{4}, no, \boxed{5}").status is CORRECT
    assert grade(reward, "5", r"\boxed{5}, no, \boxed{4}").status is WRONG
    assert grade(reward, "5", r"\boxed{5}, no, \boxed{4").status is CORRECT
    missing = grade(reward, "5", "it is 5")
    assert (missing.status, missing.detail) == (UNPARSEABLE, "no complete box")
    assert grade(reward, "???", "it is 5").status is ERROR


def test_equal_answers_vote_together(reward: MathVerifyReward) -> None:
    written = [r"\frac12", "0.5", r"\frac{2}{4}", "1/2", "x=0.5"]
    assert {grade(reward, "1", f"\\boxed{{{answer}}}").answer for answer in written} == {"1/2"}


def test_an_endless_computation_times_out_and_shifts_nothing_from_any_thread() -> None:
    outcome: list[Grade] = []
    texts = [r"\boxed{1}", ENDLESS, "no box", r"\boxed{4}"]
    golds = ["1", "2", "3", "4"]

    def run() -> None:
        with MathVerifyReward(time_limit=3.0) as reward:
            outcome.extend(reward([problem(gold) for gold in golds], [completion(text) for text in texts]))

    thread = threading.Thread(target=run)
    start = time.monotonic()
    thread.start()
    thread.join(120)
    assert time.monotonic() - start < 120
    assert [result.status for result in outcome] == [CORRECT, TIMEOUT, UNPARSEABLE, CORRECT]
    assert [result.reward for result in outcome] == [1.0, None, 0.0, 1.0]
    assert outcome[1].answer is None


def test_several_workers_give_the_same_grades_in_order() -> None:
    golds = [str(number) for number in range(12)]
    texts = [f"\\boxed{{{number if number % 3 else number + 1}}}" for number in range(12)]
    with MathVerifyReward(time_limit=60, workers=2) as reward:
        grades = reward([problem(gold) for gold in golds], [completion(text) for text in texts])
    assert [result.status is CORRECT for result in grades] == [number % 3 != 0 for number in range(12)]


def test_a_dead_worker_is_an_error_for_one_item_and_is_replaced(reward: MathVerifyReward) -> None:
    assert grade(reward, "1", r"\boxed{1}").status is CORRECT
    worker = reward._idle.get()
    worker._process.kill()
    worker._process.wait()
    reward._idle.put(worker)
    assert grade(reward, "1", r"\boxed{1}").status is ERROR
    assert grade(reward, "1", r"\boxed{1}").status is CORRECT


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="time_limit = 0 must be positive"):
        MathVerifyReward(time_limit=0)
    with pytest.raises(ValueError, match="workers = 0 must be at least 1"):
        MathVerifyReward(workers=0)
    with pytest.raises(ValueError, match="1 completions but 0 problems"):
        MathVerifyReward()([], [completion("")])
