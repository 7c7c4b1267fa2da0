"""The words of the project as types. Standard library only.

Shape legend, used in every signature and comment:
P problems (prompts) · G completions per problem · B = P·G rows · T response tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class GradeStatus(StrEnum):
    """What the checker concluded. Only CORRECT, WRONG and UNPARSEABLE carry a reward."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"
    ERROR = "error"


class FinishReason(StrEnum):
    """Why a completion ended: one of the model's EOS ids, or the token limit (then it is truncated)."""

    EOS = "eos"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its gold answer.

    >>> Problem("math_mini/test/0", "math_mini", "add", "347+125=?", "472", difficulty=2)  # doctest: +ELLIPSIS
    Problem(problem_id='math_mini/test/0', ...)
    """

    problem_id: str
    task: str
    family: str
    question: str
    answer: str
    difficulty: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response: the token ids exactly as sampled, EOS included when the model emitted it."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # nats, under the behaviour policy at the sampling temperature, one per token id
    finish_reason: FinishReason
    text: str  # decoded without special tokens; what the grader sees
    policy_version: int = 0

    @property
    def truncated(self) -> bool:
        return self.finish_reason is FinishReason.LENGTH


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict on one completion. `reward` lies in [0, 1], or is None where nothing can be said (timeout, error)."""

    status: GradeStatus
    reward: float | None
    answer: str | None = None  # the extracted answer in canonical form: what votes compare; None never votes
    detail: str = ""
    exact_match: bool = False  # the extracted answer equals the gold answer as a string


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G completions of one problem with their grades, in order."""

    problem: Problem
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    grades: tuple[Grade, ...]

    def __post_init__(self) -> None:
        if len(self.completions) != len(self.grades):
            raise ValueError(
                f"problem {self.problem.problem_id}: {len(self.completions)} completions but {len(self.grades)} grades; "
                "a reward function must return exactly one grade per completion, in order"
            )
