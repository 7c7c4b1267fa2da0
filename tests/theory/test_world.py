"""Finite worlds: probabilities sum to one, responses are all there, arrays round-trip."""

from __future__ import annotations

import itertools

import pytest
import torch

from bsharp.theory import FiniteWorld, from_arrays, moments, random_world, tabular_token_logprobs


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


def arrays(world: FiniteWorld) -> dict[str, object]:
    nan = torch.where(world.mask, world.base_token_logprobs, float("nan"))
    return {
        "token_ids": torch.where(world.mask, world.token_ids, -1).numpy(),
        "mask": world.mask.numpy(),
        "base_token_logprobs": nan.numpy(),
        "rewards": world.rewards.numpy(),
    }


def test_arrays_round_trip_with_anything_in_the_padding() -> None:
    world = random_world(5, 3, 3)
    rebuilt = from_arrays(**arrays(world))  # type: ignore[arg-type]
    for name in ("token_ids", "mask", "base_token_logprobs", "rewards", "prefix_index"):
        assert torch.equal(getattr(rebuilt, name), getattr(world, name)), name


def test_arrays_that_are_no_world_are_refused() -> None:
    world = random_world(5, 3, 2)
    good = arrays(world)
    order = [1, *range(1, world.size)]  # the second response listed twice, the first not at all
    holes = ~world.mask.numpy()
    cases = {
        "shapes": good | {"rewards": world.rewards.numpy()[1:]},
        "padding on the right": good | {"mask": holes},
        "must be finite": good | {"rewards": world.rewards.numpy() * float("nan")},
        "sum to 0.": {name: value[1:] for name, value in good.items()},  # type: ignore[index]
        "not 1": good | {"base_token_logprobs": world.base_token_logprobs.numpy() * float("nan")},
        "listed twice": {name: value[order] for name, value in good.items() if name != "base_token_logprobs"}  # type: ignore[index]
        | {"base_token_logprobs": world.base_token_logprobs.numpy()},
    }
    for message, case in cases.items():
        with pytest.raises(ValueError, match=message):
            from_arrays(**case)  # type: ignore[arg-type]


def test_worlds_too_large_or_of_one_response_are_refused() -> None:
    for vocab_size, max_length in ((8, 10), (1, 3)):
        with pytest.raises(ValueError, match="responses; keep it within"):
            random_world(0, vocab_size, max_length)
