"""Ragged groups of rollouts → tensors. Token ids and masks travel exactly as sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.masking import pad_right
from bsharp.statistics import repetition_rate
from bsharp.types import RolloutGroup

__all__ = ["RolloutBatch", "build_batch", "summarize_rollouts"]


@dataclass(frozen=True)
class RolloutBatch:
    """B rows in the order of the groups. Outside `mask` token ids and log-probabilities mean nothing."""

    prompt_token_ids: tuple[tuple[int, ...], ...]
    response_token_ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    behaviour_logprobs: Float[Tensor, "B T"]  # nats, under the policy that sampled, as the sampler reported them
    rewards: Float[Tensor, " B"]  # NaN where the grade carries none
    valid: Bool[Tensor, " B"]  # False where the grade carries no reward: the row leaves its group
    group_index: Int[Tensor, " B"]
    truncated: Bool[Tensor, " B"]
    trainer_logprobs: Float[Tensor, "B T"] | None = None  # nats, under the same policy, as the trainer computes them

    @property
    def policy_logprobs(self) -> Float[Tensor, "B T"]:
        """Log-probabilities under the policy before the update: the trainer's where it has scored, else the sampler's."""
        return self.behaviour_logprobs if self.trainer_logprobs is None else self.trainer_logprobs

    @property
    def rows(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def problems(self) -> int:
        return int(self.group_index.max()) + 1 if self.rows else 0


def build_batch(groups: Sequence[RolloutGroup], pad_token_id: int) -> RolloutBatch:
    """Tensors of all completions of `groups`; groups may differ in size."""
    completions = [completion for group in groups for completion in group.completions]
    grades = [grade for group in groups for grade in group.grades]
    token_ids, mask = pad_right([completion.token_ids for completion in completions], pad_token_id)
    logprobs = torch.zeros(token_ids.shape)
    logprobs[mask] = torch.tensor([logprob for completion in completions for logprob in completion.logprobs])
    return RolloutBatch(
        prompt_token_ids=tuple(group.prompt_token_ids for group in groups for _ in group.completions),
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=logprobs,
        rewards=torch.tensor([math.nan if grade.reward is None else grade.reward for grade in grades]),
        valid=torch.tensor([grade.reward is not None for grade in grades], dtype=torch.bool),
        group_index=torch.tensor([index for index, group in enumerate(groups) for _ in group.completions]),
        truncated=torch.tensor([completion.truncated for completion in completions], dtype=torch.bool),
    )


def summarize_rollouts(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """What was sampled this step: lengths in tokens, the share truncated, repetition, distinct answers, and every grade status.

    The repetition rate is the mean over completions of `repetition_rate` with 4-grams, a share.
    """
    completions = [completion for group in groups for completion in group.completions]
    grades = [grade for group in groups for grade in group.grades]
    lengths = [len(completion.token_ids) for completion in completions]
    distinct = [len({grade.answer for grade in group.grades if grade.answer is not None}) for group in groups]
    summary = {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(completion.truncated for completion in completions) / len(completions),
        "completions/repetition_rate": sum(repetition_rate(c.token_ids) for c in completions) / len(completions),
        "completions/distinct_answers_per_problem": sum(distinct) / len(distinct),
    }
    for status in ("correct", "wrong", "unparseable", "timeout", "error"):
        summary[f"grades/{status}"] = sum(grade.status == status for grade in grades) / len(grades)
    return summary
