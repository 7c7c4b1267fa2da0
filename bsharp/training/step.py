"""One training step: scores, advantages, update. The same for every regime; only the score differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bsharp import algorithm
from bsharp.algorithm import Objective, ScoreInputs
from bsharp.config import AlgorithmConfig
from bsharp.masking import masked_mean, masked_sum
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import forward_responses, response_logprobs, scoring_microbatches
from bsharp.rollouts import RolloutBatch
from bsharp.training.accumulate import Critic, Update, accumulate_gradient

__all__ = [
    "Critic",
    "Update",
    "accumulate_gradient",
    "advantages_of",
    "score_metrics",
    "training_step",
    "update_policy",
]


def training_step(
    policy: LanguageModel,
    base: LanguageModel,
    objective: Objective,
    batch: RolloutBatch,
    optimizer: torch.optim.Optimizer,
    update: Update,
    critic: Critic | None = None,
    minibatch_order: Sequence[Sequence[int]] | None = None,
    score_base: bool = True,
) -> dict[str, float]:
    """Score the rollouts, turn scores into advantages, update the policy once per minibatch; returns the metrics.

    `minibatch_order` deals the problems of each pass: one list of problem indices per update, all passes in a row;
    by default every update sees all problems. With `importance_cap` the policy scores its rollouts before the first
    update: these log-probabilities stand for it from there on, and the sampler's only in the importance weights.
    Without `score_base` an objective that does not read the base's log-probabilities goes without them, and the figures of
    the distance to the base are missing.
    """
    base_logprobs = None
    if score_base or objective.reads_base:
        base_logprobs = _score(base, batch, update)
    if update.algorithm.importance_cap is not None:
        batch = dataclasses.replace(batch, trainer_logprobs=_score(policy, batch, update))
    inputs = ScoreInputs(
        rewards=batch.rewards,
        base_token_logprobs=torch.full(batch.mask.shape, torch.nan) if base_logprobs is None else base_logprobs,
        behaviour_token_logprobs=batch.policy_logprobs,
        completion_mask=batch.mask,
    )
    scores = objective.score(inputs)
    values = _values(policy, batch, update, critic)
    advantages, returns = advantages_of(objective, inputs, scores, batch, update.algorithm, values)
    passes = minibatch_order or [range(batch.problems)] * update.algorithm.epochs
    metrics = update_policy(policy, optimizer, batch, advantages, update, passes, critic, values, returns)
    return score_metrics(batch, scores, base_logprobs) | metrics


def _score(language_model: LanguageModel, batch: RolloutBatch, update: Update) -> Float[Tensor, "B T"]:
    """Log-probabilities of the rollouts under a model, (B, T) nats; 0 outside the mask."""
    with language_model.ready():  # an offloaded base is brought once, not for every micro-batch
        return response_logprobs(
            language_model,
            batch.prompt_token_ids,
            batch.response_token_ids,
            batch.mask,
            *update.generates,
            update.microbatch_rows,
        )


def advantages_of(
    objective: Objective,
    inputs: ScoreInputs,
    scores: Float[Tensor, " B"],
    batch: RolloutBatch,
    config: AlgorithmConfig,
    values: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, " B"] | Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
    """Advantages per row, or per token with GAE, where the critic's returns come beside them."""
    if config.advantage == "gae":
        assert values is not None
        token_scores = objective.token_scores(inputs)
        return algorithm.gae(token_scores, values, batch.mask, config.gae_gamma, config.gae_lambda, batch.valid)
    return algorithm.ADVANTAGES[config.advantage](scores, batch.group_index, batch.valid), None


def update_policy(
    policy: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: RolloutBatch,
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    update: Update,
    passes: Iterable[Sequence[int]],
    critic: Critic | None = None,
    values: Float[Tensor, "B T"] | None = None,
    returns: Float[Tensor, "B T"] | None = None,
) -> dict[str, float]:
    """One optimizer update for each list of problem indices in `passes`; metrics are means over the updates.

    The sampler/trainer mismatch and the entropy come from the first update alone, before any weight has moved.
    An update whose gradient is not finite is not applied, and `grad_norm` says so (nan or inf). No gradient is left
    afterwards: rollouts and checks need the memory.
    """
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    collected: list[dict[str, float]] = []
    for problems in passes:
        _release_gradients(optimizer, critic)
        metrics = accumulate_gradient(policy, batch, advantages, update, list(problems), critic, values, returns)
        norm = float(nn.utils.clip_grad_norm_(parameters, update.max_grad_norm))
        metrics["grad_norm"] = norm
        collected.append(metrics)
        if norm != norm or norm == float("inf"):
            break
        optimizer.step()
        if critic:
            critic.optimizer.step()
    _release_gradients(optimizer, critic)
    return _over_updates(collected)


