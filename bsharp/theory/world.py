"""A world small enough to list: every response of an autoregressive base to one prompt, in float64.

Responses are the N rows. A world is drawn at random, or handed in as arrays that somebody else enumerated; from one
world others follow with another base, other rewards or fewer responses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.algorithm import ScoreInputs
from bsharp.seeding import generator

__all__ = ["FiniteWorld", "from_arrays", "random_world", "tabular_token_logprobs", "uniform_world"]

MAX_RESPONSES = 200_000
PROBABILITY_TOLERANCE = 1e-4  # a float32 model's enumerated probabilities sum to 1 within this
TOKEN_TOLERANCE = 1e-3  # nats; a float32 model gives one next token the same log-probability in every batch within this


@dataclass(frozen=True)
class FiniteWorld:
    """All N responses to one prompt, padded on the right to T tokens, with the base's probabilities and the reward."""

    token_ids: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    base_token_logprobs: Float[Tensor, "N T"]  # nats, 0 where masked out
    rewards: Float[Tensor, " N"]
    # Number of the prefix y_<t among the distinct ones, counted by length, then by token ids; 0 (the empty prefix) where
    # masked out.
    prefix_index: Int[Tensor, "N T"]
    vocab_size: int
    answers: Int[Tensor, " N"] | None = None  # class of the response's final answer; -1 gives none and never votes

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

    def with_table(self, table: Float[Tensor, "K V"]) -> FiniteWorld:
        """The same responses under the base with next-token logits `table`, rows as in `base_table`.

        Each row is normalised over the tokens that some response holds there. `world.base_table()` itself gives a base
        whose probabilities sum to 1 to rounding, whatever they were enumerated with. Raises ValueError for a table of
        another shape, with a NaN, or with a row that leaves no token possible.
        """
        shape = (self.num_prefixes, self.vocab_size)
        if table.shape != shape:
            raise ValueError(f"this world has a table of shape {shape}, got {tuple(table.shape)}; see base_table")
        listed = torch.zeros(shape, dtype=torch.bool)
        listed[self.prefix_index[self.mask], self.token_ids[self.mask]] = True
        logprobs = torch.where(listed, table.double(), -math.inf).log_softmax(-1)
        if bool(logprobs.isnan().any()):
            row = int(logprobs.isnan().any(-1).nonzero()[0, 0])
            raise ValueError(f"row {row} of the table is no distribution over next tokens; give finite logits")
        chosen = logprobs[self.prefix_index, self.token_ids]
        return replace(self, base_token_logprobs=torch.where(self.mask, chosen, 0.0))

    def with_base(self, log_weights: Float[Tensor, " N"]) -> FiniteWorld:
        """The same responses under the base pi(y) = exp(log_weights(y)) / Z, any distribution over the N responses.

        It is autoregressive like any other: pi(token | prefix) is the mass of the responses that continue the prefix
        with the token over the mass of those that continue it at all (uniform over the tokens listed there where no
        mass is left). A perturbed base is `world.with_base(world.base_logprob + delta)`. Raises ValueError for weights
        of another shape, a NaN or +inf, or no weight above -inf.
        """
        if log_weights.shape != (self.size,):
            raise ValueError(f"a base needs one log-weight a response, {self.size}, got {tuple(log_weights.shape)}")
        weights = log_weights.double()
        if bool((weights.isnan() | (weights == math.inf)).any()) or not bool((weights > -math.inf).any()):
            raise ValueError("log-weights of a base must be below +inf, and one of them above -inf; check their source")
        prefix, listed = self.prefix_index[self.mask], self.token_ids[self.mask]
        cell = prefix * self.vocab_size + listed
        row = weights[:, None].expand(self.mask.shape)[self.mask]
        cell_mass = _grouped_logsumexp(row, cell, self.num_prefixes * self.vocab_size)
        table = cell_mass.view(self.num_prefixes, self.vocab_size)
        # A prefix that no weight reaches keeps a uniform next token: the token that leads to it has probability 0.
        dead = (table == -math.inf).all(-1)
        return self.with_table(torch.where(dead[:, None], 0.0, table))

    def with_rewards(self, rewards: Float[Tensor, " N"], answers: Int[Tensor, " N"] | None = None) -> FiniteWorld:
        """The same responses and base with other rewards and, where given, other answers."""
        if rewards.shape != (self.size,) or (answers is not None and answers.shape != (self.size,)):
            raise ValueError(f"this world has {self.size} responses; give one reward, and one answer, to each")
        return replace(self, rewards=rewards.double(), answers=self.answers if answers is None else answers)

    def restrict(self, kept: Bool[Tensor, " N"]) -> FiniteWorld:
        """The base given that its response is among `kept`: fewer responses, their probabilities relative to each other.

        Raises ValueError where the kept responses have no probability at all.
        """
        if kept.shape != (self.size,):
            raise ValueError(f"kept must say yes or no to each of {self.size} responses, got {tuple(kept.shape)}")
        width = int(self.lengths[kept].max()) if bool(kept.any()) else 0
        ids, mask = self.token_ids[kept, :width], self.mask[kept, :width]
        fewer = FiniteWorld(
            token_ids=ids,
            mask=mask,
            base_token_logprobs=torch.zeros(mask.shape, dtype=torch.float64),
            rewards=self.rewards[kept],
            prefix_index=_prefix_index(ids, mask, self.vocab_size)[0],
            vocab_size=self.vocab_size,
            answers=None if self.answers is None else self.answers[kept],
        )
        return fewer.with_base(self.base_logprob[kept])


