"""How a completion is judged: batched graders that give one grade per completion, in order."""

from __future__ import annotations

from typing import Protocol, cast

from bsharp.config import ProblemsConfig
from bsharp.rewards.base import RewardFunction, boxed_answers
from bsharp.rewards.boxed import BoxedAnswerReward, canonical_number
from bsharp.rewards.extract import ExtractionRule, extract_answer
from bsharp.rewards.function import FunctionReward
from bsharp.rewards.load import load_reward
from bsharp.rewards.math import MathVerifyReward
from bsharp.rewards.normalised import NormalisedReward, canonical_answer
from bsharp.rewards.task_score import ScoringTask, TaskScoreReward

__all__ = [
    "REWARD_KINDS",
    "BoxedAnswerReward",
    "FunctionReward",
    "MathVerifyReward",
    "NormalisedReward",
    "RewardFunction",
    "TaskScoreReward",
    "boxed_answers",
    "canonical_answer",
    "canonical_number",
    "extract_answer",
    "load_reward",
    "reward_for",
]

REWARD_KINDS: dict[str, tuple[str, ExtractionRule]] = {
    "boxed": ("boxed", "first_box"),
    "math": ("math", "last_box"),
    "final_number": ("normalised", "final_number"),
    "reasoning_gym": ("reasoning_gym", "tagged"),
}
"""Of each kind of task: its own grader, and where in a completion the answer stands. The second belongs to the task and stays
when another grader is chosen."""


class _HasRewardKind(Protocol):
    @property
    def reward_kind(self) -> str: ...


def reward_for(task: _HasRewardKind | str, settings: ProblemsConfig | None = None) -> RewardFunction:
    """The reward function of a task, by its `reward_kind` (or of such a kind), as `settings` change it.

    `settings.reward` names a function of your own, which judges every task; `settings.grader` another way of comparing. Raises
    ValueError for an unknown kind and ConfigError for a reward that cannot be loaded.
    """
    settings = settings or ProblemsConfig()
    kind = task if isinstance(task, str) else task.reward_kind
    if kind not in REWARD_KINDS:
        raise ValueError(f"unknown reward kind {kind!r}; use " + " or ".join(f'"{name}"' for name in REWARD_KINDS))
    if settings.reward is not None:
        prompt = getattr(task, "prompt", None)
        return load_reward(settings.reward, time_limit=settings.grader_seconds, prompt=prompt)
    own, rule = REWARD_KINDS[kind]
    grader = own if settings.grader == "default" else settings.grader
    if grader == "boxed":
        return BoxedAnswerReward(rule)
    if grader == "normalised":
        return NormalisedReward(rule)
    if grader == "math":
        return MathVerifyReward(settings.grader_seconds, settings.grader_workers, rule)
    if isinstance(task, str):
        raise ValueError(f"the reward kind {kind!r} needs its task, which scores the answers; pass the task itself")
    return TaskScoreReward(cast(ScoringTask, task), settings.grader_seconds)
