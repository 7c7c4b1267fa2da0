"""The policy gradients of several objectives on the same rollouts, as inner products and as vectors.

Whatever is asked of them later (cosines, halves of the batch, jackknife, variance) follows from inner products alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor, nn

from bsharp import algorithm
from bsharp.algorithm import Objective, ScoreInputs
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.masking import masked_sum
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import forward_responses, response_logprobs, scoring_microbatches
from bsharp.rollouts import RolloutBatch
from bsharp.seeding import generator

__all__ = ["MEGABYTES", "ObjectiveGradients", "module_group", "objective_gradients", "trained_parameters"]

BLOCKS = 8
MEGABYTES = 1024.0
WORKING_NUMBERS = 2**20
"""Float64 numbers of which products are formed at once, 8 MB, beside a copy of them."""
WITHIN_PROBLEMS = ("leave_one_out", "group_z_score")
"""Advantages that compare the completions of a problem with each other only."""
ROUNDING = 1e-5
"""Relative size below which a difference of fp32 log-probabilities, summed over a response, is rounding."""


@dataclass(frozen=True)
class ObjectiveGradients:
    """Inner products of the contributions g_{o,k} to the ascent directions ĝ_o = Σ_k g_{o,k} of O objectives.

    A block k holds the problems dealt to it at random, a share of all rows; K blocks, P problems. Float64.
    """

    names: tuple[str, ...]  # O
    groups: Mapping[str, NDArray[np.float64]]  # module group, in network order → ⟨g_{o,k}, g_{p,l}⟩, (O, K, O, K)
    problem_products: NDArray[np.float64]  # (P, O, O): ⟨g_{o,p}, g_{q,p}⟩ of each problem's own contribution
    problem_shares: NDArray[np.float64]  # (P,): rows of the problem / rows of the batch
    problem_block: NDArray[np.intp]  # (P,)
    scores: NDArray[np.float64]  # (O, B) of the rows that count
    score_problems: NDArray[np.intp]  # (B,): problem of each of these rows
    flat: NDArray[np.bool_]  # (O,): every advantage is 0 up to rounding, so the gradient is 0
    no_spread: NDArray[np.bool_]  # (O,): the scores differ within no problem by more than rounding
    advantage: str  # the one used
    basis: Float[Tensor, "R N"]  # gradients that were differentiated, in the order of the trainable parameters
    mixing: Float[Tensor, "O R"]  # every ĝ_o = Σ_r mixing[o, r] basis[r]
    missing: str = ""  # why there are no gradients: all products are then NaN, and `basis` is empty

    @property
    def total(self) -> NDArray[np.float64]:
        """⟨g_{o,k}, g_{p,l}⟩ over the whole model, (O, K, O, K)."""
        return np.asarray(sum(self.groups.values()))

    def vector(self, name: str) -> Float[Tensor, " N"]:
        """The direction ĝ in which `name` rises, over the trainable parameters in their order, fp32."""
        return self.mixing[self.names.index(name)].to(self.basis) @ self.basis


def objective_gradients(
    policy: LanguageModel,
    base: LanguageModel,
    batch: RolloutBatch,
    objectives: Mapping[str, Objective],
    algorithm_config: AlgorithmConfig,
    sampling: SamplingConfig,
    *,
    microbatch_rows: int,
    seed: int,
    blocks: int = BLOCKS,
    megabytes: float = MEGABYTES,
    allow_missing: bool = False,
) -> ObjectiveGradients:
    """Policy gradients ĝ_o = Σ_i Σ_t w_it A_oi ∇ log π(y_it) of all objectives on the rollouts of `policy`.

    A and w are those of a training step: the advantage and the reduction of `algorithm_config`, the temperature and the
    length mode of `sampling`. Advantage "gae" has no critic here and becomes "leave_one_out". The loss is that of
    exactly on-policy rollouts, where reinforce and ppo_clip agree; −ĝ_o is what a step leaves in the gradient.

    Every problem is run forward once. Objectives whose advantages are linear combinations of others' (within 1e-5: at
    the base a KL term adds nothing) are not differentiated: there are as many backward passes as independent ones.
    Problems with too few valid rows for their advantage say nothing and are left out. An objective whose advantages are 0 up
    to rounding is `flat`, its gradient is exactly 0: with "leave_one_out" and "group_z_score" where its scores differ within
    no problem, with "batch_normalised" where they do not differ at all, with "none" where they are 0.

    Memory beside the models and one micro-batch: 4 (R (K + 1) + 1) N bytes (in fp32) for R independent objectives, K blocks
    and N trainable parameters, and 16 MB; afterwards 4 R N. Gradients are summed and compared in fp32 whatever the weights'
    precision. K is the largest number of at most `blocks`, and of at most one per problem, that fits into `megabytes` (of 10⁶
    bytes). Where not even two blocks fit, a ValueError says how much they
    need, or with `allow_missing` the result has that sentence in `missing` and only figures of the scores. Raises ValueError
    without an objective and without a trainable parameter.
    """
    if getattr(policy, "adapter_disabled", False):
        raise ValueError(
            "the policy's adapter is disabled, so that no gradient reaches it; give the policy as training starts it "
            "(make_policy)"
        )
    parameters = trained_parameters(policy.model)
    if not objectives or not parameters:
        raise ValueError(
            f"gradients need an objective and a trainable parameter, got {len(objectives)} and {len(parameters)}; "
            "name an objective, or call model.requires_grad_(True)"
        )
    generates = (sampling.temperature, sampling.fixed_length)
    base_logprobs = response_logprobs(
        base, batch.prompt_token_ids, batch.response_token_ids, batch.mask, *generates, microbatch_rows
    )
    advantage = "leave_one_out" if algorithm_config.advantage == "gae" else algorithm_config.advantage
    counted = _counted_rows(batch, needs_group=advantage in WITHIN_PROBLEMS)
    present = sorted(set(batch.group_index[counted].tolist()))
    inputs = ScoreInputs(batch.rewards, base_logprobs, batch.behaviour_logprobs, batch.mask)
    scores, flat, no_spread = _scores(objectives, inputs, counted, batch, advantage)
    advantages = torch.stack([algorithm.ADVANTAGES[advantage](row, batch.group_index, batch.valid) for row in scores])
    advantages[torch.as_tensor(flat)] = 0.0
    chosen, mixing = _independent(advantages.double().numpy())
    blocks, missing = _blocks_that_fit(min(blocks, len(present)), len(chosen), list(parameters.values()), megabytes)
    if missing and not allow_missing:
        raise ValueError(f"{missing}; raise --gradient-megabytes of `bsharp diagnose`")
    block_of = _dealt(len(present), 1 if missing else blocks, seed)
    if missing:
        products, groups, basis = _nothing(len(present), len(objectives), parameters)
    else:
        weights = algorithm.reduction_weights(
            batch.mask, algorithm_config.reduction, batch.valid, sampling.max_new_tokens
        )
        places = [torch.nonzero(counted & (batch.group_index == problem)).flatten() for problem in present]
        coefficients = [advantages[chosen][:, rows, None] * weights[rows] for rows in places]
        products, groups, basis = _products(
            policy, batch, places, coefficients, block_of, parameters, mixing, generates, microbatch_rows
        )
    rows_of = torch.bincount(batch.group_index[counted], minlength=batch.problems)[present].double().numpy()
    return ObjectiveGradients(
        names=tuple(objectives),
        groups=groups,
        problem_products=products,
        problem_shares=rows_of / rows_of.sum(),
        problem_block=block_of,
        scores=scores[:, counted].double().numpy(),
        score_problems=batch.group_index[counted].numpy(),
        flat=flat,
        no_spread=no_spread,
        advantage=advantage,
        basis=basis,
        mixing=torch.as_tensor(mixing),
        missing=missing,
    )


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What training moves, by name: the parameters that require a gradient; of a model with adapters only the adapters'."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not hasattr(model, "peft_config"):
        return found
    return {name: parameter for name, parameter in found.items() if re.search(r"(^|\.)lora_", name)}


def module_group(parameter_name: str) -> str:
    """The part of a causal LM that a parameter belongs to, from its name alone.

    "layer 3 attention", "layer 3 mlp", "layer 3 norms", "layer 3 rest", "embedding", "head", "final norm" or "rest": the first
    number in the name is the layer's, and its child is told by its words (attn, mlp, norm and the like).
    """
    name = parameter_name.lower()
    layer = re.search(r"\.(\d+)\.", name)
    if layer:
        inside = name[layer.end() :]
        # First the norms: one beside the attention may carry its name, as post_attention_layernorm does.
        if re.match(r"\w*(norm|ln_)", inside):
            return f"layer {layer[1]} norms"
        if re.match(r"\w*(attn|attention)", inside):
            return f"layer {layer[1]} attention"
        if re.match(r"\w*(mlp|feed_forward|ffn|moe|expert)", inside):
            return f"layer {layer[1]} mlp"
        return f"layer {layer[1]} rest"
    if re.search(r"lm_head|embed_out", name):
        return "head"
    if re.search(r"embed|wte|wpe", name):
        return "embedding"
    return "final norm" if re.search(r"norm|ln_f", name) else "rest"


def _counted_rows(batch: RolloutBatch, needs_group: bool) -> Bool[Tensor, " B"]:
    """The rows that can have a gradient: valid, and with another one to be compared with where the advantage needs it."""
    if not needs_group or not batch.rows:
        return batch.valid
    graded = torch.bincount(batch.group_index[batch.valid], minlength=batch.problems)
    return batch.valid & (graded[batch.group_index] >= 2)


def _scores(
    objectives: Mapping[str, Objective],
    inputs: ScoreInputs,
    counted: Bool[Tensor, " B"],
    batch: RolloutBatch,
    advantage: str,
) -> tuple[Float[Tensor, "O B"], NDArray[np.bool_], NDArray[np.bool_]]:
    """Scores of every objective, which of them make every advantage 0, and which differ within no problem; up to rounding."""
    base = masked_sum(inputs.base_token_logprobs, inputs.completion_mask).abs()
    own = masked_sum(inputs.behaviour_token_logprobs, inputs.completion_mask).abs()
    scores, flat, no_spread = [], [], []
    for objective in objectives.values():
        score = objective.score(inputs)
        terms = (abs(objective.base_loglikelihood) + objective.kl_to_base) * base
        terms = terms + (objective.kl_to_base + abs(objective.own_loglikelihood)) * own
        tolerance = ROUNDING * float(terms[counted].max()) if bool(counted.any()) else 0.0
        no_spread.append(_equal_within(score, batch.group_index, counted, tolerance))
        if advantage in WITHIN_PROBLEMS:
            flat.append(no_spread[-1])
        elif advantage == "batch_normalised":
            flat.append(_equal_within(score, torch.zeros_like(batch.group_index), counted, tolerance))
        else:
            flat.append(bool((score[counted].abs() <= tolerance).all()))
        scores.append(torch.where(counted, score, 0.0))
    return torch.stack(scores), np.array(flat), np.array(no_spread)


def _equal_within(
    score: Float[Tensor, " B"], group_index: Int[Tensor, " B"], counted: Bool[Tensor, " B"], tolerance: float
) -> bool:
    groups = algorithm.zero_variance_groups(score, group_index, counted, tolerance)
    return groups.zero_variance == groups.comparable


def _blocks_that_fit(
    blocks: int, independent: int, parameters: Sequence[nn.Parameter], megabytes: float
) -> tuple[int, str]:
    """The largest number of blocks up to `blocks` whose gradients fit, and "" or why not even two do."""
    size = sum(parameter.numel() for parameter in parameters)
    one_backward = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    least = min(2, blocks)
    for count in range(blocks, least - 1, -1):
        needed = (4 * independent * (count + 1) * size + one_backward) / 1e6 if independent else 0.0
        if needed <= megabytes:
            return count, ""
    # Rounded up: what is asked for must be enough.
    return least, (
        f"gradients of {independent} independent objectives at {size:,} weights need {math.ceil(needed):,} MB even in "
        f"{least} blocks of problems, more than the {megabytes:,g} MB allowed"
    )


def _dealt(problems: int, blocks: int, seed: int) -> NDArray[np.intp]:
    """A block for every problem, at random; (P,)."""
    block_of = np.empty(problems, dtype=np.intp)
    block_of[generator(seed, "gradient_blocks").permutation(problems)] = np.arange(problems) % max(
        1, min(blocks, problems)
    )
    return block_of


def _independent(advantages: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """Objectives to differentiate, and how each of the O is mixed from them, (O, R)."""
    norms = np.linalg.norm(advantages, axis=1, keepdims=True)
    scaled = np.divide(advantages, norms, out=np.zeros_like(advantages), where=norms > 0)
    triangle, pivots = linalg.qr(scaled.T, mode="r", pivoting=True)
    rank = int((np.abs(np.diag(triangle)) > ROUNDING).sum())
    chosen = sorted(pivots[:rank].tolist())
    mixing = np.linalg.lstsq(scaled[chosen].T, scaled.T, rcond=None)[0].T * norms
    mixing = mixing / norms[chosen].T if rank else np.zeros((len(advantages), 0))
    # The objectives that were differentiated are themselves, to the last bit.
    mixing[chosen] = np.eye(rank)
    return chosen, mixing


def _nothing(
    problems: int, objectives: int, parameters: Mapping[str, nn.Parameter]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]], Float[Tensor, "R N"]]:
    """What `_products` gives, in one block and undefined."""
    unknown = np.full((objectives, 1, objectives, 1), np.nan)
    groups = {module_group(name): unknown for name in parameters}
    return np.full((problems, objectives, objectives), np.nan), groups, torch.zeros(0, 0)


def _products(
    policy: LanguageModel,
    batch: RolloutBatch,
    places: Sequence[Int[Tensor, " n"]],
    coefficients: Sequence[Float[Tensor, "R n T"]],
    block_of: NDArray[np.intp],
    parameters: Mapping[str, nn.Parameter],
    mixing: NDArray[np.float64],
    generates: tuple[float, bool],
    microbatch_rows: int,
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]], Float[Tensor, "R N"]]:
    """Inner products of every problem, (P, O, O), of the blocks by module group, (O, K, O, K) each, and their sum, (R, N)."""
    independent, size = mixing.shape[1], sum(parameter.numel() for parameter in parameters.values())
    count = int(block_of.max(initial=0)) + 1
    sums = [torch.zeros(independent, size, device=policy.device) for _ in range(count)]
    piece = torch.empty(independent, size, device=policy.device)
    products = np.empty((len(places), independent, independent))
    for place, rows in enumerate(places):
        piece.zero_()
        _add_contributions(
            piece, policy, batch, rows.tolist(), coefficients[place], parameters, generates, microbatch_rows
        )
        sums[block_of[place]] += piece
        products[place] = (piece @ piece.T).double().cpu().numpy()
    groups = _group_products(sums, parameters, mixing)
    basis = sums[0]
    for other in sums[1:]:
        basis += other
    return np.einsum("or,prs,qs->poq", mixing, products, mixing), groups, basis


def _add_contributions(
    found: Float[Tensor, "R N"],
    policy: LanguageModel,
    batch: RolloutBatch,
    rows: list[int],
    coefficients: Float[Tensor, "R n T"],
    parameters: Mapping[str, nn.Parameter],
    generates: tuple[float, bool],
    microbatch_rows: int,
) -> None:
    """Adds Σ_i Σ_t c_rit ∇ log π(y_it) over the rows of one problem to `found`, fp32."""
    weights_of = list(parameters.values())
    sizes = [parameter.numel() for parameter in weights_of]
    lengths = batch.mask[rows].sum(-1).tolist()
    for places in scoring_microbatches([batch.prompt_token_ids[row] for row in rows], lengths, microbatch_rows):
        part = [rows[place] for place in places]
        width = max(1, max(lengths[place] for place in places))
        logprobs = forward_responses(
            policy,
            [batch.prompt_token_ids[row] for row in part],
            batch.response_token_ids[part, :width],
            batch.mask[part, :width],
            *generates,
        ).token_logprobs
        for number, weights in enumerate(coefficients[:, places, :width].to(logprobs.device, logprobs.dtype)):
            if not bool(weights.any()):
                continue
            value = algorithm.weighted_sum(logprobs, weights)
            last = number == len(coefficients) - 1
            pieces = torch.autograd.grad(value, weights_of, retain_graph=not last, allow_unused=True)
            for total, piece in zip(torch.split(found[number], sizes), pieces, strict=True):
                if piece is not None:
                    total += piece.reshape(-1)


def _group_products(
    sums: Sequence[Float[Tensor, "R N"]], parameters: Mapping[str, nn.Parameter], mixing: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """⟨g_{o,k}, g_{p,l}⟩ of every module group, (O, K, O, K), in network order."""
    independent, blocks = len(sums[0]), len(sums)
    columns = max(1, WORKING_NUMBERS // max(1, independent * blocks))
    products: dict[str, NDArray[np.float64]] = {}
    start = 0
    for name, parameter in parameters.items():
        product = np.zeros((independent * blocks, independent * blocks))
        stop = start + parameter.numel()
        for first in range(start, stop, columns):
            part = slice(first, min(first + columns, stop))
            piece = torch.cat([block[:, part].double() for block in sums])  # block by block
            product += (piece @ piece.T).cpu().numpy()
        start = stop
        mixed = np.einsum("or,krls,ps->okpl", mixing, product.reshape(blocks, independent, blocks, independent), mixing)
        group = module_group(name)
        products[group] = products.get(group, 0.0) + mixed
    return products
