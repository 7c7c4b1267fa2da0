"""Small worlds with a story: bases for which sharpening helps, hurts, hangs on a hair, cuts short or runs into a loop.

Token 0 ends a response. Its answer is the token before the end, as class number token - 1; a response that ends at once
or is cut at the length limit has none. The reward is 1 where the answer is the gold one, else 0. Every base is
autoregressive: random next-token logits at every prefix, changed along one or two responses, and drawn again until the
property in the docstring holds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp.seeding import generator
from bsharp.theory.targets import covariance
from bsharp.theory.world import FiniteWorld, uniform_world

__all__ = [
    "CONSTRUCTORS",
    "EOS",
    "loop",
    "near_tie",
    "random_answers",
    "right_mode",
    "short_mode",
    "wrong_mode",
]

EOS = 0
ATTEMPTS = 300


def random_answers(seed: int = 0, vocab_size: int = 3, max_length: int = 4, scale: float = 1.0) -> FiniteWorld:
    """A random base and a random gold answer: next-token logits are independent normals of standard deviation `scale`."""
    listed, rng = _start("random_answers", seed, vocab_size, max_length, shortest=2)
    return _graded(listed.with_table(_random_table(listed, rng, scale)), int(rng.integers(vocab_size - 1)))


def right_mode(
    seed: int = 0, vocab_size: int = 3, max_length: int = 4, scale: float = 1.0, mode: float = 0.25
) -> FiniteWorld:
    """The likeliest response is right and likelihood predicts correctness: Cov(r, l_ref) > 0 under the base.

    E[r] under p_alpha ~ pi_ref^alpha rises at alpha = 1 and tends to 1. `mode` is the probability of that response.
    """
    listed, rng = _start("right_mode", seed, vocab_size, max_length, shortest=2)

    def draw() -> FiniteWorld | None:
        world, response = _with_likely_response(listed, rng, scale, mode)
        world = _graded(world, int(_answers(world)[response]))
        good = _leads(world.base_logprob, response) and _reward_slope(world) > 0
        return world if good else None

    return _first(draw, "right_mode")


def wrong_mode(
    seed: int = 0, vocab_size: int = 3, max_length: int = 4, scale: float = 1.0, mode: float = 0.25
) -> FiniteWorld:
    """The likeliest response is wrong and Cov(r, l_ref) < 0 under the base, yet its accuracy is at least 0.05.

    E[r] under p_alpha falls at alpha = 1 and tends to 0; tilted by exp(lambda r) it tends to 1. Gold is the likeliest
    answer with these properties; `mode` is the probability of the likeliest response.
    """
    listed, rng = _start("wrong_mode", seed, vocab_size, max_length, shortest=2)

    def draw() -> FiniteWorld | None:
        world, response = _with_likely_response(listed, rng, scale, mode)
        answers = _answers(world)
        shares = torch.zeros(vocab_size - 1, dtype=torch.float64)
        shares.index_add_(0, answers[answers >= 0], world.base_logprob.exp()[answers >= 0])
        shares[answers[response]] = 0.0
        golds = [int(gold) for gold in shares.argsort(descending=True) if shares[gold] >= 0.05]
        candidates = (_graded(world, gold) for gold in golds if _leads(world.base_logprob, response))
        return next((candidate for candidate in candidates if _reward_slope(candidate) < 0), None)

    return _first(draw, "wrong_mode")


def near_tie(
    seed: int = 0, vocab_size: int = 3, max_length: int = 4, gap: float = 0.01, scale: float = 1.0
) -> FiniteWorld:
    """The likeliest response is right, the next one wrong, and l_ref of the first exceeds that of the second by `gap`.

    A perturbation of l_ref that takes more than gap / 2 nats from the first and gives as much to the second turns the
    sharpened optimum from right to wrong. gap = 0 is a tie; gap < 0, at least -0.5, puts the wrong response in front.
    Raises ValueError for a gap of more than 0.5 nats either way.
    """
    if not abs(gap) <= 0.5:
        raise ValueError(f"near_tie needs a gap of at most 0.5 nats either way, got {gap}; choose a smaller one")
    listed, rng = _start("near_tie", seed, vocab_size, max_length, shortest=2)
    answers = _answers(listed)

    def draw() -> FiniteWorld | None:
        first, second = (int(row) for row in rng.choice(_answered(listed), size=2, replace=False))
        if answers[first] == answers[second]:
            return None
        table = _random_table(listed, rng, scale)
        parting = int((listed.token_ids[first] == listed.token_ids[second]).int().cumprod(0).sum())
        for response in (first, second):
            for t in range(int(listed.lengths[response])):
                _favour(table, *_cell(listed, response, t), 0.45 if t == parting else 0.85)
        # Both continue one prefix with two tokens, so that the second's logit there moves their difference one to one.
        logprob = listed.with_table(table).base_logprob
        table[_cell(listed, second, parting)] += float(logprob[first] - logprob[second]) - gap
        world = _graded(listed.with_table(table), int(answers[first]))
        two = world.base_logprob.topk(2).indices.sort().values.tolist()
        return world if two == sorted((first, second)) else None

    return _first(draw, "near_tie")


def short_mode(seed: int = 0, vocab_size: int = 3, max_length: int = 4, scale: float = 0.5) -> FiniteWorld:
    """Ending at once is the likeliest response, and wrong; the best mean log-probability per token is long and right.

    Nearly two thirds of the base's responses go on. Cov(T, l_ref) < 0: under pi_ref^alpha the length falls at alpha = 1
    and tends to 1 token, E[r] to 0. The `mean`-normalised sharpened optimum is right.
    """
    listed, rng = _start("short_mode", seed, vocab_size, max_length, shortest=2)
    at_once = int((listed.lengths == 1).nonzero()[0, 0])

    def draw() -> FiniteWorld | None:
        response = int(rng.choice(_answered(listed)))
        table = _random_table(listed, rng, scale)
        for t in range(1, int(listed.lengths[response])):
            _favour(table, *_cell(listed, response, t), 0.8)
        row, token = _cell(listed, response, 0)
        rest = 0.36 / (vocab_size - 2)
        table[row] = math.log(rest)
        table[row, token], table[row, EOS] = math.log(0.29), math.log(0.35)
        world = _graded(listed.with_table(table), int(_answers(listed)[response]))
        shortens = float(covariance(world.base_logprob, world.lengths.double(), world.base_logprob)) < 0
        good = _leads(world.base_logprob, at_once) and _leads(world.base_logprob / world.lengths, response)
        return world if good and shortens else None

    return _first(draw, "short_mode")


def loop(seed: int = 0, vocab_size: int = 3, max_length: int = 4, scale: float = 0.5) -> FiniteWorld:
    """A repetition that grows more certain with every token: `mean` picks it, and it is wrong; `sum` picks the right one.

    After t >= 1 tokens of the repetition the next is another one with probability 0.1 / 2^(t - 1) only, so that its mean
    log-probability is at least (log 0.3 - 0.22) / T and tends to 0 as max_length grows. The likeliest response is right,
    two tokens long, and has probability 0.36. Raises ValueError for a max_length below 3.
    """
    listed, rng = _start("loop", seed, vocab_size, max_length, shortest=3)

    def draw() -> FiniteWorld | None:
        again, short = (int(token) for token in rng.choice(np.arange(1, vocab_size), size=2, replace=False))
        repetition = int((listed.token_ids == again).all(-1).nonzero()[0, 0])
        ending = torch.zeros(max_length, dtype=torch.long)
        ending[0] = short
        answer = int(((listed.lengths == 2) & (listed.token_ids == ending).all(-1)).nonzero()[0, 0])
        table = _random_table(listed, rng, scale)
        table[0] = math.log(0.1 / (vocab_size - 2))
        table[0, short], table[0, again] = math.log(0.6), math.log(0.3)
        _favour(table, *_cell(listed, answer, 1), 0.6)
        for t in range(1, max_length):
            _favour(table, *_cell(listed, repetition, t), 1 - 0.1 / 2 ** (t - 1))
        world = _graded(listed.with_table(table), short - 1)
        good = _leads(world.base_logprob, answer) and _leads(world.base_logprob / world.lengths, repetition)
        return world if good else None

    return _first(draw, "loop")


CONSTRUCTORS: dict[str, Callable[..., FiniteWorld]] = {
    "random": random_answers,
    "right_mode": right_mode,
    "wrong_mode": wrong_mode,
    "near_tie": near_tie,
    "short_mode": short_mode,
    "loop": loop,
}
"""Every constructor by name; each takes seed, vocab_size and max_length and has 31 responses by default."""


# ---------------------------------------------------------------------------------------------------- building blocks


def _start(
    name: str, seed: int, vocab_size: int, max_length: int, shortest: int
) -> tuple[FiniteWorld, np.random.Generator]:
    if vocab_size < 3 or max_length < shortest:
        raise ValueError(
            f"{name} needs a vocabulary of at least 3 (the end and two answers) and a max_length of at least {shortest}, "
            f"got vocab_size={vocab_size}, max_length={max_length}; raise them"
        )
    return uniform_world(vocab_size, max_length, EOS), generator(seed, "theory_world", name, vocab_size, max_length)


def _first(draw: Callable[[], FiniteWorld | None], name: str) -> FiniteWorld:
    for _ in range(ATTEMPTS):
        world = draw()
        if world is not None:
            return world
    raise ValueError(f"no base with the property of {name} in {ATTEMPTS} draws; change its parameters")


def _answers(world: FiniteWorld) -> Int[Tensor, " N"]:
    """Class of the token before the end; -1 for a response that ends at once, token 0 being the end, or is cut."""
    rows, last = torch.arange(world.size), world.lengths - 1
    ended = world.token_ids[rows, last] == EOS
    return torch.where(ended, world.token_ids[rows, (last - 1).clamp(min=0)] - 1, -1)


def _answered(world: FiniteWorld) -> Sequence[int]:
    rows: Sequence[int] = (_answers(world) >= 0).nonzero()[:, 0].tolist()
    return rows


def _graded(world: FiniteWorld, gold: int) -> FiniteWorld:
    answers = _answers(world)
    return world.with_rewards((answers == gold).double(), answers)


def _random_table(world: FiniteWorld, rng: np.random.Generator, scale: float) -> Float[Tensor, "K V"]:
    logits = torch.as_tensor(rng.normal(scale=scale, size=(world.num_prefixes, world.vocab_size)))
    return logits.log_softmax(-1)


def _cell(world: FiniteWorld, response: int, t: int) -> tuple[int, int]:
    """Row and column of the table that hold the response's token t."""
    return int(world.prefix_index[response, t]), int(world.token_ids[response, t])


def _favour(table: Float[Tensor, "K V"], row: int, token: int, probability: float) -> None:
    """Give one next token the probability, in place; the others keep theirs relative to each other."""
    others: Bool[Tensor, " V"] = torch.arange(table.shape[1]) != token
    table[row, others] += math.log1p(-probability) - torch.logsumexp(table[row, others], -1)
    table[row, token] = math.log(probability)


def _with_likely_response(
    listed: FiniteWorld, rng: np.random.Generator, scale: float, probability: float
) -> tuple[FiniteWorld, int]:
    """A random base, and the number of a random answered response that has the probability under it."""
    response = int(rng.choice(_answered(listed)))
    table = _random_table(listed, rng, scale)
    length = int(listed.lengths[response])
    for t in range(length):
        _favour(table, *_cell(listed, response, t), probability ** (1 / length))
    return listed.with_table(table), response


def _leads(values: Float[Tensor, " N"], response: int) -> bool:
    """Whether the response has the largest value, by more than rounding."""
    first, second = values.topk(2)
    return int(second[0]) == response and float(first[0] - first[1]) > 1e-6


def _reward_slope(world: FiniteWorld) -> float:
    return float(covariance(world.base_logprob, world.rewards, world.base_logprob))
