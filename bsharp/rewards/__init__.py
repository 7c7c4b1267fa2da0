"""How a completion is judged: batched graders that give one grade per completion, in order."""

from __future__ import annotations

from typing import Protocol

from bsharp.rewards.base import RewardFunction, boxed_answers
from bsharp.rewards.boxed import BoxedAnswerReward, canonical_number
from bsharp.rewards.function import FunctionReward
from bsharp.rewards.math import MathVerifyReward

__all__ = [
    "BoxedAnswerReward",
    "FunctionReward",
    "MathVerifyReward",
    "RewardFunction",
    "boxed_answers",
    "canonical_number",
    "reward_for",
]


class _HasRewardKind(Protocol):
    @property
    def reward_kind(self) -> str: ...


def reward_for(task: _HasRewardKind | str) -> RewardFunction:
    """The reward function of a task, by its `reward_kind` (or of such a kind): "boxed" or "math"."""
    kind = task if isinstance(task, str) else task.reward_kind
    if kind == "boxed":
        return BoxedAnswerReward()
    if kind == "math":
        return MathVerifyReward()
    raise ValueError(f'unknown reward kind {kind!r}; use "boxed" or "math"')
