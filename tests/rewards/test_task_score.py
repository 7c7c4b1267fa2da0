"""Tasks that score answers themselves: whatever the score does concerns its own completion."""

from __future__ import annotations

import math
import threading

import pytest

from bsharp.rewards import TaskScoreReward, reward_for
from bsharp.types import Completion, FinishReason, GradeStatus, Problem

CORRECT, WRONG, UNPARSEABLE = GradeStatus.CORRECT, GradeStatus.WRONG, GradeStatus.UNPARSEABLE
ERROR, TIMEOUT = GradeStatus.ERROR, GradeStatus.TIMEOUT
release = threading.Event()


class Scores:
    """Answers name what the score does."""

    reward_kind = "reasoning_gym"

    def score(self, answer: str, problem: Problem) -> float:
        if answer == "raise":
            raise KeyError("entry")
        if answer == "wait":
            release.wait(30)
        return {"right": 1.0, "half": 0.5, "wrong": 0.0, "nan": math.nan, "more": 1.5}.get(answer, 0.01)


def test_scores_become_rewards_item_by_item() -> None:
    texts = [
        "<answer>right</answer>",
        r"\boxed{half}",
        " wrong ",
        "<answer>raise</answer>",
        "nan",
        "more",
        "wait",
        "",
        "?",
    ]
    problems = [Problem("id", "task", "family", "question", "right") for _ in texts]
    completions = [Completion((0,), (0.0,), FinishReason.EOS, text) for text in texts]
    grades = TaskScoreReward(Scores(), time_limit=0.1)(problems, completions)
    release.set()
    assert [g.status for g in grades] == [CORRECT, WRONG, WRONG, ERROR, ERROR, ERROR, TIMEOUT, UNPARSEABLE, WRONG]
    assert [g.reward for g in grades] == [1.0, 0.5, 0.0, None, None, None, None, 0.0, 0.01]
    assert [g.answer for g in grades] == ["right", "half", "wrong", None, None, None, None, None, "?"]
    assert grades[0].exact_match
    assert "KeyError" in grades[3].detail


def test_reward_for_gives_it_to_tasks_of_its_kind() -> None:
    assert isinstance(reward_for(Scores()), TaskScoreReward)
    with pytest.raises(ValueError, match="'reasoning_gym' needs its task, which scores the answers"):
        reward_for("reasoning_gym")
    with pytest.raises(ValueError, match="time_limit = 0 must be positive"):
        TaskScoreReward(Scores(), 0)


def test_a_reasoning_gym_task_scores_its_own_reference_answers() -> None:
    pytest.importorskip("reasoning_gym")
    from bsharp.tasks import load_task

    task = load_task("reasoning_gym:leg_counting")
    problems = task.problems("train", 4, 0)
    texts = [task.oracle(problem) for problem in problems] + [r"\boxed{-1}"] * 4
    completions = [Completion((0,), (0.0,), FinishReason.EOS, text) for text in texts]
    grades = reward_for(task)(problems * 2, completions)
    assert [grade.status for grade in grades] == [CORRECT] * 4 + [WRONG] * 4
