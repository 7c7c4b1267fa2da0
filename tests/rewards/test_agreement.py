"""Two graders on the same completions: every completion is counted once, under what both said."""

from __future__ import annotations

import pytest

from bsharp.rewards import BoxedAnswerReward, NormalisedReward
from bsharp.rewards.agreement import agreement_of, disagreements
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

CORRECT, WRONG, UNPARSEABLE = GradeStatus.CORRECT, GradeStatus.WRONG, GradeStatus.UNPARSEABLE
TEXTS = [r"\boxed{5}", r"\boxed{4} or \boxed{5}", r"\boxed{5 cm}", "five", r"\boxed{6}"]


def items(texts: list[str]) -> tuple[list[Problem], list[Completion]]:
    problems = [Problem(f"p{place}", "task", "family", "question", "5") for place in range(len(texts))]
    return problems, [Completion((0,), (0.0,), FinishReason.EOS, text) for text in texts]


def test_every_completion_is_counted_under_both_statuses_with_examples() -> None:
    found = disagreements(*items(TEXTS), {"strict": BoxedAnswerReward(), "normalised": NormalisedReward()})
    assert found.counts == {(CORRECT, CORRECT): 1, (WRONG, CORRECT): 1, (UNPARSEABLE, CORRECT): 1,
                            (UNPARSEABLE, UNPARSEABLE): 1, (WRONG, WRONG): 1}  # fmt: skip
    assert (found.total, found.differing, found.contradicting) == (5, 2, 2)
    assert [example.problem_id for example in found.examples] == ["p1", "p2"]
    assert [example.second.answer for example in found.examples] == ["5", "5"]


def test_a_grader_never_disagrees_with_itself() -> None:
    found = disagreements(*items(TEXTS), {"one": NormalisedReward(), "other": NormalisedReward()})
    assert (found.total, found.differing, found.contradicting, list(found.examples)) == (5, 0, 0, [])


def test_statuses_may_differ_without_a_contradiction() -> None:
    problems, _ = items(["x"])
    ours, theirs = Grade(WRONG, 0.0, "x"), Grade(UNPARSEABLE, 0.0)
    found = agreement_of("one", "other", problems, ["x"], [ours], [theirs])
    assert (found.differing, found.contradicting) == (1, 0)


def test_joining_adds_counts_and_keeps_the_first_examples() -> None:
    graders = {"strict": BoxedAnswerReward(), "normalised": NormalisedReward()}
    once = disagreements(*items(TEXTS), graders)
    both = once.joined(disagreements(*items(TEXTS * 4), graders), examples=2)
    assert both.total == 25
    assert both.counts == {pair: 5 * number for pair, number in once.counts.items()}
    assert [example.problem_id for example in both.examples] == ["p1", "p2", "p1", "p2"]


def test_the_report_shows_what_was_counted_and_keeps_cells_whole() -> None:
    texts = [*TEXTS, "\\boxed{4}| `x`\n\\boxed{5}"]
    found = disagreements(*items(texts), {"strict": BoxedAnswerReward(), "normalised": NormalisedReward()})
    shown = found.markdown()
    assert shown.startswith("3 of 6 completions are correct for one grader only; 3 have different statuses.")
    assert "| wrong | 2 | 1 | 0 | 0 | 0 |" in shown
    assert "| `p2` | `5` | `unparseable: the answer is '5 cm', not a number` | `correct: 5` |" in shown
    content = found.as_json()
    assert content["counts"]["wrong"]["correct"] == 2
    assert content["examples"][0]["first"] == {"status": "wrong", "answer": "4", "detail": ""}


def test_two_graders_are_needed() -> None:
    with pytest.raises(ValueError, match="1 graders given; two are compared"):
        disagreements(*items(TEXTS), {"one": NormalisedReward()})
