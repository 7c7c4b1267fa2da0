"""The gradient of one update, in micro-batches, and the contribution of every problem to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bsharp import algorithm
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.masking import masked_mean
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import ForwardResult, forward_responses, scoring_microbatches
from bsharp.models.stacked import NotSeparable, StackedParameters
from bsharp.models.value_head import ValueHead
from bsharp.rollouts import RolloutBatch
from bsharp.statistics.gradient_noise import GradientNoise
from bsharp.training.gradients import PartGradients

__all__ = ["Critic", "Update", "accumulate_gradient"]

STACKED_BYTES = 2**28
"""Gradients of single problems held at once; beyond it, where a model is large, there is nothing to gain by it either."""


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
    """Leave the gradient of the loss over these problems in the parameters' `.grad`, in micro-batches.

    Every row's weight in the loss is set by the whole minibatch before it is cut, so that neither micro-batches nor
    their order change the gradient: otherwise short micro-batches would weigh more per token.

    `gradient/variance_trace` tr Cov(ĝ) and `gradient/signal_squared` ‖E ĝ‖² are estimated from the gradient contribution of
    every single problem (of `variance_subbatches` parts where that is set) by the formula of `gradient_noise`, with shares
    of rows; a problem with too few valid rows for its advantage is none. Contributions come from backward passes of their
    own, or from passes that keep them apart (`StackedParameters`) where the model allows it and no critic is trained.
    The problems count as drawn at random: where families take turns, their differences count as noise. Under token_mean
    and batch_normalised the problems share a denominator, whose own noise is not seen.

    Gradients of parameters of lower precision than float32 are float32 from the first micro-batch on. With
    `importance_cap` every token's term is weighed by `truncated_importance_weights`, which is part of the loss.
    """
    config = update.algorithm
    valid = batch.valid & torch.isin(batch.group_index, torch.as_tensor(list(problems)))
    weights = _token_weights(batch, valid, update)
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand(batch.mask.shape)
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    sums, contributions = _Sums(batch, valid), PartGradients(parameters)
    passes = _Passes(policy, batch, advantages, weights, update, sums, critic, values, returns)
    parts = list(_parts(batch, valid, problems, config.variance_subbatches))
    # Where no advantage differs from 0 there is no gradient to compute: such problems are only looked at.
    moving = batch.mask & (weights != 0) & (advantages != 0)
    silent = [part for part in parts if critic is None and not bool(moving[part].any())]
    with torch.no_grad():
        for rows in _microbatches(batch, [row for part in silent for row in part], update.microbatch_rows):
            passes.forward(rows)
    for part in silent:
        contributions.record(_comparable_rows(batch, part, config))
    # Recomputing a block in the backward pass would run it on the shared parameters.
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in policy.model.modules())
    bundled = critic is None and not recomputed
    for bundle in _bundles(batch, [part for part in parts if part not in silent], parameters, update.microbatch_rows):
        comparable = [_comparable_rows(batch, part, config) for part in bundle]
        if bundled and len(bundle) > 1:
            stacked = StackedParameters(parameters, len(bundle))
            try:
                loss = passes.backward([row for part in bundle for row in part], stacked)
                contributions.record_all(comparable, stacked.gradients())
                sums.add("loss/policy", loss)
                continue
            except NotSeparable:
                bundled = False
                contributions.discard()
        for part, rows_with_gradient in zip(bundle, comparable, strict=True):
            for rows in _microbatches(batch, part, update.microbatch_rows):
                sums.add("loss/policy", passes.backward(rows))
            contributions.record(rows_with_gradient)
    return sums.metrics(advantages, config) | _noise_metrics(contributions.finish(zeros=sums.tokens > 0))


@dataclass(frozen=True)
class _Passes:
    """Forward and backward passes over rows of one minibatch, whose weights in the loss are set already."""

    policy: LanguageModel
    batch: RolloutBatch
    advantages: Float[Tensor, "B T"]
    weights: Float[Tensor, "B T"]
    update: Update
    sums: _Sums
    critic: Critic | None
    values: Float[Tensor, "B T"] | None
    returns: Float[Tensor, "B T"] | None

    @property
    def trains_head(self) -> bool:
        """Whether the output layer gets a gradient, which is then kept apart through its plain linear map only."""
        head = self.policy.model.get_output_embeddings()
        return head is None or any(parameter.requires_grad for parameter in head.parameters())

    def forward(self, rows: list[int], stacked: StackedParameters | None = None) -> ForwardResult:
        width = max(1, int(self.batch.mask[rows].sum(-1).max()))
        with stacked or nullcontext():
            result = forward_responses(
                self.policy,
                [self.batch.prompt_token_ids[row] for row in rows],
                self.batch.response_token_ids[rows, :width],
                self.batch.mask[rows, :width],
                *self.update.generates,
                with_entropy=True,
                with_hidden=self.critic is not None,
                whole_logits=stacked is not None and self.trains_head,
            )
        self.sums.observe(rows, result)
        return result

    def backward(self, rows: list[int], stacked: StackedParameters | None = None) -> float:
        """Add the gradient of these rows; returns their part of the policy's loss."""
        result, config = self.forward(rows, stacked), self.update.algorithm
        device, width = result.token_logprobs.device, result.token_logprobs.shape[1]
        mask = self.batch.mask[rows, :width].to(device)
        advantages = self.advantages[rows, :width].to(device)
        before = self.batch.policy_logprobs[rows, :width].to(device)
        terms = _loss_terms(result.token_logprobs, before, advantages, mask, config)
        loss = algorithm.weighted_sum(terms, self.weights[rows, :width].to(device))
        policy_loss = float(loss.detach())
        if self.critic and result.hidden is not None and self.values is not None and self.returns is not None:
            value_terms = algorithm.value_loss(
                self.critic.head(result.hidden),
                self.values[rows, :width].to(device),
                self.returns[rows, :width].to(device),
                mask,
                config.value_clip,
            )
            # Token mean over the minibatch. The head reads detached states: this adds nothing to the policy's gradient.
            value_loss = algorithm.weighted_sum(value_terms, mask / max(1, self.sums.tokens))
            self.sums.add("loss/value", float(value_loss.detach()))
            loss = loss + value_loss
        torch.autograd.backward(loss)
        return policy_loss


