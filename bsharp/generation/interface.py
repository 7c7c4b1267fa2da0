"""What every generator takes and gives: `Decoder` and `TransformersGenerator` here, others behind the same three members.

A further backend (an inference engine in another process, vLLM, …) must return, for each request in order, exactly
num_samples completions with
- the token ids as they were drawn, the EOS id included and nothing behind it: text is never tokenised again;
- one log-probability a token, in nats, of the distribution it was drawn from: after temperature, top_k, top_p and
  fixed_length. An engine that reports those of the raw logits must be told to report processed ones;
- EOS as the finish reason where one of *all* EOS ids of the model came, else LENGTH, and the policy version of the
  weights that drew them.
It ignores the model's own generation_config, and takes its randomness from the request's seed, so that equal calls give
equal samples; bit for bit the same tokens as the decoder it need not give. Its kernels round differently, so its
log-probabilities differ from the trainer's: the mismatch is logged in every run, and truncated importance sampling
(`algorithm.importance_cap`) weighs each token by the trainer's over the sampler's probability, capped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bsharp.types import Completion

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GenerationRequest", "Generator", "LogitsError", "SamplingParams"]


class LogitsError(ValueError):
    """The model's logits give no distribution to draw from: NaN, +inf, or every token masked."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """`num_samples` completions of one prompt, drawn on the request's own random stream.

    The seed alone decides the samples: neither the other requests of the call nor their order matter, and asking for
    more samples keeps the first ones.
    """

    prompt_token_ids: tuple[int, ...]
    num_samples: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.prompt_token_ids) == 0:
            raise ValueError("prompt_token_ids is empty; a causal LM needs at least one token to continue, e.g. BOS")
        if self.num_samples < 1:
            raise ValueError(f"num_samples = {self.num_samples}; ask for at least 1 completion")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}; give a non-negative integer, e.g. one from stream_seed")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How each next token is chosen. With logits z over the vocabulary and temperature τ it is drawn from

        q = softmax(z / τ),  restricted by top_k, then by top_p, and renormalised,

    and log q of the drawn token, in nats, is what a completion reports: always the distribution sampled from.
    top_k keeps the k most probable tokens (of equals the lower id); top_p keeps the smallest set of most probable
    tokens whose mass reaches p. At temperature=1, top_p=1, top_k=None this is the model's own distribution.

    greedy takes the most probable token and reports its log-probability under softmax(z), i.e. at temperature 1;
    temperature, top_p and top_k have no effect then.

    fixed_length sets the logits of every EOS id (and of nothing else) to −∞ before all of the above, so that each
    completion has exactly max_new_tokens tokens, finishes by LENGTH, and its log-probabilities are those of the
    renormalised distribution.
    """

    max_new_tokens: int
    temperature: float = 1.0
    greedy: bool = False
    fixed_length: bool = False
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens}; allow at least 1 token")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature = {self.temperature}; give a positive number, or greedy=True for 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}; give a number in (0, 1], 1 keeps every token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k}; give at least 1, or None to keep every token")


class Generator(Protocol):
    """Draws completions from a policy. Implementations may live in another process or on another device.

    What a completion must hold is in the docstring of this module.
    """

    @property
    def policy_version(self) -> int:
        """Version of the weights in use; every completion carries it."""
        ...

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[tuple[Completion, ...]]:
        """The completions of each request, in the order of the requests."""
        ...

    def sync_weights(self, policy: nn.Module, version: int) -> None:
        """Use the weights of `policy` from now on and mark completions with `version`."""
        ...
