"""Teacher-forced log-probabilities of responses, in nats, at the tokens exactly as sampled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.masking import gather_token_logprobs
from bsharp.models.head import CHUNK_BYTES, LinearHead, chunked_logprobs, inner_model, linear_head
from bsharp.models.loading import LanguageModel
from bsharp.models.network import network_of
from bsharp.models.packed import hidden_states
from bsharp.models.packing import bundles, pack
from bsharp.models.parallel import run_pieces, threads_for_pieces
from bsharp.models.products import fast_products
from bsharp.models.scored_head import score_tokens

__all__ = ["ForwardResult", "forward_responses", "response_logprobs", "scoring_microbatches"]

PROMPTS_PER_BLOCK = 8
"""Prompts whose responses are sorted by length together: few enough to be run again in each of their micro-batches."""
WHOLE_LOGITS_BYTES = 2**28
"""Logits of one pass, rows × tokens × vocabulary in float32, that may be held whole. A step holds them about five times; below
1.3 GB there is little to save, and small models keep the shorter path."""


@dataclass(frozen=True)
class ForwardResult:
    """What one forward pass tells about the response tokens of its rows; outside the mask the values mean nothing."""

    token_logprobs: Float[Tensor, "B T"]  # nats, at the tokens of the response
    entropy: Float[Tensor, "B T"] | None  # nats, of the whole next-token distribution before each token
    hidden: Float[Tensor, "B T D"] | None  # last hidden state from which each token was predicted
    logits: Float[Tensor, "B T V"] | None = None  # at the sampling temperature, EOS masked where it was masked


def forward_responses(
    language_model: LanguageModel,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    temperature: float = 1.0,
    fixed_length: bool = False,
    with_entropy: bool = False,
    with_hidden: bool = False,
    with_logits: bool = False,
    share_prompts: bool = True,
    whole_logits: bool = False,
) -> ForwardResult:
    """log π(y_t | x, y_<t) for every response token, differentiable, from one pass over prompts and responses.

    With `share_prompts` a prompt that several rows have in common is run once and its keys and values are dealt to
    them, through the model's own cache: the same sums, and the gradient flows through the cache. Without, each row is
    run whole; so it is where the cache cannot be dealt (see `_can_share`). `fixed_length` masks every EOS id out of the
    distribution and renormalises, as the sampler does.

    Logits larger than WHOLE_LOGITS_BYTES are never held: response tokens go through the output layer in chunks
    (`chunked_logprobs`). They are held in any case `with_logits`, with `whole_logits`, inside torch.func's transformations and
    for models whose logits are not a linear layer of the last hidden state.

    Log-probabilities and entropy are in float32, in float64 for a float64 model. Raises ValueError for an empty prompt.
    """
    if min((len(prompt) for prompt in prompt_token_ids), default=1) < 1:
        raise ValueError("every prompt needs at least one token, got an empty one; add a BOS token or prompt text")
    with language_model.ready():
        head = None
        if not (with_logits or whole_logits) and _logit_bytes(language_model, response_mask) > WHOLE_LOGITS_BYTES:
            # A derivative of functions of tensors (jvp, vmap) is not one that the chunks know how to take.
            head = None if torch._C._are_functorch_transforms_active() else linear_head(language_model.model)
        shared = share_prompts and len({tuple(prompt) for prompt in prompt_token_ids}) < len(prompt_token_ids)
        run = _run_shared if shared and _can_share(language_model) else _run_rows
        network = _Network(language_model, head, with_hidden)
        raw_logits, hidden = run(network, prompt_token_ids, response_token_ids, response_mask)
        eos = language_model.eos_token_ids if fixed_length else ()
        if raw_logits is None:
            assert head is not None
            assert hidden is not None
            result = _from_hidden(head, hidden, response_token_ids, response_mask, temperature, eos, with_entropy)
        else:
            result = _from_logits(raw_logits, response_token_ids, response_mask, temperature, eos, with_entropy)
    return replace(result, hidden=hidden if with_hidden else None, logits=result.logits if with_logits else None)


def _from_logits(
    raw_logits: Float[Tensor, "B T V"],
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    temperature: float,
    masked_token_ids: Sequence[int],
    with_entropy: bool,
) -> ForwardResult:
    device = raw_logits.device
    logits = (raw_logits if raw_logits.dtype == torch.float64 else raw_logits.float()) / temperature
    if masked_token_ids:
        logits = logits.index_fill(-1, torch.tensor(masked_token_ids, device=device), -torch.inf)
    # Tokens outside the mask are replaced by a token that is never masked out, so that no infinity enters a gradient.
    safe = logits.detach().argmax(-1)
    targets = torch.where(mask.to(device), token_ids.to(device), safe)
    entropy = None
    if with_entropy:
        logprobs = logits.detach().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)
    return ForwardResult(gather_token_logprobs(logits, targets), entropy, hidden=None, logits=logits)


def _from_hidden(
    head: LinearHead,
    hidden: Float[Tensor, "B T D"],
    token_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    temperature: float,
    masked_token_ids: Sequence[int],
    with_entropy: bool,
) -> ForwardResult:
    """Only the tokens of the responses go through the output layer; the others get 0."""
    # Looked for where the mask is: on a GPU it would have to be waited for.
    places = mask.reshape(-1).nonzero().squeeze(-1).to(hidden.device)
    values = chunked_logprobs(
        hidden.flatten(0, 1).index_select(0, places),
        head.output.weight,
        head.output.bias,
        token_ids.to(hidden.device).reshape(-1).index_select(0, places),
        temperature,
        masked_token_ids,
        with_entropy,
        CHUNK_BYTES,
    )
    logprobs, entropy = (
        None if v is None else v.new_zeros(mask.numel()).index_copy(0, places, v).view(mask.shape) for v in values
    )
    assert logprobs is not None
    return ForwardResult(logprobs, entropy, hidden=None)


@dataclass(frozen=True)
class _Network:
    """The whole model, which gives logits, or its backbone alone, which gives hidden states for the output layer."""

    language_model: LanguageModel
    head: LinearHead | None
    with_hidden: bool

    def __call__(
        self,
        token_ids: Int[Tensor, "B W"],
        attention_mask: Int[Tensor, "B W"],
        positions: Int[Tensor, "B W"] | None = None,
        keep: int | None = None,
        **cache: Any,
    ) -> _Outputs:
        """`keep` asks for logits of the last places only, where the model can do that; hidden states are always whole."""
        accepted = _accepted(type(inner_model(self.language_model.model)).forward)
        device = self.language_model.device
        inputs = {"input_ids": token_ids.to(device), "attention_mask": attention_mask.to(device), **cache}
        # A model with relative positions takes no position_ids.
        if positions is not None and "position_ids" in accepted:
            inputs["position_ids"] = positions.to(device)
        if self.head is not None:
            output = self.head.backbone(**inputs)
            return _Outputs(None, output.last_hidden_state, getattr(output, "past_key_values", None))
        if keep is not None and "logits_to_keep" in accepted:
            inputs["logits_to_keep"] = keep
        output = self.language_model.model(**inputs, output_hidden_states=self.with_hidden)
        hidden = output.hidden_states[-1] if self.with_hidden else None
        return _Outputs(output.logits, hidden, getattr(output, "past_key_values", None))


@dataclass(frozen=True)
class _Outputs:
    logits: Float[Tensor, "B K V"] | None  # the last K places
    hidden: Float[Tensor, "B W D"] | None
    cache: Any


def _run_rows(
    network: _Network,
    prompts: Sequence[Sequence[int]],
    responses: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T V"] | None, Float[Tensor, "B T D"] | None]:
    """The plain path: prompt + response in one row, filled on the right, where a causal model cannot see the padding."""
    prompt_lengths = [len(prompt) for prompt in prompts]
    response_lengths = response_mask.sum(-1).tolist()
    width = max(p + r for p, r in zip(prompt_lengths, response_lengths, strict=True))
    rows = torch.full((len(prompts), width), network.language_model.pad_token_id, dtype=torch.long)
    attention = torch.zeros_like(rows)
    for index, (prompt, length) in enumerate(zip(prompts, response_lengths, strict=True)):
        rows[index, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        rows[index, len(prompt) : len(prompt) + length] = responses[index, :length]
        attention[index, : len(prompt) + length] = 1
    output = network(rows, attention, keep=width - min(prompt_lengths) + 1, use_cache=False)
    # The logits that predict response token t stand one place before it. Places behind a row's end repeat its last one.
    places = torch.tensor(prompt_lengths)[:, None] - 1 + torch.arange(responses.shape[1])[None, :]
    places = places.clamp(max=width - 1).to(network.language_model.device)

    def gathered(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        kept = places - (width - values.shape[1])
        return values.gather(1, kept[..., None].expand(-1, -1, values.shape[-1]))

    return gathered(output.logits), gathered(output.hidden)


def _run_shared(
    network: _Network,
    prompts: Sequence[Sequence[int]],
    responses: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T V"] | None, Float[Tensor, "B T D"] | None]:
    """Each distinct prompt once, aligned on the right; its cache dealt to its rows; then the responses behind it."""
    pad = network.language_model.pad_token_id
    places: dict[tuple[int, ...], int] = {}
    row_prompt = torch.tensor([places.setdefault(tuple(prompt), len(places)) for prompt in prompts])
    width = max(len(prompt) for prompt in places)
    prompt_ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in places])
    lengths = torch.tensor([len(prompt) for prompt in places])
    prompt_mask = (torch.arange(width)[None, :] >= (width - lengths)[:, None]).long()
    first = network(
        prompt_ids, prompt_mask, positions=(prompt_mask.cumsum(-1) - 1).clamp(min=0), keep=1, use_cache=True
    )
    row_source = row_prompt.to(network.language_model.device)
    parts = [(_dealt(first.logits, row_source), _dealt(first.hidden, row_source))]
    if responses.shape[1] > 1:
        first.cache.batch_select_indices(row_source)
        # The last token predicts nothing. Filled-up tokens stand behind the real ones, where these cannot see them.
        tokens = torch.where(response_mask, responses, pad)[:, :-1]
        steps = torch.arange(tokens.shape[1])[None, :]
        rest = network(
            tokens,
            torch.cat([prompt_mask[row_prompt], torch.ones_like(tokens)], dim=1),
            positions=lengths[row_prompt][:, None] + steps,
            past_key_values=first.cache,
            use_cache=True,
        )
        parts.append((rest.logits, rest.hidden))
    logits, hidden = ([piece for piece in pieces if piece is not None] for pieces in zip(*parts, strict=True))
    return torch.cat(logits, dim=1) if logits else None, torch.cat(hidden, dim=1) if hidden else None


def _dealt(values: Float[Tensor, "P W K"] | None, row_source: Int[Tensor, " B"]) -> Float[Tensor, "B 1 K"] | None:
    """What stands at the last place of each prompt, for each of its rows."""
    return None if values is None else values[:, -1:].index_select(0, row_source)


def _logit_bytes(language_model: LanguageModel, response_mask: Bool[Tensor, "B T"]) -> int:
    return 4 * response_mask.numel() * language_model.vocab_size


def _can_share(language_model: LanguageModel) -> bool:
    """Whether keys and values of a prompt, padded on the left, can be dealt to its rows.

    Not where a recurrent state takes the place of keys and values, and not where blocks are recomputed in the backward
    pass: transformers then runs them without a cache.
    """
    inner: Any = inner_model(language_model.model)
    layers = set(getattr(inner.config.get_text_config(), "layer_types", None) or ())
    return (
        "past_key_values" in _accepted(type(inner).forward)
        and layers <= {"full_attention", "sliding_attention"}
        and not any(getattr(module, "gradient_checkpointing", False) and module.training for module in inner.modules())
    )


@functools.cache
def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def response_logprobs(
    language_model: LanguageModel,
    prompt_token_ids: Sequence[Sequence[int]],
    response_token_ids: Int[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    temperature: float = 1.0,
    fixed_length: bool = False,
    microbatch_rows: int = 64,
) -> Float[Tensor, "B T"]:
    """`forward_responses` without gradients, in micro-batches; 0 outside the mask."""
    double = language_model.model.dtype == torch.float64
    result = torch.zeros(response_mask.shape, dtype=torch.float64 if double else torch.float32)
    network = network_of(language_model.model)
    if network is not None:
        masked = language_model.eos_token_ids if fixed_length else ()

        def score(batches: list[list[int]]) -> None:
            for rows in batches:
                packing = pack(network, prompt_token_ids, response_token_ids, response_mask, [rows])
                hidden = hidden_states(network, packing).index_select(0, packing.predictor)
                scored = score_tokens(hidden, network.head, packing.targets, temperature, masked)
                result.view(-1)[packing.places] = scored.logprobs

        threads = threads_for_pieces(network.weight_bytes)
        groups = prompt_groups(prompt_token_ids, microbatch_rows)
        together = bundles(network, prompt_token_ids, response_mask, groups, microbatch_rows, threads)
        batches = [[row for place in bundle for row in groups[place]] for bundle in together]
        with language_model.ready(), fast_products(network.weight_bytes):
            run_pieces(score, [batches[first::threads] for first in range(min(threads, len(batches)))])
        return result
    lengths = response_mask.sum(-1).tolist()
    # Held over all of them: an offloaded model comes to its device once.
    with torch.inference_mode(), language_model.ready():
        for rows in scoring_microbatches(prompt_token_ids, lengths, microbatch_rows):
            width = int(response_mask[rows].sum(-1).max())
            if width == 0:
                continue
            part = forward_responses(
                language_model,
                [prompt_token_ids[i] for i in rows],
                response_token_ids[rows, :width],
                response_mask[rows, :width],
                temperature,
                fixed_length,
            )
            mask = response_mask[rows, :width]
            result[rows, :width] = torch.where(mask, part.token_logprobs.cpu(), 0.0).to(result.dtype)
    return result


def prompt_groups(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Rows of each prompt, at most so many in one group: what they have in common is run once for a group."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(row)
    return [rows[start : start + most] for rows in by_prompt.values() for start in range(0, len(rows), most)]


def scoring_microbatches(
    prompts: Sequence[Sequence[int]], response_lengths: Sequence[int], microbatch_rows: int
) -> Iterator[list[int]]:
    """Row indices to run together: rows of a few prompts of similar length, within them responses of similar length.

    Less padding and prompts run seldom; the sums are the same, since every row's weight is set batch-wide.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(tuple(prompt), []).append(row)
    ordered = sorted(by_prompt, key=lambda prompt: (len(prompt), by_prompt[prompt][0]))
    block: list[int] = []
    prompts_in_block = 0
    for number, prompt in enumerate(ordered, start=1):
        block += by_prompt[prompt]
        prompts_in_block += 1
        if number == len(ordered) or (prompts_in_block >= PROMPTS_PER_BLOCK and len(block) >= microbatch_rows):
            block.sort(key=lambda row: (response_lengths[row], row))
            for start in range(0, len(block), microbatch_rows):
                yield block[start : start + microbatch_rows]
            block, prompts_in_block = [], 0
