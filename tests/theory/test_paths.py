"""Paths of optima: every figure is that of the point itself, and every slope that of a difference quotient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bsharp.algorithm import sharpening, task_reward, weighted
from bsharp.theory.at_k import exact_maj_at_k, exact_pass_at_k
from bsharp.theory.paths import Path, alpha_path, beta_inv_path, kl_path
from bsharp.theory.targets import covariance, moments, optimum, power, tilt, variance
from bsharp.theory.world import random_world
from bsharp.theory.worlds import random_answers, right_mode, short_mode, wrong_mode

WORLD = random_answers(5)
PATHS: dict[str, tuple[Callable[[list[float]], Path], list[float]]] = {
    "alpha": (lambda values: alpha_path(WORLD, values), [-0.5, 0.3, 1.0, 1.7, 4.0]),
    "alpha_mean": (lambda values: alpha_path(WORLD, values, normalisation="mean"), [0.3, 1.0, 4.0, 20.0]),
    "alpha_weighted": (lambda values: alpha_path(WORLD, values, 0.7, "weighted_mean", 0.4), [0.3, 1.0, 4.0]),
    "beta_inv": (lambda values: beta_inv_path(WORLD, values), [-2.0, 0.0, 0.5, 3.0]),
    "beta_inv_sharpened": (lambda values: beta_inv_path(WORLD, values, 2.0), [0.0, 0.5, 3.0]),
    "beta_inv_mean": (lambda values: beta_inv_path(WORLD, values, 2.0, "mean"), [0.0, 0.5, 3.0]),
    "kl": (lambda values: kl_path(WORLD, values), [0.2, 0.5, 1.0, 3.0]),
    "kl_hybrid": (lambda values: kl_path(WORLD, values, 1.0, 0.5, "weighted_mean", 0.4), [0.3, 1.0, 3.0]),
}
each_path = pytest.mark.parametrize("name", PATHS)


@each_path
def test_every_figure_is_that_of_the_optimum_at_its_point(name: str) -> None:
    make, values = PATHS[name]
    path = make(values)
    assert path.values.tolist() == values
    for i, objective in enumerate(path.objectives):
        target = optimum(WORLD, objective)
        for field, figure in vars(moments(target.log_policy, WORLD)).items():
            assert float(getattr(path, field)[i]) == pytest.approx(figure, abs=1e-12), field
        lengths = WORLD.lengths.double()
        expected = {
            "log_partition": target.log_partition,
            "value": target.value,
            "reward_variance": variance(target.log_policy, WORLD.rewards),
            "base_loglikelihood_variance": variance(target.log_policy, WORLD.base_logprob),
            "reward_covariance": covariance(target.log_policy, WORLD.rewards, WORLD.base_logprob),
            "length_covariance": covariance(target.log_policy, lengths, WORLD.base_logprob),
        }
        for field, figure in expected.items():
            assert float(getattr(path, field)[i]) == pytest.approx(float(figure), abs=1e-12), field


def test_the_points_of_a_path_are_the_named_optima() -> None:
    cases = [
        (alpha_path(WORLD, [2.5]), power(WORLD, 2.5)),
        (alpha_path(WORLD, [2.5], normalisation="mean"), power(WORLD, 2.5, "mean")),
        (alpha_path(WORLD, [2.5], beta_inv=0.8), tilt(WORLD, 0.8, alpha=2.5)),
        (beta_inv_path(WORLD, [0.8]), tilt(WORLD, 0.8)),
        (beta_inv_path(WORLD, [0.8], alpha=2.5), tilt(WORLD, 0.8, alpha=2.5)),
        (kl_path(WORLD, [0.5]), tilt(WORLD, 2.0)),
        (kl_path(WORLD, [0.5], task=0.0, base_loglikelihood=1.0), power(WORLD, 3.0)),
        (kl_path(WORLD, [0.0]), optimum(WORLD, task_reward()).log_policy),
        (kl_path(WORLD, [0.0], task=0.0, base_loglikelihood=1.0), optimum(WORLD, sharpening()).log_policy),
    ]
    for path, log_policy in cases:
        for field, figure in vars(moments(log_policy, WORLD)).items():
            assert float(getattr(path, field)[0]) == pytest.approx(figure, abs=1e-12), (path.knob, field)


@each_path
def test_every_slope_is_a_difference_quotient(name: str) -> None:
    make, values = PATHS[name]
    step = 1e-5
    path, above, below = (make([value + shift for value in values]) for shift in (0.0, step, -step))
    slopes = {
        "reward": path.reward_slope,
        "length": path.length_slope,
        "entropy": path.entropy_slope,
        "kl_policy_base": path.kl_slope,
    }
    for field, slope in slopes.items():
        quotient = (getattr(above, field) - getattr(below, field)) / (2 * step)
        torch.testing.assert_close(slope, quotient, rtol=1e-7, atol=1e-8, msg=f"{field} along {name}")
        assert float(slope.abs().max()) > 1e-3


def test_the_slope_of_the_reward_is_a_covariance_in_alpha_and_a_variance_in_beta_inv() -> None:
    alpha, beta_inv = alpha_path(WORLD, [0.5, 2.0]), beta_inv_path(WORLD, [0.5, 2.0], 1.5)
    torch.testing.assert_close(alpha.reward_slope, alpha.reward_covariance)
    torch.testing.assert_close(alpha.length_slope, alpha.length_covariance)
    torch.testing.assert_close(beta_inv.reward_slope, beta_inv.reward_variance)


def test_the_change_of_the_reward_is_the_integral_of_its_slope() -> None:
    """Simpson's rule over 201 points of alpha from 1 to 6."""
    for world in (right_mode(), wrong_mode(), short_mode()):
        path = alpha_path(world, np.linspace(1.0, 6.0, 201).tolist())
        weights = torch.ones(201, dtype=torch.float64)
        weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
        integral = float((weights * path.reward_slope).sum() * (5.0 / 200) / 3)
        assert integral == pytest.approx(float(path.reward[-1] - path.reward[0]), abs=1e-8)


