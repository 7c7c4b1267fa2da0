"""Both sides of every numbered statement against plain numpy on the world's arrays, written out here once more.

Comparing both sides with a third computation is what catches a mistake that the two sides share.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bsharp.algorithm import sharpening, task_reward, tempered, tilted, weighted
from bsharp.theory import statements as say
from bsharp.theory.place import Place
from bsharp.theory.policy_gradient import autoregressive_log_policy, tabular_log_policy
from bsharp.theory.statements import Sides, joined
from bsharp.theory.world import FiniteWorld, random_world
from bsharp.theory.worlds import loop, right_mode, short_mode, wrong_mode

Array = NDArray[np.float64]

WORLD = random_world(11, 3, 4)
FIXED = random_world(12, 3, 3, eos=None)
GRADED = dataclasses.replace(WORLD, rewards=torch.linspace(0, 1, WORLD.size, dtype=torch.float64).roll(7))
PLACE = Place("random", WORLD, 5)
EULER = 1e-5  # step of central differences, accurate to about 1e-9 relative


def arrays(world: FiniteWorld) -> tuple[Array, Array, Array]:
    return world.base_logprob.numpy(), world.lengths.numpy().astype(float), world.rewards.numpy()


def softmax(exponent: Array) -> Array:
    weights = np.exp(exponent - exponent.max())
    return weights / weights.sum()


def on_path(world: FiniteWorld, alpha: float, rho: float = 0.0) -> Array:
    l_ref, length, _ = arrays(world)
    return softmax(l_ref + (alpha - 1) * l_ref / length**rho)


def tilted_by(world: FiniteWorld, lam: float) -> Array:
    l_ref, _, reward = arrays(world)
    return softmax(l_ref + lam * reward)


def cov(p: Array, a: Array, b: Array) -> float:
    return float(p @ (a * b) - (p @ a) * (p @ b))


def both_are(sides: Sides, expected: object, tolerance: float = 1e-9) -> None:
    assert sides.holds
    assert sides.left.tolist() == pytest.approx(expected, abs=tolerance)
    assert sides.right.tolist() == pytest.approx(expected, abs=max(tolerance, sides.bound))


rhos = pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])


# ----------------------------------------------------------------------------------------- O, G: optimum and gradient


def test_the_objective_falls_short_of_its_optimum_by_a_divergence() -> None:
    l_ref, length, reward = arrays(GRADED)
    w, s, c, o, rho = 0.7, -0.3, 0.2, -0.4, 0.25
    place = Place("graded", GRADED, 3)
    p = place.policies()[1].exp().numpy()
    value = p @ (w * reward + s * l_ref / length**rho + o * np.log(p)) - c * p @ (np.log(p) - l_ref)
    objective = weighted(w, s, c, o, "weighted_mean", rho)
    both_are(say.objective_falls_by_a_divergence(GRADED, objective, place.policies()[1:2]), [value])


def test_no_policy_does_better_than_the_best_vertex() -> None:
    l_ref, length, reward = arrays(WORLD)
    sides = say.no_policy_beats_the_optimum(WORLD, weighted(1.0, 0.2, normalisation="mean"), PLACE.policies())
    assert sides.holds
    assert sides.right.tolist() == pytest.approx([float((reward + 0.2 * l_ref / length).max())] * 5)
    assert float(sides.left.max()) < float(sides.right[0]) + 1e-12


def test_the_log_ratio_at_the_tilted_optimum_is_made_of_the_knobs() -> None:
    l_ref, _, reward = arrays(GRADED)
    p = softmax(1.7 * l_ref + 2.5 * reward)
    both_are(say.knobs_give_this_log_ratio(GRADED, 1.7, 2.5), (np.log(p) - l_ref).tolist())


def test_regression_returns_the_knobs_from_several_prompts() -> None:
    both_are(say.regression_reads_the_knobs([WORLD, GRADED, FIXED], 1.5, 3.0), [0.5, 3.0])


@pytest.mark.parametrize("objective", [task_reward(), tilted(2.0, 5.0, "mean"), weighted(0.7, -0.3, 0.2, 0.4)])
def test_training_scores_give_the_gradient_of_the_objective(objective: object) -> None:
    table = PLACE.table()
    sides = say.scores_give_the_gradient(WORLD, objective, table)  # type: ignore[arg-type]
    l_ref, length, reward = arrays(WORLD)
    weights = objective.as_dict()  # type: ignore[attr-defined]
    exponent = objective.length_exponent  # type: ignore[attr-defined]

    def value(moved: torch.Tensor) -> float:
        log_p = autoregressive_log_policy(WORLD)(moved).numpy()
        score = weights["task"] * reward + weights["base_loglikelihood"] * l_ref / length**exponent
        score = score + weights["own_loglikelihood"] * log_p - weights["kl_to_base"] * (log_p - l_ref)
        return float(np.exp(log_p) @ score)

    differences = []
    for cell in range(6):
        step = torch.zeros_like(table)
        step.view(-1)[cell] = EULER
        differences.append((value(table + step) - value(table - step)) / (2 * EULER))
    assert sides.holds
    assert sides.left[:6].tolist() == pytest.approx(differences, abs=1e-8)
    assert sides.right[:6].tolist() == pytest.approx(differences, abs=1e-8)
    assert max(map(abs, differences)) > 1e-3


def test_the_score_function_has_mean_zero() -> None:
    assert say.score_has_mean_zero(WORLD, PLACE.table()).holds


# ------------------------------------------------------------------------------------------------ P, A: along the path


def test_every_mean_follows_its_covariance_with_the_score() -> None:
    l_ref, length, reward = arrays(GRADED)
    p = softmax(1.5 * l_ref + 2.0 * reward)
    sides = say.mean_follows_its_covariance_with_the_score(GRADED, torch.as_tensor(length), 1.5, 2.0)
    both_are(sides, [cov(p, length, l_ref), cov(p, length, reward)])


def test_the_log_partition_generates_the_mean_of_the_log_likelihood() -> None:
    l_ref, _, _ = arrays(WORLD)
    both_are(say.log_partition_is_a_generating_function(WORLD, 2.5), [float(on_path(WORLD, 2.5) @ l_ref)])


@rhos
def test_likelihood_rises_with_its_variance(rho: float) -> None:
    l_ref, length, _ = arrays(WORLD)
    score = l_ref / length**rho
    both_are(say.likelihood_follows_its_variance(WORLD, 1.7, rho), [cov(on_path(WORLD, 1.7, rho), score, score)])


@rhos
def test_divergence_from_the_base_grows_with_the_variance(rho: float) -> None:
    l_ref, length, _ = arrays(WORLD)
    score = l_ref / length**rho
    expected = 0.7 * cov(on_path(WORLD, 1.7, rho), score, score)
    both_are(say.divergence_grows_along_the_path(WORLD, 1.7, rho), [expected])


def test_entropy_falls_with_the_variance() -> None:
    l_ref, _, _ = arrays(WORLD)
    both_are(say.entropy_falls_along_the_path(WORLD, 1.7), [-1.7 * cov(on_path(WORLD, 1.7), l_ref, l_ref)])


@rhos
def test_sharpening_moves_accuracy_by_a_covariance(rho: float) -> None:
    l_ref, length, reward = arrays(GRADED)
    expected = cov(on_path(GRADED, 2.0, rho), reward, l_ref / length**rho)
    difference = (on_path(GRADED, 2 + EULER, rho) - on_path(GRADED, 2 - EULER, rho)) @ reward / (2 * EULER)
    assert expected == pytest.approx(difference, abs=1e-8)
    both_are(say.sharpened_reward_follows_a_covariance(GRADED, 2.0, rho), [expected])


def test_the_reward_moves_itself_by_its_variance() -> None:
    _, _, reward = arrays(GRADED)
    difference = (tilted_by(GRADED, 2 + EULER) - tilted_by(GRADED, 2 - EULER)) @ reward / (2 * EULER)
    sides = say.reward_follows_its_variance(GRADED, 2.0)
    both_are(sides, [cov(tilted_by(GRADED, 2.0), reward, reward)])
    assert float(sides.left) == pytest.approx(difference, abs=1e-8)


def test_tilting_never_lowers_the_reward() -> None:
    sides = say.reward_never_falls(GRADED, torch.tensor([0.5, 3.0], dtype=torch.float64))
    _, _, reward = arrays(GRADED)
    means = [float(tilted_by(GRADED, lam) @ reward) for lam in (0.0, 0.5, 3.0)]
    assert sides.left.tolist() == pytest.approx(means[:2])
    assert sides.right.tolist() == pytest.approx(means[1:])
    assert sides.holds
    assert not dataclasses.replace(sides, left=sides.right, right=sides.left).holds


def test_tilted_success_has_a_closed_form_and_tends_to_one() -> None:
    _, _, reward = arrays(WORLD)
    both_are(say.tilted_success_in_closed_form(WORLD, 3.0), [float(tilted_by(WORLD, 3.0) @ reward)])
    limit = say.reward_tends_to_one(WORLD, 12.0)
    assert limit.holds
    assert 0 < limit.error < limit.bound < 1e-3


@pytest.mark.parametrize(("world", "accuracy"), [(right_mode(1), 1.0), (wrong_mode(1), 0.0)])
def test_sharpening_tends_to_the_reward_of_the_mode(world: FiniteWorld, accuracy: float) -> None:
    sides = say.sharpened_reward_tends_to_the_mode(world)
    assert sides.right.tolist() == [accuracy]
    assert sides.holds
    assert 0 < sides.error < sides.bound < 1e-2


def test_the_whole_change_is_the_integral_of_the_covariance() -> None:
    _, _, reward = arrays(WORLD)
    expected = float((on_path(WORLD, 4.0, 1.0) - on_path(WORLD, 1.0)) @ reward)
    both_are(say.whole_change_is_the_integral(WORLD, 4.0, 1.0), [expected])


# ------------------------------------------------------------------------------------------------------ B: alignment


@pytest.mark.parametrize("parametrisation", ["tabular", "autoregressive"])
@rhos
def test_natural_gradients_meet_in_a_covariance_and_their_cosine_is_the_correlation(
    rho: float, parametrisation: str
) -> None:
    l_ref, length, reward = arrays(WORLD)
    p, score = np.exp(l_ref), l_ref / length**rho
    covariance = cov(p, reward, score)
    both_are(say.fisher_product_is_a_covariance(WORLD, rho, parametrisation), [covariance])  # type: ignore[arg-type]
    correlation = covariance / math.sqrt(cov(p, reward, reward) * cov(p, score, score))
    both_are(say.cosine_is_a_correlation(WORLD, rho, parametrisation), [correlation])  # type: ignore[arg-type]


def test_the_cosine_over_prompts_is_not_the_mean_of_the_correlations() -> None:
    worlds = [right_mode(0), wrong_mode(0), loop(0)]
    moments = []
    for world in worlds:
        l_ref, _, reward = arrays(world)
        p = np.exp(l_ref)
        moments.append([cov(p, reward, l_ref), cov(p, reward, reward), cov(p, l_ref, l_ref)])
    covariance, reward_variance, variance = np.sum(moments, axis=0)
    pooled = float(covariance / math.sqrt(reward_variance * variance))
    both_are(say.cosine_pools_before_it_divides(worlds), [pooled])
    mean = np.mean([c / math.sqrt(v * u) for c, v, u in moments])
    assert abs(pooled - mean) > 0.005


@rhos
def test_the_euclidean_product_weighs_by_squared_probabilities(rho: float) -> None:
    l_ref, length, reward = arrays(WORLD)
    p, score = np.exp(l_ref), l_ref / length**rho
    expected = float((p**2 * (reward - p @ reward)) @ (score - p @ score))
    both_are(say.euclidean_product_weights_by_squares(WORLD, rho), [expected])


def test_the_euclidean_cosine_has_the_other_sign_in_a_world_of_three_responses() -> None:
    world = say.where_the_cosines_part()
    p, reward = np.array([0.49, 0.44, 0.07]), np.array([0.0, 1.0, 0.0])
    l_ref = np.log(p)
    a, b = reward - p @ reward, l_ref - p @ l_ref
    natural = (p * a) @ b / math.sqrt((p * a) @ a * ((p * b) @ b))
    euclidean = (p * a) @ (p * b) / math.sqrt((p * a) @ (p * a) * ((p * b) @ (p * b)))
    sides = say.euclidean_cosine_can_have_the_other_sign(world)
    assert natural > 0.1
    assert euclidean < -0.1
    assert sides.left.tolist() == pytest.approx([natural * euclidean])
    assert sides.holds
    assert not say.euclidean_cosine_can_have_the_other_sign(right_mode(0)).holds


# --------------------------------------------------------------------------------------------------------- C: length


@rhos
def test_sharpening_moves_the_length_by_a_covariance(rho: float) -> None:
    l_ref, length, _ = arrays(WORLD)
    difference = (on_path(WORLD, 2 + EULER, rho) - on_path(WORLD, 2 - EULER, rho)) @ length / (2 * EULER)
    sides = say.sharpened_length_follows_a_covariance(WORLD, 2.0, rho)
    both_are(sides, [cov(on_path(WORLD, 2.0, rho), length, l_ref / length**rho)])
    assert float(sides.left) == pytest.approx(difference, abs=1e-8)


def test_a_memoryless_base_gives_length_and_likelihood_this_covariance() -> None:
    token = np.array([0.3, 0.5, 0.2])
    responses = [
        row
        for length in range(1, 5)
        for row in itertools.product(range(3), repeat=length)
        if 0 not in row[:-1] and (row[-1] == 0 or length == 4)
    ]
    p = np.array([token[list(row)].prod() for row in responses])
    assert p.sum() == pytest.approx(1.0)
    expected = cov(p, np.array([float(len(row)) for row in responses]), np.log(p))
    assert expected < 0
    sides = say.memoryless_length_covariance(WORLD, torch.as_tensor(token).log(), eos=0)
    both_are(sides, [expected])


def test_the_winner_under_a_stronger_normalisation_is_never_shorter() -> None:
    for world in (WORLD, short_mode(2), loop(2)):
        sides = say.stronger_normalisation_is_longer(world, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        l_ref, length, _ = arrays(world)
        winners = [float(length[np.argmax(l_ref / length**rho)]) for rho in (0.0, 0.5, 1.0)]
        assert sides.left.tolist() == winners[:2]
        assert sides.right.tolist() == winners[1:]
        assert sides.holds
    assert winners[0] < winners[2]


def test_at_a_fixed_length_sum_and_mean_walk_one_path() -> None:
    l_ref, length, _ = arrays(FIXED)
    both_are(say.one_path_at_fixed_length(FIXED, 2.0), np.log(on_path(FIXED, 2.0)).tolist())
    assert np.array_equal(np.argsort(l_ref), np.argsort(l_ref / length))
    with pytest.raises(ValueError, match="fix the length"):
        say.one_path_at_fixed_length(WORLD, 2.0)


def test_a_loops_mean_log_probability_tends_to_zero() -> None:
    means = []
    for tokens in (4, 9):
        sides = say.loop_mean_tends_to_zero(loop(3, max_length=tokens), 0.22 - math.log(0.3))
        assert sides.holds
        means.append(float(sides.left))
    assert means[0] < means[1] < 0


# ---------------------------------------------------------------------------------------------------- D: instability


@pytest.mark.parametrize(("alpha", "lam"), [(1.0, 3.0), (3.0, 0.0), (0.5, 2.0)])
def test_log_odds_of_the_optimum_are_amplified_alpha_times(alpha: float, lam: float) -> None:
    l_ref, _, reward = arrays(WORLD)
    delta = PLACE.delta()
    before = alpha * l_ref + lam * reward
    after = alpha * (l_ref + delta.numpy()) + lam * reward
    change = np.log(softmax(after)) - np.log(softmax(before))
    both_are(say.odds_are_amplified(WORLD, delta, alpha, lam), (change - change[0]).tolist())


def test_the_first_order_change_errs_by_a_cumulant_generating_function() -> None:
    l_ref, _, _ = arrays(WORLD)
    delta, alpha = PLACE.delta(0.1), 3.0
    p, move = softmax(alpha * l_ref), delta.numpy()
    sides = say.first_order_change(WORLD, delta, alpha)
    exact = np.log(softmax(alpha * (l_ref + move))) - np.log(p)
    assert sides.left.tolist() == pytest.approx(exact.tolist(), abs=1e-12)
    assert sides.right.tolist() == pytest.approx((alpha * (move - p @ move)).tolist(), abs=1e-12)
    error = math.log(p @ np.exp(alpha * (move - p @ move)))
    assert sides.error == pytest.approx(error)
    assert 0 < error <= sides.bound < 1


def test_halving_a_perturbation_quarters_the_error() -> None:
    sides = say.halving_quarters_the_error(WORLD, PLACE.delta(), 2.0)
    assert sides.holds
    assert float(sides.left) == pytest.approx(4.0, abs=0.3)
    with pytest.raises(ValueError, match="no second order"):
        say.halving_quarters_the_error(WORLD, torch.zeros(WORLD.size, dtype=torch.float64), 2.0)


def test_the_sharpened_optimum_jumps_where_the_perturbation_passes_the_gap() -> None:
    assert say.sharpened_optimum_jumps(WORLD).left.tolist() == [0.0, 1.0]
    tied = dataclasses.replace(FIXED, base_token_logprobs=torch.zeros_like(FIXED.base_token_logprobs))
    with pytest.raises(ValueError, match="needs a unique mode"):
        say.sharpened_optimum_jumps(tied)


def test_a_smooth_optimum_moves_at_most_by_a_hyperbolic_tangent() -> None:
    l_ref, _, reward = arrays(WORLD)
    delta = PLACE.delta(0.5)
    sides = say.smooth_optimum_moves_this_far_at_most(WORLD, delta, 2.0, 1.0)
    moved = softmax(2 * (l_ref + delta.numpy()) + reward) - softmax(2 * l_ref + reward)
    assert float(sides.left) == pytest.approx(np.abs(moved).sum() / 2)
    assert sides.holds
    two = say.where_the_cosines_part()
    half = torch.tensor([0.5, 0.5 - 1e-9, 1e-9], dtype=torch.float64).log()
    two = dataclasses.replace(two, base_token_logprobs=half[:, None])
    shift = torch.tensor([0.4, -0.4, 0.0], dtype=torch.float64)
    # Sharp for two equal responses, moved in opposite directions by half the range each: (1 + x)/2 to (1 - x)/2 needs twice that.
    tight = say.smooth_optimum_moves_this_far_at_most(two, shift, 1.0)
    assert float(tight.left) == pytest.approx(math.tanh(0.4) / 2, abs=1e-6)
    assert float(tight.right) == pytest.approx(math.tanh(0.2))
    assert float(tight.right) / float(tight.left) < 1.05


def test_the_optimum_of_the_reward_does_not_see_the_base() -> None:
    _, _, reward = arrays(WORLD)
    sides = say.reward_optimum_ignores_the_base(WORLD, PLACE.delta(3.0))
    assert sides.holds
    assert sides.left.tolist() == pytest.approx([1.0], abs=1e-15)
    best = int(GRADED.rewards.argmax())
    graded = say.reward_optimum_ignores_the_base(GRADED, PLACE.delta(3.0))
    assert graded.holds
    assert graded.right.tolist() == [float(GRADED.rewards[best])]
    lowered = dataclasses.replace(GRADED, rewards=GRADED.rewards / 2)
    assert say.reward_optimum_ignores_the_base(lowered, PLACE.delta(3.0)).left.tolist() == [0.5]
    assert reward.mean() < 1


# -------------------------------------------------------------------------------------------------------- E: learning


@pytest.mark.parametrize("objective", [task_reward(), sharpening("mean"), tilted(2.0, 5.0)])
def test_the_natural_gradient_moves_probabilities_by_the_replicator_equation(objective: object) -> None:
    log_policy = PLACE.policies()[0]
    l_ref, length, reward = arrays(WORLD)
    weights, p = objective.as_dict(), log_policy.exp().numpy()  # type: ignore[attr-defined]
    score = weights["task"] * reward + weights["kl_to_base"] * (l_ref - np.log(p))
    score = score + weights["base_loglikelihood"] * l_ref / length**objective.length_exponent  # type: ignore[attr-defined]
    sides = say.natural_gradient_is_the_replicator(WORLD, objective, tabular_log_policy, log_policy)  # type: ignore[arg-type]
    both_are(sides, (p * (score - p @ score)).tolist())
    on_table = say.natural_gradient_is_the_replicator(
        WORLD,
        objective,  # type: ignore[arg-type]
        autoregressive_log_policy(WORLD),
        PLACE.table(),
    )
    assert on_table.holds


def test_gaps_grow_linearly_in_the_logarithm() -> None:
    l_ref, length, _ = arrays(WORLD)
    start = PLACE.policies()[0]
    expected = start.numpy() + 3.0 * l_ref / length
    both_are(say.gaps_grow_linearly(WORLD, sharpening("mean"), start, 3.0), (expected - expected[0]).tolist(), 1e-8)
    with pytest.raises(ValueError, match="moves with the policy"):
        say.gaps_grow_linearly(WORLD, tempered(2.0), start, 3.0)


def test_exact_learning_from_the_base_walks_the_paths_of_powers_and_of_tilts() -> None:
    both_are(say.flow_of_sharpening_is_the_power(WORLD, 1.5), np.log(on_path(WORLD, 2.5)).tolist())
    both_are(say.flow_of_the_reward_is_the_tilt(GRADED, 1.5), np.log(tilted_by(GRADED, 1.5)).tolist())


def test_a_smooth_optimum_is_approached_at_the_rate_of_the_entropy_weight() -> None:
    l_ref, _, _ = arrays(WORLD)
    start, time = PLACE.policies()[0], 0.8
    away = math.exp(-time) * (start.numpy() - 2.0 * l_ref)  # tempered(2): h = 1, optimum pi_ref^2
    both_are(
        say.flow_relaxes_to_the_optimum(WORLD, tempered(2.0), start, time), (away - away[0]).tolist(), tolerance=1e-8
    )
    with pytest.raises(ValueError, match="smooth optimum"):
        say.flow_relaxes_to_the_optimum(WORLD, sharpening(), start, time)


def test_a_point_mass_on_the_mode_costs_its_surprise_and_sharpening_pays_it_in_the_end() -> None:
    surprise = float(-WORLD.base_logprob.max())
    both_are(say.point_mass_costs_its_surprise(WORLD), [surprise])
    sides = say.divergence_tends_to_the_modes_surprise(WORLD)
    assert sides.right.tolist() == [pytest.approx(surprise), 0.0]
    assert sides.holds
    assert 0 < sides.error < sides.bound < 0.02


def test_the_variance_of_a_binary_reward_is_at_most_a_quarter_and_reaches_it() -> None:
    p0 = float(WORLD.base_logprob.exp() @ WORLD.rewards)
    sides = say.reward_variance_is_at_most_a_quarter(WORLD, torch.tensor([-math.log(p0 / (1 - p0)), 2.0]).double())
    assert sides.holds
    assert float(sides.left[0]) == pytest.approx(0.25)
    _, _, reward = arrays(WORLD)
    assert float(sides.left[1]) == pytest.approx(cov(tilted_by(WORLD, 2.0), reward, reward))


def test_the_variance_of_the_log_likelihood_grows_with_the_length() -> None:
    token = np.array([0.3, 0.5, 0.2])
    expected = []
    for length in (1, 2, 3):
        responses = list(itertools.product(range(3), repeat=length))
        p = np.array([token[list(row)].prod() for row in responses])
        expected.append(cov(p, np.log(p), np.log(p)))
    both_are(say.return_variance_grows_with_length(FIXED, torch.as_tensor(token).log()), expected)


# --------------------------------------------------------------------------------------- F, S: what is kept; samples


def test_tilting_keeps_the_conditionals_and_powering_raises_their_odds() -> None:
    l_ref, _, reward = arrays(WORLD)
    wrong, right = reward == 0, reward == 1
    inside = [np.log(softmax(l_ref[members])) for members in (wrong, right)]
    both_are(say.tilt_keeps_conditionals(WORLD, 2.0), np.concatenate(inside).tolist())
    raised = [3.0 * (part - part.mean()) for part in inside]
    both_are(say.power_raises_odds_inside(WORLD, 3.0), np.concatenate(raised).tolist())
    powered = np.log(softmax(3.0 * l_ref[right]))
    assert np.abs(np.exp(powered) - np.exp(inside[1])).sum() / 2 > 0.1


def test_no_regime_reaches_what_the_base_never_says() -> None:
    sides = say.support_never_grows(WORLD, 2.0, 5.0)
    assert sides.holds
    assert sides.left.tolist() == [0.0] * 6


def test_certainty_of_success_costs_minus_log_p0() -> None:
    l_ref, _, reward = arrays(WORLD)
    p, p0 = tilted_by(WORLD, 3.0), float(np.exp(l_ref) @ reward)
    both_are(say.tilted_divergence(WORLD, 3.0), [float(p @ (np.log(p) - l_ref))])
    sides = say.reward_costs_log_p0(WORLD, 12.0)
    assert sides.right.tolist() == pytest.approx([-math.log(p0)])
    assert sides.holds
    assert 0 < sides.error <= sides.bound < 1e-2


def test_importance_weights_have_a_second_moment_in_closed_form() -> None:
    l_ref, _, _ = arrays(WORLD)
    expected = float(on_path(WORLD, 2.0) ** 2 @ np.exp(-l_ref))
    both_are(say.weights_have_this_second_moment(WORLD, 2.0), [expected])
    draws = np.random.default_rng(0).choice(WORLD.size, size=200_000, p=np.exp(l_ref))
    weights = np.exp(l_ref[draws])
    share = weights.sum() ** 2 / (weights**2).sum() / len(draws)
    assert share == pytest.approx(1 / expected, rel=0.02)


def test_the_likeliest_of_n_has_its_accuracy_in_closed_form_and_tends_to_the_mode() -> None:
    l_ref, _, reward = arrays(WORLD)
    p = np.exp(l_ref)
    pairs = sum(p[i] * p[j] * reward[i if l_ref[i] > l_ref[j] else j] for i in range(len(p)) for j in range(len(p)))
    both_are(say.likeliest_of_n_in_closed_form(WORLD, 2), [float(pairs)])


# ------------------------------------------------------------------------------------------------------- two sides


def test_nan_never_holds_and_equal_infinities_do() -> None:
    def sides(left: list[float], right: list[float], kind: str = "equality") -> Sides:
        values = (torch.tensor(value, dtype=torch.float64) for value in (left, right))
        return Sides(*values, "left", "right", kind)  # type: ignore[arg-type]

    assert sides([-math.inf, 1.0], [-math.inf, 1.0]).holds
    assert not sides([math.nan], [math.nan]).holds
    assert not sides([0.0, math.nan, 0.0], [0.0, 0.0, 0.0], "inequality").holds
    assert not sides([math.inf], [1.0]).holds
    assert sides([1.0, 0.0, 0.0, -1e-40], [1.5, 0.1, 0.0, 0.0], "inequality").worst == 0
    assert sides([1.0, 0.0], [1.5, -0.1], "inequality").worst == 1
    assert sides([2.0], [1.5], "inequality").error == 0.5
    both = joined([sides([1.0], [1.0]), sides([2.0], [2.1])])
    assert (both.worst, both.holds) == (1, False)
    with pytest.raises(ValueError, match="can be joined"):
        joined([sides([1.0], [1.0]), sides([1.0], [2.0], "inequality")])
