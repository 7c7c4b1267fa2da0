"""Exact pass@k and maj@k of a policy: against enumeration of all draws, closed forms and limits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binom

from bsharp.seeding import generator
from bsharp.statistics import maj_at_k, pass_at_k
from bsharp.theory.at_k import answer_distribution, exact_maj_at_k, exact_pass_at_k, plurality_credit
from bsharp.theory.targets import power
from bsharp.theory.world import FiniteWorld, random_world
from bsharp.theory.worlds import random_answers, right_mode, wrong_mode


def seven(graded: bool = False) -> FiniteWorld:
    """Seven responses, three classes of answers, two responses without one, 0/1 or graded rewards."""
    world = random_world(1, 3, 2)
    answers = torch.tensor([-1, 0, 1, 0, -1, 2, 1])
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    if graded:
        rewards = torch.as_tensor(generator(0, "rewards").uniform(size=7))
    return world.with_rewards(rewards, answers)


def float64(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def over_all_samples(world: FiniteWorld, n: int, statistic: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
    """E[statistic] over all N^n samples of n responses drawn independently from the base."""
    policy = world.base_logprob.exp().tolist()
    samples = itertools.product(range(world.size), repeat=n)
    return np.asarray(sum(math.prod(policy[i] for i in sample) * statistic(sample) for sample in samples))


@pytest.mark.parametrize("graded", [False, True])
def test_maj_at_k_is_the_expectation_of_the_sample_statistic_for_every_k_up_to_n(graded: bool) -> None:
    """Unbiased without replacement from n = 4, over all 7^4 samples; k = n is the definition itself."""
    world = seven(graded)
    assert world.answers is not None
    answers = [None if answer < 0 else str(answer) for answer in world.answers.tolist()]
    credits = world.rewards.tolist()

    def statistic(sample: tuple[int, ...]) -> np.ndarray:
        return maj_at_k([answers[i] for i in sample], [credits[i] for i in sample], [1, 2, 3, 4])

    exact = exact_maj_at_k(world.base_logprob, world, [1, 2, 3, 4])
    assert exact.tolist() == pytest.approx(over_all_samples(world, 4, statistic).tolist(), abs=1e-12)


def test_pass_at_k_is_the_expectation_of_the_sample_statistic_for_every_k_up_to_n() -> None:
    world = seven()
    rewards = world.rewards.tolist()

    def statistic(sample: tuple[int, ...]) -> np.ndarray:
        correct = sum(rewards[i] for i in sample)
        return np.array([pass_at_k(4, correct, k) for k in (1, 2, 3, 4)])

    exact = exact_pass_at_k(world.base_logprob, world, [1, 2, 3, 4])
    assert exact.tolist() == pytest.approx(over_all_samples(world, 4, statistic).tolist(), abs=1e-12)


def test_maj_at_five_by_counting_votes_over_all_draws() -> None:
    """All 4^5 sequences of class or silence, credit shared by a plain count."""
    rng = generator(2, "classes")
    *shares, silence = rng.dirichlet(np.ones(4))
    credits = rng.uniform(size=3)
    expected = 0.0
    for draws in itertools.product(range(4), repeat=5):
        votes = [draws.count(j) for j in range(3)]
        winners = [j for j in range(3) if votes[j] == max(votes) > 0]
        worth = sum(credits[j] for j in winners) / len(winners) if winners else 0.0
        expected += worth * math.prod([*shares, silence][draw] for draw in draws)
    found = plurality_credit(float64(shares), float64(credits), float64(silence), [5])
    assert float(found[0]) == pytest.approx(expected, abs=1e-14)


def test_two_answers_and_an_odd_number_of_votes_are_a_binomial_tail() -> None:
    """P(more than k / 2 of k votes are right) with p = 0.6, up to k = 127; ties at even k count one half."""
    p = 0.6
    ks = [1, 2, 3, 8, 51, 127, 128]
    found = plurality_credit(float64([p, 1 - p]), float64([1.0, 0.0]), float64(0.0), ks)
    expected = [binom.sf(k // 2, k, p) + (0.5 * binom.pmf(k // 2, k, p) if k % 2 == 0 else 0.0) for k in ks]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_one_vote_is_the_expected_reward_of_answered_responses_and_many_votes_the_likeliest_answer() -> None:
    shares, credits, silence = float64([0.15, 0.1, 0.6]), float64([0.9, 0.1, 0.25]), float64(0.15)
    one, eight, many = plurality_credit(shares, credits, silence, [1, 8, 64]).tolist()
    assert one == pytest.approx(0.295, abs=1e-15)
    assert one > eight > many
    # Another class catches up with probability at most 2 exp(-64 (sqrt 0.6 - sqrt 0.15)^2) < 2e-4.
    assert many == pytest.approx(0.25, abs=2e-4)
    world = seven(graded=True)
    shares, credits, silence = answer_distribution(world.base_logprob, world)
    assert float(shares.sum() + silence) == pytest.approx(1.0)
    assert world.answers is not None
    voting = world.base_logprob.exp() * world.rewards * (world.answers >= 0)
    assert float(exact_maj_at_k(world.base_logprob, world, [1])[0]) == pytest.approx(float(voting.sum()))


def test_two_draws_in_closed_form() -> None:
    """Two of a kind win whole, two kinds share, one kind beside a silent draw wins, two silent draws earn 0."""
    shares, credits = float64([0.5, 0.2, 0.1]), float64([0.3, 1.0, 0.6])
    silence = 1 - shares.sum()
    pairs = shares[:, None] * shares[None, :] * (credits[:, None] + credits[None, :]) / 2
    expected = pairs.sum() + 2 * silence * (shares * credits).sum()
    assert float(plurality_credit(shares, credits, silence, [2])[0]) == pytest.approx(float(expected), abs=1e-14)


def test_maj_at_sixteen_of_many_classes_agrees_with_simulated_draws() -> None:
    """50,000 simulated votes among 12 classes and silence; four standard errors: a false alarm once in 16,000 seeds."""
    rng = generator(3, "votes")
    *shares, silence = rng.dirichlet(np.full(13, 2.0))
    credits = rng.uniform(size=12)
    votes = rng.multinomial(16, [*shares, silence], size=50_000)[:, :12]
    winners = (votes == votes.max(1, keepdims=True)) & (votes > 0)
    worth = (winners @ credits) / np.maximum(winners.sum(1), 1)
    exact = float(plurality_credit(float64(shares), float64(credits), float64(silence), [16])[0])
    assert exact == pytest.approx(worth.mean(), abs=4 * worth.std() / math.sqrt(len(worth)))


def test_silence_only_earns_nothing() -> None:
    world = random_world(1, 3, 2).with_rewards(torch.ones(7, dtype=torch.float64), torch.full((7,), -1))
    assert exact_maj_at_k(world.base_logprob, world, [1, 5]).tolist() == [0.0, 0.0]


def test_several_policies_at_once_are_each_on_its_own() -> None:
    world = random_answers(4)
    policies = torch.stack([power(world, alpha) for alpha in (0.5, 1.0, 2.0, 8.0)]).reshape(2, 2, -1)
    for function in (exact_pass_at_k, exact_maj_at_k):
        together = function(policies, world, [1, 3, 6])
        assert together.shape == (2, 2, 3)
        for i, j in itertools.product(range(2), repeat=2):
            torch.testing.assert_close(together[i, j], function(policies[i, j], world, [1, 3, 6]))


def test_pass_at_k_keeps_a_tiny_success_rate() -> None:
    world = right_mode()
    rare = world.with_base(world.base_logprob - 60.0 * world.rewards)
    success = float(rare.base_logprob.exp() @ world.rewards)
    assert 0 < success < 1e-20
    assert float(exact_pass_at_k(rare.base_logprob, rare, [100])[0]) == pytest.approx(100 * success, rel=1e-12, abs=0.0)


def test_more_draws_never_lower_pass_at_k_and_raise_or_lower_maj_at_k_with_the_leading_answer() -> None:
    """With two answers the vote goes to the likelier one: Condorcet's theorem, in both directions."""
    for world in (right_mode(), wrong_mode()):
        passes = exact_pass_at_k(world.base_logprob, world, [1, 2, 4, 8, 16])
        assert bool((passes.diff() > 0).all())
        shares, credits, _ = answer_distribution(world.base_logprob, world)
        votes = exact_maj_at_k(world.base_logprob, world, [1, 3, 9, 27])
        assert bool((votes.diff() > 0).all()) == bool(credits[shares.argmax()] == 1)


def test_figures_that_cannot_be_had_are_refused() -> None:
    world = seven()
    for function, largest in ((exact_pass_at_k, None), (exact_maj_at_k, 128)):
        for ks in ([0], [1, -2], *([[largest + 1]] if largest else [])):
            with pytest.raises(ValueError, match="a figure at k draws needs"):
                function(world.base_logprob, world, ks)
        with pytest.raises(ValueError, match="at least one k"):
            function(world.base_logprob, world, [])
    with pytest.raises(ValueError, match="has no answers"):
        exact_maj_at_k(world.base_logprob, random_world(1, 3, 2), [1])
    graded = seven(graded=True)
    with pytest.raises(ValueError, match="rewards of 0 or 1"):
        exact_pass_at_k(graded.base_logprob, graded, [1])
