"""Worlds with a story: each constructor's defining property, for many seeds and several sizes."""

from __future__ import annotations

import math

import pytest
import torch

from bsharp.algorithm import sharpening, task_reward
from bsharp.theory.targets import covariance, expectation, optimum, power, tilt
from bsharp.theory.world import FiniteWorld, tabular_token_logprobs
from bsharp.theory.worlds import (
    CONSTRUCTORS,
    EOS,
    loop,
    near_tie,
    random_answers,
    right_mode,
    short_mode,
    wrong_mode,
)

SEEDS = range(25)
SIZES = [(0, 3, 3), (1, 5, 3), (2, 4, 5), (3, 8, 4), (4, 3, 8)]
each_world = pytest.mark.parametrize("name", CONSTRUCTORS)


def worlds_of(name: str) -> list[FiniteWorld]:
    return [CONSTRUCTORS[name](seed) for seed in SEEDS] + [CONSTRUCTORS[name](*size) for size in SIZES]


def accuracy(log_policy: torch.Tensor, world: FiniteWorld) -> float:
    return float(expectation(log_policy, world.rewards))


def slope(world: FiniteWorld) -> float:
    return float(covariance(world.base_logprob, world.rewards, world.base_logprob))


@each_world
def test_every_base_is_autoregressive_and_every_answer_the_token_before_the_end(name: str) -> None:
    for world in worlds_of(name):
        assert world.base_logprob.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
        assert bool((world.base_logprob > -math.inf).all())
        torch.testing.assert_close(tabular_token_logprobs(world, world.base_table()), world.base_token_logprobs)
        answers = []
        for row, keep in zip(world.token_ids, world.mask, strict=True):
            *_, last = tokens = row[keep].tolist()
            answers.append(tokens[-2] - 1 if last == EOS and len(tokens) > 1 else -1)
        assert world.answers is not None
        assert world.answers.tolist() == answers
        gold = set(world.answers[world.rewards == 1].tolist())
        assert len(gold) == 1
        assert gold != {-1}
        assert torch.equal(world.rewards, (world.answers == gold.pop()).double())


@each_world
def test_a_seed_is_a_world_and_the_default_fits_on_a_page(name: str) -> None:
    first, again, other = CONSTRUCTORS[name](), CONSTRUCTORS[name](0), CONSTRUCTORS[name](1)
    assert torch.equal(first.base_token_logprobs, again.base_token_logprobs)
    assert not torch.equal(first.base_token_logprobs, other.base_token_logprobs)
    assert first.size <= 130


def test_right_mode_sharpening_raises_accuracy_to_one() -> None:
    for world in worlds_of("right_mode"):
        assert slope(world) > 0
        assert world.rewards[world.base_logprob.argmax()] == 1
        assert accuracy(power(world, 1.001), world) > accuracy(world.base_logprob, world)
        assert accuracy(optimum(world, sharpening()).log_policy, world) == 1.0
    assert float(right_mode(3, mode=0.4).base_logprob.exp().max()) == pytest.approx(0.4)


def test_wrong_mode_sharpening_lowers_accuracy_to_zero_and_tilting_raises_it_to_one() -> None:
    for world in worlds_of("wrong_mode"):
        assert slope(world) < 0
        assert world.rewards[world.base_logprob.argmax()] == 0
        assert accuracy(world.base_logprob, world) >= 0.05
        assert accuracy(power(world, 1.001), world) < accuracy(world.base_logprob, world)
        assert accuracy(optimum(world, sharpening()).log_policy, world) == 0.0
        assert accuracy(tilt(world, 30.0), world) > 1 - 1e-9
    assert float(wrong_mode(3, mode=0.2).base_logprob.exp().max()) == pytest.approx(0.2)


