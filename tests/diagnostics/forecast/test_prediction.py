"""Predictions from samples against enumeration, brute force and closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bsharp.algorithm import (
    Objective,
    entropy_minimisation,
    hybrid,
    parse_objective,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
)
from bsharp.diagnostics.forecast.prediction import base_figures, best_of_k, optimum_weights, predict
from bsharp.diagnostics.forecast.samples import ProblemSamples
from bsharp.seeding import generator
from bsharp.theory.targets import moments, optimum
from bsharp.theory.world import FiniteWorld, random_world

Array = NDArray[np.float64]

SMOOTH = (
    "tempered(alpha=2)",
    "tempered(alpha=3,normalisation=mean)",
    "tempered(alpha=2,normalisation=weighted_mean,rho=0.5)",
    "tilted(beta_inv=2)",
    "tilted(alpha=1.5,beta_inv=2)",
    "weighted(task=1,base_loglikelihood=0.5,kl_to_base=1,own_loglikelihood=0.3)",
)


def problem_of(
    logprobs: list[float],
    correct: list[float],
    lengths: list[int] | None = None,
    responses: list[int] | None = None,
    answers: tuple[str | None, ...] | None = None,
) -> ProblemSamples:
    right = np.array(correct, dtype=np.float64)
    return ProblemSamples(
        "p",
        "",
        right,
        right,
        np.array(logprobs, dtype=np.float64),
        np.array(lengths or [3] * len(right), dtype=np.int64),
        answers,
        None if responses is None else np.array(responses),
    )


def drawn(world: FiniteWorld, samples: int, rng: np.random.Generator, merged: bool) -> ProblemSamples:
    p = world.base_logprob.exp().numpy()
    rows = rng.choice(len(p), size=samples, p=p / p.sum())
    rewards = world.rewards.numpy()[rows]
    responses = np.unique(rows, return_inverse=True)[1] if merged else None
    return ProblemSamples(
        "p", "", rewards, rewards, world.base_logprob.numpy()[rows], world.lengths.numpy()[rows], None, responses
    )


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("spec", SMOOTH)
def test_forecasts_of_smooth_optima_converge_to_the_enumerated_values(spec: str, merged: bool) -> None:
    """80 draws at each n: the mean lies within 4.5 standard errors plus 2/n of the truth (false alarm < 1e-5 per figure)."""
    world, objective = random_world(3, 4, 5), parse_objective(spec)[1]
    exact = moments(optimum(world, objective).log_policy, world)
    errors = []
    for samples in (64, 1024):
        rng = generator(0, "convergence", spec, samples, int(merged))
        found = [predict(drawn(world, samples, rng, merged), objective) for _ in range(80)]
        for figure, truth in (("accuracy", exact.reward), ("length", exact.length), ("kl", exact.kl_policy_base)):
            values = np.array([getattr(prediction, figure) for prediction in found])
            scale = max(1.0, truth) * (15 if figure == "kl" else 2)
            assert abs(values.mean() - truth) < 4.5 * values.std() / math.sqrt(80) + scale / samples, figure
            if figure == "accuracy":
                errors.append(float(np.sqrt(((values - truth) ** 2).mean())))
    # The error falls like 1/√n, by 4 from 64 to 1024; faster where seen responses count with their known probability.
    assert errors[1] < errors[0] / 2.8
    if not merged:
        assert errors[1] > errors[0] / 5.7


@pytest.mark.parametrize("spec", ["sharpening", "sharpening(normalisation=mean)", "hybrid(alpha=1,beta_inv=4)"])
def test_with_every_response_sampled_a_vertex_is_the_enumerated_one(spec: str) -> None:
    world, objective = random_world(5, 3, 4), parse_objective(spec)[1]
    every = ProblemSamples(
        "p", "", world.rewards.numpy(), world.rewards.numpy(), world.base_logprob.numpy(), world.lengths.numpy()
    )
    exact = moments(optimum(world, objective).log_policy, world)
    found = predict(every, objective)
    assert found.accuracy == exact.reward
    assert found.length == exact.length
    assert found.kl == pytest.approx(exact.kl_policy_base, abs=1e-12)


def test_entropy_minimisation_ends_in_the_likeliest_sample() -> None:
    problem = problem_of([-3.0, -1.0, -2.0], [0, 1, 0])
    assert optimum_weights(problem, entropy_minimisation()).tolist() == [0, 1, 0]
    assert predict(problem, entropy_minimisation()).kl == pytest.approx(1.0)


def test_the_likeliest_responses_share_a_tie_of_sharpening_and_its_kl_is_minus_their_log_probability() -> None:
    problem = problem_of([-1.0, -1.0, -2.0, -2.0], [1, 0, 1, 1], lengths=[2, 3, 2, 2], responses=[0, 1, 2, 2])
    found = predict(problem, sharpening())
    assert found.accuracy == 0.5
    assert found.kl == pytest.approx(-math.log(2 * math.exp(-1.0)))


@pytest.mark.parametrize("responses", [None, [0, 1, 2, 2, 3, 4]])
def test_the_task_reward_keeps_the_bases_distribution_among_the_right_samples(responses: list[int] | None) -> None:
    problem = problem_of([-1.0, -1.2, -2.0, -2.0, -2.5, -4.0], [0, 1, 1, 1, 0, 1], [5, 4, 3, 3, 9, 7], responses)
    base = optimum_weights(problem, tempered(1.0))
    right = problem.responses.correct
    weights = optimum_weights(problem, task_reward())
    np.testing.assert_allclose(weights, base * right / (base @ right), atol=1e-15)
    limit = predict(problem, tilted(beta_inv=300.0))
    found = predict(problem, task_reward())
    assert found.accuracy == 1.0
    assert found.length == pytest.approx(limit.length)
    assert found.kl == pytest.approx(limit.kl) == pytest.approx(-math.log(base @ right))


def test_without_a_right_sample_the_reward_leaves_the_base_as_it_is() -> None:
    problem = problem_of([-1.0, -2.0, -3.0], [0, 0, 0], [1, 2, 3])
    for objective in (task_reward(), tilted(beta_inv=100.0)):
        found = predict(problem, objective)
        assert (found.accuracy, found.length, found.effective_samples) == pytest.approx((0.0, 2.0, 3.0))
        assert found.kl == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("responses", [None, [0, 1, 1, 2, 3]])
@pytest.mark.parametrize("normalisation", ["sum", "mean"])
def test_alpha_one_and_a_vanishing_tilt_are_the_base(responses: list[int] | None, normalisation: str) -> None:
    problem = problem_of([-1.0, -2.0, -2.0, -2.5, -3.0], [1, 0, 0, 1, 1], [2, 3, 3, 5, 4], responses)
    base = base_figures(problem)
    for objective in (tempered(1.0, normalisation), tilted(1.0, 1e-12, normalisation)):
        found = predict(problem, objective)
        assert found.accuracy == pytest.approx(base.accuracy, abs=1e-10)
        assert found.length == pytest.approx(base.length, abs=1e-10)
        assert found.kl == pytest.approx(0.0, abs=1e-10)
        assert found.effective_samples == pytest.approx(5.0)
    if responses is None:
        assert base.accuracy == pytest.approx(0.6)
        assert base.entropy == pytest.approx(10.5 / 5)


@given(right=st.integers(0, 9), tilt=st.floats(0.01, 50.0))
@settings(max_examples=60, deadline=None)
def test_a_tilt_follows_its_closed_form_at_the_empirical_success_rate(right: int, tilt: float) -> None:
    problem = problem_of([-1.0 - i for i in range(9)], [1.0] * right + [0.0] * (9 - right))
    p = right / 9
    found = predict(problem, tilted(beta_inv=tilt))
    expected = p * math.exp(tilt) / (p * math.exp(tilt) + 1 - p)
    assert found.accuracy == pytest.approx(expected, abs=1e-12)
    partition = math.log(p * math.exp(tilt) + 1 - p)
    assert found.kl == pytest.approx(tilt * expected - partition, abs=1e-9)


def test_tempering_weighs_samples_by_their_likelihood_to_the_power_alpha_minus_one() -> None:
    problem = problem_of([-1.0, -2.0, -4.0], [0, 1, 1], [1, 2, 8])
    weights = np.exp(1.5 * problem.logprobs)
    np.testing.assert_allclose(optimum_weights(problem, tempered(2.5)), weights / weights.sum())
    weights = np.exp(1.5 * problem.logprobs / problem.lengths)
    np.testing.assert_allclose(optimum_weights(problem, tempered(2.5, "mean")), weights / weights.sum())
    weights = np.exp(0.25 * problem.logprobs + 3.0 * problem.rewards)
    np.testing.assert_allclose(optimum_weights(problem, tilted(1.25, 3.0)), weights / weights.sum())


@pytest.mark.parametrize("responses", [None, [0, 1, 1, 2]])
def test_effective_samples_are_those_of_the_importance_weights_of_all_samples(responses: list[int] | None) -> None:
    problem = problem_of([-1.0, -2.0, -2.0, -4.0], [0, 1, 1, 1], responses=responses)
    weights = np.exp(0.5 * problem.logprobs)
    found = predict(problem, tempered(1.5))
    assert found.effective_samples == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert predict(problem, sharpening()).effective_samples == 1.0
    assert predict(problem, task_reward()).effective_samples == 3.0


def test_seen_responses_count_by_their_probability_over_the_chance_of_having_been_drawn() -> None:
    logprobs = [math.log(0.5), math.log(0.5), math.log(0.5), math.log(0.1), math.log(1e-9)]
    problem = problem_of(logprobs, [1, 1, 1, 0, 1], responses=[0, 0, 0, 1, 2])
    included = [1 - 0.5**5, 1 - 0.9**5, 5e-9]
    expected = np.array([0.5 / included[0], 0.1 / included[1], 1e-9 / included[2]])
    np.testing.assert_allclose(optimum_weights(problem, tempered(1.0)), expected / expected.sum(), rtol=1e-7)
    powered = np.array([0.5**2 / included[0], 0.1**2 / included[1], 1e-18 / included[2]])
    np.testing.assert_allclose(optimum_weights(problem, tempered(2.0)), powered / powered.sum(), rtol=1e-7)


def test_numerator_and_denominator_of_merged_weights_are_unbiased_over_all_outcomes() -> None:
    """Every outcome of 3 draws among 3 responses, enumerated: E[Σ_S b π*/π_ref] = Σ_y π_ref^α."""
    p, draws = np.array([0.6, 0.3, 0.1]), 3
    expected = np.zeros(3)
    for outcome in itertools.product(range(3), repeat=draws):
        chance = float(np.prod(p[list(outcome)]))
        seen = sorted(set(outcome))
        problem = problem_of(
            np.log(p[list(outcome)]).tolist(), [1.0] * draws, responses=[seen.index(y) for y in outcome]
        )
        # Weights are normalised; undo it with the known inclusion probability of the first.
        weights = optimum_weights(problem, tempered(2.0))
        first = p[seen[0]] ** 2 / (1 - (1 - p[seen[0]]) ** draws)
        expected[seen] += chance * weights * first / weights[0]
    np.testing.assert_allclose(expected, p**2, rtol=1e-12)


def test_rare_responses_make_merged_weights_those_of_importance_sampling() -> None:
    rng = generator(0, "rare")
    logprobs, right = (-60.0 - rng.exponential(2.0, 12)).tolist(), rng.integers(0, 2, 12).astype(float).tolist()
    for objective in (tempered(1.5), tilted(1.25, 2.0), sharpening(), task_reward()):
        merged = predict(problem_of(logprobs, right, responses=list(range(12))), objective)
        assert merged.accuracy == pytest.approx(predict(problem_of(logprobs, right), objective).accuracy, abs=1e-9)


SPECS = (
    tempered(3.0),
    tempered(3.0, "mean"),
    tilted(1.5, 20.0),
    sharpening(),
    sharpening("mean"),
    task_reward(),
    hybrid(1.0, 3.0),
    entropy_minimisation(),
    weighted(task=-1.0, kl_to_base=0.5),
)


@given(
    rows=st.lists(st.tuples(st.floats(-400.0, -0.7), st.booleans(), st.integers(1, 30)), min_size=2, max_size=12),
    place=st.integers(0, len(SPECS) - 1),
    merged=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_prediction_is_a_share_has_1_to_n_effective_samples_and_a_non_negative_kl(
    rows: list[tuple[float, bool, int]], place: int, merged: bool
) -> None:
    logprobs, right, lengths = (list(column) for column in zip(*rows, strict=True))
    responses = [sorted(set(rows)).index(row) for row in rows] if merged else None
    problem = problem_of(logprobs, [float(value) for value in right], lengths, responses)
    found = predict(problem, SPECS[place])
    assert 0.0 <= found.accuracy <= 1.0 + 1e-12
    assert 1.0 - 1e-9 <= found.effective_samples <= len(rows) + 1e-9
    assert min(lengths) - 1e-9 <= found.length <= max(lengths) + 1e-9
    assert found.kl >= 0.0
    assert math.isfinite(found.bias)
    assert optimum_weights(problem, SPECS[place]).sum() == pytest.approx(1.0)


def brute_force_bias(problem: ProblemSamples, objective: Objective) -> float:
    figures = []
    for left in range(problem.size):
        kept = np.arange(problem.size) != left
        rest = replace(
            problem,
            rewards=problem.rewards[kept],
            correct=problem.correct[kept],
            logprobs=problem.logprobs[kept],
            lengths=problem.lengths[kept],
            response_index=None
            if problem.response_index is None
            else np.unique(problem.response_index[kept], return_inverse=True)[1],
        )
        figures.append(predict(rest, objective).accuracy)
    return (problem.size - 1) * (float(np.mean(figures)) - predict(problem, objective).accuracy)


@pytest.mark.parametrize("responses", [None, [0, 1, 1, 2, 3, 3, 4]])
@pytest.mark.parametrize("objective", SPECS)
def test_the_jackknife_is_that_of_leaving_out_every_sample_in_turn(
    objective: Objective, responses: list[int] | None
) -> None:
    logprobs = [-1.0, -2.5, -2.5, -3.0, -3.5, -3.5, -90.0]
    problem = problem_of(logprobs, [0, 1, 1, 0, 1, 1, 1], [4, 3, 3, 9, 2, 2, 5], responses)
    assert predict(problem, objective).bias == pytest.approx(brute_force_bias(problem, objective), abs=1e-9)


def test_the_jackknife_survives_a_sample_that_holds_all_the_weight() -> None:
    problem = problem_of([-1.0, -500.0, -501.0, -502.0], [1, 0, 1, 0])
    assert predict(problem, tempered(3.0)).bias == pytest.approx(brute_force_bias(problem, tempered(3.0)), abs=1e-9)


def test_what_right_responses_nobody_drew_could_add_follows_the_tilt_at_half_a_success_in_n_plus_one() -> None:
    none = problem_of([-1.0] * 9, [0.0] * 9)
    p = 0.5 / 10
    expected = p * math.exp(3.0) / (p * math.exp(3.0) + 1 - p) - p
    assert predict(none, tilted(beta_inv=3.0)).unseen == pytest.approx(expected)
    assert predict(none, tilted(beta_inv=1e4)).unseen == pytest.approx(1 - p)
    assert predict(none, task_reward()).unseen == pytest.approx(1 - p)
    assert predict(none, tilted(beta_inv=1e-9)).unseen == pytest.approx(0.0, abs=1e-9)
    assert predict(none, tempered(2.0)).unseen == 0.0
    assert predict(problem_of([-1.0, -2.0], [0, 1]), task_reward()).unseen == 0.0


@pytest.mark.parametrize("values", [[5.0, 1.0, 3.0, 2.0, 4.0, 0.0], [2.0, 1.0, 2.0, 1.0, 2.0, 0.0], [1.0] * 6])
def test_the_best_of_k_is_its_mean_over_all_subsets(values: list[float]) -> None:
    credits = [1.0, 0.0, 0.0, 1.0, 0.5, 1.0]
    ks = range(1, 7)
    expected = []
    for k in ks:
        subsets = list(itertools.combinations(range(6), k))
        total = 0.0
        for subset in subsets:
            best = max(values[i] for i in subset)
            total += float(np.mean([credits[i] for i in subset if values[i] == best]))
        expected.append(total / len(subsets))
    np.testing.assert_allclose(best_of_k(np.array(values), np.array(credits), list(ks)), expected, atol=1e-12)


def test_the_best_of_all_samples_is_the_limit_of_sharpening_and_of_one_the_accuracy() -> None:
    rng = generator(0, "best")
    problem = problem_of((-rng.exponential(2.0, 40)).tolist(), rng.integers(0, 2, 40).astype(float).tolist())
    one, all_samples = best_of_k(problem.logprobs, problem.correct, [1, 40])
    assert one == pytest.approx(problem.accuracy)
    assert all_samples == pytest.approx(predict(problem, sharpening()).accuracy)


def test_the_best_of_more_than_all_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="1 <= k <= n, got k=4 with n=3"):
        best_of_k(np.zeros(3), np.zeros(3), [4])


def test_the_optimum_of_samples_taken_as_the_whole_world_is_that_of_the_world() -> None:
    """With all responses sampled once and none merged, π*/π_ref normalised over them is the closed form over π_ref."""
    world = random_world(1, 3, 3)
    problem = ProblemSamples(
        "p", "", world.rewards.numpy(), world.rewards.numpy(), world.base_logprob.numpy(), world.lengths.numpy()
    )
    for objective in (tempered(2.0), tilted(1.5, 3.0)):
        ratio = (optimum(world, objective).log_policy - world.base_logprob).exp()
        np.testing.assert_allclose(optimum_weights(problem, objective), (ratio / ratio.sum()).numpy(), atol=1e-14)