def _release_gradients(optimizer: torch.optim.Optimizer, critic: Critic | None) -> None:
    optimizer.zero_grad(set_to_none=True)
    if critic:
        critic.optimizer.zero_grad(set_to_none=True)


def _over_updates(collected: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One figure per key: that of the first update, the largest, or the mean of those that are numbers."""
    combined: dict[str, float] = {}
    for key in collected[0]:
        values = [metrics[key] for metrics in collected]
        numbers = [value for value in values if value == value]
        if key.startswith(("sampling_logp_difference", "importance_sampling_ratio", "entropy")):
            combined[key] = values[0]
        elif key.endswith("/max"):
            combined[key] = max(values)
        elif key == "grad_norm":
            combined[key] = sum(values) / len(values)
        else:
            combined[key] = sum(numbers) / len(numbers) if numbers else float("nan")
    variance = combined["gradient/variance_trace"]
    # A ratio of means: the mean of ratios would be ruled by the update with the smallest variance.
    combined["gradient/signal_to_noise"] = (
        combined["gradient/signal_squared"] / variance if variance > 0 else float("nan")
    )
    return combined


def score_metrics(
    batch: RolloutBatch, scores: Float[Tensor, " B"], base_logprobs: Float[Tensor, "B T"] | None = None
) -> dict[str, float]:
    """Reward, score and group figures of the rollouts, over the valid rows; where the base scored them, KL to it (k1, k2, k3)."""
    valid = batch.valid
    rewards, valid_scores = batch.rewards[valid], scores[valid]
    reward_groups = algorithm.zero_variance_groups(batch.rewards, batch.group_index, valid)
    score_groups = algorithm.zero_variance_groups(scores, batch.group_index, valid)
    return {
        "reward": _mean(rewards),
        "reward_std": float(rewards.std(correction=0)) if len(rewards) else float("nan"),
        "score/mean": _mean(valid_scores),
        "score/std": float(valid_scores.std(correction=0)) if len(valid_scores) else float("nan"),
        "frac_reward_zero_std": reward_groups.zero_variance_fraction,
        "frac_score_zero_std": score_groups.zero_variance_fraction,
        "undersized_groups": float(score_groups.undersized),
        "invalid_completions": float((~valid).sum()),
    } | ({} if base_logprobs is None else _distance_to_base(batch, base_logprobs))


def _distance_to_base(batch: RolloutBatch, base_logprobs: Float[Tensor, "B T"]) -> dict[str, float]:
    valid, mask, policy_logprobs = batch.valid, batch.mask & batch.valid[:, None], batch.policy_logprobs
    estimators = {"k1": algorithm.k1_policy_base, "k2": algorithm.k2_policy_base, "k3": algorithm.k3_policy_base}
    return {
        "base_logprob/mean_nats_per_sequence": _mean(masked_sum(base_logprobs, mask)[valid]),
        "kl(policy||base)/k1_nats_per_sequence": _mean(masked_sum(policy_logprobs - base_logprobs, mask)[valid]),
    } | {
        f"kl(policy||base)/{name}_nats_per_token": float(masked_mean(estimator(policy_logprobs, base_logprobs), mask))
        for name, estimator in estimators.items()
    }


def _values(
    policy: LanguageModel, batch: RolloutBatch, update: Update, critic: Critic | None
) -> Float[Tensor, "B T"] | None:
    """The critic's predictions before the update, (B, T); 0 outside the mask."""
    if critic is None:
        return None
    values = torch.zeros(batch.mask.shape)
    lengths = batch.mask.sum(-1).tolist()
    with torch.no_grad():
        for rows in scoring_microbatches(batch.prompt_token_ids, lengths, update.microbatch_rows):
            width = max(1, int(batch.mask[rows].sum(-1).max()))
            prompts = [batch.prompt_token_ids[row] for row in rows]
            mask = batch.mask[rows, :width]
            result = forward_responses(
                policy, prompts, batch.response_token_ids[rows, :width], mask, *update.generates, with_hidden=True
            )
            assert result.hidden is not None
            values[rows, :width] = torch.where(mask, critic.head(result.hidden).cpu(), 0.0)
    return values


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else float("nan")