def from_arrays(
    token_ids: npt.ArrayLike,
    mask: npt.ArrayLike,
    base_token_logprobs: npt.ArrayLike,
    rewards: npt.ArrayLike,
    answers: npt.ArrayLike | None = None,
) -> FiniteWorld:
    """A world from arrays (N, T), (N, T), (N, T), (N,): padded token ids, mask, base log-probabilities in nats, rewards.

    `answers` (N,) are the classes of the final answers, -1 for none. What is masked out may hold anything. Raises
    ValueError unless every response has a token, the padding is on the right, no response is listed twice or begins
    another, rewards are finite, the probabilities sum to 1 within 1e-4, and a token after a prefix has one
    log-probability, within 1e-3 nats, in all the responses that share both.
    """
    ids = torch.as_tensor(np.asarray(token_ids), dtype=torch.long)
    kept = torch.as_tensor(np.asarray(mask), dtype=torch.bool)
    logprobs = torch.as_tensor(np.asarray(base_token_logprobs), dtype=torch.float64)
    reward = torch.as_tensor(np.asarray(rewards), dtype=torch.float64)
    classes = None if answers is None else torch.as_tensor(np.asarray(answers), dtype=torch.long)
    if ids.ndim != 2 or kept.shape != ids.shape or logprobs.shape != ids.shape or reward.shape != ids.shape[:1]:
        shapes = ", ".join(str(tuple(array.shape)) for array in (ids, kept, logprobs, reward))
        raise ValueError(f"a world needs arrays of shapes (N, T), (N, T), (N, T), (N,), got {shapes}; reshape them")
    if classes is not None and (classes.shape != reward.shape or bool((classes < -1).any())):
        raise ValueError(f"answers must be {len(reward)} class numbers >= -1, -1 for none; got {tuple(classes.shape)}")
    if not bool(kept[:, :1].all()) or bool((kept[:, 1:] & ~kept[:, :-1]).any()):
        raise ValueError("every response needs at least one token and its padding on the right; fix the mask")
    if not bool(reward.isfinite().all()):
        raise ValueError("rewards of a world must be finite; give every response a number")
    ids = torch.where(kept, ids, 0)
    logprobs = torch.where(kept, logprobs, 0.0)
    total = float(logprobs.sum(-1).exp().sum())
    if not abs(total - 1) <= PROBABILITY_TOLERANCE:
        raise ValueError(
            f"base probabilities of the {len(ids)} listed responses sum to {total:.6g}, not 1; list every response"
        )
    vocab_size = int(ids.max()) + 1
    prefix_index, repeated = _prefix_index(ids, kept, vocab_size)
    if repeated:
        raise ValueError(f"{repeated} responses are listed twice or begin another one; list each once, to its end")
    world = FiniteWorld(ids, kept, logprobs, reward, prefix_index, vocab_size, classes)
    spread = (world.base_table()[prefix_index, ids] - logprobs)[kept].nan_to_num(0.0).abs().max()
    if float(spread) > TOKEN_TOLERANCE:
        raise ValueError(
            f"one token after one prefix has log-probabilities {float(spread):.3g} nats apart in two responses; "
            "check that every row holds the log-probabilities of its own tokens"
        )
    return world


