"""Where flows end, by closed form and by integration, and where training on samples ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bsharp.algorithm import Objective, entropy_minimisation, hybrid, sharpening, task_reward, tempered, weighted
from bsharp.seeding import generator
from bsharp.theory.basins import committed_limit, euclidean_end, natural_basins, sampled_ends, simplex_grid, vertex
from bsharp.theory.dynamics import gradient_flow
from bsharp.theory.policy_gradient import exact_gradient, tabular_log_policy
from bsharp.theory.stability import response_values
from bsharp.theory.targets import optimum
from bsharp.theory.world import FiniteWorld, random_world

THREE = random_world(1, 3, 1, eos=None)  # the second response is the likeliest
CONVEX = weighted(base_loglikelihood=0.5, own_loglikelihood=1.0)  # J = E[l_ref / 2 + l]


def starts(count: int, size: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    logits = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * logits).log_softmax(-1)


def replicator_ends(begin: np.ndarray, world: FiniteWorld, objective: Objective) -> np.ndarray:
    """d log pi / dt = R - E_pi[R], R = w r + s l_ref + c (l_ref - l) + o l, from each row, by Euler steps of 0.02."""
    log_policy = begin.copy()
    base, rewards = world.base_logprob.numpy(), world.rewards.numpy()
    for _ in range(1000):
        scores = (
            objective.task * rewards
            + objective.base_loglikelihood * base
            + objective.kl_to_base * (base - log_policy)
            + objective.own_loglikelihood * log_policy
        )
        mean = (np.exp(log_policy) * scores).sum(-1, keepdims=True)
        log_policy = np.clip(log_policy + 0.02 * (scores - mean), -400, 0)
        log_policy -= np.log(np.exp(log_policy).sum(-1, keepdims=True))
    return np.exp(log_policy)


def test_the_grid_covers_the_inside_of_the_simplex_evenly() -> None:
    points = simplex_grid(4).exp()
    assert points.shape == (15, 3)
    torch.testing.assert_close(points.sum(-1), torch.ones(15, dtype=torch.float64))
    listed = {tuple(row) for row in (points * 7).round().long().tolist()}
    assert listed == {row for row in itertools.product(range(1, 6), repeat=3) if sum(row) == 7}
    with pytest.raises(ValueError, match="resolution >= 0"):
        simplex_grid(-1)


@pytest.mark.parametrize("objective", [sharpening(), task_reward(), hybrid(1.0, 2.0)], ids=["sum", "task", "hybrid"])
def test_a_linear_objective_has_one_basin(objective: Objective) -> None:
    grid = simplex_grid(5)
    best = int(response_values(THREE, objective).argmax())
    assert natural_basins(grid, THREE, objective).tolist() == [best] * len(grid)
    ends = euclidean_end(grid, THREE, objective, 3000.0)
    assert ends.argmax(-1).tolist() == [best] * len(grid)
    assert ends.max(-1).values.exp().min() > 0.99


def test_a_start_without_the_best_response_ends_in_the_best_it_has() -> None:
    start = torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64).log()
    order = THREE.base_logprob.argsort(descending=True).tolist()
    assert order[0] == 1
    assert natural_basins(start, THREE, sharpening()).tolist() == [order[1]]


def test_a_smooth_objective_ends_in_its_optimum_from_everywhere_and_in_no_vertex() -> None:
    grid = simplex_grid(3)
    assert natural_basins(grid, THREE, tempered(2.0)).tolist() == [-1] * len(grid)
    ends = euclidean_end(grid, THREE, tempered(2.0), 500.0)
    torch.testing.assert_close(ends.exp(), optimum(THREE, tempered(2.0)).policy.expand_as(ends), rtol=0, atol=1e-6)


def test_entropy_minimisation_has_the_basins_of_the_likeliest_response() -> None:
    begin = starts(40, 3, scale=1.5)
    assert set(begin.argmax(-1).tolist()) == {0, 1, 2}
    assert natural_basins(begin, THREE, entropy_minimisation()).tolist() == begin.argmax(-1).tolist()
    ends = euclidean_end(begin, THREE, entropy_minimisation(), 3000.0)
    assert ends.argmax(-1).tolist() == begin.argmax(-1).tolist()


def test_a_convex_objective_has_the_basins_in_which_the_replicator_equation_ends() -> None:
    begin = starts(25, 3, seed=1, scale=1.5)
    basins = natural_basins(begin, THREE, CONVEX)
    simulated = replicator_ends(begin.numpy(), THREE, CONVEX)
    assert simulated.max(-1).min() > 0.99
    assert basins.tolist() == simulated.argmax(-1).tolist()
    assert basins.tolist() == (begin + 0.5 * THREE.base_logprob).argmax(-1).tolist()
    assert basins.tolist() != begin.argmax(-1).tolist()  # the base's likelihood moves the boundaries


def test_a_start_on_a_boundary_ends_in_no_vertex() -> None:
    level = torch.tensor([[0.4, 0.4, 0.2], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    assert natural_basins(level, THREE, entropy_minimisation()).tolist() == [-1, 0]
    assert vertex(level).tolist() == [-1, 0]


@pytest.mark.parametrize("objective", [sharpening(), tempered(2.0), CONVEX], ids=["linear", "smooth", "convex"])
def test_many_starts_at_once_follow_the_flow_of_the_exact_gradient(objective: Objective) -> None:
    world = random_world(0, 3, 2)
    begin = starts(3, world.size)
    together = euclidean_end(begin, world, objective, 3.0)
    for row, end in zip(begin, together, strict=True):
        alone = gradient_flow(tabular_log_policy, row, world, objective, [3.0]).log_policies[-1]
        torch.testing.assert_close(end, alone, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ on samples


@pytest.mark.parametrize("objective", [sharpening(), task_reward(), tempered(2.0), CONVEX])
def test_one_sampled_step_moves_the_logits_by_the_exact_gradient_on_average(objective: Objective) -> None:
    """20,000 runs of one step; a deviation of 5 standard errors in one of 12 figures has probability 7e-6."""
    start, rate = starts(1, 3, seed=3)[0], 1e-3
    ends = sampled_ends(start, THREE, objective, rate, 3, 1, 20_000, generator(0, "step"))
    # Centred log-policies: the softmax gauge drops out, and the gradient sums to 0.
    moved = (ends.policies.log() - start) / rate
    moved = moved - moved.mean(-1, keepdim=True)
    exact = exact_gradient(tabular_log_policy, start, THREE, objective)
    error = moved.std(0) / len(moved) ** 0.5
    assert exact.abs().max() > 10 * error.max()
    assert ((moved.mean(0) - exact).abs() < 5 * error).all()


def test_small_steps_on_samples_end_where_the_flow_ends() -> None:
    ends = sampled_ends(THREE.base_logprob, THREE, sharpening(), 3.0, 8, 150, 50, generator(0, "small"))
    assert ends.shares[1].estimate == 1.0
    assert bool(ends.at_vertex.all())
    torch.testing.assert_close(ends.policies.sum(-1), torch.ones(50, dtype=torch.float64))


def test_huge_steps_commit_to_the_better_of_the_first_two_draws_that_differ() -> None:
    """2,000 runs; 4.9 standard errors in one of 2 free figures have probability 2e-6."""
    policy = THREE.base_logprob.exp()
    ends = sampled_ends(THREE.base_logprob, THREE, sharpening(), 1e6, 2, 40, 2000, generator(0, "huge"))
    expected = committed_limit(policy, THREE.base_logprob)
    assert bool(ends.at_vertex.all())
    for share, probability in zip(ends.shares, expected.tolist(), strict=True):
        assert abs(share.estimate - probability) <= 4.9 * (probability * (1 - probability) / 2000) ** 0.5
        assert share.low <= share.estimate <= share.high
    assert sum(share.estimate for share in ends.shares) == pytest.approx(1.0)
    assert 0.05 < expected[2] < 0.5  # the second best, not the best


def test_the_committed_limit_is_a_sum_over_sequences_of_pairs() -> None:
    policy = np.array([0.1, 0.2, 0.3, 0.4])
    values = np.array([2.0, 1.0, 1.0, 0.0])
    decided, still = np.zeros(4), 1.0
    for _ in range(200):  # pairs that tie decide nothing and the next pair is drawn
        next_still = 0.0
        for i, j in itertools.product(range(4), repeat=2):
            if values[i] == values[j]:
                next_still += still * policy[i] * policy[j]
            else:
                decided[i if values[i] > values[j] else j] += still * policy[i] * policy[j]
        still = next_still
    limit = committed_limit(torch.as_tensor(policy), torch.as_tensor(values))
    np.testing.assert_allclose(limit.numpy(), decided, atol=1e-12)


def test_requests_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        sampled_ends(THREE.base_logprob, THREE, sharpening(), 1.0, 1, 1, 1, generator(0, "x"))
    with pytest.raises(ValueError, match="finite log-probabilities"):
        euclidean_end(torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log(), THREE, sharpening(), 1.0)