def test_value_is_continuous_as_the_kl_weight_vanishes_and_the_slopes_there_are_not_a_number() -> None:
    path = kl_path(WORLD, [0.0, 1e-4], task=1.0, base_loglikelihood=0.3)
    assert float(path.value[1]) == pytest.approx(float(path.value[0]), abs=1e-2)
    for slope in (path.reward_slope, path.length_slope, path.entropy_slope, path.kl_slope):
        assert slope.isnan().tolist() == [True, False]
    for field in dataclasses.fields(path):
        column = getattr(path, field.name)
        if isinstance(column, torch.Tensor) and not field.name.endswith("_slope"):
            assert bool(column.isfinite().all()), field.name
    # Where right responses tie, c -> 0 tends to the base among them, c = 0 is uniform: only E[r] is continuous.
    tied = kl_path(WORLD, [0.0, 1e-3])
    assert tied.reward.tolist() == pytest.approx([1.0, 1.0])
    assert float(tied.entropy[0]) == pytest.approx(math.log(float(WORLD.rewards.sum())))
    right = WORLD.base_logprob[WORLD.rewards == 1].softmax(-1)
    assert float(tied.entropy[1]) == pytest.approx(float(-(right * right.log()).sum()))


def test_extreme_knobs_give_finite_figures() -> None:
    for path in (
        alpha_path(WORLD, [-500.0, 500.0]),
        beta_inv_path(WORLD, [-1e4, 1e4]),
        kl_path(WORLD, [1e-6, 1e6]),
    ):
        for field in dataclasses.fields(path):
            column = getattr(path, field.name)
            if isinstance(column, torch.Tensor):
                assert bool(column.isfinite().all()), (path.knob, field.name)


def test_pass_and_maj_at_k_along_a_path_are_those_of_its_points() -> None:
    alphas, ks = [0.5, 1.0, 3.0], [1, 4, 9]
    path = alpha_path(WORLD, alphas, ks=ks)
    assert list(path.pass_at_k) == list(path.maj_at_k) == ks
    for i, alpha in enumerate(alphas):
        log_policy = power(WORLD, alpha)
        passes, votes = exact_pass_at_k(log_policy, WORLD, ks), exact_maj_at_k(log_policy, WORLD, ks)
        for j, k in enumerate(ks):
            assert float(path.pass_at_k[k][i]) == pytest.approx(float(passes[j]), abs=1e-14)
            assert float(path.maj_at_k[k][i]) == pytest.approx(float(votes[j]), abs=1e-14)
    assert alpha_path(WORLD, alphas).pass_at_k == {}
    assert alpha_path(random_world(0, 3, 3), alphas, ks=ks).maj_at_k == {}


def test_responses_the_base_cannot_say_add_nothing_to_a_path() -> None:
    gone = torch.where(WORLD.lengths == 2, -math.inf, WORLD.base_logprob)
    whole, part = WORLD.with_base(gone), WORLD.restrict(WORLD.lengths != 2)
    for world_path in (lambda world: alpha_path(world, [0.5, 2.0]), lambda world: kl_path(world, [0.5], 1.0, 0.3)):
        for field in dataclasses.fields(Path):
            first, second = (getattr(world_path(world), field.name) for world in (whole, part))
            if isinstance(first, torch.Tensor):
                torch.testing.assert_close(first, second)


def test_a_path_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value of alpha"):
        alpha_path(WORLD, [])
    with pytest.raises(ValueError, match="kl_to_base"):
        kl_path(WORLD, [-1.0])
    assert kl_path(WORLD, [0.3]).objectives == (weighted(task=1.0, kl_to_base=0.3),)
