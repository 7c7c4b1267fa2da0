"""Closed-form optima against brute force over the simplex, in every combination of weights and normalisations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize

from bsharp.algorithm import Normalisation, Objective, sharpening, task_reward, weighted
from bsharp.seeding import generator
from bsharp.theory.targets import (
    correlation,
    covariance,
    expectation,
    moments,
    optimum,
    power,
    tilt,
    variance,
)
from bsharp.theory.world import FiniteWorld, from_arrays, random_world

NORMALISATIONS: list[tuple[str, float | None]] = [("sum", None), ("mean", None), ("weighted_mean", 0.4)]
WEIGHTS = [
    weights
    for weights in itertools.product((0.0, 1.0, -0.5), (0.0, 0.7, -0.3), (0.0, 0.6), (0.0, 0.25, -0.4))
    if any(weights)
]
OBJECTIVES = [
    weighted(*weights, normalisation=normalisation, rho=rho)
    for weights in WEIGHTS
    for normalisation, rho in NORMALISATIONS
]
SMOOTH = [objective for objective in OBJECTIVES if objective.entropy_weight > 0]
Array = npt.NDArray[np.float64]


def terms(world: FiniteWorld, objective: Objective) -> tuple[Array, Array]:
    """(linear part of J in pi, log pi_ref), written out from the definition of J."""
    base = world.base_token_logprobs.numpy().sum(-1)
    length = world.mask.numpy().sum(-1).astype(float)
    exponent = {"sum": 0.0, "mean": 1.0, "weighted_mean": objective.rho}[objective.normalisation.value]
    assert exponent is not None
    return objective.task * world.rewards.numpy() + objective.base_loglikelihood * base / length**exponent, base


def value_of(policies: Array, world: FiniteWorld, objective: Objective) -> Array:
    """J of policies (…, N) with 0 log 0 = 0."""
    linear, base = terms(world, objective)
    logs = np.log(np.where(policies > 0, policies, 1.0))
    kl = (policies * (logs - base)).sum(-1)
    own = (policies * logs).sum(-1)
    return np.asarray(policies @ linear + objective.own_loglikelihood * own - objective.kl_to_base * kl)


def test_every_combination_is_there() -> None:
    assert len(OBJECTIVES) == (3 * 3 * 2 * 3 - 1) * 3
    assert {objective.normalisation for objective in OBJECTIVES} == set(Normalisation)
    assert {np.sign(objective.entropy_weight) for objective in OBJECTIVES} == {-1, 0, 1}


def test_no_policy_beats_any_optimum_and_the_optimum_is_worth_its_value() -> None:
    """Policies near the base, near the optimum, near the vertices and all over the simplex; and every vertex."""
    world = random_world(3, 3, 3)
    rng = generator(0, "policies")
    anywhere = rng.dirichlet(np.full(world.size, 0.5), size=60)
    vertices = np.eye(world.size)
    noise = np.exp(np.array([0.01, 0.3, 2.0])[:, None, None] * rng.normal(size=(3, 40, world.size)))
    base = world.base_logprob.exp().numpy()
    for objective in OBJECTIVES:
        target = optimum(world, objective)
        best = target.policy.numpy()
        assert best.sum() == pytest.approx(1.0, abs=1e-12)
        near = np.concatenate([(base * noise).reshape(-1, world.size), ((best + 1e-9) * noise).reshape(-1, world.size)])
        others = np.concatenate([anywhere, vertices, near / near.sum(-1, keepdims=True)])
        assert value_of(others, world, objective).max() <= target.value + 1e-12, objective
        if objective.entropy_weight >= 0:
            assert float(value_of(best, world, objective)) == pytest.approx(target.value, abs=1e-12), objective
        else:  # convex: the best vertex is the maximum, and a uniform mixture of ties is not
            assert value_of(vertices, world, objective).max() == pytest.approx(target.value, abs=1e-12), objective
            assert target.policy.max().item() == 1.0


def test_first_order_conditions_hold_at_every_smooth_optimum() -> None:
    """dJ/dpi(y) = v(y) - h (log pi(y) + 1) is the same for every response, v the linear part with c l_ref, h = c - o."""
    world = random_world(4, 3, 3)
    for objective in SMOOTH:
        linear, base = terms(world, objective)
        log_policy = optimum(world, objective).log_policy.numpy()
        slope = linear + objective.kl_to_base * base - objective.entropy_weight * (log_policy + 1)
        assert np.ptp(slope) < 1e-12, objective


def test_a_numerical_optimiser_finds_the_smooth_optima() -> None:
    """BFGS on softmax logits of 7 responses; TV to the closed form below 1e-5."""
    world = random_world(5, 3, 2)

    def loss(logits: Array, objective: Objective) -> tuple[float, Array]:
        policy = np.exp(logits - np.logaddexp.reduce(logits))
        linear, base = terms(world, objective)
        score = linear + objective.kl_to_base * base - objective.entropy_weight * np.log(policy)
        return -float(value_of(policy, world, objective)), -policy * (score - policy @ score)

    for objective in SMOOTH[::3] + SMOOTH[1::3]:
        found = minimize(loss, np.zeros(world.size), args=(objective,), jac=True, method="BFGS", options={"gtol": 1e-9})
        policy = np.exp(found.x - np.logaddexp.reduce(found.x))
        target = optimum(world, objective)
        assert -found.fun == pytest.approx(target.value, abs=1e-9), objective
        assert np.abs(policy - target.policy.numpy()).sum() / 2 < 1e-5, objective


def four_responses(probabilities: list[float], rewards: list[float]) -> FiniteWorld:
    """Two responses of one token, two of two tokens (the second of them certain)."""
    first = np.log(np.array(probabilities))
    logprobs = np.stack([first, np.zeros(4)], -1)
    return from_arrays([[0, 0], [1, 0], [2, 0], [3, 0]], [[1, 0], [1, 0], [1, 1], [1, 1]], logprobs, rewards)


def test_ties_of_a_linear_objective_share_the_mass() -> None:
    tied = four_responses([0.3, 0.3, 0.3, 0.1], [0.0, 1.0, 1.0, 0.5])
    third, half = 1 / 3, 1 / 2
    cases = [
        (sharpening(), [third, third, third, 0], math.log(0.3)),
        (sharpening("mean"), [0, 0, 1, 0], math.log(0.3) / 2),
        (task_reward(), [0, half, half, 0], 1.0),
        (weighted(task=-1.0), [1, 0, 0, 0], 0.0),
        (weighted(task=1.0, base_loglikelihood=1.0), [0, half, half, 0], 1 + math.log(0.3)),
        (weighted(task=1.0, base_loglikelihood=-10.0), [0, 0, 0, 1], 0.5 - 10 * math.log(0.1)),
    ]
    for objective, policy, value in cases:
        target = optimum(tied, objective)
        assert target.policy.tolist() == pytest.approx(policy), objective
        assert target.value == pytest.approx(value), objective
        assert target.log_partition == pytest.approx(math.log(sum(share > 0 for share in policy))), objective


def test_ties_of_a_convex_objective_go_to_the_likeliest_under_the_base() -> None:
    world = four_responses([0.2, 0.3, 0.4, 0.1], [1.0, 1.0, 0.0, 0.0])
    assert optimum(world, weighted(task=1.0, own_loglikelihood=0.5)).policy.tolist() == [0, 1, 0, 0]
    assert optimum(world, weighted(own_loglikelihood=1.0)).policy.tolist() == [0, 0, 1, 0]


def test_a_response_the_base_cannot_say_stays_impossible_and_worth_nothing() -> None:
    world = four_responses([0.2, 0.3, 0.4, 0.1], [0.0, 0.0, 0.0, 1.0])
    without = world.with_base(torch.where(world.rewards == 1, -math.inf, world.base_logprob))
    policies = {
        "power": (power(without, 2.0), [0.04 / 0.29, 0.09 / 0.29, 0.16 / 0.29, 0]),
        "flat": (power(without, 0.0), [1 / 3, 1 / 3, 1 / 3, 0]),
        "inverse": (power(without, -1.0), [6 / 13, 4 / 13, 3 / 13, 0]),
        "tilt": (tilt(without, 50.0), [2 / 9, 3 / 9, 4 / 9, 0]),
        "base": (without.base_logprob, [2 / 9, 3 / 9, 4 / 9, 0]),
    }
    for name, (log_policy, expected) in policies.items():
        assert log_policy.exp().tolist() == pytest.approx(expected), name
        assert all(math.isfinite(figure) for figure in vars(moments(log_policy, without)).values()), name
        assert float(expectation(log_policy, without.rewards)) == 0.0
        assert math.isfinite(float(covariance(log_policy, without.base_logprob, without.rewards)))
        assert math.isfinite(float(variance(log_policy, without.base_logprob)))


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_power_is_the_base_to_the_power_alpha(alpha: float) -> None:
    world = random_world(6, 3, 4)
    base = world.base_logprob.exp()
    torch.testing.assert_close(power(world, alpha).exp(), base**alpha / (base**alpha).sum())
    for rho in (0.0, 0.3, 1.0):
        weight = base * torch.exp((alpha - 1) * world.base_logprob / world.lengths**rho)
        torch.testing.assert_close(power(world, alpha, "weighted_mean", rho).exp(), weight / weight.sum())
    torch.testing.assert_close(power(world, alpha, "mean"), power(world, alpha, "weighted_mean", 1.0))


@pytest.mark.parametrize("lam", [-2.0, 0.0, 0.7, 30.0])
def test_tilt_multiplies_by_the_exponential_of_the_reward(lam: float) -> None:
    world = random_world(6, 3, 4)
    p0 = float(world.base_logprob.exp() @ world.rewards)
    log_policy = tilt(world, lam)
    accuracy = float(expectation(log_policy, world.rewards))
    assert accuracy == pytest.approx(p0 * math.exp(lam) / (p0 * math.exp(lam) + 1 - p0), abs=1e-12)
    for right in (0, 1):
        group = world.rewards == right
        torch.testing.assert_close(log_policy[group].softmax(-1), world.base_logprob[group].softmax(-1))
    weight = torch.exp(2.5 * world.base_logprob + lam * world.rewards)
    torch.testing.assert_close(tilt(world, lam, alpha=2.5).exp(), weight / weight.sum())


def test_covariance_variance_and_correlation_are_those_of_weighted_samples() -> None:
    world = random_world(7, 3, 3)
    log_policy = power(world, 1.7)
    rng = generator(1, "values")
    a, b = (torch.as_tensor(rng.normal(size=world.size)) for _ in range(2))
    reference = np.cov(a.numpy(), b.numpy(), aweights=log_policy.exp().numpy(), ddof=0)
    assert float(covariance(log_policy, a, b)) == pytest.approx(reference[0, 1], rel=1e-12)
    assert float(variance(log_policy, b)) == pytest.approx(reference[1, 1], rel=1e-12)
    expected = reference[0, 1] / math.sqrt(reference[0, 0] * reference[1, 1])
    assert float(correlation(log_policy, a, b)) == pytest.approx(expected, rel=1e-12)
    assert float(correlation(log_policy, a, 3 - 2 * a)) == pytest.approx(-1.0)
    assert math.isnan(float(correlation(log_policy, a, torch.ones_like(a))))


def test_the_value_of_a_smooth_optimum_is_its_entropy_weight_times_log_z() -> None:
    world = random_world(8, 3, 3)
    base = world.base_logprob
    target = optimum(world, weighted(task=2.0, base_loglikelihood=0.5, kl_to_base=0.5))
    log_partition = float(torch.logsumexp(2 * base + 4 * world.rewards, -1))
    assert (target.log_partition, target.value) == pytest.approx((log_partition, 0.5 * log_partition))