def _loss_terms(
    logprobs: Float[Tensor, "B T"],
    before: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    config: AlgorithmConfig,
) -> Float[Tensor, "B T"]:
    if config.loss == "ppo_clip":
        return algorithm.ppo_clip(logprobs, before, advantages, mask, config.clip_low, config.clip_high)[0]
    return algorithm.reinforce(logprobs, advantages, mask)


def _token_weights(batch: RolloutBatch, valid: Bool[Tensor, " B"], update: Update) -> Float[Tensor, "B T"]:
    """What every token's term counts in the loss: its share of the reduction, times its importance weight."""
    config = update.algorithm
    weights = algorithm.reduction_weights(batch.mask, config.reduction, valid, update.sampling.max_new_tokens)
    if config.importance_cap is None:
        return weights
    return weights * algorithm.truncated_importance_weights(
        batch.policy_logprobs, batch.behaviour_logprobs, batch.mask, config.importance_cap
    )


def _parts(
    batch: RolloutBatch, valid: Bool[Tensor, " B"], problems: Sequence[int], parts: int | None
) -> Iterator[list[int]]:
    """The valid rows of each part of the problems, by default of each problem."""
    count = min(parts or len(problems), len(problems))
    for part in range(count):
        dealt = torch.as_tensor(list(problems[part::count]))
        yield torch.nonzero(torch.isin(batch.group_index, dealt) & valid).flatten().tolist()


