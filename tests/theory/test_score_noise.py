"""Variance of a score against length, and signal-to-noise of its sampled gradient, against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bsharp.algorithm import Objective, leave_one_out, sharpening, task_reward, tilted
from bsharp.theory.natural import autoregressive_at_base, tabular_at_base
from bsharp.theory.policy_gradient import LogPolicy, exact_gradient, exact_scores, leave_one_out_variance
from bsharp.theory.score_noise import noise_by_length, score_by_length, softmax_gradient_noise, softmax_squared_norms
from bsharp.theory.world import FiniteWorld, random_world

both = pytest.mark.parametrize("at", [tabular_at_base, autoregressive_at_base], ids=["tabular", "autoregressive"])


def moved(parameters: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(parameters.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return parameters + 0.5 * noise


def jacobian_of(log_policy: LogPolicy, parameters: torch.Tensor) -> torch.Tensor:
    """(N, D): grad log pi(y) of every response, by one backward pass each."""
    leaf = parameters.clone().requires_grad_(True)
    rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0].flatten() for value in log_policy(leaf)]
    return torch.stack(rows)


def signal_to_noise(log_policy: LogPolicy, parameters: torch.Tensor, world: FiniteWorld, objective: Objective) -> float:
    """Of 8 samples, by the Jacobian."""
    policy = log_policy(parameters)
    signal = float(exact_gradient(log_policy, parameters, world, objective).square().sum())
    norms = jacobian_of(log_policy, parameters).square().sum(-1)
    return signal / leave_one_out_variance(policy, exact_scores(policy, world, objective), norms, signal, 8)


@both
def test_squared_norms_of_the_score_function_are_those_of_its_jacobian(at) -> None:  # type: ignore[no-untyped-def]
    world = random_world(0, 3, 3)
    log_policy, parameters = at(world)
    parameters = moved(parameters)
    expected = jacobian_of(log_policy, parameters).square().sum(-1)
    torch.testing.assert_close(softmax_squared_norms(world, parameters), expected)


@both
@pytest.mark.parametrize("objective", [task_reward(), sharpening(), sharpening("mean"), tilted(2.0, 5.0)])
def test_signal_and_noise_are_those_of_every_group_that_can_be_drawn(at, objective: Objective) -> None:  # type: ignore[no-untyped-def]
    """All N^3 groups of 3 responses, with the advantages that training uses."""
    world = random_world(1, 3, 2)
    log_policy_of, parameters = at(world)
    parameters = moved(parameters)
    log_policy = log_policy_of(parameters)
    jacobian = jacobian_of(log_policy_of, parameters)
    first = torch.arange(world.mask.shape[1]) == 0
    scores = objective.score(world.score_inputs(torch.where(first, log_policy[:, None], 0.0)))
    groups = torch.tensor(list(itertools.product(range(world.size), repeat=3)))
    rows, index = groups.flatten(), torch.arange(len(groups)).repeat_interleave(3)
    advantages = leave_one_out(scores[rows], index, torch.ones(len(rows), dtype=torch.bool)).view(-1, 3)
    gradients = (advantages[:, :, None] * jacobian[groups]).mean(1)
    probability = log_policy[groups].sum(-1).exp()
    mean = probability @ gradients
    variance = probability @ ((gradients - mean) ** 2).sum(-1)
    noise = softmax_gradient_noise(world, objective, parameters, 3)
    assert noise.signal_squared == pytest.approx(float(mean @ mean), rel=1e-9)
    assert noise.variance == pytest.approx(float(variance), rel=1e-9)
    assert noise.norm_squared == pytest.approx(float(probability @ (gradients**2).sum(-1)), rel=1e-9)
    assert noise.signal_to_noise == pytest.approx(float(mean @ mean / variance), rel=1e-9)


def test_more_samples_lower_the_noise_and_keep_the_signal() -> None:
    world = random_world(2, 3, 3)
    few, many = (softmax_gradient_noise(world, sharpening(), world.base_table(), group) for group in (8, 8000))
    assert few.signal_squared == many.signal_squared
    assert many.variance == pytest.approx(few.variance / 1000, rel=0.2)
    with pytest.raises(ValueError, match="group_size"):
        softmax_gradient_noise(world, sharpening(), world.base_table(), 1)


def test_the_variance_of_a_score_is_what_lengths_explain_plus_what_they_leave() -> None:
    world = random_world(3, 3, 4)
    policy, base, lengths = world.base_logprob.exp().numpy(), world.base_logprob.numpy(), world.lengths.numpy()
    table = score_by_length(world, world.base_logprob, world.base_logprob)
    assert table.total_variance == pytest.approx(table.within + table.between, rel=1e-12)
    assert table.total_variance == pytest.approx(np.cov(base, aweights=policy, ddof=0), rel=1e-12)
    assert table.length.tolist() == [1, 2, 3, 4]
    for row, length in enumerate(table.length):
        chosen = lengths == length
        assert table.probability[row] == pytest.approx(policy[chosen].sum())
        assert table.mean[row] == pytest.approx(np.average(base[chosen], weights=policy[chosen]))
        expected = np.cov(base[chosen], aweights=policy[chosen], ddof=0) if chosen.sum() > 1 else 0.0
        assert table.variance[row] == pytest.approx(float(expected), abs=1e-12)
    assert table.between > 0
    fixed = random_world(3, 3, 4, eos=None)
    table = score_by_length(fixed, fixed.base_logprob, fixed.base_logprob)
    assert (table.length.tolist(), table.between) == ([4], pytest.approx(0.0, abs=1e-14))


def test_lengths_of_probability_zero_are_left_out() -> None:
    world = random_world(4, 3, 3)
    log_policy = torch.where(world.lengths == 2, world.base_logprob, -torch.inf).log_softmax(-1)
    table = score_by_length(world, log_policy, log_policy)
    assert table.length.tolist() == [2]
    assert table.within == pytest.approx(table.total_variance)


def test_the_variance_of_the_likelihood_grows_with_length_and_that_of_a_binary_reward_stays_below_a_quarter() -> None:
    table = noise_by_length([1, 2, 4], range(12))
    assert (table.reward_variance <= 0.25).all()
    medians = np.median(table.likelihood_variance, axis=1)
    assert (np.diff(medians) > 0).all()
    world = random_world(5, 3, 2, eos=None)
    policy, base = world.base_logprob.exp().numpy(), world.base_logprob.numpy()
    assert table.likelihood_variance[1, 5] == pytest.approx(np.cov(base, aweights=policy, ddof=0))
    success = policy @ world.rewards.numpy()
    assert table.reward_variance[1, 5] == pytest.approx(success * (1 - success))
    for snr, objective in ((table.reward_snr, task_reward()), (table.likelihood_snr, sharpening())):
        expected = signal_to_noise(*autoregressive_at_base(world), world, objective)
        assert snr[1, 5] == pytest.approx(expected, rel=1e-9)
    tabular = noise_by_length([2], [5], autoregressive=False)
    expected = signal_to_noise(*tabular_at_base(world), world, sharpening())
    assert tabular.likelihood_snr[0, 0] == pytest.approx(expected, rel=1e-9)
