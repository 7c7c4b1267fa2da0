"""One training step: scores, advantages, update. The same for every regime; only the score differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bsharp import algorithm
from bsharp.algorithm import Objective, ScoreInputs
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.masking import masked_mean, masked_sum
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import forward_responses, response_logprobs, scoring_microbatches
from bsharp.models.value_head import ValueHead
from bsharp.rollouts import RolloutBatch
from bsharp.training.gradients import SubbatchGradients

__all__ = [
    "Critic",
    "Update",
    "accumulate_gradient",
    "advantages_of",
    "score_metrics",
    "training_step",
    "update_policy",
]


@dataclass
class Critic:
    """The value head and its own optimizer; the policy's optimizer never sees it."""

    head: ValueHead
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Update:
    """What the update needs besides the models: how rows become a loss, and in which pieces."""

    algorithm: AlgorithmConfig
    sampling: SamplingConfig
    max_grad_norm: float
    microbatch_rows: int = 64

    @property
    def generates(self) -> tuple[float, bool]:
        """Temperature and fixed length: the distribution the rollouts were drawn from, and are scored under."""
        return self.sampling.temperature, self.sampling.fixed_length


def training_step(
    policy: LanguageModel,
    base: LanguageModel,
    objective: Objective,
    batch: RolloutBatch,
    optimizer: torch.optim.Optimizer,
    update: Update,
    critic: Critic | None = None,
    minibatch_order: Sequence[Sequence[int]] | None = None,
) -> dict[str, float]:
    """Score the rollouts, turn scores into advantages, update the policy once per minibatch; returns the metrics.

    `minibatch_order` deals the problems of each pass: one list of problem indices per update, all passes in a row;
    by default every update sees all problems.
    """
    base_logprobs = response_logprobs(
        base, batch.prompt_token_ids, batch.response_token_ids, batch.mask, *update.generates, update.microbatch_rows
    )
    inputs = ScoreInputs(
        rewards=batch.rewards,
        base_token_logprobs=base_logprobs,
        behaviour_token_logprobs=batch.behaviour_logprobs,
        completion_mask=batch.mask,
    )
    scores = objective.score(inputs)
    values = _values(policy, batch, update, critic)
    advantages, returns = advantages_of(objective, inputs, scores, batch, update.algorithm, values)
    passes = minibatch_order or [range(batch.problems)] * update.algorithm.epochs
    metrics = update_policy(policy, optimizer, batch, advantages, update, passes, critic, values, returns)
    return score_metrics(batch, scores, base_logprobs) | metrics


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
    An update whose gradient is not finite is not applied, and `grad_norm` says so (nan or inf).
    """
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    collected: list[dict[str, float]] = []
    for problems in passes:
        optimizer.zero_grad(set_to_none=True)
        if critic:
            critic.optimizer.zero_grad(set_to_none=True)
        metrics = accumulate_gradient(policy, batch, advantages, update, list(problems), critic, values, returns)
        norm = float(nn.utils.clip_grad_norm_(parameters, update.max_grad_norm))
        metrics["grad_norm"] = norm
        collected.append(metrics)
        if norm != norm or norm == float("inf"):
            break
        optimizer.step()
        if critic:
            critic.optimizer.step()
    return _over_updates(collected)


def _over_updates(collected: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One figure per key: that of the first update, the largest, or the mean of those that are numbers."""
    combined: dict[str, float] = {}
    for key in collected[0]:
        values = [metrics[key] for metrics in collected]
        numbers = [value for value in values if value == value]
        if key.startswith(("sampling_logp_difference", "entropy")):
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


