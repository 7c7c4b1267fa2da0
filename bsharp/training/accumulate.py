"""The gradient of one update, in micro-batches, and the contribution of every problem to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bsharp import algorithm
from bsharp.config import AlgorithmConfig
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import scoring_microbatches
from bsharp.models.stacked import NotSeparable, StackedParameters
from bsharp.rollouts import RolloutBatch
from bsharp.statistics.gradient_noise import GradientNoise
from bsharp.training.gradients import PartGradients
from bsharp.training.passes import Critic, PackedPasses, Passes, StepSums, Update, trained_network

__all__ = ["Critic", "Update", "accumulate_gradient"]

STACKED_BYTES = 2**28
"""Gradients of single problems held at once; beyond it, where a model is large, there is nothing to gain by it either."""


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
    own, or from passes that keep them apart (`PackedPasses`, `StackedParameters`) where the model allows it.
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
    sums, contributions = StepSums(batch, valid), PartGradients(parameters)
    passes = Passes(policy, batch, advantages, weights, update, sums, critic, values, returns)
    network = trained_network(policy, parameters)
    packed = None if network is None else PackedPasses(passes, network)
    parts = list(_parts(batch, valid, problems, config.variance_subbatches))
    # Where no advantage differs from 0 there is no gradient to compute: such problems are only looked at.
    moving = batch.mask & (weights != 0) & (advantages != 0)
    silent = [part for part in parts if critic is None and not bool(moving[part].any())]
    if packed is not None:
        packed.look(silent)
    else:
        for rows in _microbatches(batch, [row for part in silent for row in part], update.microbatch_rows):
            passes.look(rows)
    for part in silent:
        contributions.record(_comparable_rows(batch, part, config))
    speaking = [part for part in parts if part not in silent]
    if packed is not None:
        rows_with_gradient = [_comparable_rows(batch, part, config) for part in speaking]
        contributions.record_known(rows_with_gradient, packed.accumulate(speaking))
        contributions.take(packed.gradients)
    else:
        _accumulate_plain(passes, speaking, parameters, contributions)
    return sums.metrics(advantages, config) | _noise_metrics(contributions.finish(zeros=sums.tokens > 0))


def _accumulate_plain(
    passes: Passes,
    parts: Sequence[list[int]],
    parameters: Sequence[nn.Parameter],
    contributions: PartGradients,
) -> None:
    """Backward passes through the policy's own modules: several parts at once where that keeps them apart, else each alone."""
    batch, update, sums = passes.batch, passes.update, passes.sums
    # Recomputing a block in the backward pass would run it on the shared parameters.
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in passes.policy.model.modules())
    bundled = passes.critic is None and not recomputed
    for bundle in _bundles(batch, parts, parameters, update.microbatch_rows):
        comparable = [_comparable_rows(batch, part, update.algorithm) for part in bundle]
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


def _noise_metrics(noise: GradientNoise | None) -> dict[str, float]:
    return {
        "gradient/variance_trace": noise.variance if noise else float("nan"),
        "gradient/signal_squared": noise.signal_squared if noise else float("nan"),
    }
