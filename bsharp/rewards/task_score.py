"""Tasks that score answers themselves, such as those of reasoning-gym."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from bsharp.rewards.base import check_paired
from bsharp.rewards.calls import call_within
from bsharp.rewards.extract import extract_answer
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["ScoringTask", "TaskScoreReward"]


class ScoringTask(Protocol):
    """A task whose `score` says how good an answer to one of its problems is, in [0, 1]."""

    def score(self, answer: str, problem: Problem) -> float: ...


class TaskScoreReward:
    r"""The reward is `task.score(answer, problem)` in [0, 1]; CORRECT where it is 1, WRONG below.

    The answer is the last complete `\boxed{…}`, else the last `<answer>…</answer>`, else the whole text. An empty one is
    UNPARSEABLE: reward 0, no vote. A score that is no number in [0, 1], or an exception, is an ERROR without a reward; a
    score that takes longer than `time_limit` seconds is a TIMEOUT. Each concerns its own completion only.
    """

    def __init__(self, task: ScoringTask, time_limit: float = 10.0) -> None:
        if not time_limit > 0:
            raise ValueError(f"time_limit = {time_limit} must be positive: seconds per answer, 10 by default")
        self.task, self.time_limit = task, time_limit

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        check_paired(problems, completions)
        pairs = zip(problems, completions, strict=True)
        return [self._grade(problem, completion.text) for problem, completion in pairs]

    def _grade(self, problem: Problem, text: str) -> Grade:
        answer = (extract_answer(text, "tagged") or "").strip()
        if not answer:
            return Grade(GradeStatus.UNPARSEABLE, 0.0, detail="an empty answer")
        outcome = call_within(self.time_limit, lambda: float(self.task.score(answer, problem)))
        if outcome.expired:
            return Grade(GradeStatus.TIMEOUT, None, detail=f"the task took more than {self.time_limit:g} s to score")
        if outcome.failure is not None:
            return Grade(GradeStatus.ERROR, None, detail=f"the task's score raised {outcome.failure}"[:300])
        score = outcome.value
        if score is None or not math.isfinite(score) or not 0.0 <= score <= 1.0:
            return Grade(GradeStatus.ERROR, None, detail=f"the task scored {score!r}, which is not a number in [0, 1]")
        status = GradeStatus.CORRECT if score == 1.0 else GradeStatus.WRONG
        return Grade(status, score, answer, exact_match=answer == problem.answer)