def accumulate_gradient(
    policy: LanguageModel,
    batch: RolloutBatch,
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    update: Update,
    problems: Sequence[int],
    critic: Critic | None = None,
    values: Float[Tensor, "B T"] | None = None,
    returns: Float[Tensor, "B T"] | None = None,
) -> dict[str, float]:
    """Add the gradient of the loss over these problems to the parameters' `.grad`, in micro-batches.

    Every row's weight in the loss is set by the whole minibatch before it is cut, so that neither micro-batches nor
    their order change the gradient: otherwise short micro-batches would weigh more per token.
    """
    config = update.algorithm
    chosen = torch.isin(batch.group_index, torch.as_tensor(list(problems)))
    valid = batch.valid & chosen
    weights = algorithm.reduction_weights(batch.mask, config.reduction, valid, update.sampling.max_new_tokens)
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand(batch.mask.shape)
    sums = _Sums(batch, valid)
    noise = SubbatchGradients([p for p in policy.model.parameters() if p.requires_grad])
    rows_in_part = 0
    for rows in _microbatches(batch, valid, problems, config.variance_subbatches, update.microbatch_rows):
        if rows is None:
            noise.record(rows_in_part)
            rows_in_part = 0
            continue
        rows_in_part += len(rows)
        width = max(1, int(batch.mask[rows].sum(-1).max()))
        mask = batch.mask[rows, :width]
        result = forward_responses(
            policy,
            [batch.prompt_token_ids[row] for row in rows],
            batch.response_token_ids[rows, :width],
            mask,
            *update.generates,
            with_entropy=True,
            with_hidden=critic is not None,
        )
        device = result.token_logprobs.device
        part_advantages = advantages[rows, :width].to(device)
        behaviour = batch.behaviour_logprobs[rows, :width].to(device)
        terms, ratio = _loss_terms(result.token_logprobs, behaviour, part_advantages, mask.to(device), config)
        loss = algorithm.weighted_sum(terms, weights[rows, :width].to(device))
        sums.add("loss/policy", float(loss.detach()))
        if critic and result.hidden is not None and values is not None and returns is not None:
            value_terms = algorithm.value_loss(
                critic.head(result.hidden),
                values[rows, :width].to(device),
                returns[rows, :width].to(device),
                mask.to(device),
                config.value_clip,
            )
            # Token mean over the minibatch. The head reads detached states: this adds nothing to the policy's gradient.
            value_loss = algorithm.weighted_sum(value_terms, mask.to(device) / max(1, sums.tokens))
            sums.add("loss/value", float(value_loss.detach()))
            loss = loss + value_loss
        torch.autograd.backward(loss)
        sums.observe(rows, mask, result.token_logprobs, result.entropy, ratio)
    return sums.metrics() | _noise_metrics(noise)


