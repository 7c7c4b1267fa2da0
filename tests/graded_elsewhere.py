"""What tests run in other processes; a module of its own, so that spawned processes can import it."""

from __future__ import annotations

from bsharp.config import ProblemsConfig
from bsharp.rewards import MathVerifyReward, reward_for
from bsharp.types import Completion, FinishReason, Problem

__all__ = ["grade_numbers", "grade_with_own_reward"]


def grade_numbers(reward: MathVerifyReward, numbers: list[int]) -> list[str]:
    """The statuses of right answers to even numbers and wrong ones to odd numbers."""
    problems = [Problem("id", "task", "family", "question", str(number)) for number in numbers]
    texts = [f"\\boxed{{{number + number % 2}}}" for number in numbers]
    completions = [Completion((0,), (0.0,), FinishReason.EOS, text) for text in texts]
    return [str(grade.status) for grade in reward(problems, completions)]


def grade_with_own_reward(spec: str, texts: list[str]) -> list[float | None]:
    """The rewards that the function `spec` gives to texts whose right answer is 7."""
    problems = [Problem("id", "task", "family", "question", "7") for _ in texts]
    completions = [Completion((0,), (0.0,), FinishReason.EOS, text) for text in texts]
    return [grade.reward for grade in reward_for("math", ProblemsConfig(reward=spec))(problems, completions)]