def _bundles(
    batch: RolloutBatch, parts: Sequence[list[int]], parameters: Sequence[nn.Parameter], microbatch_rows: int
) -> Iterator[list[list[int]]]:
    """Parts to run in one pass whose gradients can be kept apart: equally many rows, and one prompt each, its own."""
    size = 4 * sum(parameter.numel() for parameter in parameters)
    alike: dict[int, list[list[int]]] = {}
    for part in parts:
        if len({batch.prompt_token_ids[row] for row in part}) == 1:
            alike.setdefault(len(part), []).append(part)
        else:
            yield [part]
    for rows, members in alike.items():
        members.sort(key=lambda part: int(batch.mask[part].sum(-1).max()))
        together = max(1, min(microbatch_rows // rows, STACKED_BYTES // size))
        for start in range(0, len(members), together):
            bundle = members[start : start + together]
            distinct = {batch.prompt_token_ids[part[0]] for part in bundle}
            yield from [bundle] if len(distinct) == len(bundle) else [[part] for part in bundle]


def _microbatches(batch: RolloutBatch, rows: list[int], microbatch_rows: int) -> Iterator[list[int]]:
    """The rows in pieces to run together."""
    prompts = [batch.prompt_token_ids[row] for row in rows]
    for places in scoring_microbatches(prompts, batch.mask[rows].sum(-1).tolist(), microbatch_rows):
        yield [rows[place] for place in places]


def _comparable_rows(batch: RolloutBatch, rows: list[int], config: AlgorithmConfig) -> int:
    """How many of these valid rows can have a gradient: alone in its group, a row has advantage 0 by definition."""
    if config.advantage not in ("leave_one_out", "group_z_score"):
        return len(rows)
    sizes = torch.bincount(batch.group_index[rows]) if rows else torch.zeros(0)
    return int(sizes[sizes >= 2].sum())


class _Sums:
    """What the passes of one update showed: loss sums, and every token's log-probability and entropy, read at the end."""

    def __init__(self, batch: RolloutBatch, valid: Bool[Tensor, " B"]) -> None:
        self._mask = batch.mask & valid[:, None]
        self.tokens = int(self._mask.sum())
        self._batch = batch
        self._logprobs = batch.policy_logprobs.clone()
        self._entropy = torch.zeros(batch.mask.shape)
        # Every key is there from the start: a minibatch without a valid row still logs all of them.
        self._totals: dict[str, float] = {"loss/policy": 0.0}

    def add(self, key: str, value: float) -> None:
        self._totals[key] = self._totals.get(key, 0.0) + value

    def observe(self, rows: list[int], result: ForwardResult) -> None:
        logprobs = result.token_logprobs.detach().cpu()
        self._logprobs[rows, : logprobs.shape[1]] = logprobs.to(self._logprobs.dtype)
        if result.entropy is not None:
            self._entropy[rows, : logprobs.shape[1]] = result.entropy.float().cpu()

    def metrics(self, advantages: Float[Tensor, "B T"], config: AlgorithmConfig) -> dict[str, float]:
        """Sums and token means; the ratio to the policy before the update and the mismatch to the sampler, under every loss."""
        mask, batch = self._mask, self._batch
        _, ratio = algorithm.ppo_clip(
            self._logprobs, batch.policy_logprobs, advantages.cpu(), mask, config.clip_low, config.clip_high
        )
        trainer = self._logprobs if batch.trainer_logprobs is None else batch.trainer_logprobs
        mismatch = algorithm.sampler_mismatch(trainer, batch.behaviour_logprobs, mask, config.importance_cap)
        entropy = float(masked_mean(self._entropy.double(), mask)) if self.tokens else float("nan")
        return self._totals | ratio.as_metrics() | mismatch | {"entropy/exact_nats_per_token": entropy}


def _noise_metrics(noise: GradientNoise | None) -> dict[str, float]:
    return {
        "gradient/variance_trace": noise.variance if noise else float("nan"),
        "gradient/signal_squared": noise.signal_squared if noise else float("nan"),
    }