def uniform_world(vocab_size: int, max_length: int, eos: int | None = 0) -> FiniteWorld:
    """Every response up to `max_length` tokens under a base with uniform next tokens; all rewards 0.

    Responses end with the token `eos` or at `max_length` tokens; with eos=None all have `max_length` tokens. They are
    listed by length, then by token ids. Raises ValueError for a world of one response or of more than 200,000.
    """
    if vocab_size < 1 or max_length < 1 or not (eos is None or 0 <= eos < vocab_size):
        raise ValueError(
            f"a world needs a vocabulary, a length and an eos among its tokens, got {vocab_size}, {max_length}, {eos}"
        )
    branches = vocab_size if eos is None else vocab_size - 1
    size = branches**max_length + (0 if eos is None else sum(branches**t for t in range(max_length)))
    if not 2 <= size <= MAX_RESPONSES:
        raise ValueError(
            f"vocab_size={vocab_size}, max_length={max_length} gives {size} responses; keep it within 2 to {MAX_RESPONSES}"
        )
    token_ids, lengths = torch.zeros(size, max_length, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    prefixes, filled = torch.zeros(1, 0, dtype=torch.long), 0
    for length in range(1, max_length + 1):
        tokens = torch.arange(vocab_size).repeat(len(prefixes))
        grown = torch.cat([prefixes.repeat_interleave(vocab_size, 0), tokens[:, None]], -1)
        ends = torch.full_like(tokens, length == max_length, dtype=torch.bool)
        if eos is not None:
            ends = ends | (tokens == eos)
        rows = slice(filled, filled + int(ends.sum()))
        token_ids[rows, :length], lengths[rows] = grown[ends], length
        prefixes, filled = grown[~ends], rows.stop
    mask = torch.arange(max_length)[None, :] < lengths[:, None]
    return FiniteWorld(
        token_ids=token_ids,
        mask=mask,
        base_token_logprobs=torch.where(mask, torch.tensor(-math.log(vocab_size), dtype=torch.float64), 0.0),
        rewards=torch.zeros(size, dtype=torch.float64),
        prefix_index=_prefix_index(token_ids, mask, vocab_size)[0],
        vocab_size=vocab_size,
    )


def random_world(
    seed: int, vocab_size: int, max_length: int, eos: int | None = 0, scale: float = 1.0, success_share: float = 0.3
) -> FiniteWorld:
    """A random base: independent next-token logits, normal with standard deviation `scale`, at every prefix.

    Responses are those of `uniform_world`. Rewards are 0 or 1: a random `success_share` of the responses, rounded, at
    least one right and one wrong, is right; no response has an answer. Raises ValueError as `uniform_world` does.
    """
    listed = uniform_world(vocab_size, max_length, eos)
    rng = generator(seed, "finite_world", vocab_size, max_length)
    logits = torch.as_tensor(rng.normal(scale=scale, size=(listed.num_prefixes, vocab_size)))
    right = min(max(round(success_share * listed.size), 1), listed.size - 1)
    rewards = torch.zeros(listed.size, dtype=torch.float64)
    rewards[torch.as_tensor(rng.permutation(listed.size)[:right])] = 1.0
    return listed.with_table(logits).with_rewards(rewards)


def tabular_token_logprobs(world: FiniteWorld, logits: Float[Tensor, "K V"]) -> Float[Tensor, "N T"]:
    """Token log-probabilities of the autoregressive policy with one row of next-token logits per prefix; 0 where masked out.

    Differentiable in `logits`. Summed over tokens they are the policy's log-probabilities of the N responses.
    """
    chosen = torch.log_softmax(logits, -1)[world.prefix_index, world.token_ids]
    return torch.where(world.mask, chosen, 0.0)


def _prefix_index(
    token_ids: Int[Tensor, "N T"], mask: Bool[Tensor, "N T"], vocab_size: int
) -> tuple[Int[Tensor, "N T"], int]:
    """The prefix number at every position, and how many responses repeat or begin another."""
    index = torch.zeros_like(token_ids)
    node = torch.zeros(len(token_ids), dtype=torch.long)
    known, distinct = 1, 0
    for t in range(token_ids.shape[1]):
        here = mask[:, t]
        index[here, t] = node[here]
        goes_on = mask[:, t + 1] if t + 1 < token_ids.shape[1] else torch.zeros_like(here)
        step = node * vocab_size + token_ids[:, t]
        prefixes, number = torch.unique(step[goes_on], return_inverse=True)
        complete = torch.unique(step[here & ~goes_on])
        distinct += int((~torch.isin(complete, prefixes)).sum())
        node = node.index_put((goes_on,), number + known)
        known += len(prefixes)
    return index, len(token_ids) - distinct


def _grouped_logsumexp(values: Float[Tensor, " M"], group: Int[Tensor, " M"], groups: int) -> Float[Tensor, " groups"]:
    """log sum exp of the values of each group; -inf for an empty one."""
    nowhere = torch.full((groups,), -math.inf, dtype=values.dtype)
    largest = nowhere.scatter_reduce(0, group, values, "amax")
    shift = largest.clamp(min=torch.finfo(values.dtype).min)  # finite, so that -inf - shift is -inf and not NaN
    total = torch.zeros_like(nowhere).index_add_(0, group, (values - shift[group]).exp())
    return total.log() + shift
