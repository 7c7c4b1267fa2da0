"""Advantages: scores minus a baseline. Groups are given by index, may be ragged and may hold invalid rows.

The sequence-level functions share one signature, (scores (B,), group_index (B,), valid (B,)) -> (B,). A row that is not
valid (its completion could not be graded) counts nowhere, gets advantage exactly 0, and its score may be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "ADVANTAGES",
    "GroupCounts",
    "batch_normalised",
    "gae",
    "group_z_score",
    "leave_one_out",
    "no_baseline",
    "zero_variance_groups",
]


class _Groups(NamedTuple):
    """Statistics of each row's own group, spread back to the rows; float64."""

    centred: Float[Tensor, " B"]  # score minus the mean of the valid scores of the group; 0 at invalid rows
    valid_count: Float[Tensor, " B"]  # valid rows of the group
    spread: Float[Tensor, " B"]  # sum of squares of `centred` over the group


def _group_statistics(
    scores: Float[Tensor, " B"], group_index: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> _Groups:
    groups = int(group_index.max()) + 1
    values = torch.where(valid, scores.detach(), 0.0).double()

    def per_row(row_values: Tensor) -> Tensor:
        return row_values.new_zeros(groups).index_add(0, group_index, row_values)[group_index]

    # Scores are first taken relative to the group's largest, so that equal scores give exactly 0: rounding of a mean
    # would leave 1e-16 |s| behind, which a division by the standard deviation could blow up.
    highest = values.new_full((groups,), -torch.inf).scatter_reduce(
        0, group_index, torch.where(valid, values, -torch.inf), "amax"
    )[group_index]
    relative = torch.where(valid, values - highest, 0.0)
    count = per_row(valid.double())
    centred = torch.where(valid, relative - per_row(relative) / count.clamp(min=1), 0.0)
    return _Groups(centred, count, per_row(centred**2))


def _require_groups(name: str, group_index: Int[Tensor, " B"]) -> None:
    if int(torch.bincount(group_index).max()) < 2:
        raise ValueError(
            f"{name} needs at least 2 completions per problem, got group_size=1; "
            'raise sampling.group_size or choose advantage = "none"'
        )


def leave_one_out(
    scores: Float[Tensor, " B"], group_index: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Leave-one-out advantage: A_i = s_i - mean_{j != i} s_j over the valid rows of the group of i (RLOO, arXiv 2402.14740).

    Equals G/(G-1) times (s_i - group mean). Unbiased for every G >= 2. A group with fewer than two valid rows gets 0
    (count them with `zero_variance_groups`); raises ValueError where every group has a single row.
    """
    if scores.numel() == 0:
        return torch.zeros_like(scores)
    _require_groups("leave_one_out", group_index)
    groups = _group_statistics(scores, group_index, valid)
    return (groups.centred * groups.valid_count / (groups.valid_count - 1).clamp(min=1)).to(scores.dtype)


def group_z_score(
    scores: Float[Tensor, " B"], group_index: Int[Tensor, " B"], valid: Bool[Tensor, " B"], eps: float = 1e-4
) -> Float[Tensor, " B"]:
    """Group z-score: A_i = (s_i - group mean) / (group standard deviation + eps) (GRPO, arXiv 2402.03300).

    The standard deviation divides by n - 1. Groups of equal scores, or with fewer than two valid rows, get 0; raises
    ValueError where every group has a single row. `eps` is in units of the score.
    """
    if scores.numel() == 0:
        return torch.zeros_like(scores)
    _require_groups("group_z_score", group_index)
    groups = _group_statistics(scores, group_index, valid)
    deviation = (groups.spread / (groups.valid_count - 1).clamp(min=1)).sqrt()
    return (groups.centred / (deviation + eps)).to(scores.dtype)


def batch_normalised(
    scores: Float[Tensor, " B"], group_index: Int[Tensor, " B"], valid: Bool[Tensor, " B"], eps: float = 1e-8
) -> Float[Tensor, " B"]:
    """Batch-normalised advantage: A_i = (s_i - mean) / (standard deviation + eps) over all valid rows of the batch.

    REINFORCE++ (arXiv 2501.03262); groups play no part, so one completion per problem will do. The standard deviation
    divides by n - 1. Equal scores, or fewer than two valid rows, give 0.
    """
    if scores.numel() == 0:
        return torch.zeros_like(scores)
    groups = _group_statistics(scores, torch.zeros_like(group_index), valid)
    deviation = (groups.spread / (groups.valid_count - 1).clamp(min=1)).sqrt()
    return (groups.centred / (deviation + eps)).to(scores.dtype)


def no_baseline(
    scores: Float[Tensor, " B"], group_index: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The score itself: A_i = s_i, 0 at invalid rows. Unbiased and noisy."""
    return torch.where(valid, scores.detach(), 0.0)


ADVANTAGES: Mapping[str, Callable[..., Tensor]] = {
    "leave_one_out": leave_one_out,
    "group_z_score": group_z_score,
    "batch_normalised": batch_normalised,
    "none": no_baseline,
}


def gae(
    token_scores: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
    valid: Bool[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation (arXiv 1506.02438): (advantages, returns), both (B, T), without gradient.

        delta_t = s_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}        return_t = A_t + V_t

    V_t is the value before token t; t runs over the masked-in tokens and beyond the last V = A = 0, for truncated rows
    too: they are scored as they stand. gamma = lam = 1 with V = 0 is the score still to come, that is REINFORCE.
    Masked-out positions and rows that are not `valid` get 0 in both and may hold NaN.
    """
    counted = mask if valid is None else mask & valid[:, None]
    scores = torch.where(counted, token_scores.detach(), 0.0)
    baseline = torch.where(counted, values.detach(), 0.0)
    advantages = torch.zeros_like(scores)
    next_value = torch.zeros_like(scores[:, 0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(scores.shape[1])):
        delta = scores[:, t] + gamma * next_value - baseline[:, t]
        here = counted[:, t]
        next_advantage = torch.where(here, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(here, baseline[:, t], next_value)
        advantages[:, t] = torch.where(here, next_advantage, 0.0)
    return advantages, advantages + baseline


class GroupCounts(NamedTuple):
    """How many groups can teach something relative to each other."""

    zero_variance: int  # at least two valid rows, all of the same score: every advantage is 0
    comparable: int  # at least two valid rows
    undersized: int  # fewer than two valid rows: every advantage is 0 for want of a comparison

    @property
    def zero_variance_fraction(self) -> float:
        """Share of the comparable groups; 0 where there is none."""
        return self.zero_variance / self.comparable if self.comparable else 0.0


def zero_variance_groups(
    scores: Float[Tensor, " B"], group_index: Int[Tensor, " B"], valid: Bool[Tensor, " B"], tolerance: float = 1e-6
) -> GroupCounts:
    """Counts groups whose valid scores differ by at most `tolerance` (score units), comparable and undersized ones.

    The tolerance is there because equal completions get log-probabilities that differ in the last bits.
    """
    if scores.numel() == 0:
        return GroupCounts(0, 0, 0)
    present, group = torch.unique(group_index, return_inverse=True)
    empty = scores.new_full((len(present),), -torch.inf)
    highest = empty.scatter_reduce(0, group, torch.where(valid, scores, -torch.inf), "amax")
    negated_lowest = empty.scatter_reduce(0, group, torch.where(valid, -scores, -torch.inf), "amax")
    comparable = torch.bincount(group, weights=valid.double(), minlength=len(present)) >= 2
    zero_variance = comparable & (highest + negated_lowest <= tolerance)
    total = int(comparable.sum())
    return GroupCounts(int(zero_variance.sum()), total, len(present) - total)
