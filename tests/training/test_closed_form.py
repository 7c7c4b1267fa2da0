"""The real engine on a task whose responses can be listed: it reaches the closed form, and a wrong sign would not.

The short version of benchmarks/closed_form.py, on one of its bases. Training is deterministic given the seed, so nothing here
can fail by chance.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import sys
from pathlib import Path

import pytest
import torch

from bsharp.algorithm import Objective, parse_objective
from bsharp.theory.targets import optimum

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "closed_form.py"
TILTED, TEMPERED, SHARPENING = "tilted, α = 1, β⁻¹ = 2", "tempered, α = 2", "sharpening"


@pytest.fixture(scope="module")
def closed_form():
    spec = importlib.util.spec_from_file_location("closed_form", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def worlds(closed_form):
    return closed_form.enumerate_worlds(closed_form.random_transformer(0))


def mirrored(objective: Objective) -> Objective:
    """The objective whose reward and likelihood terms have the other sign; the KL keeps its own."""
    return dataclasses.replace(objective, task=-objective.task, base_loglikelihood=-objective.base_loglikelihood)


@pytest.mark.parametrize("label", [TILTED, TEMPERED])
def test_training_ends_at_the_closed_form_optimum_and_far_from_that_of_the_wrong_sign(
    label: str, closed_form, worlds
) -> None:
    condition = closed_form.CONDITIONS[label]
    outcome = closed_form.train_condition(label, condition, seed=0)
    assert statistics.mean(outcome.base_distances) > 0.3
    assert statistics.mean(outcome.distances) <= 0.05
    _, objective = parse_objective(condition.regime)
    for world, trained in zip(worlds, outcome.policies, strict=True):
        policy = torch.tensor(trained, dtype=torch.float64)
        assert float(policy.sum()) == pytest.approx(1.0, abs=1e-12)
        distance = float((policy - optimum(world, objective).policy).abs().sum() / 2)
        assert distance <= 0.06
        assert closed_form.distance_to_optima(policy, world, mirrored(objective)) > 0.4
        assert float((policy - world.base_logprob.exp()).abs().sum() / 2) > 0.3


def test_sharpening_collapses_onto_the_likeliest_response_of_the_base(closed_form, worlds) -> None:
    outcome = closed_form.train_condition(SHARPENING, closed_form.CONDITIONS[SHARPENING], seed=0)
    for world, trained in zip(worlds, outcome.policies, strict=True):
        mode = int(world.base_logprob.argmax())
        assert world.base_logprob[mode].exp() < 0.5
        assert trained[mode] >= 0.99


def test_the_distance_is_that_to_the_nearest_optimum(closed_form, worlds) -> None:
    world = worlds[0]
    base = world.base_logprob.exp()
    _, tempered = parse_objective("tempered(alpha=2)")
    assert closed_form.distance_to_optima(optimum(world, tempered).policy, world, tempered) == pytest.approx(0.0)
    expected = float((base - base**2 / (base**2).sum()).abs().sum() / 2)
    assert closed_form.distance_to_optima(base, world, tempered) == pytest.approx(expected)
    _, reward = parse_objective("task_reward")
    assert closed_form.distance_to_optima(base, world, reward) == pytest.approx(1 - float(base @ world.rewards))
    for regime in ("sharpening", "entropy_minimisation"):
        _, objective = parse_objective(regime)
        assert closed_form.distance_to_optima(base, world, objective) == pytest.approx(1 - float(base.max()))
    _, own = parse_objective("entropy_minimisation")
    elsewhere = torch.eye(world.size, dtype=torch.float64)[7]
    assert closed_form.distance_to_optima(elsewhere, world, own) == pytest.approx(0.0)
