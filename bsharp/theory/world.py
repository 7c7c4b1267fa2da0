"""A world small enough to list: every response of an autoregressive base to one prompt, in float64.

Responses are the N rows. A world is drawn at random, or handed in as arrays that somebody else enumerated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.algorithm import ScoreInputs
from bsharp.masking import pad_right
from bsharp.seeding import generator

__all__ = ["FiniteWorld", "from_arrays", "random_world", "tabular_token_logprobs"]

MAX_RESPONSES = 200_000
PROBABILITY_TOLERANCE = 1e-4  # a float32 model's enumerated probabilities sum to 1 within this


@dataclass(frozen=True)
class FiniteWorld:
    """All N responses to one prompt, padded on the right to T tokens, with the base's probabilities and the reward."""

    token_ids: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    base_token_logprobs: Float[Tensor, "N T"]  # nats, 0 where masked out
    rewards: Float[Tensor, " N"]
    prefix_index: Int[
        Tensor, "N T"
    ]  # number of the prefix y_<t among the distinct ones; 0 (the empty one) where masked out
    vocab_size: int

    @property
    def size(self) -> int:
        """Number of responses N."""
        return self.token_ids.shape[0]

    @property
    def num_prefixes(self) -> int:
        """Number of distinct prefixes K at which a next token is drawn."""
        return int(self.prefix_index.max()) + 1

    @property
    def base_logprob(self) -> Float[Tensor, " N"]:
        """l_ref of each response, the sum over its tokens, EOS included; nats."""
        return self.base_token_logprobs.sum(-1)

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        """Tokens of each response, EOS included."""
        return self.mask.sum(-1)

    def base_table(self) -> Float[Tensor, "K V"]:
        """The base as a table of next-token log-probabilities, one row a prefix; -inf for tokens no response holds."""
        table = torch.full((self.num_prefixes, self.vocab_size), -math.inf, dtype=torch.float64)
        table[self.prefix_index[self.mask], self.token_ids[self.mask]] = self.base_token_logprobs[self.mask]
        return table

    def score_inputs(self, policy_token_logprobs: Float[Tensor, "N T"]) -> ScoreInputs:
        """Every response as a sampled row, so that the training scores apply to the world unchanged."""
        return ScoreInputs(self.rewards, self.base_token_logprobs, policy_token_logprobs, self.mask)


def from_arrays(
    token_ids: npt.ArrayLike, mask: npt.ArrayLike, base_token_logprobs: npt.ArrayLike, rewards: npt.ArrayLike
) -> FiniteWorld:
    """A world from arrays (N, T), (N, T), (N, T) and (N,): padded token ids, mask, base log-probabilities in nats, rewards.

    What is masked out may hold anything. Raises ValueError unless every response has a token, the padding is on the
    right, no response is listed twice, rewards are finite and the probabilities sum to 1 within 1e-4.
    """
    ids = torch.as_tensor(np.asarray(token_ids), dtype=torch.long)
    kept = torch.as_tensor(np.asarray(mask), dtype=torch.bool)
    logprobs = torch.as_tensor(np.asarray(base_token_logprobs), dtype=torch.float64)
    reward = torch.as_tensor(np.asarray(rewards), dtype=torch.float64)
    if ids.ndim != 2 or kept.shape != ids.shape or logprobs.shape != ids.shape or reward.shape != ids.shape[:1]:
        shapes = ", ".join(str(tuple(array.shape)) for array in (ids, kept, logprobs, reward))
        raise ValueError(f"a world needs arrays of shapes (N, T), (N, T), (N, T), (N,), got {shapes}; reshape them")
    if not bool(kept[:, :1].all()) or bool((kept[:, 1:] & ~kept[:, :-1]).any()):
        raise ValueError("every response needs at least one token and its padding on the right; fix the mask")
    if not bool(reward.isfinite().all()):
        raise ValueError("rewards of a world must be finite; give every response a number")
    ids = torch.where(kept, ids, 0)
    logprobs = torch.where(kept, logprobs, 0.0)
    total = float(logprobs.sum(-1).exp().sum())
    if not abs(total - 1) <= PROBABILITY_TOLERANCE:
        raise ValueError(f"base probabilities of the listed responses sum to {total:.6g}, not 1; list every response")
    responses = [tuple(row[keep].tolist()) for row, keep in zip(ids, kept, strict=True)]
    if len(set(responses)) < len(responses):
        raise ValueError(f"{len(responses) - len(set(responses))} responses are listed twice; list each once")
    return FiniteWorld(ids, kept, logprobs, reward, _prefix_index(responses, ids.shape[1]), int(ids.max()) + 1)


