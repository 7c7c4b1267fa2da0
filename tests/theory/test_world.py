"""Finite worlds: probabilities sum to one, responses are all there, arrays round-trip."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from bsharp.seeding import generator
from bsharp.theory.targets import moments
from bsharp.theory.world import FiniteWorld, from_arrays, random_world, tabular_token_logprobs, uniform_world


@pytest.mark.parametrize(("vocab_size", "max_length", "eos"), [(2, 3, 0), (4, 4, 2), (3, 3, None), (5, 1, 0)])
def test_a_random_world_lists_every_response_once_and_its_probabilities_sum_to_one(
    vocab_size: int, max_length: int, eos: int | None
) -> None:
    world = random_world(0, vocab_size, max_length, eos)
    listed = {tuple(row[keep].tolist()) for row, keep in zip(world.token_ids, world.mask, strict=True)}
    every = {
        tokens
        for length in range(1, max_length + 1)
        for tokens in itertools.product(range(vocab_size), repeat=length)
        if eos not in tokens[:-1] and (tokens[-1] == eos or length == max_length)
    }
    assert listed == every
    assert len(listed) == world.size
    assert world.base_logprob.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert 0 < world.rewards.sum() < world.size


def test_a_random_base_is_one_normal_row_of_logits_per_prefix() -> None:
    """Against a loop over prefixes that draws row by row."""
    world = random_world(5, vocab_size=4, max_length=3, eos=1, scale=0.7)
    rng = generator(5, "finite_world", 4, 3)
    logprobs: dict[tuple[int, ...], list[float]] = {(): []}
    open_prefixes: list[tuple[int, ...]] = [()]
    for length in range(1, 4):
        grown = []
        for prefix in open_prefixes:
            row = torch.as_tensor(rng.normal(scale=0.7, size=4)).log_softmax(-1)
            grown += [(*prefix, token) for token in range(4)]
            logprobs |= {(*prefix, token): [*logprobs[prefix], float(row[token])] for token in range(4)}
        open_prefixes = [prefix for prefix in grown if prefix[-1] != 1]
        assert length == len(grown[0])
    for row, keep, values in zip(world.token_ids, world.mask, world.base_token_logprobs, strict=True):
        assert values[keep].tolist() == pytest.approx(logprobs[tuple(row[keep].tolist())], abs=1e-14)


@pytest.mark.parametrize("eos", [0, 2, None])
def test_prefixes_are_numbered_by_length_then_by_tokens_in_any_order_of_the_responses(eos: int | None) -> None:
    world = random_world(0, 3, 3, eos)
    order = torch.as_tensor(generator(0, "order").permutation(world.size))
    shuffled = from_arrays(**{name: value[order] for name, value in arrays(world).items()})
    responses = [row[keep].tolist() for row, keep in zip(world.token_ids, world.mask, strict=True)]
    prefixes = sorted({tuple(row[:t]) for row in responses for t in range(len(row))}, key=lambda p: (len(p), p))
    for index, response in enumerate(responses):
        expected = [prefixes.index(tuple(response[:t])) for t in range(len(response))]
        assert world.prefix_index[index][world.mask[index]].tolist() == expected
    assert torch.equal(shuffled.prefix_index, world.prefix_index[order])
    assert world.num_prefixes == len(prefixes)


def test_a_world_of_a_hundred_thousand_responses_is_complete() -> None:
    world = random_world(0, vocab_size=4, max_length=10)
    assert world.size == 3**10 + sum(3**t for t in range(10))
    assert world.num_prefixes == sum(3**t for t in range(10))
    assert world.base_logprob.exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    torch.testing.assert_close(tabular_token_logprobs(world, world.base_table()), world.base_token_logprobs)


def test_a_uniform_world_gives_every_next_token_the_same_probability() -> None:
    world = uniform_world(5, 2)
    torch.testing.assert_close(world.base_logprob, -world.lengths.double() * math.log(5.0))
    assert world.base_logprob.exp().sum().item() == pytest.approx(1.0)
    assert not world.rewards.any()


def test_a_seed_is_a_world() -> None:
    first, again, other = (random_world(seed, 3, 3) for seed in (0, 0, 1))
    assert torch.equal(first.base_token_logprobs, again.base_token_logprobs)
    assert torch.equal(first.rewards, again.rewards)
    assert not torch.equal(first.base_token_logprobs, other.base_token_logprobs)


def test_the_bases_own_table_gives_the_base_back() -> None:
    world = random_world(3, 4, 3)
    torch.testing.assert_close(tabular_token_logprobs(world, world.base_table()), world.base_token_logprobs)


def test_any_table_is_a_policy_whose_probabilities_sum_to_one() -> None:
    world = random_world(4, 3, 4)
    table = torch.randn(world.num_prefixes, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_policy = tabular_token_logprobs(world, table).sum(-1)
    assert log_policy.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    summary = moments(log_policy, world)
    policy = log_policy.exp()
    assert summary.reward == pytest.approx(float(policy[world.rewards == 1].sum()))
    assert summary.kl_policy_base == pytest.approx(float((policy * (log_policy - world.base_logprob)).sum()))
    assert summary.entropy == pytest.approx(float(-(policy * log_policy).sum()))
    assert summary.length == pytest.approx(float((policy * world.lengths).sum()))
    assert summary.base_loglikelihood == pytest.approx(float((policy * world.base_logprob).sum()))


def arrays(world: FiniteWorld) -> dict[str, Any]:
    nan = torch.where(world.mask, world.base_token_logprobs, float("nan"))
    return {
        "token_ids": torch.where(world.mask, world.token_ids, -1).numpy(),
        "mask": world.mask.numpy(),
        "base_token_logprobs": nan.numpy(),
        "rewards": world.rewards.numpy(),
    }


def test_arrays_round_trip_with_anything_in_the_padding() -> None:
    world = random_world(5, 3, 3)
    rebuilt = from_arrays(**arrays(world))
    for name in ("token_ids", "mask", "base_token_logprobs", "rewards", "prefix_index"):
        assert torch.equal(getattr(rebuilt, name), getattr(world, name)), name


def test_arrays_may_carry_answers() -> None:
    world = random_world(5, 3, 2)
    answers = [-1, 0, 1, 0, -1, 2, 1]
    given = from_arrays(**arrays(world), answers=answers)
    assert given.answers is not None
    assert given.answers.tolist() == answers
    # Other rewards keep the answers, unless others are given with them.
    for new, expected in ((None, answers), (torch.zeros(world.size, dtype=torch.long), [0] * world.size)):
        other = given.with_rewards(1 - given.rewards, new)
        assert torch.equal(other.rewards, 1 - world.rewards)
        assert other.answers is not None
        assert other.answers.tolist() == expected
    assert from_arrays(**arrays(world)).answers is None
    for wrong in (answers[1:], [-2, *answers[1:]]):
        with pytest.raises(ValueError, match="class numbers >= -1"):
            from_arrays(**arrays(world), answers=wrong)


def test_a_response_that_begins_another_is_refused() -> None:
    with pytest.raises(ValueError, match="begin another"):
        from_arrays([[1, 0], [1, 2]], [[1, 0], [1, 1]], [[math.log(0.5), 0.0], [math.log(0.5), 0.0]], [0, 1])


def test_one_token_after_one_prefix_has_one_probability() -> None:
    """Two responses share the token 1 at the start, with 0.3 in one and 0.7 in the other."""
    logprobs = [[math.log(0.3), 0.0], [math.log(0.7), 0.0]]
    with pytest.raises(ValueError, match="nats apart"):
        from_arrays([[1, 0], [1, 2]], [[1, 1], [1, 1]], logprobs, [0, 1])
    certain = from_arrays([[1, 0], [1, 2]], [[1, 1], [1, 1]], [[0.0, math.log(0.3)], [0.0, math.log(0.7)]], [0, 1])
    assert certain.num_prefixes == 2


def any_weights(world: FiniteWorld, seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(generator(seed, "weights").normal(scale=2.0, size=world.size))


def test_any_distribution_over_responses_is_an_autoregressive_base() -> None:
    """pi(token | prefix) is a ratio of masses, by brute force over the responses; their product gives pi back."""
    world = random_world(6, 3, 4, eos=1)
    weights = any_weights(world)
    other = world.with_base(weights)
    torch.testing.assert_close(other.base_logprob, weights.log_softmax(-1))
    torch.testing.assert_close(tabular_token_logprobs(other, other.base_table()), other.base_token_logprobs)
    policy = weights.softmax(-1)
    responses = [tuple(row[keep].tolist()) for row, keep in zip(world.token_ids, world.mask, strict=True)]

    def mass(prefix: tuple[int, ...]) -> float:
        return sum(float(policy[i]) for i, response in enumerate(responses) if response[: len(prefix)] == prefix)

    for i, response in enumerate(responses):
        for t in range(len(response)):
            ratio = mass(response[: t + 1]) / mass(response[:t])
            assert float(other.base_token_logprobs[i, t].exp()) == pytest.approx(ratio, rel=1e-12)


def test_a_base_may_leave_responses_out() -> None:
    world = random_world(6, 3, 3)
    weights = any_weights(world)
    under = world.token_ids[:, 0] == 1  # all that begin with token 1: a whole row of the table loses its mass
    weights[under] = -math.inf
    other = world.with_base(weights)
    torch.testing.assert_close(other.base_logprob, weights.log_softmax(-1))
    torch.testing.assert_close(other.with_table(other.base_table()).base_logprob, other.base_logprob)


def test_a_perturbed_table_is_the_base_of_another_world() -> None:
    world = random_world(7, 3, 3)
    table = world.base_table() + torch.as_tensor(generator(0, "table").normal(size=(world.num_prefixes, 3)))
    other = world.with_table(table)
    torch.testing.assert_close(other.base_token_logprobs, tabular_token_logprobs(world, table))
    assert other.base_logprob.exp().sum().item() == pytest.approx(1.0, abs=1e-13)
    assert torch.equal(other.rewards, world.rewards)


def test_a_float32_base_becomes_exact_with_its_own_table() -> None:
    given = arrays(random_world(7, 3, 4))
    world = from_arrays(**given | {"base_token_logprobs": given["base_token_logprobs"].astype("float32")})
    assert abs(world.base_logprob.exp().sum().item() - 1) > 1e-12
    exact = world.with_table(world.base_table())
    assert exact.base_logprob.exp().sum().item() == pytest.approx(1.0, abs=1e-14)
    torch.testing.assert_close(exact.base_logprob, world.base_logprob, rtol=1e-6, atol=1e-6)


def test_a_restricted_world_is_the_base_given_its_responses() -> None:
    world = random_world(8, 3, 4)
    world = world.with_rewards(world.rewards, answers=torch.arange(world.size) % 3)
    kept = world.lengths <= 3
    fewer = world.restrict(kept)
    assert fewer.token_ids.shape == (int(kept.sum()), 3)
    torch.testing.assert_close(fewer.base_logprob, world.base_logprob[kept].log_softmax(-1))
    assert torch.equal(fewer.rewards, world.rewards[kept])
    assert fewer.answers is not None
    assert torch.equal(fewer.answers, torch.arange(world.size)[kept] % 3)
    # Unlisted tokens take no part: noise on their logits changes nothing.
    noisy = fewer.base_table()
    noisy[noisy == -math.inf] = 5.0
    torch.testing.assert_close(fewer.with_table(noisy).base_logprob, fewer.base_logprob)


def test_other_bases_rewards_and_responses_are_checked() -> None:
    world = random_world(5, 3, 2)
    table = world.base_table()
    with pytest.raises(ValueError, match=r"table of shape \(3, 3\), got \(2, 3\)"):
        world.with_table(table[1:])
    with pytest.raises(ValueError, match="row 1 of the table is no distribution"):
        world.with_table(torch.where(torch.arange(3)[:, None] == 1, -math.inf, table))
    with pytest.raises(ValueError, match="one log-weight a response"):
        world.with_base(torch.zeros(3, dtype=torch.float64))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be below"):
            world.with_base(world.base_logprob.index_fill(0, torch.tensor([2]), bad))
    with pytest.raises(ValueError, match="above -inf"):
        world.with_base(torch.full((world.size,), -math.inf, dtype=torch.float64))
    with pytest.raises(ValueError, match="one reward"):
        world.with_rewards(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="yes or no"):
        world.restrict(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="above -inf"):
        world.restrict(torch.zeros(world.size, dtype=torch.bool))


def test_arrays_that_are_no_world_are_refused() -> None:
    world = random_world(5, 3, 2)
    good = arrays(world)
    order = [1, *range(1, world.size)]  # the second response listed twice, the first not at all
    holes = ~world.mask.numpy()
    cases = {
        "shapes": good | {"rewards": world.rewards.numpy()[1:]},
        "padding on the right": good | {"mask": holes},
        "must be finite": good | {"rewards": world.rewards.numpy() * float("nan")},
        "sum to 0.": {name: value[1:] for name, value in good.items()},
        "not 1": good | {"base_token_logprobs": world.base_token_logprobs.numpy() * float("nan")},
        "listed twice": {name: value[order] for name, value in good.items() if name != "base_token_logprobs"}
        | {"base_token_logprobs": world.base_token_logprobs.numpy()},
    }
    for message, case in cases.items():
        with pytest.raises(ValueError, match=message):
            from_arrays(**case)


def test_worlds_too_large_or_of_one_response_are_refused() -> None:
    for vocab_size, max_length in ((8, 10), (1, 3)):
        with pytest.raises(ValueError, match="responses; keep it within"):
            random_world(0, vocab_size, max_length)
    for vocab_size, max_length, eos in ((3, 0, 0), (3, 2, 3), (0, 2, None)):
        with pytest.raises(ValueError, match="an eos among its tokens"):
            random_world(0, vocab_size, max_length, eos)