def score_metrics(
    batch: RolloutBatch, scores: Float[Tensor, " B"], base_logprobs: Float[Tensor, "B T"]
) -> dict[str, float]:
    """Reward, score, KL to the base (k1, k2, k3) and group figures of the rollouts, over the valid rows."""
    valid, mask = batch.valid, batch.mask & batch.valid[:, None]
    behaviour = batch.behaviour_logprobs
    rewards, valid_scores = batch.rewards[valid], scores[valid]
    log_ratio = masked_sum(behaviour - base_logprobs, mask)[valid]
    reward_groups = algorithm.zero_variance_groups(batch.rewards, batch.group_index, valid)
    score_groups = algorithm.zero_variance_groups(scores, batch.group_index, valid)
    return {
        "reward": _mean(rewards),
        "reward_std": float(rewards.std(correction=0)) if len(rewards) else float("nan"),
        "score/mean": _mean(valid_scores),
        "score/std": float(valid_scores.std(correction=0)) if len(valid_scores) else float("nan"),
        "base_logprob/mean_nats_per_sequence": _mean(masked_sum(base_logprobs, mask)[valid]),
        "frac_reward_zero_std": reward_groups.zero_variance_fraction,
        "frac_score_zero_std": score_groups.zero_variance_fraction,
        "undersized_groups": float(score_groups.undersized),
        "invalid_completions": float((~valid).sum()),
        "kl(policy||base)/k1_nats_per_sequence": _mean(log_ratio),
        "kl(policy||base)/k1_nats_per_token": float(
            masked_mean(algorithm.k1_policy_base(behaviour, base_logprobs), mask)
        ),
        "kl(policy||base)/k2_nats_per_token": float(
            masked_mean(algorithm.k2_policy_base(behaviour, base_logprobs), mask)
        ),
        "kl(policy||base)/k3_nats_per_token": float(
            masked_mean(algorithm.k3_policy_base(behaviour, base_logprobs), mask)
        ),
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


def _loss_terms(
    logprobs: Float[Tensor, "B T"],
    behaviour: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    config: AlgorithmConfig,
) -> tuple[Float[Tensor, "B T"], algorithm.RatioStatistics]:
    """Loss of each token, and what the importance ratio π/π_behaviour did; the ratio is watched under every loss."""
    if config.loss == "ppo_clip":
        return algorithm.ppo_clip(logprobs, behaviour, advantages, mask, config.clip_low, config.clip_high)
    _, ratio = algorithm.ppo_clip(logprobs.detach(), behaviour, advantages, mask, config.clip_low, config.clip_high)
    return algorithm.reinforce(logprobs, advantages, mask), ratio


def _microbatches(
    batch: RolloutBatch, valid: Bool[Tensor, " B"], problems: Sequence[int], subbatches: int, microbatch_rows: int
) -> Iterable[list[int] | None]:
    """Rows to run together; None after the last micro-batch of each sub-batch of problems."""
    for part in range(min(subbatches, len(problems))):
        dealt = torch.as_tensor(list(problems[part::subbatches]))
        rows = torch.nonzero(torch.isin(batch.group_index, dealt) & valid).flatten().tolist()
        prompts = [batch.prompt_token_ids[row] for row in rows]
        for places in scoring_microbatches(prompts, batch.mask[rows].sum(-1).tolist(), microbatch_rows):
            yield [rows[place] for place in places]
        yield None


class _Sums:
    """Token-weighted sums over the micro-batches of one update."""

    def __init__(self, batch: RolloutBatch, valid: Bool[Tensor, " B"]) -> None:
        self.tokens = int((batch.mask & valid[:, None]).sum())
        self._behaviour = batch.behaviour_logprobs
        # Every key is there from the start: a minibatch without a valid row still logs all of them.
        self._totals: dict[str, float] = {
            "loss/policy": 0.0,
            "sampling_logp_difference/mean": 0.0,
            "entropy/exact_nats_per_token": 0.0 if self.tokens else float("nan"),
        }
        self._difference_max = 0.0
        self._ratio = algorithm.RatioStatistics()

    def add(self, key: str, value: float) -> None:
        self._totals[key] = self._totals.get(key, 0.0) + value

    def observe(
        self,
        rows: list[int],
        mask: Bool[Tensor, "B T"],
        logprobs: Float[Tensor, "B T"],
        entropy: Float[Tensor, "B T"] | None,
        ratio: algorithm.RatioStatistics,
    ) -> None:
        share = 1.0 / max(1, self.tokens)
        behaviour = self._behaviour[rows, : mask.shape[1]]
        difference = torch.where(mask, (logprobs.detach().cpu() - behaviour).abs(), 0.0)
        self.add("sampling_logp_difference/mean", float(difference.sum()) * share)
        self._difference_max = max(self._difference_max, float(difference.max()))
        self._ratio = self._ratio + ratio
        if entropy is not None:
            self.add("entropy/exact_nats_per_token", float(torch.where(mask, entropy.cpu(), 0.0).sum()) * share)

    def metrics(self) -> dict[str, float]:
        return self._totals | self._ratio.as_metrics() | {"sampling_logp_difference/max": self._difference_max}


def _noise_metrics(subbatches: SubbatchGradients) -> dict[str, float]:
    noise = subbatches.noise()
    return {
        "gradient/variance_trace": noise.variance if noise else float("nan"),
        "gradient/signal_squared": noise.signal_squared if noise else float("nan"),
    }


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else float("nan")
