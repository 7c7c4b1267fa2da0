from __future__ import annotations

import math

import pytest
import torch

from bsharp.rollouts import build_batch, grade_completions, summarize_rollouts
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem, RolloutGroup

PROBLEMS = [Problem(f"p{i}", "a" if i % 2 else "b", "family", f"question {i}", str(i)) for i in range(4)]


def completion(token_ids: tuple[int, ...], reason: FinishReason = FinishReason.EOS, text: str = "") -> Completion:
    return Completion(token_ids, tuple(-0.5 * (t + 1) for t in range(len(token_ids))), reason, text)


def grade(reward: float | None, answer: str | None = "1") -> Grade:
    if reward is None:
        return Grade(GradeStatus.TIMEOUT, None)
    return Grade(GradeStatus.CORRECT if reward else GradeStatus.WRONG, reward, answer)


def test_one_completion_that_cannot_be_graded_shifts_no_other_grade() -> None:
    def reward(problems, completions):
        return [
            Grade(GradeStatus.UNPARSEABLE, 0.0)
            if c.text == "?"
            else Grade(GradeStatus.CORRECT, 1.0, f"{p.answer}:{c.text}")
            for p, c in zip(problems, completions, strict=True)
        ]

    texts = [["x", "?"], ["y"], ["?", "z", "w"], ["v"]]
    groups = [[completion((1,), text=text) for text in row] for row in texts]
    graded = grade_completions({"a": reward, "b": reward}, PROBLEMS, groups)
    expected = [[None if t == "?" else f"{i}:{t}" for t in row] for i, row in enumerate(texts)]
    assert [[g.answer for g in row] for row in graded] == expected


def test_a_reward_function_with_too_few_grades_is_an_error() -> None:
    with pytest.raises(ValueError, match="returned 1 grades for 2 completions"):
        grade_completions(
            {"a": lambda p, c: [grade(1.0)], "b": lambda p, c: [grade(1.0)]}, PROBLEMS, [[completion((1,))]] * 4
        )
    with pytest.raises(ValueError, match="2 completions but 1 grades"):
        RolloutGroup(PROBLEMS[0], (1,), (completion((1,)), completion((2,))), (grade(1.0),))


def test_ragged_groups_become_rows_with_ids_masks_and_logprobs_exactly_as_sampled() -> None:
    eos = 7
    groups = [
        RolloutGroup(PROBLEMS[0], (1, 2), (completion((3, eos)), completion((eos,))), (grade(1.0), grade(0.0))),
        RolloutGroup(PROBLEMS[1], (4,), (completion((5, 6, 3), FinishReason.LENGTH),), (grade(None),)),
    ]
    batch = build_batch(groups, pad_token_id=eos)  # pad == eos: the mask must not be found by value
    assert batch.mask.sum(-1).tolist() == [2, 1, 3]
    assert batch.response_token_ids[0, :2].tolist() == [3, eos]
    assert batch.behaviour_logprobs[2].tolist() == [-0.5, -1.0, -1.5]
    assert batch.group_index.tolist() == [0, 0, 1]
    assert batch.truncated.tolist() == [False, False, True]
    assert batch.prompt_token_ids == ((1, 2), (1, 2), (4,))
    assert (batch.rows, batch.problems) == (3, 2)


def test_a_missing_reward_is_never_a_silent_zero() -> None:
    group = RolloutGroup(PROBLEMS[0], (1,), (completion((3,)), completion((4,))), (grade(None), grade(0.0)))
    batch = build_batch([group], pad_token_id=0)
    assert math.isnan(float(batch.rewards[0]))
    assert batch.valid.tolist() == [False, True]
    assert torch.equal(batch.valid, ~batch.rewards.isnan())
    assert summarize_rollouts([group])["grades/timeout"] == 0.5


def test_the_summary_counts_lengths_truncation_and_distinct_answers() -> None:
    group = RolloutGroup(
        PROBLEMS[0],
        (1,),
        (completion((3,)), completion((4, 5)), completion((4, 5, 6), FinishReason.LENGTH)),
        (grade(1.0, "7"), grade(0.0, "8"), Grade(GradeStatus.UNPARSEABLE, 0.0)),
    )
    summary = summarize_rollouts([group])
    assert summary["completions/mean_length"] == 2.0
    assert summary["completions/clipped_ratio"] == pytest.approx(1 / 3)
    assert summary["completions/distinct_answers_per_problem"] == 2.0
    assert summary["grades/unparseable"] == pytest.approx(1 / 3)


def test_the_summary_averages_the_repetition_rate_over_completions() -> None:
    looping, plain = completion((9,) * 8), completion(tuple(range(8)))
    group = RolloutGroup(PROBLEMS[0], (1,), (looping, plain), (grade(0.0, "1"), grade(0.0, "1")))
    # Five 4-grams each: one distinct in the loop, all in the other.
    assert summarize_rollouts([group])["completions/repetition_rate"] == pytest.approx((0.8 + 0.0) / 2)