@pytest.mark.parametrize("gap", [0.3, 0.01, 1e-6])
def test_near_tie_half_the_gap_turns_the_sharpened_optimum_from_right_to_wrong(gap: float) -> None:
    for world in [near_tie(seed, gap=gap) for seed in SEEDS] + [near_tie(*size, gap=gap) for size in SIZES]:
        (first, second), (right, wrong) = world.base_logprob.topk(2)
        assert float(first - second) == pytest.approx(gap, abs=1e-12)
        assert (float(world.rewards[right]), float(world.rewards[wrong])) == (1.0, 0.0)
        for size, expected in ((0.49 * gap, 1.0), (0.51 * gap, 0.0)):
            delta = torch.zeros(world.size, dtype=torch.float64)
            delta[right], delta[wrong] = -size, size
            moved = world.with_base(world.base_logprob + delta)
            assert accuracy(optimum(moved, sharpening()).log_policy, moved) == expected
            assert accuracy(optimum(moved, task_reward()).log_policy, moved) == pytest.approx(1.0)


def test_near_tie_may_be_a_tie_or_have_the_wrong_response_in_front() -> None:
    for seed in SEEDS:
        tie, behind = near_tie(seed, gap=0.0), near_tie(seed, gap=-0.01)
        assert accuracy(optimum(tie, sharpening()).log_policy, tie) == pytest.approx(0.5)
        assert accuracy(optimum(behind, sharpening()).log_policy, behind) == 0.0


def test_short_mode_sum_ends_at_once_and_mean_is_long_and_right() -> None:
    for world in worlds_of("short_mode"):
        lengths = world.lengths.double()
        assert world.lengths[world.base_logprob.argmax()] == 1
        assert float(expectation(world.base_logprob, (lengths > 1).double())) == pytest.approx(0.65)
        assert float(covariance(world.base_logprob, lengths, world.base_logprob)) < 0
        assert accuracy(optimum(world, sharpening()).log_policy, world) == 0.0
        mean = optimum(world, sharpening("mean")).log_policy
        assert accuracy(mean, world) == 1.0
        assert float(expectation(mean, lengths)) > 1


def test_loop_mean_picks_a_wrong_repetition_and_sum_the_right_response() -> None:
    for world in worlds_of("loop"):
        per_token = world.base_logprob / world.lengths
        repetition, likeliest = int(per_token.argmax()), int(world.base_logprob.argmax())
        assert len(set(world.token_ids[repetition].tolist())) == 1
        assert world.lengths[repetition] == world.token_ids.shape[1]
        assert (float(world.rewards[repetition]), float(world.rewards[likeliest])) == (0.0, 1.0)
        assert float(world.base_logprob[likeliest].exp()) == pytest.approx(0.36)
        assert accuracy(optimum(world, sharpening()).log_policy, world) == 1.0
        assert accuracy(optimum(world, sharpening("mean")).log_policy, world) == 0.0


def test_loop_mean_log_probability_tends_to_its_supremum_zero_as_the_repetition_grows() -> None:
    for seed in range(5):
        means = []
        for max_length in range(3, 11):
            world = loop(seed, max_length=max_length)
            means.append(float((world.base_logprob / world.lengths).max()))
            assert (math.log(0.3) - 0.22) / max_length <= means[-1] < 0
        assert means == sorted(means)


def test_random_answers_has_no_preference_by_construction() -> None:
    """Each sign of Cov(r, l_ref) occurs in 60 random bases: if either had probability 1/4, this would fail once in 10^7."""
    signs = [slope(random_answers(seed)) > 0 for seed in range(60)]
    assert 0 < sum(signs) < 60


def test_worlds_without_room_for_their_story_are_refused() -> None:
    for make in CONSTRUCTORS.values():
        with pytest.raises(ValueError, match="vocabulary of at least 3"):
            make(0, 2, 4)
    for make in (right_mode, wrong_mode, near_tie, short_mode, random_answers):
        assert make(0, 3, 2).size == 7
        with pytest.raises(ValueError, match="max_length of at least 2"):
            make(0, 3, 1)
    with pytest.raises(ValueError, match="max_length of at least 3"):
        loop(0, 3, 2)
    with pytest.raises(ValueError, match=r"gap of at most 0\.5"):
        near_tie(gap=0.6)
    with pytest.raises(ValueError, match="no base with the property of wrong_mode"):
        wrong_mode(mode=0.99)
    assert short_mode(0, 3, 2).base_logprob.max().exp().item() == pytest.approx(0.35)
