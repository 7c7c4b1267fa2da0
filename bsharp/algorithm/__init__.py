"""The mathematics of the training step: pure functions, tensors in, tensors out, nothing of language models."""

from __future__ import annotations

from bsharp.algorithm.advantages import (
    ADVANTAGES,
    GroupCounts,
    batch_normalised,
    gae,
    group_z_score,
    leave_one_out,
    no_baseline,
    zero_variance_groups,
)
from bsharp.algorithm.divergences import (
    entropy,
    exact_kl_policy_base,
    k1_policy_base,
    k2_policy_base,
    k3_policy_base,
)
from bsharp.algorithm.losses import (
    RatioStatistics,
    Reduction,
    ppo_clip,
    reduction_weights,
    reinforce,
    value_loss,
    weighted_sum,
)
from bsharp.algorithm.objectives import (
    Normalisation,
    Objective,
    ScoreInputs,
    entropy_minimisation,
    from_paper,
    hybrid,
    optimum_log_weights,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
)
from bsharp.algorithm.regimes import CONSTRUCTORS, parse_objective

__all__ = [
    "ADVANTAGES",
    "CONSTRUCTORS",
    "GroupCounts",
    "Normalisation",
    "Objective",
    "RatioStatistics",
    "Reduction",
    "ScoreInputs",
    "batch_normalised",
    "entropy",
    "entropy_minimisation",
    "exact_kl_policy_base",
    "from_paper",
    "gae",
    "group_z_score",
    "hybrid",
    "k1_policy_base",
    "k2_policy_base",
    "k3_policy_base",
    "leave_one_out",
    "no_baseline",
    "optimum_log_weights",
    "parse_objective",
    "ppo_clip",
    "reduction_weights",
    "reinforce",
    "sharpening",
    "task_reward",
    "tempered",
    "tilted",
    "value_loss",
    "weighted",
    "weighted_sum",
    "zero_variance_groups",
]
