"""Token log-probabilities from hidden states, without ever holding (tokens × vocabulary) numbers.

The output layer of a causal LM turns a hidden state h of D numbers into V logits z = W h + b. At V = 151,936 the logits of
16 × 1024 tokens are 10 GB in float32, and a plain training step holds them several times over. Here the tokens pass through
in chunks: one chunk's logits are computed, reduced to what is asked for and overwritten by the next; the backward pass
computes them again from the same hidden states. One matrix product of three is done twice, that is a third more time in the
output layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CHUNK_BYTES", "LinearHead", "chunked_logprobs", "inner_model", "linear_head"]

CHUNK_BYTES = 2**27
"""Logits of one chunk in float32: 220 tokens at 152,000 entries, enough for a matrix product to run at full speed, and little
beside the gradient of the output layer itself."""


@dataclass(frozen=True)
class LinearHead:
    """A model in two pieces: logits = output(backbone(token ids).last_hidden_state), and nothing else in between."""

    backbone: nn.Module
    output: nn.Linear


def chunked_logprobs(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    token_ids: Int[Tensor, " N"],
    temperature: float = 1.0,
    masked_token_ids: Sequence[int] = (),
    with_entropy: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """log q(y_n) at the given tokens and, where asked for, the entropy −Σ_v q(v) log q(v), nats, for N tokens.

    q = softmax((W h_n + b) / temperature) with the probability of `masked_token_ids` set to 0 and the rest renormalised.
    Logits have the type of `hidden`, as those of the model itself; softmax, sums and the gradient of W are in float32 at
    least (float64 stays float64). The gradient of log q(y) is analytic, ∂/∂z_v = (1[v = y] − q(v)) / temperature, with the
    logits computed again; W and b get none where they are frozen. The entropy has no gradient. Second derivatives are
    refused. At a masked token log q is −∞ and its own logit gets no gradient. N = 0 gives two empty vectors.
    """
    masked = torch.tensor(list(masked_token_ids), dtype=torch.long, device=hidden.device)
    rows = max(1, chunk_bytes // (weight.shape[0] * _statistics_type(hidden).itemsize))
    found: tuple[Tensor, Tensor | None] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, token_ids, masked, temperature, with_entropy, rows
    )
    return found


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        masked: Tensor,
        temperature: float,
        with_entropy: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor | None]:
        logprobs = torch.empty(len(hidden), dtype=_statistics_type(hidden), device=hidden.device)
        normaliser, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs) if with_entropy else None
        for chunk, logits in _logit_chunks(hidden, weight, bias, masked, temperature, rows):
            chosen = logits.gather(-1, token_ids[chunk, None]).squeeze(-1)
            largest = logits.amax(-1, keepdim=True)
            below = logits.sub_(largest)
            if entropy is None:
                total = below.exp_().sum(-1)
            else:
                shares = below.exp()
                total = shares.sum(-1)
                # −∞ · 0 is no number: a token that is masked out adds nothing.
                shares.mul_(below.clamp_(min=torch.finfo(below.dtype).min))
                entropy[chunk] = total.log() - shares.sum(-1) / total
            normaliser[chunk] = largest.squeeze(-1) + total.log()
            logprobs[chunk] = chosen - normaliser[chunk]
        ctx.save_for_backward(hidden, weight, bias, token_ids, masked, normaliser)
        ctx.temperature, ctx.rows = temperature, rows
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, of_logprobs: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # autograd would go on with the other parts of the model and give a second derivative that lacks this one.
            raise ValueError("no second derivatives through the output layer in chunks; pass whole_logits=True")
        hidden, weight, bias, token_ids, masked, normaliser = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        statistics = normaliser.dtype
        of_weight = torch.zeros_like(weight, dtype=statistics) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=statistics) if ctx.needs_input_grad[2] else None
        for chunk, logits in _logit_chunks(hidden, weight, bias, masked, ctx.temperature, ctx.rows):
            scale = (of_logprobs[chunk, None] / ctx.temperature).to(statistics)
            of_logits = logits.sub_(normaliser[chunk, None]).exp_().mul_(-scale)
            of_logits.scatter_add_(-1, token_ids[chunk, None], scale)
            of_logits.index_fill_(-1, masked, 0.0)
            if of_bias is not None:
                of_bias += of_logits.sum(0)
            rounded = of_logits.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(rounded, weight, out=of_hidden[chunk])
            if of_weight is not None:
                _add_product(of_weight, rounded, hidden[chunk])
        return of_hidden, of_weight, of_bias, None, None, None, None, None


def _logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, masked: Tensor, temperature: float, rows: int
) -> Iterator[tuple[slice, Tensor]]:
    """Logits of `rows` tokens after the other, each in the same memory: overwritten as soon as the next is asked for."""
    statistics = _statistics_type(hidden)
    space = torch.empty((min(rows, len(hidden)), weight.shape[0]), dtype=statistics, device=hidden.device)
    for start in range(0, len(hidden), rows):
        chunk = slice(start, min(start + rows, len(hidden)))
        logits = space[: chunk.stop - start]
        if hidden.dtype != statistics:
            # Rounded as the model's own logits are: these are the log-probabilities of what a sampler draws from.
            logits.copy_(functional.linear(hidden[chunk], weight, bias))
        elif bias is None:
            torch.mm(hidden[chunk], weight.T, out=logits)
        else:
            torch.addmm(bias, hidden[chunk], weight.T, out=logits)
        if temperature != 1.0:
            logits.div_(temperature)
        yield chunk, logits.index_fill_(-1, masked, -torch.inf)


def _add_product(total: Tensor, of_logits: Tensor, hidden: Tensor) -> None:
    """total += of_logitsᵀ · hidden, summed over chunks in the type of `total`."""
    if total.dtype == hidden.dtype:
        total.addmm_(of_logits.T, hidden)
        return
    # A product in bfloat16 is a tensor of its own before it is added: in slabs, so that it stays small.
    slab = max(1, CHUNK_BYTES // (2 * hidden.element_size() * hidden.shape[1]))
    for start in range(0, len(total), slab):
        total[start : start + slab] += of_logits[:, start : start + slab].T @ hidden


def _statistics_type(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def inner_model(model: nn.Module) -> nn.Module:
    """The transformers model itself, where PEFT has wrapped it: adapters sit inside it, on or off as PEFT has set them."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if callable(unwrap) else model