def random_world(
    seed: int, vocab_size: int, max_length: int, eos: int | None = 0, scale: float = 1.0, success_share: float = 0.3
) -> FiniteWorld:
    """A random base: independent next-token logits, normal with standard deviation `scale`, at every prefix.

    Responses end with the token `eos` or at `max_length` tokens; with eos=None all have `max_length` tokens. Rewards
    are 0 or 1: a random `success_share` of the responses, rounded, at least one right and one wrong, is right. Raises
    ValueError for a world of one response or of more than 200,000.
    """
    branches = vocab_size if eos is None else vocab_size - 1
    size = branches**max_length + (0 if eos is None else sum(branches**t for t in range(max_length)))
    if not 2 <= size <= MAX_RESPONSES:
        raise ValueError(
            f"vocab_size={vocab_size}, max_length={max_length} gives {size} responses; keep it within 2 to {MAX_RESPONSES}"
        )
    rng = generator(seed, "finite_world", vocab_size, max_length)
    responses: list[tuple[int, ...]] = []
    logprobs: list[tuple[float, ...]] = []
    open_prefixes: list[tuple[tuple[int, ...], tuple[float, ...]]] = [((), ())]
    for length in range(1, max_length + 1):
        grown = []
        for prefix, prefix_logprobs in open_prefixes:
            logits = torch.as_tensor(rng.normal(scale=scale, size=vocab_size))
            for token, logprob in enumerate(torch.log_softmax(logits, -1).tolist()):
                grown.append(((*prefix, token), (*prefix_logprobs, logprob)))
        finished = [entry for entry in grown if entry[0][-1] == eos or length == max_length]
        responses += [response for response, _ in finished]
        logprobs += [values for _, values in finished]
        open_prefixes = [entry for entry in grown if entry[0][-1] != eos]
    right = min(max(round(success_share * size), 1), size - 1)
    rewards = torch.zeros(size, dtype=torch.float64)
    rewards[torch.as_tensor(rng.permutation(size)[:right])] = 1.0
    token_ids, mask = pad_right(responses, 0)
    base_token_logprobs = torch.zeros(mask.shape, dtype=torch.float64)
    base_token_logprobs[mask] = torch.tensor([value for row in logprobs for value in row], dtype=torch.float64)
    return FiniteWorld(token_ids, mask, base_token_logprobs, rewards, _prefix_index(responses, max_length), vocab_size)


def tabular_token_logprobs(world: FiniteWorld, logits: Float[Tensor, "K V"]) -> Float[Tensor, "N T"]:
    """Token log-probabilities of the autoregressive policy with one row of next-token logits per prefix; 0 where masked out.

    Differentiable in `logits`. Summed over tokens they are the policy's log-probabilities of the N responses.
    """
    chosen = torch.log_softmax(logits, -1)[world.prefix_index, world.token_ids]
    return torch.where(world.mask, chosen, 0.0)


def _prefix_index(responses: list[tuple[int, ...]], width: int) -> Int[Tensor, "N T"]:
    known: dict[tuple[int, ...], int] = {(): 0}
    rows = [[known.setdefault(response[:t], len(known)) for t in range(len(response))] for response in responses]
    padded = torch.zeros(len(responses), width, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    return padded
