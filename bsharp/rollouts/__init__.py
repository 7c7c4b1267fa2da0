"""From problems to graded completions to tensors."""

from bsharp.rollouts.batch import RolloutBatch, build_batch, summarize_rollouts
from bsharp.rollouts.collect import collect_rollouts, grade_completions
from bsharp.rollouts.score import completion_logprobs

__all__ = [
    "RolloutBatch",
    "build_batch",
    "collect_rollouts",
    "completion_logprobs",
    "grade_completions",
    "summarize_rollouts",
]