_separable: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def linear_head(model: nn.Module) -> LinearHead | None:
    """The model's backbone and output layer, or None where its logits are anything but that layer of the last hidden state.

    Softcapped or scaled logits, adapters on the output layer, prompts learnt by PEFT, hooks: all of them give None. Found out by
    running the model once on a few tokens with an output layer that says something known; the answer is kept as long as
    the model lives.
    """
    inner = inner_model(model)
    head = getattr(inner, "get_output_embeddings", lambda: None)()
    backbone = getattr(inner, str(getattr(inner, "base_model_prefix", "")), None)
    if type(head) is not nn.Linear or not isinstance(backbone, nn.Module) or backbone is inner or _is_hooked(head):
        return None
    if inner not in _separable:
        # Whoever watches or changes torch's functions (StackedParameters) has nothing to do with a look at the model.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            _separable[inner] = _is_separable(model, backbone, head)
    return LinearHead(backbone, head) if _separable[inner] else None


def _is_hooked(head: nn.Module) -> bool:
    # Weights that are fetched when the layer is called (accelerate's offloading) come with a hook or a forward of their own.
    return bool(head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))


def _is_separable(model: nn.Module, backbone: nn.Module, head: nn.Linear) -> bool:
    states: list[Tensor] = []
    # Logits as large as these show a cap or a scale that the small ones of a fresh model would hide in rounding.
    known = torch.linspace(-60.0, 60.0, head.out_features, dtype=head.weight.dtype, device=head.weight.device)

    def answer(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        states.append(inputs[0])
        return known.expand_as(output)

    tokens = torch.arange(min(4, head.out_features), device=head.weight.device)[None, :]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False}
    hook = head.register_forward_hook(answer)
    try:
        logits = model(**inputs).logits
        last = backbone(**inputs).last_hidden_state
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        hook.remove()
    same_states = len(states) == 1 and torch.equal(last, states[0])
    return same_states and torch.equal(logits, known.expand_as(logits))
